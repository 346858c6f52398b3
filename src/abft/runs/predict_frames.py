"""Predict a table chunk by chunk: rows without a text keep their place, long texts are cut."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from abft.data.datasets import check_empty, texts_of
from abft.runs.batch_calibration import keep_probabilities
from abft.runs.predict_settings import PredictSettings
from abft.runs.prediction_files import Parts, Prediction, prediction_rows
from abft.runs.predictor import Predictor
from abft.runs.task_data import Shown
from abft.scoring.calibration import CONTENT_FREE

if TYPE_CHECKING:
    import numpy as np
    import pandas

    from abft.runs.explain import Explanation


def open_predictor(run: str | Path, settings: PredictSettings, shown: Shown | None) -> Predictor:
    """Load a run as the settings say; `shown` is what `load_shown` returned.

    Batch calibration is left to `abft.runs.batch_calibration`, which counts all chunks.
    """
    return Predictor.from_run(
        run,
        device=settings.device,
        trust_remote_code=settings.trust_remote_code,
        shown=shown,
        readout=settings.readout,
        calibrate="none" if settings.calibrate == "batch" else settings.calibrate,
    )


class FramePredictor:
    """Predicts data frames of texts; records which rows are empty and how many texts were cut."""

    def __init__(
        self, predictor: Predictor, column: str, origin: str, settings: PredictSettings
    ) -> None:
        self.predictor, self.column, self.origin = predictor, column, origin
        self.strict, self.batch_size = settings.strict, settings.batch_size
        self.in_batch = settings.calibrate == "batch"
        self.cut = 0
        self.empty: list[int] = []

    def texts(self, frame: "pandas.DataFrame", start: int) -> tuple[list[int], list[str]]:
        """Return the indices of the rows that hold a text, and these texts, cut to what fits.

        `start`: how many rows of the source come before this frame.
        """
        cells = texts_of(frame, self.column, self.origin)
        held = [i for i, cell in enumerate(cells) if cell]
        empty = [start + i + 1 for i, cell in enumerate(cells) if not cell]
        if self.strict:
            check_empty(empty, start + len(cells), self.origin, "text", strict=True)
        self.empty += empty

        texts = [cells[i] for i in held]
        fitted = self.predictor.fit(texts)
        self.cut += sum(a != b for a, b in zip(texts, fitted, strict=True))
        return held, fitted

    def predict(self, frame: "pandas.DataFrame", start: int) -> list[Prediction | None]:
        """Return label and probabilities of every row; None for rows without a text."""
        held, texts = self.texts(frame, start)
        predictions: list[Prediction | None] = [None] * len(frame)
        for i, prediction in zip(held, self.predictor.predict(texts, self.batch_size), strict=True):
            predictions[i] = prediction
        return predictions

    def explain(self, frame: "pandas.DataFrame", start: int) -> "list[Explanation | None]":
        """Return the explanation of every row; None for rows without a text."""
        held, texts = self.texts(frame, start)
        explanations: list[Explanation | None] = [None] * len(frame)
        for i, explanation in zip(
            held, self.predictor.explain(texts, self.batch_size), strict=True
        ):
            explanations[i] = explanation
        return explanations

    @functools.cached_property
    def content_free(self) -> "np.ndarray":
        """Return the probabilities of texts without content, (N, C)."""
        return self.predictor.probabilities(CONTENT_FREE, self.batch_size)

    def write(self, parts: Parts, number: int, frame: "pandas.DataFrame", start: int) -> None:
        """Predict a frame and write it as a part."""
        predictions, labels = self.predict(frame, start), self.predictor.task.labels
        # Probabilities come first: a part that exists is complete.
        if self.in_batch:
            keep_probabilities(parts, number, predictions, self.content_free, labels)
        parts.write(number, prediction_rows(frame, self.column, predictions, labels))
