"""What the command line prints: tables on stdout."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def print_table(columns: list[tuple[str, Any]], rows: Sequence[tuple[str, ...]]) -> None:
    table = Table()
    for title, justify in columns:
        table.add_column(Text(title), justify=justify)
    for row in rows:
        table.add_row(*map(Text, row))  # Text: brackets in names are no markup
    Console(width=max(80, Console().width)).print(table)


def print_result(result: dict[str, Any], output: Path) -> None:
    """The table a run ends with."""
    training = result["training"]
    method = next((name for name in ("abft", "vote", "e2e") if name in result), None)
    if method is not None:
        before, after = result["vanilla"], result[method]
        named = {
            "accuracy": "accuracy",
            "macro_f1": "macro-F1",
            "ece": "ECE",
            "heads": "heads over threshold",
        }
        rows = [(title, f"{before[key]:.3f}", f"{after[key]:.3f}") for key, title in named.items()]
        print_table(
            [
                (result["task"], "left"),
                ("vanilla", "right"),
                ("ABFT, vote" if method == "vote" else method.upper(), "right"),
            ],
            rows,
        )
        print(
            f"{result['model']}, {result['test_prompts']} test prompts, k = {result['k']}, seed "
            f"{result['seed']}"
        )
    print(
        f"training: {training['steps']} steps, {training['prompts']} prompts, "
        f"{training['seconds']:.0f} seconds, "
        f"{training['trainable_parameters']:,} trainable parameters, "
        f"peak memory {training['peak_memory_bytes'] / 2**30:.1f} GiB"
    )
    print(f"run folder: {output}")
