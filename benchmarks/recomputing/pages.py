"""Cells as a page should print them, and their comparison with those that it prints."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

# Decimal fractions such as 0.05 are not exact in binary.
FLOAT_ERROR = 1e-9


@dataclass(frozen=True)
class Number:
    """Holds a recomputed number, how many decimals the page prints, and the range it may be in."""

    value: float
    digits: int
    low: float
    high: float


@dataclass(frozen=True)
class Cell:
    """Holds the ways to write a cell, with {} or {+} (signed) in place of its numbers."""

    templates: tuple[str, ...]
    numbers: tuple[Number, ...] = ()


@dataclass(frozen=True)
class Expected:
    """Holds a table as recomputed: its columns, and its rows by the text in the columns `keys`."""

    columns: tuple[str, ...]
    rows: dict[tuple[str, ...], list[Cell]]  # the other columns
    keys: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Printed:
    """Holds a table as a page prints it."""

    name: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


@dataclass
class Outcome:
    """Counts what was compared, and collects the differences."""

    compared: int = 0
    bounds: int = 0
    largest: float = 0.0
    largest_of_bounds: float = 0.0
    mismatches: list[str] = field(default_factory=list)


EMPTY = Cell(("",))


def header(text: str) -> tuple[str, ...]:
    """Return the columns of a table's first line."""
    return tuple(text.split(" | "))


def number(value: float, digits: int) -> Number:
    """Return a number that must be printed exactly, up to rounding."""
    return Number(float(value), digits, float(value), float(value))


def write(template: str, *numbers: Number) -> Cell:
    """Return a cell of text and numbers."""
    return Cell((template,), numbers)


def plain(value: float | None, digits: int = 1, template: str = "{}") -> Cell:
    """Return a cell of one number, or an empty one."""
    return EMPTY if value is None else write(template, number(value, digits))


def percent(value: float | None, digits: int = 1, template: str = "{}") -> Cell:
    """Return a cell of one share in %."""
    return plain(None if value is None else 100 * value, digits, template)


def tables_of(page: str) -> list[Printed]:
    """Return the tables of a Markdown page.

    A table's name is that of its `<!-- table: NAME -->` mark, or else its heading and the bold
    words that begin the paragraph before it. A mark around text alone is a table of one cell.
    """
    tables, heading, caption, mark = [], "", "", ""
    block: list[str] = []
    in_code = False

    def finish() -> None:
        if len(block) > 1 and set(block[1]) <= set("|-: "):
            rows = [
                tuple(cell.strip() for cell in line.strip().strip("|").split("|")) for line in block
            ]
            # strip("|") would also remove the bars of empty cells at the end.
            rows = [(*row, *[""] * (len(rows[0]) - len(row))) for row in rows]
            name = mark or (f"{heading} / {caption}" if caption else heading)
            tables.append(Printed(name, rows[0], rows[2:]))
        block.clear()

    for line in [*page.splitlines(), ""]:
        if line.startswith("```"):
            in_code = not in_code
        if line.startswith("|") and not in_code:
            block.append(line)
            continue

        if block:
            finish()
            caption = ""
        if mark and line and not line.startswith("<!--"):
            tables.append(Printed(mark, ("text",), [(line,)]))
        if in_code:
            continue

        if found := re.fullmatch(r"<!-- table: (\w+) -->", line):
            mark = found.group(1)
        elif line == "<!-- end -->":
            mark = ""
        elif found := re.fullmatch(r"#+ (.*)", line):
            heading, caption = found.group(1), ""
        elif found := re.match(r"\*\*(.*?)\.?\*\*", line):
            caption = found.group(1).rstrip(".")
    return tables


def pattern_of(template: str) -> str:
    """Return a regular expression with a group for each number of a template."""
    digits = r"\d[\d,]*(?:\.\d+)?(?:e-?\d+)?"
    pattern = re.escape(template)
    pattern = pattern.replace(re.escape("{+}"), rf"([+-]{digits})")
    return pattern.replace(re.escape("{}"), rf"(-?{digits})")


def compare_numbers(texts: Sequence[str], numbers: Sequence[Number], outcome: Outcome) -> list[str]:
    """Return what differs between printed and recomputed numbers; counts them in `outcome`."""
    differences = []
    for text, expected in zip(texts, numbers, strict=True):
        mantissa, _, exponent = text.replace(",", "").partition("e")
        decimals = len(mantissa.partition(".")[2])
        unit = 10.0 ** (int(exponent or 0) - decimals)
        printed = float(text.replace(",", ""))

        is_bound = expected.low < expected.high
        distance = abs(printed - expected.value)
        if is_bound:
            outcome.bounds += 1
            outcome.largest_of_bounds = max(outcome.largest_of_bounds, distance)
        else:
            outcome.compared += 1
            outcome.largest = max(outcome.largest, distance)

        slack = unit / 2 * (1 + FLOAT_ERROR) + FLOAT_ERROR * abs(expected.value)
        if decimals != expected.digits:
            differences.append(f"{text} has {decimals} decimals, expected {expected.digits}")
        elif not expected.low - slack <= printed <= expected.high + slack:
            shown = f"{expected.value:.{max(expected.digits + 2, 3)}f}"
            if exponent:
                shown = f"{expected.value:.2e}"
            if is_bound:
                shown += f" (from {expected.low:.2f} to {expected.high:.2f})"
            differences.append(f"{text} is printed, recomputed {shown}")
    return differences


def compare_cell(text: str, cell: Cell, outcome: Outcome) -> list[str]:
    """Return what differs between a printed cell and the expected one."""
    for template in cell.templates:
        if found := re.fullmatch(pattern_of(template), text):
            return compare_numbers(found.groups(), cell.numbers, outcome)
    values = ", ".join(f"{n.value:.{n.digits}f}" for n in cell.numbers)
    return [f"{text!r} is printed, expected {cell.templates[0]!r} {values}".rstrip()]


def compare_table(printed: Printed, expected: Expected) -> Outcome:
    """Compare a printed table with the recomputed one, cell by cell."""
    outcome = Outcome()
    if printed.columns != expected.columns:
        outcome.mismatches.append(f"columns {printed.columns}, expected {expected.columns}")
        return outcome

    # Rows are found by their names, so that their order does not matter.
    others = [name for name in expected.columns if name not in expected.keys]
    rows = {}
    for row in printed.rows:
        cells = dict(zip(printed.columns, row, strict=True))
        rows[tuple(cells[name] for name in expected.keys)] = [cells[name] for name in others]
    if len(rows) < len(printed.rows):
        outcome.mismatches.append("two rows have the same name")
    for name in (*(rows.keys() - expected.rows.keys()), *(expected.rows.keys() - rows.keys())):
        where = "is not in the raw results" if name in rows else "is missing"
        outcome.mismatches.append(f"row {', '.join(name)}: {where}")

    for name, cells in expected.rows.items():
        for column, text, cell in zip(others, rows.get(name, ()), cells, strict=name in rows):
            outcome.mismatches += [
                f"row {', '.join(name)}, column {column}: {difference}"
                for difference in compare_cell(text, cell, outcome)
            ]
    return outcome
