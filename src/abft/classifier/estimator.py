"""Define `ABFTClassifier`, a text classifier with scikit-learn's interface."""

import math
import random
import sys
import threading
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_consistent_length, check_random_state
from sklearn.utils.validation import check_is_fitted
from tqdm import tqdm

from abft.classifier.arguments import (
    SHARED,
    check_arguments,
    choose_k,
    plain_arguments,
    run_config,
    task_of,
)
from abft.classifier.inputs import classes_of, texts_of, weighted
from abft.classifier.saving import FILE, check_format, read_record, saved, weights_of
from abft.classifier.sharing import base_model
from abft.classifier.training import Training
from abft.data.draws import demonstration_sets, most_shown, split_held_out
from abft.data.splits import TaskData, text_key, unique
from abft.data.tasks import Example, Task
from abft.errors import AbftError
from abft.method.objectives import DEFAULT_OBJECTIVE
from abft.model.loading import absolute_model
from abft.readouts.fitted import (
    AUTO,
    FittedReadout,
    Folds,
    candidates,
    fit_readout,
    sources_of,
    stratified_folds,
)
from abft.readouts.readings import Readings, read_texts
from abft.runs.config import RunConfig
from abft.scoring import metrics
from abft.settings import document_settings

if TYPE_CHECKING:
    from abft.runs.explain import Explanation
    from abft.runs.predictor import Predictor


PART = 1024  # texts that are read at once, so that the readings of many texts need little memory

_OPENING = threading.RLock()  # one thread at a time loads an unpickled classifier's base model


