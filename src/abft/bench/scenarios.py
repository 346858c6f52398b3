"""Define what is measured: scenarios write prompts from a task's data and compute metrics.

A scenario knows no method. Where StaICC 0.1.1 defines one, prompts (in the `staicc` prompt style)
and metrics are StaICC's.
"""

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from abft.bench.rewrites import alternate_templates, renamed
from abft.data.builtin import PAPER_TASKS
from abft.data.prompts import Prompt, evaluation_prompts, write_prompt
from abft.data.splits import LinearCongruential, TaskData, text_key
from abft.data.tasks import Example, PromptStyle
from abft.errors import AbftError
from abft.scoring import metrics

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOTS = (1, 2, 4, 8, 16)
ERROR_RATES = (0.0, 0.25, 0.5, 0.75, 1.0)
TEMPLATE_QUERIES = 100  # StaICC
DEMONSTRATION_QUERIES, DEMONSTRATION_SETS = 128, 8  # StaICC
DOMAIN_WORDS = 128  # StaICC
NEUTRAL_TEXTS = 256
UNSEEN_TRIES = 5000  # of StaICC's draws for one query


@dataclass(frozen=True)
class Setting:
    """What a scenario writes its prompts from."""

    data: TaskData
    k: int
    count: int  # test prompts
    prompt_style: PromptStyle
    load: Callable[[str], TaskData]  # other built-in tasks
    tokenizer: "PreTrainedTokenizerBase"
    cut: Callable[[TaskData], TaskData] = lambda data: data  # their texts, as those of `data` are
    whole_texts: frozenset[str] = frozenset()  # keys of the training texts before they were cut


@dataclass(frozen=True)
class PromptSet:
    """Prompts of one task with one template and one set of label words."""

    name: str
    data: TaskData  # its task's words are scored; calibrations draw from its training pool
    prompts: tuple[Prompt, ...]
    k: int

    @property
    def targets(self) -> np.ndarray:
        """Return the class of every query, (N,)."""
        return np.array([prompt.target for prompt in self.prompts])


_NOISE = "noise="  # with the share of incorrect labels, the name of a prompt set of `label_noise`
Measure = Callable[[Sequence[PromptSet], Sequence[np.ndarray]], dict[str, float]]


@dataclass(frozen=True)
class Scenario:
    """One thing that is measured.

    `write` makes the prompt sets, `measure` reads metrics off their label probabilities (one (N, C)
    array a set). `variants` are changes of the training configuration, each a cell of its own.
    `texts` are texts whose perplexity counts.
    """

    write: Callable[[Setting], list[PromptSet]]
    measure: Measure
    variants: tuple[Mapping[str, Any], ...] = ({},)
    # "training": methods that train; "abft": the paper's own; "own task": all but those that train
    # on other tasks, such as MetaICL; "classifier": those that are fitted on labelled texts.
    needs: str = "any"
    texts: Callable[[Setting], list[str]] | None = None


def _standard_set(setting: Setting, name: str = "standard", **changes: Any) -> PromptSet:
    """Return the test prompts of a setting, some of whose fields are changed."""
    setting = replace(setting, **changes)
    prompts = evaluation_prompts(setting.data, setting.count, setting.k, setting.prompt_style)
    return PromptSet(name, setting.data, tuple(prompts), setting.k)


def _standard(setting: Setting) -> list[PromptSet]:
    return [_standard_set(setting)]


def _zero_shot(setting: Setting) -> list[PromptSet]:
    # Without demonstrations, a query has one prompt.
    count = min(setting.count, len(setting.data.test))
    return [_standard_set(setting, "zero_shot", k=0, count=count)]


def _k_shot(setting: Setting) -> list[PromptSet]:
    return [_standard_set(setting, f"k={k}", k=k) for k in SHOTS]


def _templates(setting: Setting) -> list[PromptSet]:
    count = min(TEMPLATE_QUERIES, setting.count, len(setting.data.test))
    sets = []
    for i, task in enumerate(alternate_templates(setting.data.task), start=1):
        data = replace(setting.data, task=task)
        sets.append(_standard_set(setting, f"template {i}", data=data, count=count))
    return sets


