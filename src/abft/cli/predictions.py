"""Predictions texts as a file: the rows that came in, and for each its label and the probability of
every label.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from abft.errors import AbftError
from abft.files import atomic_file, write_text

if TYPE_CHECKING:
    import datasets

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
LABEL, PROBABILITY = "predicted_label", "probability_"
Predictions = Sequence[tuple[str, dict[str, float]]]  # what `Predictor.predict` returns


def json_lines(texts: Sequence[str], predictions: Predictions) -> str:
    """One JSON object for each text: text, label, probabilities."""
    rows = zip(texts, predictions, strict=True)
    return "".join(
        json.dumps({"text": text, "label": label, "probabilities": scores}, ensure_ascii=False)
        + "\n"
        for text, (label, scores) in rows
    )


def check_output(output: Path) -> None:
    """Raise AbftError unless `output` is a new file, of a kind that can be written, in a folder
    that is there.
    """
    if output.suffix.lower() not in SUFFIXES:
        raise AbftError(f"--output {output}: expected a file ending in {', '.join(SUFFIXES)}")
    if output.exists() or not output.parent.is_dir():
        raise AbftError(
            f"{output} {'exists' if output.exists() else 'is in no folder'}; give another --output"
        )


def check_columns(output: Path, columns: Sequence[str], labels: Sequence[str]) -> None:
    """Raise AbftError if the source has a column that the table `output` will have for the
    prediction.
    """
    own = {LABEL, *(PROBABILITY + label for label in labels)} & set(columns)
    if own and output.suffix.lower() != ".jsonl":
        raise AbftError(
            f"--data has a column {sorted(own)[0]!r} already, which --output would write; rename it"
        )


def write_predictions(
    output: Path,
    texts: Sequence[str],
    predictions: Predictions,
    table: "datasets.Dataset | None" = None,
) -> None:
    """Write a table at once or not at all, its kind by the file's ending.

    Args:
        table: what the texts are a column of; tables keep its other columns. Without it there is a
            column "text".
    """
    if output.suffix.lower() == ".jsonl":
        write_text(output, json_lines(texts, predictions))
        return
    import pandas

    if table is None:
        import datasets

        table = datasets.Dataset.from_dict({"text": list(texts)})
    scores = [probabilities for _, probabilities in predictions]
    new: dict[str, list] = {LABEL: [label for label, _ in predictions]}
    new |= {PROBABILITY + label: [row[label] for row in scores] for label in scores[0]}
    whole = table.with_format("arrow")[
        :
    ]  # pandas' own types would make whole numbers with gaps floats
    frame = whole.to_pandas(types_mapper=pandas.ArrowDtype).assign(**new)
    kind = output.suffix.lower()
    with atomic_file(output) as partial:
        if kind == ".parquet":
            frame.to_parquet(partial, index=False)
        else:
            frame.to_csv(partial, index=False, sep="\t" if kind == ".tsv" else ",")
