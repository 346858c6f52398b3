from collections import Counter
from fractions import Fraction
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from abft.bench import statistics
from abft.bench.results import difference, mean_difference
from abft.bench.statistics import interval, mean_and_deviation
from abft.bench.table import Table, percent, signed, spread


def paired_bootstrap(*arguments, **options):
    """(difference, low, high)"""
    difference, samples = statistics.paired_bootstrap(*arguments, **options)
    return difference, *interval(samples)


def test_a_method_against_itself_is_zero_with_no_width():
    right = np.random.default_rng(0).random(200) < 0.7
    assert paired_bootstrap([right], [right], np.arange(200)) == (0, 0, 0)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(1)
    covered = 0
    for trial in range(60):
        base = generator.random(300)
        a, b = base < 0.8, base < 0.7
        noise = generator.random(300) < 0.3
        a = np.where(noise, generator.random(300) < 0.8, a)
        _, low, high = paired_bootstrap([a], [b], np.arange(300), seed=trial)
        covered += low <= 0.1 <= high
    assert 52 <= covered <= 60  # 95% of 60 is 57


def test_pairing_narrows_and_clusters_widen_the_interval():
    generator = np.random.default_rng(2)
    easy = generator.random(400)
    a, b = easy < 0.8, easy < 0.75  # answers go together

    def width(x, y, queries):
        _, low, high = paired_bootstrap([x], [y], queries)
        return high - low

    paired = width(a, b, np.arange(400))
    assert paired < 0.7 * width(a, generator.permutation(b), np.arange(400))
    twice = np.concatenate([a, a]), np.concatenate([b, b])
    assert width(*twice, np.arange(800) % 400) == pytest.approx(
        paired, rel=0.15
    )  # the same queries again are no news
    assert width(*twice, np.arange(800)) < 0.8 * paired


def test_seeds_are_resampled():
    right, wrong = np.ones(50, bool), np.zeros(50, bool)
    difference, low, high = paired_bootstrap([right, wrong], [wrong], np.arange(50))
    assert (difference, low, high) == (0.5, 0, 1)


@pytest.mark.parametrize("shapes", [((1, 3), (1, 4), 3), ((1, 3), (1, 3), 4), ((1, 0), (1, 0), 0)])
def test_refuses_what_does_not_fit(shapes):
    a, b, n = shapes
    with pytest.raises(ValueError, match="expected"):
        paired_bootstrap(np.zeros(a), np.zeros(b), np.arange(n))


def test_mean_and_deviation():
    assert mean_and_deviation([2.0]) == (2, None)
    assert mean_and_deviation([1.0, 3.0]) == (2, pytest.approx(2**0.5))


def test_the_interval_leaves_out_equal_tails_of_five_percent_together():
    samples = np.random.default_rng(0).permutation(np.arange(1001) / 1000)
    assert interval(samples) == pytest.approx((0.025, 0.975))
    assert interval(samples, 0.9) == pytest.approx((0.05, 0.95))
    assert interval(samples**2) == pytest.approx((0.025**2, 0.975**2))


def all_resamples(ours, theirs, queries):
    """The exact distribution of the bootstrap: every sample of queries with all of their prompts,
    and of each method's seeds, is equally likely.
    """
    names = sorted(set(queries))
    counts = Counter()
    for sample in product(names, repeat=len(names)):
        prompts = [n for query in sample for n, q in enumerate(queries) if q == query]
        by_method = [
            [
                Fraction(sum(rows[s][n] for s in seeds for n in prompts), len(seeds) * len(prompts))
                for seeds in product(range(len(rows)), repeat=len(rows))
            ]
            for rows in (ours, theirs)
        ]
        counts.update(a - b for a, b in product(*by_method))
    return {value: Fraction(count, counts.total()) for value, count in counts.items()}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([[1, 0, 1, 1, 0]], [[0, 0, 1, 0, 1]]),
        # Good seeds and bad ones of both methods: drawn together, they would cancel out.
        ([[1, 1, 1, 1, 1], [0, 0, 0, 1, 0]], [[1, 1, 1, 0, 1], [0, 0, 0, 0, 0]]),
        ([[1, 0, 1, 1, 0], [0, 0, 0, 1, 0]], [[1, 1, 1, 0, 1], [0, 0, 0, 0, 0], [0, 1, 0, 0, 1]]),
    ],
)
def test_samples_follow_the_exact_distribution_where_queries_have_other_numbers_of_prompts(
    ours, theirs
):
    queries = [0, 7, 0, 4, 0]  # one query with three prompts, two with one
    exact = all_resamples(ours, theirs, queries)
    value, samples = statistics.paired_bootstrap(ours, theirs, np.array(queries))
    assert value == pytest.approx(np.mean(ours) - np.mean(theirs))

    # No sample is one that cannot be, and none that is likely is missing.
    possible = np.array(sorted(map(float, exact)))
    assert np.abs(samples[:, None] - possible).min(1).max() < 1e-9
    likely = [float(value) for value, share in exact.items() if share > 0.01]
    assert np.abs(np.array(likely)[:, None] - samples).min(1).max() < 1e-9

    # 2,000 samples of the exact distribution are further off than this once in 3,000 times.
    for point in possible:
        share = float(sum(share for value, share in exact.items() if float(value) <= point + 1e-9))
        assert np.mean(samples <= point + 1e-9) == pytest.approx(share, abs=0.045)
    mean = float(sum(share * value for value, share in exact.items()))
    variance = float(sum(share * value**2 for value, share in exact.items())) - mean**2
    assert samples.mean() == pytest.approx(mean, abs=4 * (variance / len(samples)) ** 0.5)
    assert samples.var() == pytest.approx(variance, rel=0.12)


