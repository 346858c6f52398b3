"""Measure a model: it is trained and loaded when first needed, its label probabilities stored."""

import functools
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from abft.bench.calibration import calibration_prompts
from abft.bench.cell import Cell
from abft.bench.methods import METHODS
from abft.bench.scenarios import SCENARIOS, PromptSet, Setting
from abft.bench.store import Scores, Store, scores_key, texts_key
from abft.data.builtin import load_task
from abft.data.encoding import LabelTokens, encode, label_tokens
from abft.data.prompts import Prompt
from abft.data.splits import TaskData, text_key
from abft.errors import AbftError, CannotResume, DamagedWeights
from abft.model.checkpoints import apply_weights, has_weights, plain_model
from abft.model.loading import load_context_length, load_tokenizer
from abft.runs.run_folder import CONFIG, METRICS, read_metrics
from abft.runs.session import cut_to_fit, load_run_model
from abft.runs.task_data import load_run_data
from abft.runs.train import train_run
from abft.scoring.calibration import calibrated, prior
from abft.scoring.evaluate import evaluate
from abft.scoring.perplexity import perplexity
from abft.scoring.scorer import label_probabilities

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def setting_of(cell: Cell, tokenizer: "PreTrainedTokenizerBase") -> Setting:
    """Return what the cell's scenario writes its prompts from; it does not depend on the seed."""
    config = cell.config
    data = load_run_data(config)
    # Own data has the grid's name, not its file's.
    data = replace(data, task=replace(data.task, name=cell.task))

    def cut(data: TaskData) -> TaskData:
        """Cut texts as in training. Classifiers get whole texts, which ABFTClassifier cuts."""
        if METHODS[cell.kind].classifier is not None:
            return data
        limit = _context_length(config.model, config.revision, config.trust_remote_code)
        tokens = label_tokens(tokenizer, data.task, config.prompt_style)
        return cut_to_fit(data, config, tokenizer, tokens, limit)

    return Setting(
        cut(data),
        config.k,
        config.test_prompts,
        config.prompt_style,
        lambda name: load_task(name, config.prompt_style),
        tokenizer,
        cut,
        frozenset(text_key(example.text) for example in data.train),
    )


# A grid asks for it in every cell.
_context_length = functools.cache(load_context_length)


def predictions(
    sets: Sequence[PromptSet], probabilities: Sequence[np.ndarray]
) -> dict[str, dict[str, Any]]:
    """Return the predictions of every prompt set, as a cell's record keeps them."""
    return {
        s.name: {
            "queries": len(s.data.test),  # prompt i has query i modulo this
            "targets": s.targets.tolist(),
            "predicted": p.argmax(1).tolist(),
        }
        for s, p in zip(sets, probabilities, strict=True)
    }