def _demonstrations(setting: Setting) -> list[PromptSet]:
    # Queries repeat in order: prompt i has query i modulo their number.
    queries = min(DEMONSTRATION_QUERIES, setting.count, len(setting.data.test))
    data = replace(setting.data, test=setting.data.test[:queries])
    return [_standard_set(setting, "demonstrations", data=data, count=queries * DEMONSTRATION_SETS)]


def _drawn(setting: Setting) -> tuple[list[list[int]], LinearCongruential]:
    """Return StaICC's demonstration indices of all test prompts, and the generator that drew them.

    Later draws continue where it stopped.
    """
    generator, indices = LinearCongruential(), range(len(setting.data.demonstrations))

    # StaICC has two prompts of every query, also where fewer are measured.
    total = max(setting.count, 2 * len(setting.data.test))
    return [generator.sample(indices, setting.k) for _ in range(total)], generator


def _unseen(setting: Setting) -> list[PromptSet]:
    """Write prompts whose demonstrations all have another label than the query (Fig. 3).

    `staicc`: StaICC's out-of-domain mode, which draws again until that holds. `consistent`: drawn
    from the other labels.
    """
    data, pool = setting.data, setting.data.demonstrations
    lists, generator = _drawn(setting)
    other_labels = {
        label: [d for d, example in enumerate(pool) if example.label != label]
        for label in range(len(data.task.labels))
    }

    prompts = []
    for i in range(len(lists) if setting.prompt_style == "staicc" else setting.count):
        query, indices = data.test[i % len(data.test)], lists[i]
        allowed = other_labels[query.label]
        if len(allowed) < setting.k:
            raise AbftError(
                f"{data.task.name}: fewer than {setting.k} demonstrations have another label "
                f"than a query"
            )

        if setting.prompt_style == "consistent":
            indices = generator.sample(allowed, setting.k)

        # A query whose label most demonstrations have would take too many draws.
        tries = 0
        while any(pool[d].label == query.label for d in indices):
            indices, tries = generator.sample(range(len(pool)), setting.k), tries + 1
            if tries > UNSEEN_TRIES:
                raise AbftError(
                    f"{data.task.name}: {tries} draws of {setting.k} demonstrations all held "
                    f"the label {data.task.labels[query.label]!r}; use the consistent prompt "
                    f"style, which draws from the other labels"
                )

        if i < setting.count:
            demonstrations = [pool[d] for d in indices]
            prompts.append(write_prompt(data.task, demonstrations, query, setting.prompt_style))
    return [PromptSet("unseen_label", data, tuple(prompts), setting.k)]


def _renamed(setting: Setting) -> list[PromptSet]:
    return [
        _standard_set(setting, name, data=replace(setting.data, task=task))
        for name, task in renamed(setting.data.task).items()
    ]


def _with_queries(setting: Setting, name: str, query_text: Callable[[str], str]) -> list[PromptSet]:
    """Write the standard prompts with their queries' texts replaced."""
    # One query for each prompt: the same text is replaced anew for every prompt.
    test = setting.data.test
    queries = [test[i % len(test)] for i in range(setting.count)]
    replaced = tuple(Example(query_text(query.text), query.label) for query in queries)

    prompt_set = _standard_set(setting, name, data=replace(setting.data, test=replaced))
    return [replace(prompt_set, data=setting.data)]


