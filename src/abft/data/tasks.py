"""Describe a classification task: a template, labels, and their words in a prompt."""

from dataclasses import dataclass, replace
from typing import Literal

from abft.errors import AbftError

PromptStyle = Literal["consistent", "staicc"]


@dataclass(frozen=True)
class Example:
    """Holds one labelled text; `label` indexes `Task.labels`."""

    text: str
    label: int


@dataclass(frozen=True)
class Template:
    """Defines how one demonstration is written: a pattern with `{text}` and `{label}`.

    For example "review: {text} label: {label}\\n".
    """

    pattern: str
    instruction: str = ""  # written once, before the first demonstration

    def __post_init__(self) -> None:
        text, label = self.pattern.find("{text}"), self.pattern.find("{label}")
        if self.pattern.count("{text}") != 1 or self.pattern.count("{label}") != 1 or text > label:
            raise AbftError(
                f"template {self.pattern!r}: expected {{text}} once, then {{label}} once, "
                'for example "sentence: {text} sentiment: {label}\\n"'
            )

        # Otherwise the next demonstration would continue the label word.
        if self.after_label == "":
            raise AbftError(
                f"template {self.pattern!r}: needs something after {{label}}, for example a "
                f"newline (\\n)"
            )

    @property
    def before_text(self) -> str:
        """Return what precedes the text."""
        return self.pattern.partition("{text}")[0]

    @property
    def before_label(self) -> str:
        """Return what comes between the text and the label word."""
        return self.pattern.partition("{text}")[2].partition("{label}")[0]

    @property
    def after_label(self) -> str:
        """Return what follows the label word."""
        return self.pattern.partition("{label}")[2]

    def after_query(self, prompt_style: "PromptStyle") -> str:
        """Return what a prompt ends with, after the query's text."""
        return self.before_label if prompt_style == "staicc" else self.before_label.rstrip(" ")


@dataclass(frozen=True)
class Task:
    """Describes a classification task as a prompt writes it."""

    name: str
    template: Template
    labels: tuple[str, ...]  # as the data write them, one per class
    label_words: tuple[str, ...]  # as the prompt writes them, same order

    def __post_init__(self) -> None:
        if len(self.labels) < 2:
            raise AbftError(
                f"task {self.name!r}: got {len(self.labels)} class ({', '.join(self.labels)}), "
                f"expected at least 2"
            )
        if len(self.labels) != len(self.label_words):
            raise AbftError(
                f"task {self.name!r}: {len(self.labels)} labels but {len(self.label_words)} "
                f"label words"
            )

        # Spaces around a label word belong to the template.
        for label, word in zip(self.labels, self.label_words, strict=True):
            if not word.strip() or word != word.strip():
                raise AbftError(
                    f"task {self.name!r}: label word {word!r} of label {label!r} is empty or "
                    f"padded with spaces"
                )

        if len(set(self.label_words)) != len(self.label_words):
            raise AbftError(
                f"task {self.name!r}: two labels share a label word: {', '.join(self.label_words)}"
            )

    def with_words(self, words: dict[str, str]) -> "Task":
        """Return the task with some labels written as other words, e.g. {"negative": "bad"}."""
        unknown = sorted(set(words) - set(self.labels))
        if unknown:
            raise AbftError(
                f"label words given for unknown labels {unknown}; the data's labels are "
                f"{list(self.labels)}"
            )

        pairs = zip(self.labels, self.label_words, strict=True)
        label_words = tuple(words.get(label, word) for label, word in pairs)
        return replace(self, label_words=label_words)
