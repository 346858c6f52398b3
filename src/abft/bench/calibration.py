"""Write the prompts whose mean prediction is the prior of a calibration (scoring/calibration.py).

The methods differ in the queries. What they draw comes from the training pool.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from abft.data.prompts import Prompt, write_prompt
from abft.data.splits import TaskData
from abft.data.tasks import Example, PromptStyle
from abft.scoring.calibration import CONTENT_FREE


@dataclass(frozen=True)
class Draw:
    """What a calibration makes a query from.

    Attributes:
        number: number of the prompt, from 0.
        text: a text of the training pool that is none of the prompt's demonstrations.
        words: all words of the pool.
        length: mean number of words in a text.
    """

    number: int
    text: str
    words: Sequence[str]
    length: int
    generator: random.Random


def _content_free(draw: Draw) -> str:
    return CONTENT_FREE[draw.number % len(CONTENT_FREE)]


def _random_words(draw: Draw) -> str:
    return " ".join(draw.generator.choices(draw.words, k=draw.length))


def _own_text(draw: Draw) -> str:
    return draw.text


@dataclass(frozen=True)
class Calibration:
    """A way to estimate the prior."""

    title: str
    query: Callable[[Draw], str]


CALIBRATIONS: dict[str, Calibration] = {
    # Zhao et al. 2021, arXiv 2102.09690: queries without content.
    "contextual": Calibration("contextual calibration", _content_free),
    # Fei et al. 2023, arXiv 2305.19148: random words of the pool, as many as a mean text has.
    "domain": Calibration("domain-context calibration", _random_words),
    # Zhou et al. 2024, arXiv 2309.17249: the pool's own texts. The paper averages over the test
    # batch, which would let test queries into the prior.
    "batch": Calibration("batch calibration", _own_text),
}


def calibration_prompts(
    name: str,
    data: TaskData,
    count: int,
    k: int,
    seed: int,
    prompt_style: PromptStyle = "consistent",
) -> list[Prompt]:
    """Write prompts whose mean prediction is the prior.

    Args:
        name: key of `CALIBRATIONS`.
        data: a task; demonstrations and queries come from its training pool.
        count: prompts.
        k: demonstrations in a prompt.
        seed: decides what is drawn.
        prompt_style: how prompts end.

    Raises:
        AbftError: too few examples.
    """
    data.check(k)

    # "domain" makes its queries from these.
    words = [word for example in data.train for word in example.text.split()]
    length = max(1, round(len(words) / len(data.train)))

    generator = random.Random(seed)
    prompts = []
    for number in range(count):
        # Drawn together, so that the query is none of its demonstrations.
        *demonstrations, example = generator.sample(data.train, k + 1)
        draw = Draw(number, example.text, words, length, generator)
        query = Example(CALIBRATIONS[name].query(draw), example.label)
        prompts.append(write_prompt(data.task, demonstrations, query, prompt_style))
    return prompts
