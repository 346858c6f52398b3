"""Read a data set in BEIR's format (arXiv 2104.08663): corpus, queries and judgements."""

import csv
import json
from pathlib import Path
from typing import TextIO

from abft.errors import AbftError


def load_beir(
    folder: str | Path, split: str = "test"
) -> tuple[list[str], list[str], list[list[int]]]:
    """Return queries, documents and the numbers of each query's relevant documents.

    What `AttentionRanker.fit` takes. A document is its title and its text. Queries without a
    relevant document are left out.

    Args:
        folder: with corpus.jsonl, queries.jsonl and qrels/{split}.tsv.
        split: "train", "dev" or "test".

    Raises:
        AbftError: a file that is missing or damaged, or a judgement of an unknown document or
            query.
    """
    folder = Path(folder)
    corpus = _texts(folder / "corpus.jsonl", ("title", "text"))
    asked = _texts(folder / "queries.jsonl", ("text",))
    number = {name: i for i, name in enumerate(corpus)}

    path = folder / "qrels" / f"{split}.tsv"
    relevant: dict[str, list[int]] = {}
    with _opened(path) as file:
        rows = csv.reader(file, delimiter="\t")
        next(rows, None)  # the header
        for line, row in enumerate(rows, start=2):
            try:
                query, document, score = row
                positive = float(score) > 0
            except ValueError:
                raise AbftError(f"{path}, line {line}: expected query, document, score") from None
            if query not in asked or document not in number:
                raise AbftError(f"{path}, line {line}: unknown query or document")
            if positive:
                relevant.setdefault(query, []).append(number[document])
    if not relevant:
        raise AbftError(f"{path}: no relevant documents")
    return [asked[query] for query in relevant], list(corpus.values()), list(relevant.values())


def _texts(path: Path, fields: tuple[str, ...]) -> dict[str, str]:
    """Return the texts of a file of JSON lines by their id."""
    found = {}
    with _opened(path) as file:
        for line, text in enumerate(file, start=1):
            try:
                record = json.loads(text)
                parts = [str(record.get(field) or "").strip() for field in fields]
                found[str(record["_id"])] = " ".join(part for part in parts if part)
            except (ValueError, KeyError, AttributeError):
                raise AbftError(f"{path}, line {line}: expected JSON with _id and text") from None
    return found


def _opened(path: Path) -> TextIO:
    if not path.is_file():
        raise AbftError(f"no such file: {path}")
    return path.open(encoding="utf-8", newline="")
