"""Every table of RESULTS.md and PERFORMANCE.md against the raw results, by code of its own."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = ("RESULTS.md", "PERFORMANCE.md")


def recompute(pages):
    command = [sys.executable, str(ROOT / "benchmarks/recompute.py"), "--pages", str(pages)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


def test_the_pages_hold_what_the_raw_results_say():
    code, output = recompute(ROOT)
    assert code == 0, [line for line in output.splitlines() if "MISMATCH" in line]


@pytest.mark.parametrize(
    ("page", "before", "after", "named"),
    [
        ("RESULTS.md", "| vanilla | 64.5 | 56.8 |", "| vanilla | 64.6 | 56.8 |", "vanilla"),
        (
            "RESULTS.md",
            "## Accuracy",
            "## Sizes\n\n| a | b |\n|---|---|\n| x | 1.5 |\n\n## Accuracy",
            "Sizes",
        ),
    ],
    ids=["another number", "another table"],
)
def test_what_the_raw_results_do_not_say_is_named(tmp_path, page, before, after, named):
    for name in PAGES:
        shutil.copy(ROOT / name, tmp_path)
    text = (tmp_path / page).read_text(encoding="utf-8")
    assert before in text
    (tmp_path / page).write_text(text.replace(before, after, 1), encoding="utf-8")
    code, output = recompute(tmp_path)
    mismatches = [line for line in output.splitlines() if line.startswith("MISMATCH")]
    assert code == 1
    assert any(page in line and named in line for line in mismatches), mismatches
