"""Estimate how sure a difference between two methods is, on the same test prompts."""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000


def paired_bootstrap(
    correct_SN: Sequence[np.ndarray],
    reference_RN: Sequence[np.ndarray],
    queries_N: np.ndarray,
    seed: int = 0,
) -> tuple[float, np.ndarray]:
    """Return the difference in accuracy between two methods, and bootstrap samples of it.

    The `RESAMPLES` samples of a paired bootstrap (Efron and Tibshirani 1993) resample queries, each
    with all of its prompts (one query with two demonstration sets is not two observations), and
    each method's seeds, which differ in their training prompts. With one seed, only the queries
    vary. Resampling S seeds gives too little variance, (S - 1) / S of it, so deviations from the
    mean over seeds are made sqrt(S / (S - 1)) times as large.

    Args:
        correct_SN: for each seed, whether each of N prompts was answered correctly.
        reference_RN: the same for the method that is subtracted; its number of seeds may differ.
        queries_N: the query of each prompt.
    """
    ours, theirs = np.asarray(correct_SN, dtype=float), np.asarray(reference_RN, dtype=float)
    queries = np.asarray(queries_N)
    matrices = ours.ndim == theirs.ndim == 2
    if not matrices or not ours.shape[1] == theirs.shape[1] == len(queries) > 0:
        raise ValueError(
            f"expected (S, N), (R, N) and N > 0 queries, got {ours.shape}, {theirs.shape} and "
            f"{queries.shape}"
        )

    # Of every query: its number of prompts, and how many of them each seed answers correctly.
    _, cluster_N = np.unique(queries, return_inverse=True)
    counts = np.bincount(cluster_N)
    sums = [
        spread_over_seeds(np.stack([np.bincount(cluster_N, weights=row) for row in rows]))
        for rows in (ours, theirs)
    ]

    # Both methods are measured on the same queries of a sample: that is what pairs them.
    generator = np.random.default_rng(seed)
    samples = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        sample = generator.integers(len(counts), size=len(counts))
        total = counts[sample].sum()
        accuracies = []
        for rows in sums:
            seeds = generator.integers(len(rows), size=len(rows))
            accuracies.append(rows[seeds][:, sample].sum(1).mean() / total)
        samples[i] = accuracies[0] - accuracies[1]
    return float(ours.mean() - theirs.mean()), samples


def spread_over_seeds(values_SN: np.ndarray) -> np.ndarray:
    """Spread S rows so that the mean of resampled rows has the variance that S rows imply."""
    seeds = len(values_SN)
    mean_N = values_SN.mean(0)
    return mean_N + (values_SN - mean_N) * (np.sqrt(seeds / (seeds - 1)) if seeds > 1 else 1.0)


def interval(samples: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of bootstrap samples."""
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean, and the sample standard deviation over seeds (None for one value)."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