class OneTask:
    """Stands in for `Results`: two methods on six test prompts of three queries, a seed each."""

    grid = SimpleNamespace(reference_method="vanilla")

    def __init__(self, predicted, targets=(0, 0, 0, 0, 0, 0), reference_targets=None):
        self.predicted = predicted
        self.targets = {"abft": list(targets), "vanilla": list(reference_targets or targets)}

    def records(self, model, task, method, scenario):
        predictions = {
            "queries": 3,
            "targets": self.targets[method],
            "predicted": self.predicted[method],
        }
        return [{"predictions": {scenario: predictions}}]


def test_prompts_of_one_query_are_one_cluster():
    """Prompt i has query i modulo 3: correct on both prompts of one query is one observation."""
    results = OneTask({"abft": [1, 0, 1, 1, 0, 1], "vanilla": [1] * 6})
    value, samples = difference(results, "tiny", "reviews", "abft")
    assert value == pytest.approx(1 / 3)

    # Of three queries drawn with repetition, 0 to 3 are the one: binomial with p = 1/3.
    drawn = np.rint(3 * samples)
    assert samples == pytest.approx(drawn / 3)
    shares = [np.mean(drawn == n) for n in range(4)]
    assert shares == pytest.approx([8 / 27, 12 / 27, 6 / 27, 1 / 27], abs=0.05)


def test_other_prompts_cannot_be_compared():
    predicted = {"abft": [1, 0, 1, 1, 0, 1], "vanilla": [1] * 6}
    other = OneTask(predicted, reference_targets=(0, 0, 1, 0, 0, 0))
    assert difference(other, "tiny", "reviews", "abft") is None
    assert difference(OneTask(predicted), "tiny", "reviews", "abft", prompts="others") is None


def test_the_mean_over_tasks_varies_as_a_mean_of_independent_values():
    """Tasks have other queries: n tasks of the same variance have a mean of variance / n."""
    samples = np.random.default_rng(3).normal(0.2, 0.1, 2000)
    for tasks in (2, 3):
        value, mean = mean_difference([(0.1 * n, samples) for n in range(tasks)])
        assert value == pytest.approx(0.05 * (tasks - 1))
        assert mean.mean() == pytest.approx(samples.mean())
        assert mean.var() == pytest.approx(samples.var() / tasks, rel=0.15)
    assert mean_difference([(0.1, samples), None]) is None


def test_numbers_are_written_as_the_captions_say():
    assert percent({0: 0.125, 4: 0.375}) == "25.0 ± 17.7"  # sample deviation: 12.5 * sqrt(2)
    assert percent({0: 0.5, 1: 0.5}) == "50.0 ± 0.0"
    assert percent({1: 0.98765}, seeds=2) == "98.8 (n = 1)"
    assert percent({0: 0.5, 1: 0.5}, seeds=2) == "50.0 ± 0.0"
    assert spread({0: 3.14159}, digits=3) == "3.142"
    assert spread({0: 10.0, 1: 13.0}, 3, digits=0) == "12 ± 2 (n = 2)"
    assert percent({}) is None


def test_differences_are_written_in_signed_points_and_in_parentheses_if_they_may_be_zero():
    up = np.linspace(0.01, 0.05, 2001)
    tails = 0.01 + 0.04 * 0.025, 0.05 - 0.04 * 0.025
    assert [f"{100 * tail:+.1f}" for tail in tails] == ["+1.1", "+4.9"]
    assert signed((0.03, up)) == "+3.0 [+1.1, +4.9]"
    assert signed((-0.03, -up)) == "-3.0 [-4.9, -1.1]"
    assert signed((0.0, up - 0.03)) == "(+0.0 [-1.9, +1.9])"
    assert signed((0.0, np.zeros(5))) == "(+0.0 [+0.0, +0.0])"
    # An end that is zero is in the interval.
    assert signed((0.01, np.array([0.0, 0.0, 0.02]))).startswith("(")
    assert signed((-0.01, -np.array([0.0, 0.0, 0.02]))).startswith("(")
    assert signed(None) is None


def test_tables_as_markdown_and_csv():
    table = Table("t", "Title", "Caption", ("method", "task"), [("x|y, z", 1.25), ("w", None)])
    assert table.markdown().splitlines() == [
        "### Title",
        "",
        "Caption",
        "",
        "| method | task |",
        "|---|---|",
        "| x\\|y, z | 1.2 |",
        "| w |  |",
    ]
    assert table.csv().splitlines() == ["method,task", '"x|y, z",1.25', "w,"]
