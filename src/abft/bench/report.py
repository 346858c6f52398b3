"""Write results as tables: Markdown, CSV and JSON."""

import json
from pathlib import Path

from abft.bench.paper_tables import TABLES
from abft.bench.results import Results
from abft.bench.table import Table
from abft.files import write_text


def tables(results: Results) -> list[Table]:
    """Return every table for which there are results, model after model."""
    tables_with_values = []
    for model in (entry.name for entry in results.grid.models):
        for make in TABLES:
            table = make(results, model)
            if table is None:
                continue

            # The first column names the row.
            values = [value for row in table.rows for value in row[1:]]
            if any(value is not None for value in values):
                tables_with_values.append(table)
    return tables_with_values


def write_tables(results: Results, folder: Path) -> list[Table]:
    """Write every table as Markdown, CSV and JSON, and all numbers as one long CSV.

    Returns:
        The tables.
    """
    folder.mkdir(parents=True, exist_ok=True)
    all_tables = tables(results)

    fields = ("name", "title", "caption", "columns", "rows")
    entries = [{field: getattr(table, field) for field in fields} for table in all_tables]
    files = {
        "tables.md": "\n".join(table.markdown() for table in all_tables),
        "tables.json": json.dumps(entries, indent=1, ensure_ascii=False) + "\n",
        "results.csv": _long(results).csv(),
        **{f"{table.name}.csv": table.csv() for table in all_tables},
    }
    for name, text in files.items():
        write_text(folder / name, text)

    # Tables of a model or scenario that the grid no longer has.
    for path in folder.glob("*.csv"):
        if path.name not in files:
            path.unlink()
    return all_tables


def _long(results: Results) -> Table:
    """Return a table with one row for each number."""
    columns = ("model", "task", "method", "scenario", "variant", "seed", "metric", "value")
    table = Table("results", "All results", "", columns)
    for cell, record in results.finished:
        variant = " ".join(f"{key}={value}" for key, value in cell.variant.items())
        names = (cell.model, cell.task, cell.method, cell.scenario, variant, str(cell.seed))

        # An untouched model has no training, prompts without demonstrations have no heads.
        numbers = {**record["metrics"], "heads": record.get("heads"), **(record["training"] or {})}
        table.rows.extend(
            (*names, metric, value) for metric, value in numbers.items() if value is not None
        )
    return table
