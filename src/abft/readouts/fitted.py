"""Fit read-outs on labelled texts, and choose the best by cross-validation."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from sklearn.metrics import f1_score
from sklearn.model_selection import KFold, StratifiedKFold

from abft.errors import AbftError
from abft.readouts.blend import Blend
from abft.readouts.probe import STRENGTHS, Probe, log_loss, log_softmax
from abft.readouts.readings import Readings, over_sets
from abft.scoring import metrics

FILE = "readout.safetensors"
BLEND = "blend"
# Read-out -> its sources. It adds up their log-probabilities, each with a weight, and a bias for
# every class. Without demonstrations, a blend has no attention on them.
READOUTS: dict[str, tuple[str, ...]] = {
    "label_words": ("label_words",),
    "attention": ("attention",),
    "probe": ("probe",),
    BLEND: ("label_words", "attention", "probe"),
}
AUTO = "auto"  # the blend, unless another one is better in cross-validation
_OF_DEMONSTRATIONS = "attention"  # the source that a prompt without demonstrations does not have

FOLDS, FEW_FOLDS = 5, 3
MANY_TEXTS = 256  # from this number of texts on, FEW_FOLDS are enough

Folds = Sequence[tuple[np.ndarray, np.ndarray]]  # indices of the texts fitted on, and of the others


@dataclass(frozen=True)
class FittedReadout:
    """Turns readings into probabilities, by the best of the read-outs that were compared.

    Attributes:
        name: key of READOUTS; the best read-out.
        blends: by read-out, one weight for each of its sources and a bias for every class.
        probes: one for each set of demonstrations; empty where no read-out has a probe.
        scores: log loss, accuracy and macro-F1 of each read-out, on texts that it was not fitted
            on.
        never_predicted: classes that the best one predicts for none of these texts.
    """

    name: str
    blends: Mapping[str, Blend]
    probes: tuple[Probe, ...]
    scores: Mapping[str, Mapping[str, float]]
    never_predicted: tuple[int, ...] = ()

    @property
    def log_loss(self) -> float:
        """Return the cross-validated log loss."""
        return self.scores[self.name]["log_loss"]

    def save(self, folder: Path) -> None:
        """Write the fitted numbers into a folder (safetensors)."""
        from safetensors.numpy import save_file

        arrays: dict[str, np.ndarray] = {}
        for name, blend in self.blends.items():
            arrays |= {f"{name}.weights": blend.weights, f"{name}.bias": blend.bias}
        for s, probe in enumerate(self.probes):
            for name, array in vars(probe).items():
                arrays[f"probe.{s}.{name}"] = np.ascontiguousarray(array)
        save_file(arrays, folder / FILE)

    @classmethod
    def load(
        cls, folder: Path, name: str, scores: Mapping[str, Mapping[str, float]]
    ) -> "FittedReadout":
        """Read what `save` wrote. Raises AbftError if it is missing or damaged."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        if name not in READOUTS:
            raise AbftError(f"{folder}: unknown read-out {name!r}")
        try:
            arrays = load_file(folder / FILE)
            blends = {
                each: Blend(arrays[f"{each}.weights"], arrays[f"{each}.bias"]) for each in scores
            }
            sets = sum(name.endswith(".centre") for name in arrays)
            probes = [
                Probe(**{field.name: arrays[f"probe.{s}.{field.name}"] for field in fields(Probe)})
                for s in range(sets)
            ]
        except (OSError, SafetensorError, KeyError) as error:
            raise AbftError(f"{folder / FILE} is missing or damaged ({error})") from None
        return cls(name, blends, tuple(probes), scores)

    def probabilities(self, readings: Readings, name: str | None = None) -> np.ndarray:
        """Return the probabilities of a read-out, by default the best, (N, C) float64.

        A row sums to 1.
        """
        name = name or self.name
        sources = [
            _probe_log(self.probes, readings)
            if source == "probe"
            else readings.log_probabilities(source)
            for source in sources_of(name, readings.k)
        ]
        return np.exp(self.blends[name].log_probabilities(np.stack(sources, axis=1)))


