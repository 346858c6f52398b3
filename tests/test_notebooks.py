"""The notebooks of the documentation: what is stored, and whether they run.

They run with the real model, which takes minutes; so only where ABFT_NOTEBOOK_TESTS is set, as CI
does.

    python tests/test_notebooks.py [NAME ...]   runs them at the size that readers see, and stores
    their output
"""

import copy
import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SMALL = {"ABFT_STEPS": "1", "ABFT_TEXTS": "48"}
LARGEST = 200_000  # bytes
# What libraries say on stderr about the environment they are installed in; no output of the
# notebook.
NOISE = (
    "IProgress not found",
    "import tqdm as notebook_tqdm",
    "Failed to load CPU gemm_4bit_forward",
)
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def executed(path: Path, folder: Path, **environment: str) -> nbformat.NotebookNode:
    """A copy of the notebook with the output of running it in `folder`. Raises
    CellExecutionError.
    """
    book = nbformat.read(path, as_version=4)
    scripts = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ["PATH"]]
    )  # `abft`, where no venv is activated
    client = NotebookClient(
        book,
        timeout=1800,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env={**os.environ, "HF_HUB_OFFLINE": "1", "PATH": scripts, **environment})
    return client.nb


def cleaned(book: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook as it is stored: without metadata of the execution and without `NOISE`."""
    book = copy.deepcopy(book)
    book.metadata = METADATA
    for cell in book.cells:
        cell.metadata = {}
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                lines = [
                    line
                    for line in output.text.splitlines(True)
                    if not any(words in line for words in NOISE)
                ]
                # A warning begins with the file of its cell, in a folder of the machine.
                output.text = re.sub(r"\S*ipykernel_\d+/\d+\.py:\d+: ", "", "".join(lines))
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.output_type != "stream" or o.text.strip()]
    return book


def test_there_are_notebooks():
    assert NOTEBOOKS


@each_notebook
def test_notebook_is_stored_clean(path):
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert path.stat().st_size < LARGEST
    assert book == cleaned(book), "store it with python tests/test_notebooks.py"
    own_path = re.search(
        r"/(home|root|work|Users|tmp|mnt)/|site-packages", path.read_text(encoding="utf-8")
    )
    assert not own_path, "it holds a path of a machine"
    assert not [
        o for cell in book.cells for o in cell.get("outputs", []) if o.output_type == "error"
    ]


@each_notebook
def test_notebook_runs(path, tmp_path):
    if not os.environ.get("ABFT_NOTEBOOK_TESTS"):
        pytest.skip("takes minutes; set ABFT_NOTEBOOK_TESTS=1 to run the notebooks")
    book = executed(path, tmp_path, **SMALL)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]
    assert [
        o
        for o in cleaned(book).cells[-1].outputs
        if o.output_type != "stream" or o.name == "stdout"
    ]


if __name__ == "__main__":
    for notebook in NOTEBOOKS:
        if notebook.stem in sys.argv[1:] or not sys.argv[1:]:
            with tempfile.TemporaryDirectory() as place:
                nbformat.write(cleaned(executed(notebook, Path(place))), notebook)
            print(notebook)
