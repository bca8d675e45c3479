"""Brainstacks on a cluster: continual multi-domain fine-tuning with frozen mixture-of-experts LoRA stacks.

Imports go one way: jobs -> report, serving -> coordinator -> training, sweep, router -> inference ->
stacks, data, store, registry -> base -> config -> records -> errors.
"""

__version__ = "0.1.0"