def candidates(readout: str, k: int) -> list[str]:
    """Return the read-outs that `fit_readout` compares for prompts of k demonstrations.

    Raises:
        AbftError: the read-out needs demonstrations, and there are none.
    """
    names = list(READOUTS) if readout == AUTO else [readout]
    possible = [name for name in names if sources_of(name, k)]
    if not possible:
        raise AbftError(f"readout {readout!r} reads the attention on demonstrations, but k = 0")
    return possible


def sources_of(name: str, k: int) -> tuple[str, ...]:
    """Return the sources of a read-out for prompts of k demonstrations."""
    return tuple(source for source in READOUTS[name] if k or source != _OF_DEMONSTRATIONS)


def stratified_folds(labels_N: np.ndarray, seed: int) -> Folds:
    """Return folds that each hold every class, if every class has a text for each fold."""
    most = FOLDS if len(labels_N) < MANY_TEXTS else FEW_FOLDS
    smallest = np.unique(labels_N, return_counts=True)[1].min()
    folds = int(max(2, min(most, smallest)))
    if np.unique(labels_N, return_counts=True)[1].max() < folds:
        # One text of every class: nothing can be stratified.
        return list(KFold(folds, shuffle=True, random_state=seed).split(labels_N))
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class with one text is in one fold only.
        warnings.filterwarnings("ignore", message="The least populated class")
        return list(splitter.split(labels_N, labels_N))


def fit_readout(
    readings: Readings,
    labels_N: np.ndarray,
    classes: int,
    names: Sequence[str],
    folds: Folds,
    seed: int,
    weights_N: np.ndarray | None = None,
) -> FittedReadout:
    """Fit read-outs, and find the best of them.

    Nothing is scored on texts that it was fitted on: probes are fitted on the first part of each
    fold and applied to the second; the blends and calibrations of these results are cross-validated
    in turn.

    Args:
        labels_N: the texts' classes, from 0 to `classes` - 1.
        names: keys of READOUTS.
        folds: texts that are in no fold's second part are used for the probes only.
        seed: of the folds in which blends are cross-validated.
        weights_N: weights of the texts in everything that is fitted, 1 on average; None = 1 each.
            Scores count every text once.
    """
    weights_N = np.ones(len(labels_N)) if weights_N is None else weights_N
    scored = np.concatenate([held_out for _, held_out in folds])
    scored_labels = labels_N[scored]

    sources = {name: sources_of(name, readings.k) for name in names}
    by_source = {
        source: readings.log_probabilities(source)[scored]
        for source in ("label_words", "attention")
        if any(source in sources[name] for name in names)
    }
    strength = STRENGTHS[0]
    if any("probe" in sources[name] for name in names):
        by_strength = {
            strength: _cross_fitted(readings, labels_N, weights_N, classes, strength, folds)[scored]
            for strength in STRENGTHS
        }
        losses = {s: log_loss(log_NC, scored_labels) for s, log_NC in by_strength.items()}
        strength = min(losses, key=lambda s: losses[s])
        by_source["probe"] = by_strength[strength]

    stacked = {
        name: np.stack([by_source[source] for source in sources[name]], axis=1) for name in names
    }
    held_out = {
        name: _cross_validated(stacked[name], scored_labels, weights_N[scored], seed)
        for name in names
    }
    scores = {name: _scores(log_NC, scored_labels) for name, log_NC in held_out.items()}
    best = _best(held_out, scores, scored_labels)

    # What was cross-validated is fitted once more, on all texts.
    probes: tuple[Probe, ...] = ()
    if "probe" in by_source:
        everything = np.arange(len(labels_N))
        probes = _probes(readings, labels_N, weights_N, classes, strength, everything)
    blends = {name: Blend.fit(stacked[name], scored_labels, weights_N[scored]) for name in names}
    never = tuple(metrics.never_predicted(held_out[best].argmax(1), scored_labels))
    return FittedReadout(best, blends, probes, scores, never)


