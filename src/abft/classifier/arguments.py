"""Check and interpret the arguments of `ABFTClassifier`, without a model."""

from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from abft.classifier.training import QUERIES
from abft.data.tasks import Task, Template
from abft.errors import AbftError
from abft.model.loading import absolute_model
from abft.readouts.fitted import AUTO, READOUTS, candidates
from abft.runs.config import RunConfig, check_effect
from abft.settings import did_you_mean

if TYPE_CHECKING:
    from abft.classifier.estimator import ABFTClassifier

# With fewer texts, none is used as a demonstration: 16 texts were better without demonstrations, 64
# with them (results/readouts/few_texts.txt).
FEW_TEXTS = 32
# Arguments that are settings of a run: argument -> setting.
SHARED = {
    "model": "model",
    "template": "template",
    "objective": "objective",
    "cross_entropy": "cross_entropy",
    "learning_rate": "lr",
    "device": "device",
}


def plain_arguments(classifier: "ABFTClassifier") -> dict[str, Any]:
    """Return the arguments in plain types, as `save` writes them; a folder's path is absolute."""
    values = {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in classifier.get_params().items()
    }
    # A RandomState cannot be written as JSON.
    if not isinstance(values["random_state"], int):
        values["random_state"] = None
    if not isinstance(classifier.model, str | Path):
        raise AbftError(f"model = {classifier.model!r}: expected a name, folder or file")
    values["model"] = absolute_model(classifier.model)
    words = classifier.label_words or {}
    if not isinstance(words, Mapping):
        raise AbftError(f"label_words = {words!r}: expected a dictionary, class -> word")
    values["label_words"] = {
        key.item() if isinstance(key, np.generic) else key: word for key, word in words.items()
    }
    return values


def check_arguments(classifier: "ABFTClassifier") -> None:
    """Raise AbftError for arguments that make no sense."""
    for name, least, others in (
        ("k", 0, [None]),
        ("demonstration_sets", 1, [None]),
        ("batch_size", 1, []),
        ("steps", 0, [AUTO]),
    ):
        value = getattr(classifier, name)
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if value not in others and (not whole or value < least):
            more = "".join(f", or {other!r}" for other in others)
            raise AbftError(f"{name} = {value!r}: expected a whole number, at least {least}{more}")

    minutes, share = classifier.max_minutes, classifier.held_out
    if minutes is not None and not (_is_number(minutes) and minutes > 0):
        raise AbftError(f"max_minutes = {minutes!r}: expected more than 0")
    if not (_is_number(share) and 0 < share < 1):
        raise AbftError(f"held_out = {share!r}: expected a share between 0 and 1")
    for label, word in (classifier.label_words or {}).items():
        if not isinstance(word, str):
            raise AbftError(f"label_words[{label!r}] = {word!r}: expected a word")

    if classifier.readout not in (AUTO, *READOUTS):
        known = ", ".join((AUTO, *READOUTS))
        near = did_you_mean(str(classifier.readout), (AUTO, *READOUTS))
        raise AbftError(f"readout {classifier.readout!r} is none of {known}{near}")
    if classifier.k == 0:
        candidates(classifier.readout, 0)
        if classifier.steps:
            raise AbftError("k = 0: without demonstrations nothing is trained; give steps=0")

    # If k is None, it is chosen later, from the data; these checks use the default.
    config = run_config(classifier, int(classifier.k or RunConfig.k))
    if classifier.steps:
        check_effect(config)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number)


def run_config(classifier: "ABFTClassifier", k: int) -> RunConfig:
    """Return the settings of a training; those that follow from others stay open (None)."""
    numbers = (classifier.cross_entropy, classifier.learning_rate)
    weight, rate = (None if number is None else float(number) for number in numbers)
    return RunConfig(objective=classifier.objective, k=k, cross_entropy=weight, lr=rate)


def choose_k(classifier: "ABFTClassifier", classes: int, texts: int) -> int:
    """Return k, the number of demonstrations in a prompt, given how many texts can be used.

    Raises:
        ValueError: too few texts.
    """
    k = classifier.k
    if k is None:
        # Training and the attention read-out need demonstrations.
        spared = classifier.steps or classifier.readout == "attention" or texts >= FEW_TEXTS
        k = min(max(4, classes), 16, max(texts - QUERIES, 1)) if spared else 0
    if texts < k + QUERIES:
        raise ValueError(
            f"{texts} texts are left for training, prompts of k = {k} demonstrations need "
            f"{k + QUERIES}; give more texts or a smaller k"
        )
    return int(k)


def task_of(classes: np.ndarray, template: str, label_words: Mapping[Any, str]) -> Task:
    """Return a task whose labels are the classes as text."""
    names = tuple(str(name) for name in classes.tolist())
    words = {str(name): word for name, word in label_words.items()}
    # A class itself may be unusable as a label word, such as an empty text.
    first = tuple(words.get(name, name) for name in names)
    return Task("texts", Template(template), names, first).with_words(words)
