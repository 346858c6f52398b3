"""Check where predictions go, and show them and explanations on the terminal."""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from abft.cli.tables import print_table
from abft.data.datasets import check_columns
from abft.data.tables import TableFile
from abft.errors import AbftError
from abft.files import write_text
from abft.runs.prediction_files import LABEL, PROBABILITY, Prediction

if TYPE_CHECKING:
    from abft.runs.explain import Explanation

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


def prediction_line(text: str, prediction: Prediction, as_json: bool) -> str:
    """Return what the terminal shows for a text: label, probability, text; or JSON."""
    label, probabilities = prediction
    if as_json:
        row = {"text": text, "label": label, "probabilities": probabilities}
        return json.dumps(row, ensure_ascii=False)
    return f"{label}\t{max(probabilities.values()):.3f}\t{' '.join(text.split())}"


def check_output(output: Path, suffixes: Sequence[str] = SUFFIXES) -> None:
    """Raise AbftError unless `output` is a new file of a known kind in an existing folder."""
    if output.suffix.lower() not in suffixes:
        raise AbftError(f"--output {output}: expected a file ending in {', '.join(suffixes)}")
    if output.suffix.lower() == ".html" and find_spec("jinja2") is None:
        raise AbftError("an HTML page needs jinja2: pip install 'abft[report]'")
    if output.exists():
        raise AbftError(f"{output} exists; give another --output")
    if not output.parent.is_dir():
        raise AbftError(f"--output {output}: the folder {output.parent} does not exist")


def check_table(table: TableFile, column: str, output: Path | None, labels: Sequence[str]) -> None:
    """Raise AbftError if a file lacks the column of texts, or has one that `output` would write.

    The latter does not matter for JSON lines, which hold none of the source's columns.
    """
    check_columns(table.columns, column, str(table.path), "text")
    new_columns = {LABEL, *(PROBABILITY + label for label in labels)}
    clashes = sorted(new_columns & set(table.columns))
    if clashes and output is not None and output.suffix.lower() != ".jsonl":
        raise AbftError(
            f"--data has a column {clashes[0]!r} already, which --output would write; rename it"
        )


def json_line(explanation: "Explanation | None") -> str:
    """Return an explanation as one line of JSON; None is a row without a text."""
    nothing = {"text": None, "label": None, "probabilities": None}
    record = nothing if explanation is None else explanation.record()
    return json.dumps(record, ensure_ascii=False) + "\n"


def write_explanations(output: Path, explanations: "Sequence[Explanation | None]") -> None:
    """Write explanations as JSON lines or as an HTML page, whole or not at all."""
    if output.suffix.lower() == ".html":
        from abft.report.explanations import explanation_page

        write_text(output, explanation_page([each for each in explanations if each is not None]))
    else:
        write_text(output, "".join(map(json_line, explanations)))


def print_explanation(explanation: "Explanation", longest: int = 54, tokens: int = 5) -> None:
    """Print a table of the demonstrations, and the tokens that were looked at most."""

    def short(text: str) -> str:
        line = " ".join(text.split())
        return line if len(line) <= longest else line[: longest - 1] + "…"

    print(f"{explanation.label} {explanation.probabilities[explanation.label]:.3f}  ", end="")
    print(short(explanation.text))
    order = explanation.token_shares.argsort()[::-1][:tokens]
    most = [f"{explanation.tokens[i].strip()} {explanation.token_shares[i]:.0%}" for i in order]
    print(f"tokens looked at most: {', '.join(most)}")

    if len(explanation.shares):
        rows = [
            (f"{explanation.shares[i]:.1%}", *map(short, reversed(explanation.demonstrations[i])))
            for i in explanation.shares.argsort()[::-1]
        ]
        print_table([("share", "right"), ("label", "left"), ("demonstration", "left")], rows)
