"""Recompute the tables of RESULTS.md and PERFORMANCE.md from the raw results, with code of its own.

    python benchmarks/recompute.py

Imports nothing of abft and nothing of the other benchmarks: an error in the code that wrote the
tables does not repeat itself here. Every numeric cell is compared with the recomputed number at the
printed rounding. Prints a line for each table; exits with status 1 if a number differs, or if a
page has a table that is not known here.

Bounds of bootstrap intervals depend on a generator, so they are compared with a tolerance: a
printed bound is the 2.5% or 97.5% quantile of 2,000 samples. The share of all possible samples
below such a quantile is 2.5% with a standard error of sqrt(0.025 x 0.975 / 2,000) = 0.35%. The
bound must therefore lie between the quantiles 4 standard errors below and above (1.1% and 3.9%) of
100,000 samples drawn here; a correct bound lies outside about once in 10,000.

Three things are not in the raw results and are read from what was measured, not recomputed:
label probabilities (so ECE is the number in the cell), attention (so heads over the threshold and
attention on labels are) and token losses (so perplexity is). Which labels the demonstrations of a
prompt show is not kept either; the prompts are drawn again from StaICC's data.
"""

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path

from recomputing.accuracy import (
    differences,
    differences_to_e2e,
    heads,
    of_seeds,
    table_1,
    training_seconds,
)
from recomputing.bench import Bench
from recomputing.labelled import SIZES, labelled_means, labelled_tasks
from recomputing.pages import Expected, compare_table, tables_of
from recomputing.performance import PERFORMANCE_TABLES
from recomputing.scenarios import (
    ablation_differences,
    ablation_heads,
    ablations,
    consistency,
    cost,
    extrapolation,
    factors,
    other_tasks,
    out_of_domain_table,
    renamed_labels,
    unseen_labels,
)
from recomputing.shown_labels import shown_labels

ROOT = Path(__file__).resolve().parent.parent

BENCH_TABLES: dict[str, Callable[[Bench], Expected]] = {
    "Accuracy / Accuracy in %": of_seeds,
    "Accuracy / Difference in accuracy to vanilla, in points": differences,
    "Accuracy / Difference in accuracy to E2E, in points": differences_to_e2e,
    "Accuracy / Seed 0: accuracy in %": lambda bench: table_1(bench, "accuracy"),
    "Accuracy / Heads over the threshold": heads,
    "Accuracy / Macro-F1 in %": lambda bench: table_1(bench, "macro_f1"),
    "Accuracy / Expected calibration error in %": lambda bench: table_1(bench, "ece"),
    "Accuracy / Seconds of training": training_seconds,
    "Where ABFT loses, and why": shown_labels,
    "Cost and harm / Cost and harm": cost,
    "Cost and harm / Out of domain: accuracy in %": out_of_domain_table,
    "Consistency / Prediction consistency in %": consistency,
    "Unseen labels / Unseen labels: accuracy in %": unseen_labels,
    "Renamed labels / Renamed labels: accuracy in %": renamed_labels,
    "Between and beyond the trained weights / Extrapolation: accuracy in %": extrapolation,
    "Trained on other tasks / MetaICL: accuracy in %": other_tasks,
    "Punishment and reward / Accuracy in %": factors,
    "Ablations / Ablations": ablations,
    "Ablations / Difference in accuracy to vanilla, in points": ablation_differences,
    "Ablations / Heads over the threshold": ablation_heads,
}
LABELLED_TABLES: dict[str, Callable[[Path], Expected]] = {
    "With your own texts / Mean accuracy in %": labelled_means,
    **{
        f"With your own texts / N = {texts}: accuracy in %": functools.partial(
            labelled_tasks, texts=texts
        )
        for texts in SIZES
    },
}
# All tables are of the same cells, and some of the same differences.
_bench = functools.cache(Bench)

PAGES: dict[str, dict[str, Callable[[Path], Expected]]] = {
    "RESULTS.md": {
        **{
            name: lambda results, make=make: make(_bench(results))
            for name, make in BENCH_TABLES.items()
        },
        **LABELLED_TABLES,
    },
    "PERFORMANCE.md": PERFORMANCE_TABLES,
}
# Tables without measured numbers, and why they have none.
DEFINITIONS = {
    ("RESULTS.md", "Results"): "settings of the methods, which the runs were started with",
    ("PERFORMANCE.md", "Also tried"): "names of the variants and what they are",
}


def compare_page(page: str, text: str, results: Path) -> tuple[list[str], list[str]]:
    """Compare every table of a page.

    Returns:
        A line for each table, and the mismatches.
    """
    lines, mismatches = [], []
    makers = dict(PAGES[page])
    for table in tables_of(text):
        if reason := DEFINITIONS.get((page, table.name)):
            lines.append(f"{page}: {table.name}: not compared ({reason})")
            continue

        make = makers.pop(table.name, None)
        if make is None:
            mismatches.append(f"table {table.name} of {page} is not recomputed")
            continue

        expected = make(results)
        outcome = compare_table(table, expected)
        counts = f"{outcome.compared} numbers, largest difference {outcome.largest:.2g}"
        if outcome.bounds:
            counts += (
                f"; {outcome.bounds} bounds, largest difference {outcome.largest_of_bounds:.2g}"
            )
        note = f" ({expected.note})" if expected.note else ""
        lines.append(f"{page}: {table.name}: {counts}{note}")
        mismatches += [f"{page}, table {table.name}, {one}" for one in outcome.mismatches]
    mismatches += [f"{page} has no table {name}" for name in makers]
    return lines, mismatches


def main() -> None:
    """Compare the pages with the raw results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pages", type=Path, default=ROOT, help="folder of RESULTS.md and PERFORMANCE.md"
    )
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    options = parser.parse_args()

    mismatches = []
    for page in PAGES:
        text = (options.pages / page).read_text(encoding="utf-8")
        lines, found = compare_page(page, text, options.results)
        print("\n".join(lines))
        mismatches += found
    for mismatch in mismatches:
        print(f"MISMATCH {mismatch}")
    sys.exit(1 if mismatches else 0)


if __name__ == "__main__":
    main()
