"""Benchmarks that anyone can rerun: ``python -m benchmarks --help``, or ``make bench`` for the published table."""
