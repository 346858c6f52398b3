"""A table, and how numbers are written in it."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from abft.bench.statistics import interval, mean_and_deviation

Value = float | str | None
BySeed = dict[int, float]


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers under column names; numbers are in the unit that `caption` gives."""

    name: str
    title: str
    caption: str
    columns: tuple[str, ...]
    rows: list[tuple[Value, ...]] = field(default_factory=list)

    def markdown(self) -> str:
        """Return a GitHub table under a heading."""
        lines = [f"### {self.title}", ""]
        if self.caption:
            lines += [self.caption, ""]
        lines += [_line(self.columns), "|" + "---|" * len(self.columns)]
        lines += [_line(row) for row in self.rows]
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """Return comma-separated values, with a header."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(["" if value is None else value for value in row] for row in self.rows)
        return text.getvalue()


def _line(values: Sequence[Value]) -> str:
    # A bar in a text would end its column.
    return "| " + " | ".join(_shown(value).replace("|", "\\|") for value in values) + " |"


def _shown(value: Value) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def percent(values: BySeed, seeds: int = 0) -> str | None:
    """Return the mean in %; see `spread`."""
    return spread({seed: 100 * value for seed, value in values.items()}, seeds)


def spread(values: BySeed, seeds: int = 0, digits: int = 1) -> str | None:
    """Return the mean, with the standard deviation over seeds where there are several.

    Adds n where fewer than `seeds` are done.
    """
    if not values:
        return None

    mean, deviation = mean_and_deviation(list(values.values()))
    text = f"{mean:.{digits}f}"
    if deviation is not None:
        text += f" ± {deviation:.{digits}f}"
    return f"{text} (n = {len(values)})" if len(values) < seeds else text


def signed(difference: tuple[float, np.ndarray] | None) -> str | None:
    """Return a difference in points with its interval; in parentheses if that contains 0."""
    if difference is None:
        return None

    value, samples = difference
    low, high = interval(samples)
    text = f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    return text if low > 0 or high < 0 else f"({text})"
