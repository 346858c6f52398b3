"""Write predictions to a file: the rows read, each with its label and every label's probability."""

import csv
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from abft.cli.tables import print_table
from abft.errors import AbftError
from abft.files import atomic_file, write_text

if TYPE_CHECKING:
    import datasets

    from abft.runs.explain import Explanation

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
LABEL, PROBABILITY = "predicted_label", "probability_"
Predictions = Sequence[tuple[str, dict[str, float]]]  # what `Predictor.predict` returns


def json_lines(texts: Sequence[str], predictions: Predictions) -> str:
    """Return one JSON object in a line for each text: text, label, probabilities."""
    rows = [
        {"text": text, "label": label, "probabilities": probabilities}
        for text, (label, probabilities) in zip(texts, predictions, strict=True)
    ]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def check_output(output: Path, suffixes: Sequence[str] = SUFFIXES) -> None:
    """Raise AbftError unless `output` is a new file of a known kind in an existing folder."""
    if output.suffix.lower() not in suffixes:
        raise AbftError(f"--output {output}: expected a file ending in {', '.join(suffixes)}")
    if output.suffix.lower() == ".html" and find_spec("jinja2") is None:
        raise AbftError("an HTML page needs jinja2: pip install 'abft[report]'")
    if output.exists():
        raise AbftError(f"{output} exists; give another --output")
    if not output.parent.is_dir():
        raise AbftError(f"{output} is in no folder; give another --output")


def check_columns(output: Path, columns: Sequence[str], labels: Sequence[str]) -> None:
    """Raise AbftError if the source already has a column that `output`, a table, would write.

    JSON lines hold none of the source's columns.
    """
    new_columns = {LABEL, *(PROBABILITY + label for label in labels)}
    clashes = sorted(new_columns & set(columns))
    if clashes and output.suffix.lower() != ".jsonl":
        raise AbftError(
            f"--data has a column {clashes[0]!r} already, which --output would write; rename it"
        )


def json_line(explanation: "Explanation") -> str:
    """Return an explanation as one line of JSON."""
    return json.dumps(explanation.record(), ensure_ascii=False) + "\n"


def write_explanations(output: Path, explanations: "Sequence[Explanation]") -> None:
    """Write explanations as JSON lines or as an HTML page, at once or not at all."""
    if output.suffix.lower() == ".html":
        from abft.report.explanations import explanation_page

        write_text(output, explanation_page(explanations))
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


def write_predictions(
    output: Path,
    texts: Sequence[str],
    predictions: Predictions,
    table: "datasets.Dataset | None" = None,
) -> None:
    """Write predictions at once or not at all, in the format of the file's ending.

    Args:
        table: the table of which the texts are a column; its other columns are kept. Without it
            there is a column "text".
    """
    if output.suffix.lower() == ".jsonl":
        write_text(output, json_lines(texts, predictions))
        return

    import pandas

    if table is None:
        import datasets

        table = datasets.Dataset.from_dict({"text": list(texts)})

    # A column of labels, and one of probabilities for each label.
    rows = [probabilities for _, probabilities in predictions]
    columns: dict[str, list] = {LABEL: [label for label, _ in predictions]}
    columns |= {PROBABILITY + label: [row[label] for row in rows] for label in rows[0]}

    # pandas' own types would make floats of whole numbers with gaps.
    arrow_table = table.with_format("arrow")[:]
    frame = arrow_table.to_pandas(types_mapper=pandas.ArrowDtype).assign(**columns)

    kind = output.suffix.lower()
    with atomic_file(output) as partial:
        if kind == ".parquet":
            frame.to_parquet(partial, index=False)
            return

        separator = "\t" if kind == ".tsv" else ","
        text = frame.to_csv(index=False, sep=separator)
        # pandas quotes a line feed, but not a carriage return, which readers take for a line's end.
        if "\r" in text:
            text = frame.to_csv(index=False, sep=separator, quoting=csv.QUOTE_NONNUMERIC)
        with partial.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
