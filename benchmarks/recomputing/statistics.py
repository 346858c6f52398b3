"""Bootstrap intervals and metrics, written anew."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recomputing.pages import Cell, Number, number

PRINTED_SAMPLES, OWN_SAMPLES = 2_000, 100_000
LEVEL = 0.025
LEVEL_ERROR = 4 * (LEVEL * (1 - LEVEL) / PRINTED_SAMPLES) ** 0.5


@dataclass(frozen=True)
class Estimate:
    """Holds a difference between two methods, as a share, and bootstrap samples of it."""

    value: float
    samples: np.ndarray


def bootstrap(
    correct: Sequence[Sequence[bool]],
    reference: Sequence[Sequence[bool]],
    queries: Sequence[int | str],
    stream: str,
) -> Estimate:
    """Estimate correct minus reference, in both of which rows are seeds and columns are prompts.

    Resamples the queries, each with all of its prompts, and the seeds of both. Queries whose
    prompts were answered alike are interchangeable: how often each kind of query is drawn has a
    multinomial distribution, and so has how often each seed is drawn. The mean of S seeds drawn
    anew has (S - 1) / S of the variance that it should have, which is made up for.
    """
    generator = np.random.Generator(np.random.Philox(list(stream.encode())))
    ours, theirs = np.array(correct, float), np.array(reference, float)
    names = np.unique(queries)

    # A row for each query: its number of prompts, and correct ones by seed of both methods.
    of_query = np.array(queries)[None] == names[:, None]
    table = np.column_stack([of_query.sum(1), of_query @ ours.T, of_query @ theirs.T])
    kinds, frequency = np.unique(table, axis=0, return_counts=True)

    draws = generator.multinomial(len(names), frequency / len(names), size=OWN_SAMPLES)
    totals = draws @ kinds
    sides = np.split(totals[:, 1:], [len(ours)], axis=1)
    accuracies = []
    for side in sides:
        seeds = side.shape[1]
        weights = generator.multinomial(seeds, [1 / seeds] * seeds, size=OWN_SAMPLES) / seeds
        wider = np.sqrt(seeds / max(seeds - 1, 1))
        of_all = side.mean(1)
        drawn = of_all + wider * ((side * weights).sum(1) - of_all)
        accuracies.append(drawn / totals[:, 0])
    return Estimate(float(ours.mean() - theirs.mean()), accuracies[0] - accuracies[1])


def mean_estimate(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean of estimates whose samples are independent of each other."""
    return Estimate(
        float(np.mean([e.value for e in estimates])), np.mean([e.samples for e in estimates], 0)
    )


def bounds(estimate: Estimate) -> tuple[Number, Number]:
    """Return both ends of the 95% interval in points, with the tolerance explained above."""
    ends = []
    for level in (LEVEL, 1 - LEVEL):
        low, middle, high = 100 * np.quantile(
            estimate.samples, [level - LEVEL_ERROR, level, level + LEVEL_ERROR]
        )
        ends.append(Number(float(middle), 1, float(low), float(high)))
    return ends[0], ends[1]


def points(estimate: Estimate) -> tuple[Number, Number, Number]:
    """Return a difference in points and both ends of its interval."""
    return (number(100 * estimate.value, 1), *bounds(estimate))


def in_parentheses(estimate: Estimate) -> Cell:
    """Return a cell that is in parentheses if the interval contains 0."""
    text = "{+} [{+}, {+}]"
    low, high = bounds(estimate)
    outside = low.low > 0 or high.high < 0
    inside = low.high < 0 < high.low
    # Where a bound is within the tolerance of 0, both are correct.
    templates = (text,) if outside else (f"({text})",) if inside else (text, f"({text})")
    return Cell(templates, points(estimate))


def macro_f1(targets: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    """Return the mean over classes of the harmonic mean of precision and recall."""
    confusion = np.zeros((classes, classes))
    np.add.at(confusion, (targets, predicted), 1)
    true = np.diag(confusion)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = true / confusion.sum(0), true / confusion.sum(1)
        f1 = 2 * precision * recall / (precision + recall)
    return float(np.nan_to_num(f1).mean())


def largest_group(predictions: np.ndarray) -> float:
    """Return the share of prompts of a query that get its most frequent prediction.

    Rows are the variants of a prompt, columns the queries.
    """
    return float(
        np.mean(
            [
                Counter(column).most_common(1)[0][1] / len(column)
                for column in predictions.T.tolist()
            ]
        )
    )
