"""Benchmarks that anyone can rerun: ``python -m benchmarks --help``, or ``make bench`` for the published table."""

from bs_cluster.quiet import quieten_libraries

quieten_libraries()  # before any of them is imported: what a benchmark prints is its own
