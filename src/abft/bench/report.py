"""Results -> tables on disk, as Markdown, CSV and JSON."""

import json
from pathlib import Path

from abft.bench.paper_tables import TABLES
from abft.bench.results import Results
from abft.bench.table import Table
from abft.files import write_text


def tables(results: Results) -> list[Table]:
    """Every table for which there are results, model after model."""
    made = []
    for model in (entry.name for entry in results.grid.models):
        for make in TABLES:
            table = make(results, model)
            if (
                table is not None
                and table.rows
                and any(any(value is not None for value in row[1:]) for row in table.rows)
            ):
                made.append(table)
    return made


def write_tables(results: Results, folder: Path) -> list[Table]:
    """Write every table as Markdown, CSV and JSON, and all numbers as one long CSV.

    Returns:
        The tables.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = tables(results)
    shown = [
        {
            "name": t.name,
            "title": t.title,
            "caption": t.caption,
            "columns": t.columns,
            "rows": t.rows,
        }
        for t in made
    ]
    files = {
        "tables.md": "\n".join(table.markdown() for table in made),
        "tables.json": json.dumps(shown, indent=1, ensure_ascii=False) + "\n",
        "results.csv": _long(results).csv(),
        **{f"{table.name}.csv": table.csv() for table in made},
    }
    for name, text in files.items():
        write_text(folder / name, text)
    for path in folder.glob("*.csv"):  # tables of a model or scenario that the grid no longer has
        if path.name not in files:
            path.unlink()
    return made


def _long(results: Results) -> Table:
    """One row a number."""
    columns = ("model", "task", "method", "scenario", "variant", "seed", "metric", "value")
    table = Table("results", "All results", "", columns)
    for cell, record in results.finished:
        variant = " ".join(f"{key}={value}" for key, value in cell.variant.items())
        numbers = {**record["metrics"], "heads": record.get("heads"), **(record["training"] or {})}
        for metric, value in numbers.items():
            if value is not None:
                table.rows.append(
                    (
                        cell.model,
                        cell.task,
                        cell.method,
                        cell.scenario,
                        variant,
                        str(cell.seed),
                        metric,
                        value,
                    )
                )
    return table
