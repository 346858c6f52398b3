"""Predict the labels of new texts with a finished run."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from abft.data.encoding import encode, label_tokens
from abft.data.lengths import cut_texts, text_room
from abft.data.prompts import write_prompt
from abft.data.tasks import Example, PromptStyle, Task
from abft.errors import AbftError
from abft.method.settings import Calibration, Readout
from abft.model.checkpoints import apply_weights
from abft.model.loading import context_length, load_model
from abft.runs.config import Device
from abft.runs.explain import Explanation, explain, look
from abft.runs.run_folder import (
    check_predictable,
    is_merged,
    max_text_tokens_of,
    read_config,
    read_heads,
    read_task,
)
from abft.runs.session import load_run_model
from abft.scoring.calibration import CONTENT_FREE, batch_prior, calibrated, prior
from abft.scoring.observer import Look, Observer
from abft.scoring.scorer import LabelScorer
from abft.scoring.votes import head_mask, voting

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Predictor:
    """Classifies texts after one set of demonstrations, which is run once for the same weights.

    Args:
        model, tokenizer: the model with its trained weights, and its fast tokenizer.
        task: template, labels and label words.
        demonstrations: shown before every text.
        prompt_style: how prompts end and labels are scored.
        max_text_tokens: longer texts are cut; default: to what fits into the model's context.
        readout: "label_words": the label words' probabilities; "attention": a label's probability
            is its share of the attention on the demonstrations' labels.
        heads: (layer, head) pairs whose attention is read; default: all.
        calibrate: divide probabilities by a prior, so that no label is favoured whatever the text:
            "content_free": the probabilities of texts without content after the same demonstrations
            (contextual calibration, arXiv 2102.09690); "batch": the mean over the texts of a call
            (batch calibration, arXiv 2309.17249) and those without content, which count as four
            texts; it expects about as many texts of every class.

    Raises:
        AbftError: no room for a text, or heads that the model does not have.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        task: Task,
        demonstrations: Sequence[Example],
        prompt_style: PromptStyle = "consistent",
        max_text_tokens: int | None = None,
        readout: Readout = "label_words",
        heads: Sequence[tuple[int, int]] | None = None,
        calibrate: Calibration = "none",
    ) -> None:
        self.model, self.tokenizer, self.task = model, tokenizer, task
        self.demonstrations, self.prompt_style = list(demonstrations), prompt_style
        self.label_tokens = label_tokens(tokenizer, task, prompt_style)
        self.score = LabelScorer(model, self.label_tokens)
        self.readout, self.calibrate = readout, calibrate
        self.heads_LH: Tensor | None = None
        if readout == "attention":
            shown = {example.label for example in self.demonstrations}
            unseen = [label for c, label in enumerate(task.labels) if c not in shown]
            if unseen:
                raise AbftError(
                    "readout = 'attention' predicts classes that are shown only: no demonstration "
                    f"is of {', '.join(map(repr, unseen))}"
                )
            self.heads_LH = head_mask(model, heads)
        elif heads is not None:
            raise AbftError("heads goes with readout = 'attention'")

        limit = context_length(model)
        room = text_room(
            tokenizer, task, self.demonstrations, 1, limit, self.label_tokens, prompt_style
        )
        lengths = [length for length in (room, max_text_tokens) if length is not None]
        self.max_text_tokens = min(lengths, default=None)
        if room is not None and room < 1:
            raise AbftError(
                f"the demonstrations leave no room for a text: the model reads at most {limit} "
                "tokens. Show fewer, or shorter ones."
            )

    @classmethod
    def from_run(
        cls,
        run: str | Path,
        *,
        device: Device = "auto",
        trust_remote_code: bool = False,
        shown: tuple[Task, Sequence[Example]] | None = None,
        readout: Readout = "label_words",
        calibrate: Calibration = "none",
    ) -> "Predictor":
        """Load base model, weights, task and demonstrations of a finished run folder.

        The folder may also be one that `abft merge` wrote. Remote code runs only with
        `trust_remote_code`, whatever the run's own settings are.

        Args:
            shown: another task and its demonstrations, used instead of the run's, such as those of
                `load_demonstrations`; a reader (docs/reader.md) needs no training on that task.
            readout: "attention" reads the heads that the run's training chose, or all heads.
            calibrate: as for the class.

        Raises:
            AbftError: `run` is neither a finished nor a merged run; the attention read-out needs
                heads that the model does not have, or classes that no demonstration shows.
        """
        check_predictable(run)
        task, demonstrations, prompt_style = read_task(run)
        if shown is not None:
            task, demonstrations = shown[0], list(shown[1])
        heads = read_heads(run) if readout == "attention" else None
        longest = max_text_tokens_of(run)
        if is_merged(run):
            model, tokenizer = load_model(
                str(run), device=device, trust_remote_code=trust_remote_code
            )
        else:
            # The run folder may be someone else's: its consent to remote code is not the user's.
            config = read_config(run, trust_remote_code=trust_remote_code)
            model, tokenizer = load_run_model(replace(config, device=device))
            model = apply_weights(model, run)
        if shown is not None and longest is not None:
            texts = cut_texts(tokenizer, [example.text for example in demonstrations], longest)
            demonstrations = [
                replace(example, text=text)
                for example, text in zip(demonstrations, texts, strict=True)
            ]
        return cls(
            model,
            tokenizer,
            task,
            demonstrations,
            prompt_style,
            longest,
            readout,
            heads,
            calibrate,
        )

    def fit(self, texts: Sequence[str]) -> list[str]:
        """Return texts cut to what fits after the demonstrations, as `observe` also cuts them.

        Raises:
            AbftError: one text instead of a list.
        """
        if isinstance(texts, str):
            raise AbftError("expected a list of texts, got one text: give [text]")
        if self.max_text_tokens is None:
            return list(texts)
        return cut_texts(self.tokenizer, texts, self.max_text_tokens)

    def prompt(self, text: str) -> str:
        """Return the whole prompt of a text, to send to another engine.

        It ends where the label begins, without a trailing space. A space before the label, if the
        template has one, belongs to the label's first token.
        """
        (fitted,) = self.fit([text])
        query = Example(fitted, 0)
        return write_prompt(self.task, self.demonstrations, query, self.prompt_style).text

    def probabilities(self, texts: Sequence[str], batch_size: int = 16) -> np.ndarray:
        """Return the probability of every label for each text, (N, C); a row sums to 1."""
        return self.observe(texts, batch_size=batch_size)[0]

    def observe(
        self,
        texts: Sequence[str],
        layers: Sequence[int] = (),
        look: Look | None = None,
        batch_size: int = 16,
        progress: Callable[[int], object] | None = None,
    ) -> tuple[np.ndarray, Observer]:
        """Return label probabilities, (N, C), and what an `Observer` collected from the prompts."""
        probabilities_NC, observer = self._observe(texts, layers, look, batch_size, progress)
        if self.calibrate != "none" and len(texts):
            without_NC, _ = self._observe(CONTENT_FREE, (), None, batch_size, None)
            in_batch = self.calibrate == "batch"
            prior_C = batch_prior(probabilities_NC, without_NC) if in_batch else prior(without_NC)
            probabilities_NC = calibrated(probabilities_NC, prior_C)
        return probabilities_NC, observer

    def _observe(
        self,
        texts: Sequence[str],
        layers: Sequence[int],
        look: Look | None,
        batch_size: int,
        progress: Callable[[int], object] | None,
    ) -> tuple[np.ndarray, Observer]:
        """Return what `observe` returns, without calibration."""
        # The query's class is not known; 0 is not read.
        prompts = [
            write_prompt(self.task, self.demonstrations, Example(text, 0), self.prompt_style)
            for text in self.fit(texts)
        ]
        limit = context_length(self.model)
        encoded = encode(self.tokenizer, prompts, self.prompt_style, limit, self.label_tokens)

        # All prompts share the tokens through the last demonstration's label.
        positions = encoded[0].label_positions if encoded else ()
        shared = max(positions, default=-1) + 1
        if self.readout == "label_words":
            observer = Observer(encoded, layers, look)
            return self.score.observe(observer, shared, batch_size, progress), observer

        classes = len(self.task.labels)
        observer = Observer(encoded, layers, voting(classes, look, self.heads_LH))
        self.score.observe(observer, shared, batch_size, progress)
        votes = [votes_C for votes_C, _ in observer.looks]
        observer.looks = [seen for _, seen in observer.looks]
        return np.array(votes).reshape(-1, classes), observer

    def explain(self, texts: Sequence[str], batch_size: int = 16) -> list[Explanation]:
        """Return for each text its label and where the heads looked, from one forward pass."""
        looking = partial(look, heads_LH=self.heads_LH)
        probabilities, observer = self.observe(texts, look=looking, batch_size=batch_size)
        return explain(self, texts, probabilities, observer.looks)

    def predict(
        self, texts: Sequence[str], batch_size: int = 16
    ) -> list[tuple[str, dict[str, float]]]:
        """Return the label of each text, and the probability of every label (they sum to 1)."""
        labels = self.task.labels
        rows = self.probabilities(texts, batch_size)
        return [
            (labels[row.argmax()], dict(zip(labels, row.tolist(), strict=True))) for row in rows
        ]
