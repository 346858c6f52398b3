"""The cases of benchmarks/inputs.py: 45 inputs, none of which ends in a traceback."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import invoke

ROOT = Path(__file__).parent.parent


def load():
    spec = importlib.util.spec_from_file_location("inputs", ROOT / "benchmarks" / "inputs.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["inputs"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


inputs = load()
READ = [case for case in inputs.CASES if case.outcome == inputs.READ]
REFUSED = [case for case in inputs.CASES if case.outcome == inputs.REFUSED]

# Runs a command as `abft` does, and says whether it imported torch.
RUN = """
import sys
from abft.cli.app import main
try:
    sys.argv = ["abft", *sys.argv[1:]]
    main()
finally:
    print("torch" in sys.modules)
"""


@pytest.mark.parametrize("case", READ, ids=lambda case: case.name)
def test_what_is_read(case, tmp_path, monkeypatch, model_folder):
    case.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    result = invoke(*case.command, *inputs.SMALL, "--model", model_folder)
    assert result.exit_code == 0, result.output
    assert case.message in result.stderr


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_what_is_refused_before_torch_is_imported(case, tmp_path):
    case.write(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", RUN, *case.command], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: "), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert case.message in done.stderr
    assert done.stdout.strip() == "False"
