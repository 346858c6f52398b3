import csv
import hashlib
import json
import random
import statistics as exact
from collections import Counter
from fractions import Fraction
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from abft.bench import statistics
from abft.bench.methods import Named
from abft.bench.report import tables, write_tables
from abft.bench.results import Results, difference, mean_difference
from abft.bench.scenarios import PAPER_TASKS, SCENARIOS
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
    assert (difference, low, high) == pytest.approx((0.5, 0.5 - 0.5**0.5, 0.5 + 0.5**0.5))


def test_few_seeds_vary_as_much_as_their_mean_does():
    """The variance of a mean of S values is their sample variance (S - 1 in it) divided by S."""
    shares = [0.2, 0.5, 0.9]
    rows = [np.full(100, share) for share in shares]
    _, samples = statistics.paired_bootstrap(rows, np.zeros((1, 100)), np.arange(100))
    assert samples.var() == pytest.approx(exact.variance(shares) / 3, rel=0.1)


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
    and of each method's seeds, is equally likely. S seeds lie sqrt(S / (S - 1)) times as far from
    their mean as they do.
    """
    ours, theirs = (
        [
            [
                m + (len(rows) / max(len(rows) - 1, 1)) ** 0.5 * (x - m)
                for x, m in zip(row, means, strict=True)
            ]
            for row in rows
        ]
        for rows in (ours, theirs)
        for means in [[sum(column) / len(rows) for column in zip(*rows, strict=True)]]
    )
    names = sorted(set(queries))
    counts = Counter()
    for sample in product(names, repeat=len(names)):
        prompts = [n for query in sample for n, q in enumerate(queries) if q == query]
        by_method = [
            [
                sum(rows[s][n] for s in seeds for n in prompts) / (len(seeds) * len(prompts))
                for seeds in product(range(len(rows)), repeat=len(rows))
            ]
            for rows in (ours, theirs)
        ]
        counts.update(round(a - b, 9) for a, b in product(*by_method))
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
    table = Table("t", "Title", "Caption", ("method", "a|b"), [("x|y, z", 1.25), ("w", None)])
    assert table.markdown().splitlines() == [
        "### Title",
        "",
        "Caption",
        "",
        "| method | a\\|b |",
        "|---|---|",
        "| x\\|y, z | 1.2 |",
        "| w |  |",
    ]
    assert table.csv().splitlines() == ["method,a|b", '"x|y, z",1.25', "w,"]


SETS = {
    "k_shot": ["k=1", "k=2", "k=4", "k=8", "k=16", "mean"],
    "renamed_labels": ["synonyms", "swapped", "arbitrary", "mean"],
    "label_noise": ["noise=0", "noise=0.5", "noise=1", "gler", "gler_macro_f1"],
    "template_consistency": ["consistency", "accuracy"],
    "demonstration_consistency": ["consistency", "accuracy"],
    "contextual_bias": ["entropy", "bias"],
    "domain_bias": ["entropy", "bias"],
    "posterior_bias": ["kl"],
    "perplexity": ["perplexity"],
}


class MadeUp:
    """A store whose numbers tell which cell and metric they are of."""

    def __init__(self, missing=()):
        self.missing = missing

    @staticmethod
    def number(model, task, method, scenario, seed, metric, **variant):
        text = repr((model, task, method, scenario, seed, metric, sorted(variant.items())))
        return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32

    def read(self, cell):
        names = (cell.model, cell.task, cell.method, cell.scenario, cell.seed)
        if names in self.missing:
            return None
        metrics = SETS.get(cell.scenario, ["accuracy", "macro_f1", "ece"])
        if (cell.model, cell.scenario) == ("two", "label_noise"):
            metrics = [*metrics, "noise=0.25"]  # of this model only
        if cell.scenario == "out_of_domain":
            metrics = ["mean", *reversed([name for name in PAPER_TASKS if name != cell.task])]
        of = {metric: self.number(*names, metric, **cell.variant) for metric in metrics}
        trained = cell.method not in ("vanilla", "contextual_calibration")
        predicted = random.Random(repr(names)).choices((0, 1), k=12)
        sets = metrics[:-1] if cell.scenario == "k_shot" else [cell.scenario]
        return {
            "seed": cell.seed,
            "metrics": of,
            "heads": 100 * self.number(*names, "heads"),
            "training": {
                "seconds": 1000 * self.number(*names, "seconds"),
                "steps": 1 if cell.method == "fewer" else 2,
                "trainable_parameters": 1_234_567,
                "peak_memory_bytes": round(2**31 * (1 + self.number(*names, "memory"))),
            }
            if trained
            else None,
            "predictions": {
                name: {"queries": 6, "targets": [0] * 12, "predicted": predicted} for name in sets
            },
        }


MODELS, TASKS, SEEDS = ("one", "two"), ("SST2", "TREC"), (0, 1)
TITLES = {
    "vanilla": "vanilla",
    "contextual_calibration": "contextual calibration",
    "abft": "ABFT",
    "fewer": "fewer",
    "e2e": "E2E, W_Q and W_K",
}


@pytest.fixture
def every_scenario(monkeypatch):
    """What tables read of a grid of all scenarios, two models, two tasks and two seeds."""
    monkeypatch.setattr("abft.bench.statistics.RESAMPLES", 4)
    kinds = {**{method: method for method in TITLES}, "fewer": "abft_no_pid"}
    for_kinds = {"training": ("abft", "abft_no_pid", "e2e"), "abft": ("abft",), "classifier": ()}
    cells = [
        SimpleNamespace(
            model=model, task=task, method=method, scenario=name, variant=variant, seed=seed
        )
        for model, task, (method, kind), name in product(MODELS, TASKS, kinds.items(), SCENARIOS)
        if kind in for_kinds.get(SCENARIOS[name].needs, kinds.values())
        for variant, seed in product(SCENARIOS[name].variants, SEEDS)
    ]
    return SimpleNamespace(
        models=[Named(name) for name in MODELS],
        tasks=[Named(name) for name in TASKS],
        methods=[(Named(name), kind) for name, kind in kinds.items()],
        scenarios=[Named(name) for name in SCENARIOS],
        seeds=list(SEEDS),
        reference_method="vanilla",
        cells=lambda: cells,
    )


def written(values, scale=100.0, digits=1):
    """Mean and sample deviation of one number a seed."""
    mean, deviation = exact.mean(values), exact.stdev(values)
    return f"{scale * mean:.{digits}f} ± {scale * deviation:.{digits}f}"


def test_every_number_of_the_tables_is_in_its_place(every_scenario):
    by_name = {table.name: table for table in tables(Results(every_scenario, MadeUp()))}

    for model in MODELS:

        def cell(task, method, scenario, metric, scale=100.0, digits=1, model=model, **variant):
            of = (model, task, method, scenario)
            numbers = [MadeUp.number(*of, seed, metric, **variant) for seed in SEEDS]
            return written(numbers, scale, digits)

        def mean(method, scenario, metric, scale=100.0, digits=1, model=model):
            values = [
                [MadeUp.number(model, task, method, scenario, seed, metric) for task in TASKS]
                for seed in SEEDS
            ]
            return written([sum(of_tasks) / 2 for of_tasks in values], scale, digits)

        def rows(name, model=model):
            table = by_name.pop(f"{name}-{model}")
            return table.columns, table.rows

        # Zero-shot rows come before the others; each row has its tasks and their mean.
        for metric in ("accuracy", "macro_f1", "ece"):
            assert rows(metric) == (
                ("method", *TASKS, "mean"),
                [
                    (
                        title + suffix,
                        *(cell(task, method, scenario, metric) for task in TASKS),
                        mean(method, scenario, metric),
                    )
                    for scenario, suffix in (("zero_shot", ", zero-shot"), ("standard", ""))
                    for method, title in TITLES.items()
                ],
            )
        assert rows("heads")[1] == [
            (
                title,
                *(cell(task, method, "standard", "heads") for task in TASKS),
                mean(method, "standard", "heads"),
            )
            for method, title in TITLES.items()
        ]

        columns, cost = rows("cost")
        assert columns[1:4] == ("steps", "training seconds", "trainable parameters (M)")
        for row, (method, title) in zip(cost, TITLES.items(), strict=True):
            training = (None,) * 4
            if method in ("abft", "fewer", "e2e"):
                memory = max(
                    MadeUp.number(model, task, method, "standard", seed, "memory")
                    for task in TASKS
                    for seed in SEEDS
                )
                training = (
                    "1" if method == "fewer" else "2",
                    mean(method, "standard", "seconds", 1000, 0),
                    "1.23",
                    f"{2 * (1 + memory):.1f}",
                )
            assert row == (
                title,
                *training,
                mean(method, "standard", "accuracy"),
                mean(method, "out_of_domain", "mean"),
                mean(method, "perplexity", "perplexity", 1, 2),
            )

        columns, ablations = rows("ablations")
        assert columns == ("method", "training seconds", *TASKS, "mean")
        assert ablations == [
            (
                TITLES[method],
                mean(method, "standard", "seconds", 1000, 0),
                *(cell(task, method, "standard", "accuracy") for task in TASKS),
                mean(method, "standard", "accuracy"),
            )
            for method in ("abft", "fewer")
        ]

        # One row for each task and method; columns are scenarios, metrics or variants.
        pairs = [(task, method) for task in TASKS for method in TITLES]
        trained = [pair for pair in pairs if pair[1] in ("abft", "fewer", "e2e")]
        scenarios = ("zero_shot", "standard", "unseen_label", "random_query")
        assert rows("unseen_label")[1] == [
            (t, TITLES[m], *(cell(t, m, scenario, "accuracy") for scenario in scenarios))
            for t, m in pairs
        ]
        columns = [
            (f"{change}_consistency", metric)
            for change in ("template", "demonstration")
            for metric in ("consistency", "accuracy")
        ]
        assert rows("consistency")[1] == [
            (t, TITLES[m], *(cell(t, m, *column) for column in columns)) for t, m in pairs
        ]
        for scenario in ("k_shot", "renamed_labels", "label_noise"):
            order = SETS[scenario]
            if (model, scenario) == ("two", "label_noise"):
                order = [*order, "noise=0.25"]
            assert rows(scenario) == (
                ("task", "method", *order),
                [(t, TITLES[m], *(cell(t, m, scenario, name) for name in order)) for t, m in pairs],
            )
        columns, out_of_domain = rows("out_of_domain")
        assert columns == ("task", "method", *PAPER_TASKS, "mean")
        assert out_of_domain == [
            (
                t,
                TITLES[m],
                *(None if n == t else cell(t, m, "out_of_domain", n) for n in columns[2:]),
            )
            for t, m in pairs
        ]
        for scenario in ("contextual_bias", "domain_bias", "posterior_bias"):
            assert rows(scenario)[1] == [
                (t, TITLES[m], *(cell(t, m, scenario, name, 1, 3) for name in SETS[scenario]))
                for t, m in pairs
            ]
        columns, sizes = rows("training_size")
        assert sizes == [
            (
                t,
                TITLES[m],
                *(cell(t, m, "training_size", "accuracy", nd=int(nd)) for nd in columns[2:]),
            )
            for t, m in trained
        ]
        columns, factors = rows("extrapolation")
        assert factors == [
            (
                t,
                TITLES[m],
                *(cell(t, m, "extrapolation", "accuracy", factor=float(f)) for f in columns[2:]),
            )
            for t, m in trained
        ]
        columns, factors = rows("factors")
        assert columns[3:] == ("A0", "B0 = 0", "B0 = 0.5", "B0 = 1", "B0 = 2")
        assert factors == [
            (
                t,
                "ABFT",
                "on" if pid else "off",
                f"{a:g}",
                *(
                    cell(t, "abft", "factors", "accuracy", A0=a, B0=b, pid=pid) if a or b else None
                    for b in (0.0, 0.5, 1.0, 2.0)
                ),
            )
            for t in TASKS
            for pid in (True, False)
            for a in (0.0, 0.25, 0.5, 1.0)
        ]
    assert {name.rsplit("-", 1)[0] for name in by_name} == {"differences", "all_differences"}


def test_differences_are_the_methods_accuracy_less_the_references(every_scenario):
    store = MadeUp()
    by_name = {table.name: table for table in tables(Results(every_scenario, store))}
    cells = {(c.model, c.task, c.method, c.scenario, c.seed): c for c in every_scenario.cells()}

    def points(task, method, scenario):
        """The difference, from predictions of which all targets are 0."""
        shares = []
        for name in (method, "vanilla"):
            records = [store.read(cells["two", task, name, scenario, seed]) for seed in SEEDS]
            each = [next(iter(r["predictions"].values()))["predicted"] for r in records]
            shares.append(np.mean(np.array(each) == 0))
        return 100 * (shares[0] - shares[1])

    others = [method for method in TITLES if method != "vanilla"]
    table = by_name["differences-two"]
    assert [row[0] for row in table.rows] == [TITLES[method] for method in others]
    for row, method in zip(table.rows, others, strict=True):
        each = [points(task, method, "standard") for task in TASKS]
        for text, value in zip(row[1:], [*each, sum(each) / 2], strict=True):
            assert float(text.lstrip("(").split()[0]) == pytest.approx(value, abs=0.051)
    assert any(abs(points(task, method, "standard")) > 3 for task in TASKS for method in others)

    # Every other scenario with correct answers and no variants; sets by name.
    table = by_name["all_differences-two"]
    names = {(scenario, prompts) for scenario, prompts, *_ in table.rows}
    assert names == {
        *((scenario, "") for scenario in ("zero_shot", "unseen_label", "template_consistency")),
        *((scenario, "") for scenario in ("demonstration_consistency", "renamed_labels")),
        *((scenario, "") for scenario in ("label_noise", "out_of_domain")),
        *(("k_shot", f"k={k}") for k in (1, 2, 4, 8, 16)),
    }
    assert len(table.rows) == len(names) * len(TASKS) * len(others)
    methods = {title: method for method, title in TITLES.items()}
    for scenario, _, task, title, text in table.rows:
        value = points(task, methods[title], scenario)
        assert float(text.lstrip("(").split()[0]) == pytest.approx(value, abs=0.051)


def test_a_task_without_results_leaves_its_cell_and_the_mean_empty(every_scenario):
    missing = {("one", "TREC", "e2e", "standard", seed) for seed in SEEDS}
    made = tables(Results(every_scenario, MadeUp(missing)))
    table = made[0]
    accuracies = [MadeUp.number("one", "SST2", "e2e", "standard", s, "accuracy") for s in SEEDS]
    assert table.rows[-1] == (TITLES["e2e"], written(accuracies), None, None)

    # What the trainings of the other task cost would not compare with a mean of both.
    (cost,) = (table.rows for table in made if table.name == "cost-one")
    assert cost[-1][2] is None
    assert cost[-2][2] is not None


def test_a_metric_of_zero_is_a_value(every_scenario, monkeypatch):
    monkeypatch.setattr(MadeUp, "number", lambda *names, **variant: 0.0)
    results = Results(every_scenario, MadeUp())
    assert results.values("one", "SST2", "abft", "standard", "accuracy") == {0: 0.0, 1: 0.0}


def test_rows_of_unseen_labels_need_results_of_that_scenario(every_scenario):
    """The other columns are only compared with it, and may be empty."""
    missing = {("one", "SST2", "e2e", "unseen_label", seed) for seed in SEEDS}
    missing |= {("one", "TREC", "e2e", "zero_shot", seed) for seed in SEEDS}
    made = tables(Results(every_scenario, MadeUp(missing)))
    (rows,) = (table.rows for table in made if table.name == "unseen_label-one")
    assert [row[0] for row in rows if row[1] == TITLES["e2e"]] == ["TREC"]
    assert [value is None for value in rows[-1][2:]] == [True, False, False, False]


def test_written_files_hold_every_number_and_no_old_tables(every_scenario, tmp_path):
    (tmp_path / "accuracy-gone.csv").write_text("method,SST2\n")
    made = write_tables(Results(every_scenario, MadeUp()), tmp_path)
    names = {"tables.md", "tables.json", "results.csv", *(f"{table.name}.csv" for table in made)}
    assert {path.name for path in tmp_path.iterdir()} == names

    listed = json.loads((tmp_path / "tables.json").read_text())
    assert [(t["name"], list(map(tuple, t["rows"]))) for t in listed] == [
        (table.name, table.rows) for table in made
    ]
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = {tuple(row.values())[:-1]: row["value"] for row in rows}
    assert len(numbers) == len(rows)
    for cell in every_scenario.cells():
        record = MadeUp().read(cell)
        variant = " ".join(f"{key}={value}" for key, value in cell.variant.items())
        of = (cell.model, cell.task, cell.method, cell.scenario, variant, str(cell.seed))
        for metric, value in {**record["metrics"], "heads": record["heads"]}.items():
            assert float(numbers.pop((*of, metric))) == value
        for metric, value in (record["training"] or {}).items():
            assert float(numbers.pop((*of, metric))) == value
    assert not numbers


def test_a_table_without_a_number_is_left_out(every_scenario, monkeypatch):
    monkeypatch.setattr("abft.bench.paper_tables.difference", lambda *a: None)
    names = [table.name for table in tables(Results(every_scenario, MadeUp()))]
    assert "accuracy-one" in names
    assert not any("differences" in name for name in names)


def test_accuracies_in_and_out_of_domain_are_of_the_same_tasks(every_scenario):
    """Without one method's out-of-domain result on TREC, all methods are compared on SST2."""
    missing = {("one", "TREC", "e2e", "out_of_domain", seed) for seed in SEEDS}
    results = Results(every_scenario, MadeUp({*missing, ("one", "SST2", "abft", "standard", 0)}))
    table = next(table for table in tables(results) if table.name == "cost-one")
    assert "mean over SST2." in table.caption

    def numbers(method, scenario, metric, seeds=SEEDS):
        return [MadeUp.number("one", "SST2", method, scenario, s, metric) for s in seeds]

    rows = {row[0]: row[-3:-1] for row in table.rows}
    for method, title in TITLES.items():
        out_of_domain = written(numbers(method, "out_of_domain", "mean"))
        in_domain = numbers(method, "standard", "accuracy")
        if method == "abft":
            assert rows[title] == (f"{100 * in_domain[1]:.1f} (n = 1)", out_of_domain)
        else:
            assert rows[title] == (written(in_domain), out_of_domain)
