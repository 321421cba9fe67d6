"""Micro-benchmarks for pytest-benchmark, named by what they time; `make bench` runs them."""
