"""Print the command line's tables on stdout."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from abft.method.objectives import OBJECTIVES

SCORES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "ece": "ECE",
    "heads": "heads over threshold",
}


def number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def print_table(columns: list[tuple[str, Any]], rows: Sequence[tuple[str, ...]]) -> None:
    table = Table()
    for title, justify in columns:
        table.add_column(Text(title), justify=justify)
    for row in rows:
        table.add_row(*map(Text, row))  # Text: brackets in names are no markup
    Console(width=max(80, Console().width)).print(table)


def print_result(metrics: dict[str, Any], output: Path) -> None:
    """Print the table that a run ends with."""
    training = metrics["training"]
    if "before" in metrics:
        before, after = metrics["before"], metrics["after"]
        rows = [(title, f"{before[key]:.3f}", f"{after[key]:.3f}") for key, title in SCORES.items()]
        queries = metrics.get("test_queries")  # runs of older versions do not say
        if queries:
            rows.insert(1, ("95% interval", _interval(before, queries), _interval(after, queries)))
        method = OBJECTIVES[metrics["objective"]].title
        print_table([(metrics["task"], "left"), ("vanilla", "right"), (method, "right")], rows)
        print(
            f"{metrics['model']}, {metrics['test_prompts']} test prompts{_texts(metrics)}, "
            f"k = {metrics['k']}, "
            f"seed {metrics['seed']}"
        )
    print(
        f"training: {training['steps']} step{'s' * (training['steps'] != 1)}, "
        f"{training['prompts']} prompts, "
        f"{training['seconds']:.0f} seconds, "
        f"{training['trainable_parameters']:,} trainable parameters, "
        f"peak memory {training['peak_memory_bytes'] / 2**30:.1f} GiB"
    )
    print(f"run folder: {output}")


def _interval(scores: dict[str, float], queries: int) -> str:
    from abft.scoring.metrics import accuracy_interval  # numpy

    low, high = accuracy_interval(scores["accuracy"], queries)
    return f"{low:.3f} to {high:.3f}"


def _texts(metrics: dict[str, Any]) -> str:
    """Say how many different queries the test prompts have, if fewer than prompts."""
    queries = metrics.get("test_queries", metrics["test_prompts"])
    return f" of only {queries} texts" if queries < metrics["test_prompts"] else ""
