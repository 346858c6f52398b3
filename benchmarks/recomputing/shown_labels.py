"""The table of prompts that show the query's label, from the data themselves."""

import functools
import importlib.util
import pickle
import sys
import unicodedata
from pathlib import Path

import numpy as np

from recomputing.bench import (
    CLASSES,
    SHORT,
    TASKS,
    TRAINED,
    Bench,
)
from recomputing.pages import Expected, header, percent, plain

# Files of StaICC's data, and the sizes of its demonstration pools.
DATA = {
    "SST2": ("sst2", 4096),
    "MR": ("rotten_tomatoes", 4096),
    "FP": ("financial_phrasebank", 512),
    "SST5": ("sst5", 4096),
    "TREC": ("trec", 4096),
    "SUBJ": ("subjective", 4096),
    "TEE": ("tweet_eval_emotion", 3192),
    "TEH": ("tweet_eval_hate", 4096),
}


class Congruential:
    """Draws as StaICC does: x = 1664525 x + 1013904223 modulo 2^32, from 42 on."""

    def __init__(self) -> None:
        self.x = 42

    def choose(self, total: int, count: int) -> list[int]:
        """Draw `count` of the numbers below `total` without repetition."""
        left, chosen = list(range(total)), []
        for _ in range(count):
            self.x = (1664525 * self.x + 1013904223) % 2**32
            place = self.x * len(left) // 2**32
            chosen.append(left[place])
            del left[place]
        return chosen


def letters(text: str) -> str:
    """Return the letters and digits of a text without case: what makes two texts the same."""
    folded = unicodedata.normalize("NFC", text.casefold())
    return "".join(filter(str.isalnum, folded)) or text.strip()


@functools.cache
def shown_classes(task: str, prompts: int, k: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Draw the test prompts of a task again.

    Returns:
        The classes of the queries (prompts,) and those of their demonstrations (prompts, k).
    """
    package = importlib.util.find_spec("StaICC")
    if package is None:
        sys.exit("expected StaICC's data, which says what prompts show: pip install 'abft[staicc]'")
    name, pool_size = DATA[task]
    folder = Path(next(iter(package.submodule_search_locations))) / "cached_dataset"
    examples = pickle.loads((folder / f"{name}.dataset").read_bytes())

    # 1,024 training examples come first, then the demonstration pool and 512 test queries.
    order = Congruential().choose(len(examples), 1024 + pool_size + 512)
    pool, test = order[1024 : 1024 + pool_size], order[1024 + pool_size :]
    queries = {letters(examples[i][0][0]) for i in test}
    pool = [i for i in pool if letters(examples[i][0][0]) not in queries]

    draws = Congruential()
    demonstrations = [draws.choose(len(pool), k) for _ in range(prompts)]
    return (
        np.array([examples[test[i % len(test)]][1] for i in range(prompts)]),
        np.array([[examples[pool[d]][1] for d in chosen] for chosen in demonstrations]),
    )


def shown_groups(bench: Bench, task: str, method: str) -> dict[str, float]:
    """Return the columns of "Where ABFT loses, and why", as shares."""
    targets, predicted = bench.predictions(task, method)
    classes, demonstrations = shown_classes(task, len(targets))
    assert (classes == targets).all(), f"{task}: the cell has other prompts than StaICC's data"

    record = bench.record(task, method, "standard")
    # Version 0.1 called correct labels right and incorrect ones wrong.
    mass, other = (
        next(record[f"{word}_mass"] for word in words if f"{word}_mass" in record)
        for words in (("correct", "right"), ("incorrect", "wrong"))
    )
    shown = (demonstrations == targets[:, None]).any(1)
    return {
        "label shown": float(shown.mean()),
        "shown": float((predicted == targets)[shown].mean()),
        "not shown": float((predicted == targets)[~shown].mean()),
        "copied": float((demonstrations == predicted[:, None]).any(1).mean()),
        "correct share": mass / (mass + other),
    }


def shown_labels(bench: Bench) -> Expected:
    """Recompute accuracy by whether the demonstrations show the query's label."""
    columns = header(
        "task | classes | label shown | method | accuracy, shown | accuracy, not shown | "
        "copied | correct share"
    )
    rows = {}
    for task in TASKS:
        for method in ("vanilla", *TRAINED):
            groups = shown_groups(bench, task, method)
            rows[task, SHORT[method]] = [
                plain(CLASSES[task], 0),
                percent(groups["label shown"], 0, "{}%"),
                percent(groups["shown"]),
                percent(groups["not shown"]),
                percent(groups["copied"], 0, "{}%"),
                percent(groups["correct share"], 0, "{}%"),
            ]
    return Expected(columns, rows, ("task", "method"), "prompts drawn again from StaICC's data")
