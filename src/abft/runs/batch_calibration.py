"""Batch calibration of texts that are predicted in chunks: one prior for all of them.

With a prior for each chunk, a file that is sorted by class would lose most of its accuracy.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from abft.runs.prediction_files import Parts, Prediction, prediction_rows
from abft.scoring.calibration import BatchPrior, calibrated

if TYPE_CHECKING:
    import pandas

    from abft.runs.explain import Explanation


def probability_rows(predictions: Sequence[Prediction | None], labels: Sequence[str]) -> np.ndarray:
    """Return the probabilities of predictions, (N, C); rows of NaN where there is none."""
    nothing = [np.nan] * len(labels)
    rows = [nothing if each is None else [each[1][name] for name in labels] for each in predictions]
    return np.array(rows, float).reshape(-1, len(labels))


def calibrated_predictions(
    probabilities_NC: np.ndarray, prior_C: np.ndarray, labels: Sequence[str]
) -> list[Prediction | None]:
    """Return the predictions after division by a prior; None for rows of NaN."""
    predictions: list[Prediction | None] = []
    for row_C in calibrated(probabilities_NC, prior_C):
        if np.isnan(row_C).any():
            predictions.append(None)
        else:
            shares = dict(zip(labels, row_C.tolist(), strict=True))
            predictions.append((labels[row_C.argmax()], shares))
    return predictions


def calibrate_predictions(
    chunks: Sequence[Sequence[Prediction | None]],
    content_free_NC: np.ndarray,
    labels: Sequence[str],
) -> list[list[Prediction | None]]:
    """Return the predictions of several chunks after division by their common prior."""
    prior = BatchPrior(content_free_NC)
    rows = [probability_rows(chunk, labels) for chunk in chunks]
    for chunk_NC in rows:
        prior.add(chunk_NC)
    return [calibrated_predictions(chunk_NC, prior.mean, labels) for chunk_NC in rows]


def calibrate_explanations(
    explanations: "Sequence[Explanation | None]",
    content_free_NC: np.ndarray,
    labels: Sequence[str],
) -> "list[Explanation | None]":
    """Return explanations with calibrated labels and probabilities."""
    plain = [None if each is None else (each.label, each.probabilities) for each in explanations]
    (predictions,) = calibrate_predictions([plain], content_free_NC, labels)
    return [
        None
        if each is None or prediction is None
        else replace(each, label=prediction[0], probabilities=prediction[1])
        for each, prediction in zip(explanations, predictions, strict=True)
    ]


def keep_probabilities(
    parts: Parts,
    number: int,
    predictions: Sequence[Prediction | None],
    content_free_NC: np.ndarray,
    labels: Sequence[str],
) -> None:
    """Keep what `calibrate_parts` needs of a part.

    Each part has the content-free texts' probabilities too, so that no two workers write one file.
    """
    parts.write_probabilities(_rows(number), probability_rows(predictions, labels))
    parts.write_probabilities(_content_free(number), content_free_NC)


def _rows(number: int) -> str:
    return f"{number:06d}"


def _content_free(number: int) -> str:
    return f"{number:06d}-content-free"


def calibrate_parts(
    parts: Parts, frames: "Iterable[pandas.DataFrame]", column: str, labels: Sequence[str]
) -> None:
    """Write all parts again, calibrated. A command that is killed meanwhile does it once more.

    Args:
        parts: complete, with what `keep_probabilities` kept of every part.
        frames: the source's chunks, from the first on.
    """
    prior = BatchPrior(parts.probabilities(_content_free(0)))
    for number in parts.done:
        prior.add(parts.probabilities(_rows(number)))
    for number, frame in enumerate(frames):
        probabilities_NC = parts.probabilities(_rows(number))
        predictions = calibrated_predictions(probabilities_NC, prior.mean, labels)
        parts.write(number, prediction_rows(frame, column, predictions, labels))
