"""Imports go one way, heavy ones are lazy, and nothing happens at import."""

import ast
import subprocess
import sys
from pathlib import Path

import abft

SOURCE = Path(abft.__file__).parent
# From the bottom to the top; a module imports only from levels below its own.
LEVELS = [
    {"errors", "heads", "loss", "pid", "metrics", "tables"},
    {"tasks", "attention", "logits"},
    {"data", "config", "models", "rows"},
    {"prompts", "folder", "card"},
    {"objective", "weights", "metaicl", "labels"},
    {"predict", "trainer", "callbacks"},
    {"run"},
    {"merge", "predictor", "scored"},
    {"classifier"},
    {"bench.methods", "bench.rewrites", "bench.statistics"},
    {"bench.calibration", "bench.scenarios"},
    {"bench.grid", "analysis.space", "analysis.arrays"},
    {"bench.store", "bench.table"},
    {"bench.subject", "bench.results"},
    {"bench.paper_tables"},
    {"bench.report"},
    {"bench.plan", "bench.jobs"},
    {"bench.ray_engine"},
    {"bench.engine"},
    {"analysis.study"},
    {
        "analysis.evaluation",
        "analysis.examples",
        "analysis.changes",
        "analysis.basin",
        "analysis.causality",
    },
    {"analysis.analyze"},
    {"report.charts"},
    {"report.inner_charts"},
    {"report.page"},
    {"cli_options"},
    {"cli"},
    {"__main__"},
]
PURE = {
    "heads": {"torch"},
    "loss": {"torch"},
    "pid": {"dataclasses"},
    "metrics": {"numpy", "collections.abc"},
}


def imports(path, top_level_only=False):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_imports_go_one_way():
    level = {name: i for i, names in enumerate(LEVELS) for name in names}
    files = {
        ".".join(path.relative_to(SOURCE).with_suffix("").parts): path
        for path in SOURCE.rglob("*.py")
    }
    files = {name: path for name, path in files.items() if not name.endswith("__init__")}
    assert set(files) == set(level)
    for name, path in files.items():
        for module in imports(path):
            if module.startswith("abft."):
                assert level[module.removeprefix("abft.")] < level[name], f"{name} imports {module}"


def test_the_method_is_pure():
    for name, allowed in PURE.items():
        assert set(imports(SOURCE / f"{name}.py")) <= allowed


def test_four_files_hold_the_method_on_few_pages():
    lines = sum(
        len((SOURCE / f"{n}.py").read_text().splitlines())
        for n in ("objective", "loss", "heads", "pid")
    )
    assert lines < 350


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom abft.cli.app import app\n"
        "assert CliRunner().invoke(app, ['train', '--help']).exit_code == 0\n"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_exported_name_exists():
    for name in abft.__all__:
        assert getattr(abft, name) is not None
