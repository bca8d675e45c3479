"""A campaign of harm: each failpoint and fault, processes killed and stopped by chance; then the same command again,
and what is left held against a campaign that nobody disturbed.

    make chaos          all trials that tests/chaos/results.jsonl does not have yet, then docs/CHAOS.md
"""
