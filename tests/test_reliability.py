"""The short version of benchmarks/faults.py: kills, damaged files, full disks."""

import json
import os
import subprocess
import sys
from pathlib import Path

FAULTS = Path(__file__).parent.parent / "benchmarks/faults.py"
# A flipped bit in a text that people may edit is another text: nothing can tell.
EDITABLE = ("config.yaml", "task.json")


def test_faults_leave_nothing_half_written_and_change_no_result(tmp_path):
    command = [sys.executable, str(FAULTS), "--times", "2", "--every", "9"]
    command += ["--commands", "train", "merge", "--output", str(tmp_path / "faults.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]

    faults = json.loads((tmp_path / "faults.json").read_text())["faults"]
    assert len(faults) > 15
    for row in faults:
        fine = {"equal results", "refused in one line", "it fits, and finishes"}
        fine |= {"mounting is not allowed"}
        if row["fault"].startswith(EDITABLE) and "flipped" in row["fault"]:
            fine |= {outcome for outcome in row["outcomes"] if outcome.startswith("other results")}
        assert row["outcomes"].keys() <= fine, row