@document_settings(RunConfig, SHARED)
class ABFTClassifier(ClassifierMixin, BaseEstimator):
    """Classifies texts with a language model that reads a few labelled texts as demonstrations.

    `fit` learns which read-out to predict from: the label words' probabilities, the attention on
    the demonstrations' labels, hidden states (a linear probe), or a blend of them; each is
    calibrated. By default the language model is not trained, and `fit` takes a minute with 512
    texts.

    With `steps`, `fit` first trains W_Q and W_K so that attention heads look at demonstrations with
    the correct label. A part of the texts is held out to decide when to stop, and whether training
    helped at all: if it did not, the untouched model is kept, with a warning.

    If texts of a class are equal except for case and punctuation, as far as they are read, only the
    first counts. Equal texts are never both held out and trained on, even if their classes differ.

    `objective`, `cross_entropy`, `learning_rate`, `max_minutes` and `held_out` matter with `steps`
    only.

    Args:
        label_words: class -> its label word in prompts; default: the class as text.
        k: number of demonstrations in a prompt; 0 = the text alone, without training. Default: 4,
            or the number of classes if that is larger, up to 16; but 0 with fewer than 32 texts,
            because none can be spared, unless training or the attention read-out needs
            demonstrations.
        demonstration_sets: number of sets of demonstrations, over which probabilities are averaged;
            default: 2, or as many as it takes to show every class once. The classes are taken in
            turn, in random order; each set continues where the last one stopped, so that all
            classes are shown about equally often.
        readout: label_words, attention, probe, blend, or auto: the blend, unless another one is
            better, by more than the standard error, on texts that it was not fitted on.
        steps: maximum number of optimizer steps, of 32 prompts each; 0 = no training; "auto" =
            until the held-out loss stops falling. 16 is enough for most tasks.
        max_minutes: time after which training ends; default: no limit.
        held_out: share of the texts that is not trained on, at least 8 and at most 256 of them.
        batch_size: texts in a forward pass of prediction.
        random_state: int, RandomState or None; decides which texts are held out, the demonstrations
            and the training prompts.
        progress: show a progress bar while training.

    Attributes:
        classes_: the classes, sorted, (C,).
        demonstrations_: for each set, (text, class) pairs.
        validation_: by step, accuracy and log loss on the held-out texts; step 0 is the untouched
            model.
        best_step_: the step whose weights are kept; 0 = the untouched model's.
        readout_: name of the read-out that predictions come from.
        readouts_: log loss, accuracy and macro-F1 of every read-out that was compared, on texts
            that it was not fitted on.
    """

    def __init__(
        self,
        model: str = RunConfig.model,
        *,
        template: str = RunConfig.template,
        label_words: dict[Any, str] | None = None,
        k: int | None = None,
        demonstration_sets: int | None = None,
        objective: str = DEFAULT_OBJECTIVE,
        cross_entropy: float | None = None,
        readout: str = AUTO,
        steps: int | str = 0,
        max_minutes: float | None = None,
        learning_rate: float | None = None,
        held_out: float = 0.2,
        batch_size: int = 16,
        device: str = "auto",
        random_state: Any = None,
        progress: bool = True,
    ) -> None:
        self.model = model
        self.template = template
        self.label_words = label_words
        self.k = k
        self.demonstration_sets = demonstration_sets
        self.objective = objective
        self.cross_entropy = cross_entropy
        self.readout = readout
        self.steps = steps
        self.max_minutes = max_minutes
        self.learning_rate = learning_rate
        self.held_out = held_out
        self.batch_size = batch_size
        self.device = device
        self.random_state = random_state
        self.progress = progress

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        # scikit-learn's checks write numbers as text, which mean nothing to a language model.
        tags.classifier_tags.poor_score = True
        return tags

    def fit(
        self, X: Sequence[str], y: Sequence[Any], sample_weight: Any = None
    ) -> "ABFTClassifier":
        """Train on texts X, (N,), and their classes y, (N,): strings or integers.

        `sample_weight`, (N,) and not negative: how much a text counts when a read-out is fitted,
        and how often it is a query in training. Texts of weight 0 are left out.

        A fit that fails or is interrupted leaves the classifier as it was before.

        Raises:
            ValueError: unequal lengths, a text that is empty or no string, fewer than two classes,
                a class with one text, classes of mixed types, too few texts for the prompts, or
                settings that make no sense.
        """
        before = dict(vars(self))
        try:
            # Predictions and `save` use these values, even if attributes are changed later.
            self._fitted = plain_arguments(self)
            return self._fit(X, y, sample_weight)
        except BaseException:
            self.__dict__ = before
            raise

    def _fit(self, X: Sequence[str], y: Sequence[Any], sample_weight: Any) -> "ABFTClassifier":
        # Settings and data are checked before the model is loaded.
        check_arguments(self)
        texts = texts_of(X)
        classes = classes_of(y)
        check_consistent_length(texts, classes)
        weights = [1.0] * len(texts)
        if sample_weight is not None:
            texts, classes, weights = weighted(texts, classes, sample_weight)
        self.classes_, labels = np.unique(classes, return_inverse=True)
        examples = [Example(text, int(label)) for text, label in zip(texts, labels, strict=True)]
        # Of equal texts, the weight of the first counts.
        weight_of = dict(zip(reversed(examples), reversed(weights), strict=True))
        examples = self._distinct(examples)
        classes_count = len(self.classes_)
        most_k = choose_k(self, classes_count, len(examples))
        task = self._task()

        # Texts are cut before any are drawn: some may be equal once they are cut.
        model, tokenizer = base_model(self._fitted["model"], self.device, own=bool(self.steps))
        read = self._cut(task, examples, model, tokenizer, most_k)
        weight_of = {
            example: weight_of[whole]
            for example, whole in zip(reversed(read), reversed(examples), strict=True)
        }
        examples = self._distinct(read)

        # One generator decides the parts, the demonstrations and the seed of training.
        generator = random.Random(int(check_random_state(self.random_state).randint(2**31)))
        held_out: list[Example] = []
        training = examples
        if self.steps:
            training, held_out = split_held_out(examples, self.held_out, generator)
        k = choose_k(self, classes_count, len(training))
        weights_N = np.array([weight_of[example] for example in (*training, *held_out)])

        count = self.demonstration_sets
        if k == 0:
            count = 1
        elif count is None:
            # As many as it takes to show every class once.
            count = max(2, math.ceil(classes_count / k))
        sets = demonstration_sets(training, k, count, generator, spare=True)
        seed = generator.randrange(2**31)

        names = self.classes_.tolist()
        self.demonstrations_ = [
            [(example.text, names[example.label]) for example in demonstrations]
            for demonstrations in sets
        ]
        self._base_samples = _samples(model)
        self._attach(model, tokenizer)

        self.validation_: dict[int, dict[str, float]] = {}
        self.best_step_ = 0
        asked = None if sample_weight is None else tuple(weights_N[: len(training)].tolist())
        data = TaskData(task, tuple(training), tuple(training), tuple(held_out), weights=asked)
        self._fit_readout(data, k, seed, weights_N / weights_N.mean())
        assert self._readout is not None
        if self._readout.never_predicted:
            never = [names[label] for label in self._readout.never_predicted]
            warnings.warn(
                f"predicted for none of the texts that it was not fitted on: {never[:5]}; macro-F1 "
                f"{self._readout.scores[self._readout.name]['macro_f1']:.3f}. Give more texts of "
                "these classes.",
                stacklevel=3,
            )
        return self

    def _cut(
        self, task: Task, examples: Sequence[Example], model: Any, tokenizer: Any, k: int
    ) -> Sequence[Example]:
        """Return the texts cut to what fits into prompts of k demonstrations, with a warning."""
        from abft.data.encoding import label_tokens
        from abft.data.lengths import fit_texts, longest_that_fits
        from abft.model.loading import context_length

        data = TaskData(task, tuple(examples), (), ())
        tokens, limit = label_tokens(tokenizer, task), context_length(model)
        times = most_shown(examples, k, self.held_out if self.steps else 0.0)
        longest = longest_that_fits(data, tokenizer, k, limit, tokens, times=times)
        data, count = fit_texts(data, tokenizer, longest)
        if count:
            warnings.warn(
                f"{count} texts have more than {longest} tokens; only their beginning is read",
                stacklevel=4,
            )
        return data.train

    def _fit_readout(self, data: TaskData, k: int, seed: int, weights_N: np.ndarray) -> None:
        """Fit the read-out; with `steps`, train the model first, and keep it if that helps."""
        examples = [*data.train, *data.test]
        names = candidates(self.readout, k)
        readings = self._read([example.text for example in examples], names, fitting=True)

        # A text that every set shows is of no use: its label would be copied.
        known = np.flatnonzero(readings.known.any(0))
        is_held_out = known >= len(data.train)
        labels_N = np.array([examples[i].label for i in known])
        missing = set(range(len(self.classes_))) - set(labels_N.tolist())
        if missing:
            rare = self.classes_[sorted(missing)[:5]].tolist()
            raise ValueError(
                f"k = {k} demonstrations show every text of the classes {rare}, so that none is "
                "left to fit on; give more texts of these classes, or a smaller k"
            )
        readings = readings.of(known)

        def fit(readings: Readings, folds: Folds) -> FittedReadout:
            classes = len(self.classes_)
            return fit_readout(readings, labels_N, classes, names, folds, seed, weights_N[known])

        if self.steps:
            # Read-outs are compared on the held-out texts, on which the model is not trained.
            parts = [(np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out))]
            before = fit(readings, parts)
            self._train(data, k, seed)

            losses = [before.log_loss]
            if self.best_step_:
                texts = [examples[i].text for i in known]
                after = fit(self._read(texts, names, fitting=True), parts)
                losses.append(after.log_loss)
                if after.log_loss < before.log_loss:
                    self._readout = after
                    return
                self.best_step_ = 0
            # The trained copy is dropped, and the shared, untouched model is used again.
            self._attach(*base_model(self._fitted["model"], self.device, own=False))
            warnings.warn(
                f"training did not help on {len(data.test)} held-out texts (log loss "
                f"{before.log_loss:.3f} before it, {losses[-1]:.3f} after); the untouched model is "
                "kept",
                stacklevel=4,
            )
        self._readout = fit(readings, stratified_folds(labels_N, seed))

    _readout: FittedReadout | None

    @property
    def readout_(self) -> str:
        check_is_fitted(self)
        return self._readout.name if self._readout else "label_words"

    @property
    def readouts_(self) -> dict[str, dict[str, float]]:
        check_is_fitted(self)
        scores = self._readout.scores if self._readout else {}
        return {name: dict(values) for name, values in scores.items()}

    def _read(
        self,
        texts: Sequence[str],
        names: Sequence[str],
        fitting: bool = False,
        look: Any = None,
    ) -> Readings:
        """Run the model on texts, and return what the named read-outs need."""
        predictors = self._opened()
        k = len(self.demonstrations_[0])
        sources = {source for name in names for source in sources_of(name, k)}
        shown = [{text_key(text) for text, _ in shown} for shown in self.demonstrations_]
        bar = tqdm(
            total=len(texts) * len(predictors),
            desc="read",
            unit="text",
            file=sys.stderr,
            disable=not (fitting and self.progress),
        )
        with bar:
            return read_texts(
                predictors,
                texts,
                hidden="probe" in sources,
                attention="attention" in sources,
                shown=shown if fitting else None,
                look=look,
                batch_size=self.batch_size,
                progress=bar.update,
            )

    def explain(self, X: Sequence[str]) -> "list[Explanation]":
        """Return for each text its class, and where the heads looked after each set.

        Demonstrations are those of all sets; classes are given as text. A probe reads hidden
        states, which result from attention, but not the attention itself: see `readout_`. A text
        that is too long for one of the sets is cut in the same place for all, so that less of it
        may be read than in `predict`.
        """
        from abft.runs.explain import explain, look, together
        from abft.scoring.votes import head_mask

        # Where the answer is read from attention alone, all heads are read.
        predictor = self._opened()[0]
        if self.readout_ == "attention":
            look = partial(look, heads_LH=head_mask(predictor.model, None))
        explanations = []
        labels = predictor.task.labels
        # All sets read the same part of a text, so that its tokens are the same.
        for texts in _parts(self._fitting(texts_of(X), by_all=True)):
            readings = self._read(texts, self._used, look=look)
            by_set = [
                explain(predictor, texts, readings.label_words[s], readings.looks[s])
                for s, predictor in enumerate(self._opened())
            ]
            explanations += [
                together(of_text, dict(zip(labels, row.tolist(), strict=True)))
                for row, *of_text in zip(self._probabilities(readings), *by_set, strict=True)
            ]
        return explanations

    def predict_proba(self, X: Sequence[str]) -> np.ndarray:
        """Return probabilities (N, C), calibrated on the texts of `fit`.

        Columns are in the order of `classes_`; a row sums to 1.
        """
        check_is_fitted(self)
        texts = self._fitting(texts_of(X))
        parts = [self._probabilities(self._read(part, self._used)) for part in _parts(texts)]
        return np.concatenate([np.zeros((0, len(self.classes_))), *parts])

    def readout_probabilities(self, X: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the probabilities (N, C) of every read-out in `readouts_`, from one reading."""
        check_is_fitted(self)
        readout, names = self._readout, list(self.readouts_)
        if readout is None:
            return {}
        parts = []
        for part in _parts(self._fitting(texts_of(X))):
            readings = self._read(part, names)
            parts.append({name: readout.probabilities(readings, name) for name in names})
        none = np.zeros((0, len(self.classes_)))
        return {name: np.concatenate([none, *(part[name] for part in parts)]) for name in names}

    def _fitting(self, texts: list[str], by_all: bool = False) -> list[str]:
        """Warn of texts that some set of demonstrations leaves too little room for.

        Each set reads as much of a text as fits after it; with `by_all`, texts are returned cut to
        what all sets read.
        """
        cut = texts
        for predictor in self._opened():
            cut = predictor.fit(cut)
        count = sum(a != b for a, b in zip(texts, cut, strict=True))
        if count:
            warnings.warn(
                f"{count} texts are longer than fits into the model's context; only their "
                "beginning is read",
                stacklevel=3,
            )
        return cut if by_all else texts

    @property
    def _used(self) -> list[str]:
        """Return the read-outs that predictions need."""
        return [self._readout.name] if self._readout else []

    def _probabilities(self, readings: Readings) -> np.ndarray:
        # Classifiers of earlier versions have no read-out.
        if self._readout is None:
            return readings.label_words.mean(0)
        return self._readout.probabilities(readings)

    def predict(self, X: Sequence[str]) -> np.ndarray:
        """Return the most probable class of every text, (N,)."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(1)]

    def score(self, X: Sequence[str], y: Sequence[Any], sample_weight: Any = None) -> float:
        """Return the accuracy. Raises ValueError for classes that `fit` has not seen."""
        check_is_fitted(self)
        unknown = set(np.unique(classes_of(y)).tolist()) - set(self.classes_.tolist())
        if unknown:
            raise ValueError(f"y holds classes that fit has not seen: {sorted(unknown, key=str)}")
        return super().score(X, y, sample_weight)

    def _distinct(self, examples: Sequence[Example]) -> list[Example]:
        """Drop all but the first of a class's equal texts; ValueError if too few are left."""
        distinct = unique(examples, lambda example: (text_key(example.text), example.label))
        self._check_classes(distinct)
        return distinct

    def _check_classes(self, examples: Sequence[Example]) -> None:
        """Raise ValueError unless there are two classes, and two texts of every class."""
        if len(self.classes_) < 2:
            raise ValueError(
                f"y holds one class only ({self.classes_.tolist()[0]!r}); a classifier needs at "
                "least 2 classes"
            )

        counts = np.bincount([example.label for example in examples], minlength=len(self.classes_))
        if counts.min() < 2:
            rare = self.classes_[counts < 2].tolist()
            raise ValueError(
                f"classes with one text: {rare[:5]}; every class needs at least 2, one to show "
                "and one to ask"
            )

    def _task(self) -> Task:
        return task_of(self.classes_, self._fitted["template"], self._fitted["label_words"])

    def _attach(self, model: Any, tokenizer: Any) -> None:
        """Make a predictor for every set of demonstrations."""
        from abft.runs.predictor import Predictor

        labels = {name: i for i, name in enumerate(self.classes_.tolist())}
        task = self._task()
        predictors = []
        for demonstrations in self.demonstrations_:
            examples = [Example(text, labels[name]) for text, name in demonstrations]
            predictors.append(Predictor(model, tokenizer, task, examples))
        self._predictors: list[Predictor] = predictors
        self.__dict__.pop("_weights_of_pickle", None)

    def _trained_tensors(self) -> dict[str, Any]:
        """Return the trained tensors by name; empty if the untouched model is kept."""
        if not self.best_step_:
            return {}
        parameters = self._predictors[0].model.named_parameters()
        return {name: p.detach().cpu() for name, p in parameters if p.requires_grad}

    def save(self, folder: str | Path) -> None:
        """Write what `load` needs: settings, demonstrations, the trained W_Q and W_K (safetensors).

        The base model is not written.

        Raises:
            ValueError: `folder` holds other files.
        """
        from abft.model.checkpoints import save_full_rank

        check_is_fitted(self)
        model = self._opened()[0].model
        with saved(Path(folder), self._record()) as weights:
            if self.best_step_:
                save_full_rank(model, weights, self._base_samples)
            if self._readout is not None:
                self._readout.save(weights)

    def _record(self) -> dict[str, Any]:
        """Return what `load` needs besides the weights, JSON-ready."""
        # As keys of JSON, integer classes would turn into text.
        words = list(self._fitted["label_words"].items())
        return {
            "settings": {**self._fitted, "label_words": words},
            "base": self._base_samples,
            "classes": self.classes_.tolist(),
            "demonstrations": self.demonstrations_,
            "validation": list(self.validation_.items()),
            "best_step": self.best_step_,
            # Classifiers of earlier versions have none.
            "readout": self._readout and self._readout.name,
            "readouts": self.readouts_,
        }

    @classmethod
    def load(
        cls, folder: str | Path, device: str | None = None, model: str | Path | None = None
    ) -> "ABFTClassifier":
        """Load a classifier that `save` wrote, and its base model.

        Args:
            device: used instead of the device that it was fitted on.
            model: where the base model is now, if it has moved.

        Raises:
            ValueError: no such folder, a folder of a newer version, or a base model that is missing
                or another one.
        """
        from abft.model.checkpoints import check_base_weights, load_full_rank
        from abft.model.qk_weights import train_full_rank

        record = read_record(folder)
        try:
            written = check_format(folder, record)
            # Pairs, as `_record` wrote them, become a dictionary again.
            settings = record["settings"]
            label_words = dict(settings["label_words"]) or None
            classifier = cls(**{**settings, "label_words": label_words})
            if device is not None:
                classifier.device = device
            if model is not None:
                classifier.model = str(model)
            classifier._fitted = plain_arguments(classifier)
            classifier.classes_ = np.array(record["classes"])
            classifier.demonstrations_ = [
                [(text, name) for text, name in demonstrations]
                for demonstrations in record["demonstrations"]
            ]
            classifier.validation_ = dict(record["validation"])
            classifier.best_step_ = record["best_step"]
            weights = weights_of(folder, record)
            samples = dict(record.get("base", {}))  # older versions had none without training
            # Formats 1 and 2 read label words, without calibration.
            classifier._readout = None
            if written > 2 and record["readouts"]:
                readout, scores = record["readout"], record["readouts"]
                classifier._readout = FittedReadout.load(weights, readout, scores)
        except (KeyError, TypeError) as error:
            path = Path(folder) / FILE
            raise AbftError(f"{path} is damaged ({type(error).__name__}: {error})") from None

        own = bool(classifier.best_step_)
        name = classifier._fitted["model"]
        base, tokenizer = base_model(name, classifier.device, own=own)
        check_base_weights(base, samples, _made_for(folder, name))
        classifier._base_samples = _samples(base)
        classifier._attach(base, tokenizer)
        if classifier.best_step_:
            load_full_rank(base, weights)
            # `save` writes the parameters that are marked as trained.
            train_full_rank(base)
        return classifier

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for pickles, which hold the trained tensors, not the base model."""
        state = dict(super().__getstate__())
        # The process that opens it may run in another folder.
        state["model"] = absolute_model(self.model)
        if "_predictors" in state:
            state["_weights_of_pickle"] = self._trained_tensors()
            del state["_predictors"]
        return state

    def _opened(self) -> "list[Predictor]":
        """Return the predictors; an unpickled classifier loads its base model first."""
        check_is_fitted(self)
        with _OPENING:
            if not hasattr(self, "_predictors"):
                self._open()
        return self._predictors

    def _open(self) -> None:
        """Load the base model; if that fails, the next call tries again."""
        from abft.model.checkpoints import check_base_weights
        from abft.model.qk_weights import train_full_rank

        # The base model may be in another place and run on another device than in `fit`, but has to
        # be the same one, which is checked.
        weights, name = self._weights_of_pickle, absolute_model(self.model)
        model, tokenizer = base_model(name, self.device, own=bool(weights))
        check_base_weights(model, self._base_samples, _made_for("this classifier", name))
        if weights:
            train_full_rank(model)
            _write(model, weights)
        self._fitted = {**self._fitted, "model": name}
        self._attach(model, tokenizer)

    def _train(self, data: TaskData, k: int, seed: int) -> None:
        """Train the model, and leave it with the weights of the best validation."""
        # All predictors share one model.
        model, tokenizer = self._predictors[0].model, self._predictors[0].tokenizer
        texts = [example.text for example in data.test]
        labels_N = np.array([example.label for example in data.test])

        def validate() -> tuple[float, float]:
            by_set = [p.probabilities(texts, self.batch_size) for p in self._predictors]
            probabilities_NC = np.mean(by_set, axis=0)
            correct_N = probabilities_NC[np.arange(len(labels_N)), labels_N]
            log_probability = np.log(np.clip(correct_N, 1e-12, None)).mean()
            return float(log_probability), metrics.accuracy(probabilities_NC, labels_N)

        training = Training(
            run_config(self, k),
            None if self.steps == AUTO else int(self.steps),
            self.max_minutes,
            seed,
            self.device == "cpu",
            self.progress,
        )
        self.best_step_, scores = training.run(model, tokenizer, data, validate)
        self.validation_ = {
            step: {"accuracy": accuracy, "log_loss": -log_probability}
            for step, (log_probability, accuracy) in scores.items()
        }


def _parts(texts: list[str]) -> list[list[str]]:
    return [texts[i : i + PART] for i in range(0, len(texts), PART)]


def _samples(model: Any) -> dict[str, list[float]]:
    """Return the weight samples by which `load` and pickles recognise an untrained base model."""
    from abft.model.checkpoints import base_samples
    from abft.model.qk_weights import qk_modules

    return base_samples(model, qk_modules(model))


def _made_for(what: object, model: str) -> str:
    return f"{what} was fitted with another model than {model!r} is now"


def _write(model: Any, weights: dict[str, Any]) -> None:
    """Write tensors into the model's parameters of the same names."""
    import torch

    with torch.no_grad():
        for name, tensor in weights.items():
            model.get_parameter(name).copy_(tensor)
