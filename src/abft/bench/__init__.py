"""The benchmark: models x tasks x methods x scenarios x seeds, resumable, and the paper's tables.

methods.py and calibration.py say what is compared, scenarios.py what is measured; grid.py reads the
grid file and lists its cells, jobs.py and engine.py run them, store.py keeps their results,
results.py, paper_tables.py and report.py show them.
"""
