"""Measure what classifiers reach with a given number of labelled texts, and no others."""

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from abft.bench.cell import Cell
from abft.bench.methods import METHODS
from abft.bench.scenarios import SCENARIOS
from abft.bench.subject import predictions, setting_of
from abft.data.tasks import Example
from abft.errors import AbftError
from abft.model.loading import load_tokenizer


def labelled_texts(pool: Sequence[Example], count: int, seed: int) -> list[Example]:
    """Draw `count` examples, at least two of every class: nothing is learned of an unseen class.

    A larger draw with the same seed contains the smaller ones. A smaller pool is drawn whole.

    Raises:
        AbftError: more classes than pairs of texts, or a class with only one text in the pool.
    """
    order = random.Random(seed).sample(list(pool), len(pool))

    seen: Counter[int] = Counter()
    pairs: list[Example] = []
    others: list[Example] = []
    for example in order:
        seen[example.label] += 1
        (pairs if seen[example.label] <= 2 else others).append(example)

    if min(seen.values(), default=0) < 2:
        raise AbftError("the training pool holds one text of a class; expected at least two")
    if len(pairs) > count:
        raise AbftError(
            f"{len(seen)} classes need at least {len(pairs)} labelled texts, not {count}"
        )
    return [*pairs, *others][:count]


_TOLD = ("readout_", "readouts_", "best_step_")


class FittedSubject:
    """Fits the classifier of one job anew for every cell, on the cell's own texts."""

    def __init__(self, cell: Cell) -> None:
        self.tokenizer = load_tokenizer(
            cell.config.model, cell.config.revision, cell.config.trust_remote_code
        )

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Return a cell's record: metrics, cost, predictions."""
        # Optional dependencies.
        from abft.bench.classifiers import CLASSIFIERS, Fitting

        scenario, name = SCENARIOS[cell.scenario], METHODS[cell.kind].classifier
        assert name is not None
        setting = setting_of(cell, self.tokenizer)
        (prompt_set,) = scenario.write(setting)
        queries = [example.text for example in setting.data.test[: len(prompt_set.prompts)]]

        examples = labelled_texts(setting.data.train, cell.variant["texts"], cell.seed)
        texts = [example.text for example in examples]
        labels = [example.label for example in examples]
        classifier = CLASSIFIERS[name](
            Fitting(
                len(labels),
                min(Counter(labels).values()),
                cell.seed,
                setting.data.task,
                cell.config.model,
                cell.config.device,
            )
        )

        _, fitting_seconds = _cpu_seconds(lambda: classifier.fit(texts, labels))
        by_readout: dict[str, np.ndarray] = {}
        if hasattr(classifier, "readout_probabilities"):
            # All read-outs at once, which takes about as long as the best one alone.
            by_readout, seconds = _cpu_seconds(lambda: classifier.readout_probabilities(queries))
            probabilities = by_readout[classifier.readout_]
        else:
            probabilities, seconds = _cpu_seconds(lambda: classifier.predict_proba(queries))

        def all_classes(probabilities: np.ndarray) -> np.ndarray:
            # Columns of classes that no text has stay 0.
            padded_NC = np.zeros((len(queries), len(setting.data.task.labels)))
            padded_NC[:, np.unique(labels)] = probabilities
            return padded_NC

        probabilities_NC = all_classes(probabilities)
        padded = {readout: all_classes(each) for readout, each in by_readout.items()}
        readouts = {
            readout: {
                "metrics": scenario.measure([prompt_set], [padded_NC]),
                "predicted": padded_NC.argmax(1).tolist(),
            }
            for readout, padded_NC in padded.items()
        }
        return {
            "metrics": scenario.measure([prompt_set], [probabilities_NC]),
            "training": {
                "labelled_texts": len(texts),
                "cpu_seconds": fitting_seconds,
                "cpu_seconds_512": seconds * 512 / len(queries),
                # The read-out and training that the classifier chose, if it chooses any.
                **{name: getattr(classifier, name) for name in _TOLD if hasattr(classifier, name)},
            },
            "predictions": predictions([prompt_set], [probabilities_NC]),
            "probabilities": {prompt_set.name: np.round(probabilities_NC, 4).tolist()},
            **({"readouts": readouts} if readouts else {}),
        }


def _cpu_seconds(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a call returns, and the CPU seconds of all its threads."""
    started = time.process_time()
    result = call()
    return result, round(time.process_time() - started, 3)
