"""`ABFTClassifier`: a text classifier with scikit-learn's interface."""

from abft.errors import AbftError

try:
    from abft.classifier.estimator import ABFTClassifier
except ImportError as error:
    if error.name not in ("sklearn", "scipy"):
        raise
    raise AbftError("ABFTClassifier needs scikit-learn: pip install 'abft[classifier]'") from None

__all__ = ["ABFTClassifier"]
