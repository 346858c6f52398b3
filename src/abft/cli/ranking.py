"""`abft rank`: the documents that a query looks at."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from abft.cli.options import Json, with_settings
from abft.data.datasets import check_columns, check_empty, texts_of
from abft.data.tables import READERS, open_table
from abft.errors import AbftError
from abft.method.settings import DATA
from abft.runs.config import MODEL
from abft.runs.rank_settings import RankSettings
from abft.runs.run_folder import check_new_folder


@with_settings(RankSettings)
def rank(
    settings: RankSettings,
    query: Annotated[
        list[str], typer.Option(help="What to look for; repeat.", rich_help_panel=DATA)
    ],
    documents: Annotated[
        Path,
        typer.Option(
            help="File of texts (.csv, .tsv, .jsonl, .json, also .gz; .parquet, .xlsx), or .txt "
            "with a text in each line.",
            rich_help_panel=DATA,
        ),
    ],
    run: Annotated[
        Path | None,
        typer.Option(
            help="Folder that `AttentionRanker.save` wrote.",
            show_default="untrained, all heads",
            rich_help_panel=MODEL,
        ),
    ] = None,
    find_heads: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="First find and weigh heads on these documents, without labels, and keep "
            "them in a new folder for --run. Takes minutes; nothing is trained.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Rank documents by how much a query's tokens look at them, best first.

    Each line is score, number of the row and document, separated by tabs.

    **Examples**

    `abft rank --query "which of these reviews complains about delivery?" --documents reviews.csv
    --text-column review`

    `abft rank --run my-ranker --query "how do I get my money back?" --documents help.txt --top 3`

    `abft rank --find-heads my-ranker --query "late delivery" --documents reviews.txt` (better)
    """
    if not all(each.strip() for each in query):
        raise AbftError("--query: expected a text that is not empty")
    if run is not None and find_heads is not None:
        raise AbftError("--run has heads already; give it or --find-heads")
    if run is not None and settings.model is not None:
        raise AbftError("--run names its model itself; leave --model out")
    if find_heads is not None:
        check_new_folder(find_heads)
    if run is not None and not (run / "ranker.json").is_file():
        raise AbftError(f"{run} is no saved ranker: it has no ranker.json")
    table = open_table(documents, tuple(READERS))
    column = "text" if table.kind == "lines" else settings.text_column
    check_columns(table.columns, column, str(table.path), "text")
    if table.assumed:
        print(table.assumed, file=sys.stderr)

    from abft.cli.quiet import quiet

    origin = str(documents)
    rows = [text for chunk in table.chunks() for text in texts_of(chunk, column, origin)]
    kept = [(i, text) for i, text in enumerate(rows, start=1) if text.strip()]
    empty = [i for i, text in enumerate(rows, start=1) if not text.strip()]
    check_empty(empty, len(rows), origin, "text", strict=False)
    if not kept:
        raise AbftError(f"{documents}: no text in column {column!r}")

    quiet()
    from abft.ranker import AttentionRanker
    from abft.ranker.queries import texts_of as checked_texts

    said = settings.instruction
    try:
        checked_texts(query, "query")
        if run is None:
            ranker = AttentionRanker(
                settings.model or AttentionRanker.model,
                instruction=said or "",
                device=settings.device,
            )
        else:
            ranker = AttentionRanker.load(run, settings.device, said)
    except ValueError as error:
        raise AbftError(str(error)) from None
    texts = [text for _, text in kept]
    if settings.max_document_tokens is not None:
        ranker.max_document_tokens = settings.max_document_tokens
    if find_heads is not None:
        print("finding heads ...", file=sys.stderr)
        try:
            ranker.find_heads(texts).save(find_heads)
        except ValueError as error:
            raise AbftError(f"--find-heads: {error}") from None
        print(f"wrote {find_heads}; next time: --run {find_heads}", file=sys.stderr)
    elif run is None:
        print(
            "no --run: all heads of the untrained model are read; --find-heads FOLDER chooses "
            "better ones",
            file=sys.stderr,
        )
    cut = ranker.too_long(texts)
    if cut:
        print(
            f"{origin}: {cut} of {len(texts)} documents have more than "
            f"{ranker.max_document_tokens} tokens; only their beginning is read "
            "(--max-document-tokens)",
            file=sys.stderr,
        )
    if cut := ranker.too_long_queries(query):
        print(
            f"--query: {cut} of {len(query)} have more than {ranker.max_query_tokens} tokens; only "
            "their beginning is read",
            file=sys.stderr,
        )
    for each in query:
        for found in ranker.rank(each, texts, settings.top):
            row = kept[found.index][0]
            if as_json:
                record = {"query": each, "score": found.score, "row": row, "text": found.document}
                print(json.dumps(record, ensure_ascii=False))
            else:
                shown = " ".join(found.document.split())
                print(f"{found.score:.5f}\t{row}\t{shown}")
