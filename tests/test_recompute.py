"""Every table of RESULTS.md and PERFORMANCE.md against the raw results, by code of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def recompute(pages):
    command = [sys.executable, str(ROOT / "benchmarks/recompute.py"), "--pages", str(pages)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


def test_the_pages_hold_what_the_raw_results_say():
    code, output = recompute(ROOT)
    assert code == 0, [line for line in output.splitlines() if "MISMATCH" in line]


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ("", "", None),
        ("| SST2 | vanilla | 66.0 | 33.8 |", "| SST2 | vanilla | 66.1 | 33.8 |", "66.1"),
        ("| SST2 | vanilla | 66.0 | 33.8 |", "| SST2 | vanilla | 66.0 | |", "vanilla"),
        ("## Renamed", "## Sizes\n\n| a | b |\n|---|---|\n| x | 1.5 |\n\n## Renamed", "Sizes"),
    ],
    ids=["no change", "another number", "no number", "another table"],
)
def test_what_the_raw_results_do_not_say_is_named(tmp_path, before, after, named):
    """On one section, whose tables are quick to recompute; others are missing, and said to be."""
    page = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    start = page.index("## Renamed labels")
    section = "# Results\n\n" + page[start : page.index("\n## ", start)]
    assert before in section
    if before:
        section = section.replace(before, after, 1)
    (tmp_path / "RESULTS.md").write_text(section + "\n", encoding="utf-8")
    (tmp_path / "PERFORMANCE.md").write_text("# Performance\n", encoding="utf-8")

    code, output = recompute(tmp_path)
    assert code == 1
    mismatches = [line for line in output.splitlines() if line.startswith("MISMATCH")]
    found = [line for line in mismatches if " has no table " not in line]
    assert "MISMATCH PERFORMANCE.md has no table machine" in mismatches
    assert bool(found) is (named is not None)
    assert all(named in line for line in found), found
