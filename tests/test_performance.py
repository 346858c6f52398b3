"""PERFORMANCE.md shows what results/speed holds."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_tables_come_from_the_stored_results():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    page = (ROOT / "PERFORMANCE.md").read_text(encoding="utf-8")
    assert tables.filled(page, ROOT / "results" / "speed") == page
