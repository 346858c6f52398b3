"""The tables of RESULTS.md and PERFORMANCE.md from the raw results: see benchmarks/recompute.py."""