@functools.lru_cache(maxsize=4)
def _plain_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the tokens that decode to printable ASCII."""
    return [
        i
        for i in range(tokenizer.vocab_size)
        if i not in tokenizer.all_special_ids
        and (text := tokenizer.decode([i])).isascii()
        and text.isprintable()
    ]


def _random_queries(setting: Setting) -> list[PromptSet]:
    generator, tokens = random.Random(0), _plain_tokens(setting.tokenizer)

    # As many tokens as the query has.
    def scrambled(text: str) -> str:
        length = len(setting.tokenizer(text, add_special_tokens=False)["input_ids"])
        return setting.tokenizer.decode(generator.choices(tokens, k=max(1, length))).strip()

    return _with_queries(setting, "random_query", scrambled)


def _label_noise(setting: Setting) -> list[PromptSet]:
    """Write prompts in which 0%, 25%, ..., 100% of the demonstrations have the next class's label.

    StaICC's GLER is the slope of accuracy against these shares.
    """
    data, pool, classes = setting.data, setting.data.demonstrations, len(setting.data.task.labels)
    lists, _ = _drawn(setting)
    errors = LinearCongruential()

    # With few demonstrations, two shares can be the same number of them.
    sets = []
    for count in sorted({int(setting.k * rate) for rate in ERROR_RATES}):
        prompts = []
        for i, indices in enumerate(lists):
            # Drawn for every prompt of StaICC, because the generator continues with the next share.
            incorrect = errors.sample(indices, count)
            if i < setting.count:
                query = data.test[i % len(data.test)]
                demonstrations = [
                    Example(pool[d].text, (pool[d].label + (d in incorrect)) % classes)
                    for d in indices
                ]
                prompts.append(write_prompt(data.task, demonstrations, query, setting.prompt_style))
        sets.append(PromptSet(f"{_NOISE}{count / setting.k:g}", data, tuple(prompts), setting.k))
    return sets


def _domain_queries(setting: Setting) -> list[PromptSet]:
    """Write queries of 128 random words of the demonstration pool (StaICC's domain bias)."""
    generator, pool = LinearCongruential(), setting.data.demonstrations

    # StaICC never draws the last element.
    def below(limit: int) -> int:
        return int((limit - 1) * generator.uniform())

    def word() -> str:
        parts = pool[below(len(pool))].text.split(" ")
        return parts[below(len(parts))]

    def words(_: str) -> str:
        return " ".join(word() for _ in range(DOMAIN_WORDS))

    return _with_queries(setting, "domain_bias", words)


def _contextual_queries(setting: Setting) -> list[PromptSet]:
    return _with_queries(setting, "contextual_bias", lambda _: "")


def _other_tasks(setting: Setting) -> list[PromptSet]:
    """Write prompts of every other task of the paper, without texts of this training pool."""
    training_texts = {text_key(example.text) for example in setting.data.train}
    sets = []
    for name in PAPER_TASKS:
        if name != setting.data.task.name:
            # Whole texts are compared with whole ones, and cut texts with cut ones.
            data = setting.cut(setting.load(name).without(setting.whole_texts))
            data = data.without(training_texts)
            sets.append(_standard_set(setting, name, data=data))
    return sets


def _neutral_texts(setting: Setting) -> list[str]:
    # News, but not of the task that may have been trained on.
    source = "FP" if setting.data.task.name == "AGNews" else "AGNews"
    return [example.text for example in setting.load(source).test[:NEUTRAL_TEXTS]]


def scores(sets: Sequence[PromptSet], probabilities: Sequence[np.ndarray]) -> dict[str, float]:
    """Return accuracy, macro_f1 and ece of the only set."""
    (probabilities_NC,), (prompt_set,) = probabilities, sets
    return metrics.scores(probabilities_NC, prompt_set.targets)


def accuracies(sets: Sequence[PromptSet], probabilities: Sequence[np.ndarray]) -> dict[str, float]:
    """Return each set's accuracy by its name, and the mean."""
    each = {
        s.name: metrics.accuracy(p, s.targets) for s, p in zip(sets, probabilities, strict=True)
    }
    return {**each, "mean": float(np.mean(list(each.values())))}


def _template_measure(
    sets: Sequence[PromptSet], probabilities: Sequence[np.ndarray]
) -> dict[str, float]:
    predictions = np.stack([p.argmax(1) for p in probabilities])
    return {
        "consistency": metrics.consistency(predictions),
        "accuracy": accuracies(sets, probabilities)["mean"],
    }


def _demonstration_measure(
    sets: Sequence[PromptSet], probabilities: Sequence[np.ndarray]
) -> dict[str, float]:
    # One set holds all: the queries with their first demonstrations, then with the next ones.
    predictions = probabilities[0].argmax(1).reshape(DEMONSTRATION_SETS, -1)
    return {
        "consistency": metrics.consistency(predictions),
        "accuracy": scores(sets, probabilities)["accuracy"],
    }


def _noise_measure(
    sets: Sequence[PromptSet], probabilities: Sequence[np.ndarray]
) -> dict[str, float]:
    each = accuracies(sets, probabilities)
    rates = [float(s.name.removeprefix(_NOISE)) for s in sets]
    f1 = [metrics.macro_f1(p, s.targets) for s, p in zip(sets, probabilities, strict=True)]
    slopes = {
        "gler": metrics.gler(rates, [each[s.name] for s in sets]),
        "gler_macro_f1": metrics.gler(rates, f1),
    }
    return {**{s.name: each[s.name] for s in sets}, **slopes}


def _prior_measure(
    sets: Sequence[PromptSet], probabilities: Sequence[np.ndarray]
) -> dict[str, float]:
    return {
        "entropy": metrics.prior_entropy(probabilities[0]),
        "bias": metrics.prior_bias(probabilities[0]),
    }


def _posterior_measure(
    sets: Sequence[PromptSet], probabilities: Sequence[np.ndarray]
) -> dict[str, float]:
    return {"kl": metrics.posterior_bias(probabilities[0], sets[0].targets)}


def _nothing(sets: Sequence[PromptSet], probabilities: Sequence[np.ndarray]) -> dict[str, float]:
    return {}


_SIZES = (32, 64, 128, 256, 512, 1024)
EXTRAPOLATION = "extrapolation"  # the scenario whose variants are factors of a training's change
_FACTORS_OF_CHANGE = (0.5, 1.0, 1.25, 1.5, 2.0)
LABELLED_TEXTS = "labelled_texts"  # the scenario whose variants are numbers of `texts`
_LABELLED_TEXTS = (16, 64, 256, 512, 1024)
# The objective refuses A0 = B0 = 0: its loss would be 0.
_FACTORS = tuple(
    {"A0": a, "B0": b, "pid": pid}
    for pid in (True, False)
    for a in (0.0, 0.25, 0.5, 1.0)
    for b in (0.0, 0.5, 1.0, 2.0)
    if a or b
)

SCENARIOS: dict[str, Scenario] = {
    "standard": Scenario(_standard, scores),
    "zero_shot": Scenario(_zero_shot, scores),
    "k_shot": Scenario(_k_shot, accuracies),
    "template_consistency": Scenario(_templates, _template_measure),
    "demonstration_consistency": Scenario(_demonstrations, _demonstration_measure),
    "unseen_label": Scenario(_unseen, scores),
    "renamed_labels": Scenario(_renamed, accuracies),
    "random_query": Scenario(_random_queries, scores),
    "label_noise": Scenario(_label_noise, _noise_measure),
    "contextual_bias": Scenario(_contextual_queries, _prior_measure),
    "domain_bias": Scenario(_domain_queries, _prior_measure),
    "posterior_bias": Scenario(_standard, _posterior_measure),
    "out_of_domain": Scenario(_other_tasks, accuracies, needs="own task"),
    "training_size": Scenario(
        _standard, scores, tuple({"nd": size} for size in _SIZES), needs="training"
    ),
    EXTRAPOLATION: Scenario(
        _standard,
        scores,
        tuple({"factor": factor} for factor in _FACTORS_OF_CHANGE),
        needs="training",
    ),
    "factors": Scenario(_standard, scores, _FACTORS, needs="abft"),
    # A model trained on other tasks may have been trained on such news.
    "perplexity": Scenario(lambda setting: [], _nothing, texts=_neutral_texts, needs="own task"),
    # The paper's Fig. 2 as a user counts: all texts whose label somebody had to write.
    LABELLED_TEXTS: Scenario(
        _zero_shot,
        scores,
        tuple({"texts": count} for count in _LABELLED_TEXTS),
        needs="classifier",
    ),
}