def _best(
    held_out: Mapping[str, np.ndarray],
    scores: Mapping[str, Mapping[str, float]],
    labels_N: np.ndarray,
) -> str:
    """Return the blend, unless another read-out is better by more than the standard error.

    With few texts, the smallest log loss is a matter of luck (docs/classifier.md).
    """
    best = min(scores, key=lambda name: scores[name]["log_loss"])
    if BLEND not in scores or best == BLEND or not np.isfinite(scores[BLEND]["log_loss"]):
        return best
    rows = np.arange(len(labels_N))
    gain_N = held_out[best][rows, labels_N] - held_out[BLEND][rows, labels_N]
    return best if gain_N.mean() > gain_N.std() / np.sqrt(len(rows)) else BLEND


def _cross_validated(
    log_NRC: np.ndarray, labels_N: np.ndarray, weights_N: np.ndarray, seed: int
) -> np.ndarray:
    """Return a blend's log-probabilities (N, C) of texts that it was not fitted on."""
    log_NC = np.empty((len(labels_N), log_NRC.shape[2]))
    for fitted, held_out in stratified_folds(labels_N, seed):
        blend = Blend.fit(log_NRC[fitted], labels_N[fitted], weights_N[fitted])
        log_NC[held_out] = blend.log_probabilities(log_NRC[held_out])
    return log_NC


def _scores(log_NC: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
    # A training with too large a rate leaves hidden states that overflow.
    if not np.isfinite(log_NC).all():
        return {"log_loss": float("inf"), "accuracy": 0.0, "macro_f1": 0.0}

    probabilities_NC = np.exp(log_NC)
    return {
        "log_loss": log_loss(log_NC, labels_N),
        "accuracy": metrics.accuracy(probabilities_NC, labels_N),
        # Over the classes that occur: if there are many, a part of the texts need not hold all.
        "macro_f1": float(f1_score(labels_N, probabilities_NC.argmax(1), average="macro")),
    }


def _cross_fitted(
    readings: Readings,
    labels_N: np.ndarray,
    weights_N: np.ndarray,
    classes: int,
    strength: float,
    folds: Folds,
) -> np.ndarray:
    """Return log-probabilities (N, C), each from probes that were not fitted on the text."""
    log_NC = np.zeros((len(labels_N), classes))
    for fitted, held_out in folds:
        probes = _probes(readings, labels_N, weights_N, classes, strength, fitted)
        log_NC[held_out] = _probe_log(probes, readings, held_out)
    return log_NC


def _probes(
    readings: Readings,
    labels_N: np.ndarray,
    weights_N: np.ndarray,
    classes: int,
    strength: float,
    texts: np.ndarray,
) -> tuple[Probe, ...]:
    """Fit a probe for every set of demonstrations, on those of the texts that it does not show."""
    assert readings.views is not None
    probes = []
    for views_NVD, known_N in zip(readings.views, readings.known, strict=True):
        own = texts[known_N[texts]]
        probe = Probe.fit(views_NVD[own], labels_N[own], classes, strength, weights_N[own])
        probes.append(probe)
    return tuple(probes)


def _probe_log(
    probes: Sequence[Probe], readings: Readings, texts: np.ndarray | None = None
) -> np.ndarray:
    """Return the probes' mean log-probabilities of some texts (default: all), (N, C)."""
    assert readings.views is not None
    chosen = slice(None) if texts is None else texts
    pairs = zip(probes, readings.views, strict=True)
    log_SNC = np.stack([probe.log_probabilities(views_NVD[chosen]) for probe, views_NVD in pairs])
    return log_softmax(over_sets(log_SNC, readings.known[:, chosen]))