class Subject:
    """Measures the model of one job: the untouched one, or the one that the job trains."""

    def __init__(self, store: Store, cell: Cell) -> None:
        self.store, self.first = store, cell
        self.config = cell.config
        self.tokenizer = load_tokenizer(
            cell.config.model, cell.config.revision, cell.config.trust_remote_code
        )
        self._model: PreTrainedModel | None = None
        self._broken: Exception | None = None

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Return a cell's record: metrics, heads, cost of the training, predictions."""
        scenario, method = SCENARIOS[cell.scenario], METHODS[cell.kind]
        setting = setting_of(cell, self.tokenizer)

        # Label probabilities of every prompt set, corrected where the method is a calibration.
        sets = scenario.write(setting)
        scores = [self.scores(s.data, s.prompts, s.k, cell.scenario) for s in sets]
        probabilities = [each.probabilities for each in scores]
        if method.calibration is not None:
            pairs = zip(sets, probabilities, strict=True)
            probabilities = [self._calibrated(cell, s, p) for s, p in pairs]

        metrics = scenario.measure(sets, probabilities)
        if scenario.texts is not None:
            metrics["perplexity"] = self.perplexity(scenario.texts(setting))

        # Of several sets there is no one number of heads.
        heads = {}
        if len(scores) == 1:
            names = ("heads", "correct_mass", "incorrect_mass")
            heads = {name: getattr(scores[0], name) for name in names}

        return {
            "metrics": metrics,
            **heads,
            "training": self.training(),
            "predictions": predictions(sets, probabilities),
        }

    def scores(self, data: TaskData, prompts: Sequence[Prompt], k: int, title: str) -> Scores:
        """Return label probabilities of prompts, computed once for all cells and methods."""
        tokens = label_tokens(self.tokenizer, data.task, self.config.prompt_style)
        key = scores_key(self.first, tokens, prompts)
        stored = self.store.scores(key)
        if stored is None:
            stored = self._scored(prompts, tokens, k, title)
            self.store.write_scores(key, stored)
        return stored

    def perplexity(self, texts: Sequence[str]) -> float:
        """Return the perplexity of texts, computed once."""
        key = texts_key(self.first, texts)
        stored = self.store.scores(key)
        if stored is None:
            stored = Scores(np.array([[perplexity(self.model(), self.tokenizer, texts)]]))
            self.store.write_scores(key, stored)
        return float(stored.probabilities[0, 0])

    def _scored(self, prompts: Sequence[Prompt], tokens: LabelTokens, k: int, title: str) -> Scores:
        # Prompts that do not fit are refused before the model is trained.
        config = self.config
        limit = _context_length(config.model, config.revision, config.trust_remote_code)
        encoded = encode(self.tokenizer, prompts, config.prompt_style, limit, tokens)
        model = self.model()
        progress = tqdm(
            total=len(encoded),
            desc=title,
            unit="prompt",
            file=sys.stderr,
            leave=False,
            mininterval=1,
        )
        size, threshold = self.config.eval_batch_size, self.config.threshold
        with progress as bar:
            # Without demonstrations, heads have no labels to attend to.
            if k == 0:
                probabilities = label_probabilities(
                    model, encoded, tokens, batch_size=size, progress=bar.update
                )
                return Scores(probabilities)

            probabilities, report = evaluate(
                model,
                encoded,
                tokens,
                batch_size=size,
                fixed_threshold=threshold,
                progress=bar.update,
            )
        return Scores(
            probabilities,
            report.heads,
            float(report.correct_mass_LH.mean()),
            float(report.incorrect_mass_LH.mean()),
        )

    def _calibrated(
        self, cell: Cell, prompt_set: PromptSet, probabilities: np.ndarray
    ) -> np.ndarray:
        """Return probabilities (N, C) divided by the prior of the cell's calibration."""
        kind = METHODS[cell.kind].calibration
        assert kind is not None

        prompts = calibration_prompts(
            kind,
            prompt_set.data,
            cell.calibration_prompts,
            prompt_set.k,
            cell.seed,
            self.config.prompt_style,
        )
        neutral = self.scores(prompt_set.data, prompts, prompt_set.k, f"{kind} calibration")
        return calibrated(probabilities, prior(neutral.probabilities))

    def model(self) -> "PreTrainedModel":
        """Return the model with its trained weights; a training that failed is not tried again."""
        if self._broken is not None:
            raise self._broken

        try:
            folder = self._trained()
            # An untouched model, or a training that an earlier run finished.
            if self._model is None:
                self._model = self._loaded(folder)
        except Exception as error:
            self._broken = error
            raise
        return self._model

    def _loaded(self, folder: Path | None) -> "PreTrainedModel":
        """Return the base model with the weights of a folder; damaged ones are trained anew."""
        model, _ = load_run_model(self.config)
        if folder is None:
            return model

        factor = self.first.factor
        try:
            return apply_weights(model, folder, factor)
        except DamagedWeights:
            pass
        # Of several jobs that share a training, one makes it again.
        with _lock(folder):
            try:
                return apply_weights(model, folder, factor)
            except DamagedWeights as error:
                print(f"{error}; it is trained anew", file=sys.stderr)
                shutil.rmtree(folder)
                self._make(folder)
                return self._model or apply_weights(model, folder, factor)

    def training(self) -> dict[str, Any] | None:
        """Return what the training cost; None for the untouched model.

        Seconds, steps, trainable parameters and peak memory.
        """
        folder = self._trained()
        return None if folder is None else read_metrics(folder)["training"]

    def _trained(self) -> Path | None:
        """Return the run folder of the job's training; train, or finish training, if need be."""
        if self.first.trained is None:
            return None
        folder = self.store.weights(self.first)
        with _lock(folder):
            # A damaged one is trained anew.
            with suppress(AbftError):
                if (folder / METRICS).is_file() and has_weights(folder):
                    read_metrics(folder)
                    return folder
            self._make(folder)
        return folder

    def _make(self, folder: Path) -> None:
        """Train, or go on with a training that was stopped; the folder is locked."""
        config = self.first.trained
        assert config is not None

        # A training that was stopped continues, unless its settings or data were different, or its
        # checkpoint is damaged.
        trained = None
        if (folder / CONFIG).is_file() and not (folder / METRICS).is_file():
            try:
                trained = train_run(config, folder, resume=True).model
            except CannotResume as error:
                print(f"{folder}: {error}; it is trained anew", file=sys.stderr)
        if trained is None:
            shutil.rmtree(folder, ignore_errors=True)
            trained = train_run(config, folder).model
        # The trained model can be used at once, unless another factor of its change is measured.
        if trained is not None and self.first.factor == 1:
            self._model = plain_model(trained)


def _lock(folder: Path) -> FileLock:
    """Return the lock of a training, which two jobs can share."""
    return FileLock(folder.with_name(f".{folder.name}.lock"))
