"""Read a data set in BEIR's format (arXiv 2104.08663): corpus, queries and judgements."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from abft.errors import AbftError


def load_beir(
    folder: str | Path, split: str = "test"
) -> tuple[list[str], list[str], list[list[int]]]:
    """Return queries, documents and the indices of each query's relevant documents.

    These are the arguments of `AttentionRanker.fit`. A document is its title and its text; equal
    documents become one. Queries without a relevant document are left out.

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

    # Equal documents become one; those without a text are left out.
    documents = list(dict.fromkeys(text for text in corpus.values() if text))
    place = {text: i for i, text in enumerate(documents)}
    path = folder / "qrels" / f"{split}.tsv"
    relevant: dict[str, set[int]] = {}
    for number, row in enumerate(
        csv.reader(_lines(path), delimiter="\t", quoting=csv.QUOTE_NONE), start=1
    ):
        where = f"{path}, line {number}"
        try:
            query, document, score = row
            positive = float(score) > 0
        except ValueError:
            # The header, and empty lines.
            if number == 1 or not row:
                continue
            raise AbftError(f"{where}: expected query, document, score") from None
        if query not in asked or document not in corpus:
            raise AbftError(f"{where}: unknown query or document")
        if positive and corpus[document] and asked[query]:
            relevant.setdefault(query, set()).add(place[corpus[document]])
    if not relevant:
        raise AbftError(f"{path}: no relevant documents")
    answers = [sorted(each) for each in relevant.values()]
    return [asked[query] for query in relevant], documents, answers


def _texts(path: Path, fields: tuple[str, ...]) -> dict[str, str]:
    """Return the texts of a file of JSON lines by their id."""
    found = {}
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            parts = [str(record.get(field) or "").strip() for field in fields]
            found[str(record["_id"])] = " ".join(part for part in parts if part)
        except (ValueError, KeyError, AttributeError):
            raise AbftError(f"{path}, line {number}: expected JSON with _id and text") from None
    return found


def _lines(path: Path) -> Iterator[str]:
    if not path.is_file():
        raise AbftError(f"no such file: {path}")
    try:
        with path.open(encoding="utf-8") as file:
            yield from file
    except UnicodeDecodeError:
        raise AbftError(f"{path} is not UTF-8") from None
