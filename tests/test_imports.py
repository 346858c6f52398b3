"""Packages import in one order, heavy modules are lazy, and functions stay small."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import abft

SOURCE = Path(abft.__file__).parent
# A package imports only from its own level, itself, and levels before it.
ORDER = [
    {"errors"},
    {"files", "settings"},
    {"data"},
    {"model"},
    {"method"},
    {"training", "scoring"},
    {"runs"},
    {"readouts"},
    {"classifier"},
    {"bench"},
    {"ranker"},
    {"analysis"},
    {"report"},
    {"cli"},
    {"__init__", "__main__"},
]
LEVEL = {package: level for level, packages in enumerate(ORDER) for package in packages}
PURE = {
    "method/heads.py": {"torch"},
    "method/losses.py": {"torch"},
    "method/pid.py": {"dataclasses"},
    "scoring/metrics.py": {"numpy", "collections.abc"},
}
MOST_PARAMETERS = 12
LARGEST = {"ABFTClassifier.__init__"}  # scikit-learn's estimators list their settings


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def package_of(path):
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def test_packages_import_in_one_order():
    assert {package_of(path) for path in SOURCE.rglob("*.py")} == set(LEVEL)
    for path in SOURCE.rglob("*.py"):
        own = package_of(path)
        for module in imports(path):
            if module.startswith("abft."):
                other = module.split(".")[1]
                allowed = other == own or LEVEL[other] < LEVEL[own]
                assert allowed, f"{path.relative_to(SOURCE)} imports {module}"


@pytest.mark.parametrize("name", PURE)
def test_formulas_stand_alone(name):
    assert set(imports(SOURCE / name)) <= PURE[name]


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom abft.cli.app import app\n"
        "for command in ('train', 'eval', 'predict', 'report', 'bench'):\n"
        "    assert CliRunner().invoke(app, [command, '--help']).exit_code == 0\n"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_exported_name_exists():
    for name in abft.__all__:
        assert getattr(abft, name) is not None


def functions(tree, prefix=""):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            yield f"{prefix}{node.name}", node
            yield from functions(node, f"{prefix}{node.name}.")
        else:
            name = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
            yield from functions(node, prefix + name)


def test_no_function_has_many_parameters():
    for path in SOURCE.rglob("*.py"):
        for name, node in functions(ast.parse(path.read_text(encoding="utf-8"))):
            arguments = node.args
            count = len(arguments.posonlyargs + arguments.args + arguments.kwonlyargs)
            assert count <= MOST_PARAMETERS or name in LARGEST, f"{path.name}: {name} has {count}"
