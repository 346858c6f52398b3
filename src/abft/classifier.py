"""`ABFTClassifier`: labelled texts in, a classifier out, in scikit-learn's manner."""

import functools
import json
import math
import random
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from abft import __version__
from abft.data.draws import demonstration_sets, split_held_out
from abft.data.splits import TaskData, text_key, unique
from abft.data.tasks import Example, Task, Template
from abft.errors import AbftError
from abft.files import atomic_folder, remove_partials, write_json
from abft.method.objectives import DEFAULT_OBJECTIVE, OBJECTIVES
from abft.model.weight_files import FULL_RANK_FILE
from abft.runs.config import RunConfig, check_effect, resolve
from abft.settings import document_settings

if TYPE_CHECKING:
    from abft.runs.predictor import Predictor


try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import check_consistent_length, check_random_state, column_or_1d
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted
except ImportError:
    raise AbftError("ABFTClassifier needs scikit-learn: pip install 'abft[classifier]'") from None


FILE, FORMAT = "classifier.json", 2
# Folders of the weights, one of which the file names: a new one is complete before the old goes.
WEIGHTS = ("weights-1", "weights-2")
VALIDATIONS = 8  # during training
PATIENCE = 3  # validations without a better one, after which training ends
PSEUDO_BATCH, QUERIES = 32, 4

_SHARED = {
    "model": "model",
    "template": "template",
    "objective": "objective",
    "cross_entropy": "cross_entropy",
    "learning_rate": "lr",
    "device": "device",
}


