import numpy as np
import pytest

from abft.bench import statistics
from abft.bench.statistics import interval, mean_and_deviation


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
