"""The benchmark: models x tasks x methods x scenarios x seeds, resumable, and the paper's tables.

methods.py and calibration.py say what is compared, scenarios.py what is measured; grid.py reads the grid file and lists its
cells, store.py keeps results, engine.py runs cells, statistics.py and report.py turn results into tables.
"""