@document_settings(RunConfig, _SHARED)
class ABFTClassifier(ClassifierMixin, BaseEstimator):
    """Classifies texts with a language model that reads a few labelled texts as demonstrations.

    `fit` trains W_Q and W_K so that attention heads look at demonstrations with the correct label,
    and holds a part of the texts out to decide when to stop and whether training helped at all: if
    it did not, the untouched model is kept, with a warning.

    Of a class's texts that are equal but for case and punctuation the first counts. None is held
    out and trained on, also where equal texts have different classes.

    Args:
        label_words: class -> its label word in prompts; default: the class as text.
        k: demonstrations in a prompt; default: 4, or as many as there are classes, up to 16.
        demonstration_sets: probabilities are averaged over so many sets of demonstrations; default:
            2, or as many as it takes to show every class once. A set takes the classes in turn, in
            random order, and goes on in the next set where it stopped, so that all classes are
            shown about equally often.
        steps: most optimizer steps, of 32 prompts each; 0 = no training.
        held_out: share of the texts that is not trained on, at least 8 and at most 256 of them.
        batch_size: texts in a forward pass of prediction.
        random_state: int, RandomState or None; decides the parts, demonstrations and training
            prompts.
        progress: show a progress bar while training.

    Attributes:
        classes_: the classes, sorted, (C,).
        demonstrations_: for each set, (text, class) pairs.
        validation_: by step, accuracy and log loss on the held-out texts; step 0 is the untouched
            model.
        best_step_: the step whose weights are kept; 0 = the untouched model's.
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
        steps: int = OBJECTIVES[DEFAULT_OBJECTIVE].default_steps,
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
        self.steps = steps
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

    def fit(self, X: Sequence[str], y: Sequence[Any]) -> "ABFTClassifier":
        """Train on texts X, (N,), and their classes y, (N,): strings or integers.

        A fit that fails or is interrupted leaves the classifier as it was before.

        Raises:
            ValueError: unequal lengths, a text that is empty or no text, fewer than two classes, a
                class with one text, classes of mixed types, too few texts for the prompts, settings
                that mean nothing.
        """
        before = dict(vars(self))
        try:
            return self._fit(X, y)
        except BaseException:
            self.__dict__ = before
            raise

    def _fit(self, X: Sequence[str], y: Sequence[Any]) -> "ABFTClassifier":
        from abft.model.loading import load_model

        # Settings and data are checked before the model is loaded.
        self._check_settings()
        texts = _texts(X)
        classes = _classes(y)
        check_consistent_length(texts, classes)
        self.classes_, labels = np.unique(classes, return_inverse=True)
        examples = [Example(text, int(label)) for text, label in zip(texts, labels, strict=True)]
        examples = unique(examples, lambda example: (text_key(example.text), example.label))
        self._check_classes(examples)

        # One generator decides the parts, the demonstrations and the seed of training.
        generator = random.Random(int(check_random_state(self.random_state).randint(2**31)))
        task = self._task()
        training, held_out = split_held_out(examples, self.held_out, generator)
        k = self._choose_k(training)
        count = self.demonstration_sets
        if count is None:
            # As many as it takes to show every class once.
            count = max(2, math.ceil(len(self.classes_) / k))
        sets = demonstration_sets(training, k, count, generator)

        model, tokenizer = load_model(self.model, device=self.device)
        names = self.classes_.tolist()
        self.demonstrations_ = [
            [(example.text, names[example.label]) for example in demonstrations]
            for demonstrations in sets
        ]
        self._attach(model, tokenizer)

        self.validation_: dict[int, dict[str, float]] = {}
        self.best_step_ = 0
        if self.steps:
            data = TaskData(task, tuple(training), tuple(training), tuple(held_out))
            self._train(data, k, held_out, generator.randrange(2**31))

        # Step 0 is the untouched model.
        if self.steps and not self.best_step_:
            before, *after = (scores["accuracy"] for scores in self.validation_.values())
            warnings.warn(
                f"training did not help on {len(held_out)} held-out texts (accuracy {before:.3f} "
                f"before it, at best {max(after):.3f}); the untouched model is kept",
                stacklevel=2,
            )
        return self

    def predict_proba(self, X: Sequence[str]) -> np.ndarray:
        """Return probabilities (N, C), the mean over the sets of demonstrations.

        Columns are in the order of `classes_`; a row sums to 1.
        """
        predictors = self._opened()
        texts = _texts(X)
        by_set = [predictor.probabilities(texts, self.batch_size) for predictor in predictors]
        return np.mean(by_set, axis=0)

    def predict(self, X: Sequence[str]) -> np.ndarray:
        """Return the most probable class of every text, (N,)."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(1)]

    def score(self, X: Sequence[str], y: Sequence[Any], sample_weight: Any = None) -> float:
        """Return the accuracy. Raises ValueError for classes that `fit` has not seen."""
        check_is_fitted(self)
        unknown = set(np.unique(_classes(y)).tolist()) - set(self.classes_.tolist())
        if unknown:
            raise ValueError(f"y holds classes that fit has not seen: {sorted(unknown, key=str)}")
        return super().score(X, y, sample_weight)

    def _check_settings(self) -> None:
        """Raise ValueError for settings that mean nothing."""
        for name, least in (("demonstration_sets", 1), ("batch_size", 1), ("steps", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise AbftError(f"{name} = {value}: expected at least {least}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out = {self.held_out}: expected a share between 0 and 1")
        # The data decide an open k only later; here the default takes its place.
        check_effect(self._config(RunConfig.k if self.k is None else self.k))

    def _config(self, k: int) -> RunConfig:
        """Return the training's settings; those that follow from others are open."""
        numbers = (self.cross_entropy, self.learning_rate)
        weight, rate = (None if number is None else float(number) for number in numbers)
        return RunConfig(objective=self.objective, k=k, cross_entropy=weight, lr=rate)

    def _check_classes(self, examples: Sequence[Example]) -> None:
        """Raise ValueError unless there are two classes, and two texts of every class."""
        if len(self.classes_) < 2:
            raise ValueError(
                f"y holds one class only ({self.classes_[0]!r}); a classifier needs at least 2 "
                "classes"
            )

        counts = np.bincount([example.label for example in examples], minlength=len(self.classes_))
        if counts.min() < 2:
            rare = self.classes_[counts < 2].tolist()
            raise ValueError(
                f"classes with one text: {rare[:5]}; every class needs at least 2, one to show "
                "and one to ask"
            )

    def _task(self) -> Task:
        """Return a task whose labels are the classes as text."""
        names = [str(name) for name in self.classes_.tolist()]
        words = {str(name): word for name, word in (self.label_words or {}).items()}
        task = Task("texts", Template(self.template), tuple(names), tuple(names))
        return task.with_words(words)

    def _choose_k(self, training: Sequence[Example]) -> int:
        """Return k, the demonstrations in a prompt. Raises ValueError for too few texts."""
        k = min(max(4, len(self.classes_)), 16) if self.k is None else self.k
        if len(training) < k + QUERIES:
            raise ValueError(
                f"{len(training)} texts are left for training, prompts of k = {k} demonstrations "
                f"need {k + QUERIES}; give more texts or a smaller k"
            )
        return k

    def _attach(self, model: Any, tokenizer: Any) -> None:
        """Open a predictor for every set of demonstrations."""
        from abft.model.checkpoints import base_samples
        from abft.model.qk_weights import qk_modules
        from abft.runs.predictor import Predictor

        # `save` writes them next to the weights, so that these are loaded into this base only.
        self._base_samples = base_samples(model, qk_modules(model))
        labels = {name: i for i, name in enumerate(self.classes_.tolist())}
        task = self._task()
        predictors = []
        for demonstrations in self.demonstrations_:
            examples = [Example(text, labels[name]) for text, name in demonstrations]
            predictors.append(Predictor(model, tokenizer, task, examples))
        self._predictors: list[Predictor] = predictors

    def _trained_tensors(self) -> dict[str, Any]:
        """Return the trained tensors by name; none where the untouched model is kept."""
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
        folder = Path(folder)
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        is_classifier = (folder / FILE).is_file()
        leftovers = {name for name in names if name.endswith(".partial")}
        if folder.is_file() or (names - {*WEIGHTS, *leftovers} and not is_classifier):
            raise AbftError(
                f"{folder} holds files that are no saved classifier; give a new or empty folder"
            )

        # A process that is killed leaves the old classifier or the new one, whole.
        model = self._opened()[0].model
        folder.mkdir(parents=True, exist_ok=True)
        old = _read_record(folder).get("weights") if is_classifier else None
        new, other = reversed(WEIGHTS) if old == WEIGHTS[0] else WEIGHTS
        shutil.rmtree(folder / new, ignore_errors=True)
        if self.best_step_:
            with atomic_folder(folder / new) as partial:
                save_full_rank(model, partial, self._base_samples)
        write_json(folder / FILE, {**self._record(), "weights": new})

        # What the old one leaves; format 1 had its weights in the folder itself.
        shutil.rmtree(folder / other, ignore_errors=True)
        (folder / FULL_RANK_FILE).unlink(missing_ok=True)
        remove_partials(folder)

    def _record(self) -> dict[str, Any]:
        """Return what `load` needs besides the weights, JSON-ready."""
        settings = {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in self.get_params().items()
        }
        # A RandomState is no JSON, and nothing is drawn after `fit`.
        settings["random_state"] = None
        # As keys of JSON, integer classes would turn into text.
        settings["label_words"] = list((self.label_words or {}).items())
        return {
            "format": FORMAT,
            "abft_version": __version__,
            "settings": settings,
            "classes": self.classes_.tolist(),
            "demonstrations": self.demonstrations_,
            "validation": list(self.validation_.items()),
            "best_step": self.best_step_,
        }

    @classmethod
    def load(cls, folder: str | Path) -> "ABFTClassifier":
        """Load a classifier that `save` wrote, and its base model.

        Raises:
            ValueError: no such folder, one of a newer version, a base model that is missing or
                another one.
        """
        from abft.model.checkpoints import load_full_rank
        from abft.model.loading import load_model
        from abft.model.qk_weights import train_full_rank

        record = _read_record(folder)
        try:
            if record["format"] > FORMAT:
                raise AbftError(
                    f"{folder} was saved by abft {record['abft_version']}, which is newer; "
                    "update abft to load it"
                )
            # Pairs, as `_record` wrote them, become a dictionary again.
            settings = record["settings"]
            label_words = dict(settings["label_words"]) or None
            classifier = cls(**{**settings, "label_words": label_words})
            classifier.classes_ = np.array(record["classes"])
            classifier.demonstrations_ = [
                [(text, name) for text, name in demonstrations]
                for demonstrations in record["demonstrations"]
            ]
            classifier.validation_ = dict(record["validation"])
            classifier.best_step_ = record["best_step"]
            # Format 1 had the weights in the folder itself.
            weights = Path(folder)
            if record["format"] > 1:
                weights /= {name: name for name in WEIGHTS}[record["weights"]]
        except (KeyError, TypeError) as error:
            path = Path(folder) / FILE
            raise AbftError(f"{path} is damaged ({type(error).__name__}: {error})") from None

        model, tokenizer = load_model(classifier.model, device=classifier.device)
        classifier._attach(model, tokenizer)
        if classifier.best_step_:
            load_full_rank(model, weights)
            # `save` writes the parameters that are marked as trained.
            train_full_rank(model)
        return classifier

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for pickles, which hold the trained tensors, not the base model."""
        state = dict(super().__getstate__())
        if "_predictors" in state:
            state["_weights"] = self._trained_tensors()
            del state["_predictors"]
        return state

    def _opened(self) -> "list[Predictor]":
        """Return the predictors; an unpickled classifier loads its base model first."""
        check_is_fitted(self)
        if not hasattr(self, "_predictors"):
            import torch

            from abft.model.loading import load_model
            from abft.model.qk_weights import train_full_rank

            model, tokenizer = load_model(self.model, device=self.device)
            self._attach(model, tokenizer)
            weights = self.__dict__.pop("_weights")
            if weights:
                train_full_rank(model)
                with torch.no_grad():
                    for name, tensor in weights.items():
                        model.get_parameter(name).copy_(tensor)
        return self._predictors

    def _validate(self, held_out: Sequence[Example]) -> tuple[float, float]:
        """Return accuracy and mean log probability of the correct class on held-out texts."""
        probabilities_NC = self.predict_proba([example.text for example in held_out])
        labels_N = np.array([example.label for example in held_out])

        accuracy = (probabilities_NC.argmax(1) == labels_N).mean()
        correct_N = probabilities_NC[np.arange(len(labels_N)), labels_N]
        log_probability = np.log(np.clip(correct_N, 1e-12, None)).mean()
        return float(accuracy), float(log_probability)

    def _train(self, data: TaskData, k: int, held_out: Sequence[Example], seed: int) -> None:
        """Train the model, in which the weights of the best validation remain."""
        from transformers import PrinterCallback

        from abft.training.arguments import ABFTConfig
        from abft.training.callbacks import KeepBest, StepBar
        from abft.training.trainer import ABFTTrainer

        # All predictors share one model.
        model, tokenizer = self._predictors[0].model, self._predictors[0].tokenizer
        config = resolve(self._config(k), model.num_parameters())
        assert config.lr is not None

        # The best weights are kept in memory; nothing is saved in the folder.
        every = max(1, self.steps // VALIDATIONS)
        best = KeepBest(functools.partial(self._validate, held_out), every, PATIENCE)
        callbacks = [StepBar(), best] if self.progress else [best]
        with tempfile.TemporaryDirectory() as folder:
            arguments = ABFTConfig(
                output_dir=folder,
                objective=config.objective,
                cross_entropy=config.cross_entropy,
                learning_rate=config.lr,
                max_steps=self.steps,
                k=k,
                nd=self.steps * PSEUDO_BATCH,
                queries=QUERIES,
                seed=seed,
                data_seed=seed,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=self.device == "cpu",
            )
            trainer = ABFTTrainer(model, arguments, data, tokenizer, callbacks=callbacks)
            # It would print every step that is logged.
            trainer.remove_callback(PrinterCallback)
            trainer.train()

        self.best_step_ = best.best_step
        self.validation_ = {
            step: {"accuracy": accuracy, "log_loss": -log_probability}
            for step, (accuracy, log_probability) in best.scores.items()
        }


def _read_record(folder: str | Path) -> dict[str, Any]:
    """Return what `save` wrote. Raises AbftError for a folder without it, or a damaged one."""
    path = Path(folder) / FILE
    if not path.is_file():
        raise AbftError(f"{folder} is no saved classifier: it has no {FILE}")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise AbftError(f"{path} is damaged ({type(error).__name__}: {error})") from None


def _texts(X: Any) -> list[str]:
    """Return a list, array, column or series of texts as a list.

    Raises:
        ValueError: anything else, or a text that is empty.
    """
    if isinstance(X, str):
        raise ValueError("X is one text; expected a list of texts, for example [text]")
    # pandas, polars
    if hasattr(X, "to_list"):
        X = X.to_list()
    elif getattr(X, "ndim", 1) != 1:
        raise ValueError(f"X has shape {X.shape}; expected texts, (N,)")

    texts = list(X)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(
                f"X[{row}] is {text!r}; expected a text. Remove or fill missing texts first."
            )
        if not text.strip():
            raise ValueError(f"X[{row}] is empty; remove or fill empty texts first")
    return [str(text) for text in texts]


def _classes(y: Any) -> np.ndarray:
    """Return classes as an array of strings or of integers.

    Raises:
        ValueError: missing, mixed or continuous classes.
    """
    # numpy would turn a list of texts and numbers into texts alone.
    array = np.asarray(y, dtype=object) if isinstance(y, list | tuple) else np.asarray(y)
    values = column_or_1d(array, warn=True)

    kinds = set()
    for value in values:
        if isinstance(value, str):
            kinds.add("text")
        elif isinstance(value, int | np.integer):
            kinds.add("number")
        else:
            kinds.add(type(value).__name__)
    if len(kinds) > 1:
        raise ValueError(
            f"y mixes {', '.join(sorted(kinds))}; expected classes of one kind, strings or integers"
        )

    classes = np.array(values.tolist())
    check_classification_targets(classes)
    return classes
