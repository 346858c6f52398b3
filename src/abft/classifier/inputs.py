"""Check texts and classes, in any kind of list, array or column that users have."""

from typing import Any

import numpy as np
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets


def texts_of(X: Any) -> list[str]:
    """Return a list, array, column or series of texts as a list.

    Raises:
        ValueError: anything else, or an empty text.
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


def classes_of(y: Any) -> np.ndarray:
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


def weighted(
    texts: list[str], classes: np.ndarray, sample_weight: Any
) -> tuple[list[str], np.ndarray, list[float]]:
    """Return texts, classes and weights without those of weight 0.

    Raises:
        ValueError: not one finite weight for each text, a negative one, or none above 0.
    """
    weights = np.asarray(sample_weight, dtype=float)
    if weights.shape != (len(texts),):
        raise ValueError(f"sample_weight has shape {weights.shape}; expected ({len(texts)},)")
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise ValueError(
            "sample_weight: expected finite weights of at least 0, one of them above 0"
        )
    kept = np.flatnonzero(weights)
    return [texts[i] for i in kept], classes[kept], weights[kept].tolist()
