"""Calibration of label probabilities: divide by a prior, the mean prediction where no label is
right or all are.

The three methods differ in the prompts that the prior is estimated on; all of them come from the
training pool.
"""

import random
from collections.abc import Sequence

import numpy as np

from abft.bench.methods import Calibration
from abft.data.prompts import Prompt, write_prompt
from abft.data.splits import TaskData
from abft.data.tasks import Example, PromptStyle

CONTENT_FREE = ("N/A", "[MASK]", "")  # Zhao et al. 2021


def calibration_prompts(
    kind: Calibration,
    data: TaskData,
    count: int,
    k: int,
    seed: int,
    prompt_style: PromptStyle = "consistent",
) -> list[Prompt]:
    """Prompts whose mean prediction is the prior, k demonstrations each, all from the training
    pool.

    contextual (Zhao et al. 2021, arXiv 2102.09690): queries without content. domain (Fei et al.
    2023, arXiv 2305.19148): queries of random words of the pool, as many as a mean text has. batch
    (Zhou et al. 2024, arXiv 2309.17249): the pool's own texts; the paper averages over the test
    batch, which would let test queries into the prior.
    """
    data.check(k)
    generator = random.Random(seed)
    words = [word for example in data.train for word in example.text.split()]
    length = max(1, round(len(words) / len(data.train)))
    prompts = []
    for number in range(count):
        *demonstrations, query = generator.sample(data.train, k + 1)
        if kind == "contextual":
            query = Example(CONTENT_FREE[number % len(CONTENT_FREE)], 0)
        elif kind == "domain":
            query = Example(" ".join(generator.choices(words, k=length)), 0)
        prompts.append(write_prompt(data.task, demonstrations, query, prompt_style))
    return prompts


def prior(probabilities_NC: np.ndarray) -> np.ndarray:
    """The mean prediction, (C,)."""
    return np.asarray(probabilities_NC).mean(0)


def calibrated(probabilities_NC: np.ndarray, prior_C: np.ndarray | Sequence[float]) -> np.ndarray:
    """p / prior, normalised, (N, C): a prediction that equals the prior becomes uniform."""
    scaled = np.asarray(probabilities_NC) / np.maximum(np.asarray(prior_C), 1e-12)
    return scaled / scaled.sum(1, keepdims=True)
