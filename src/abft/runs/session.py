"""Open what a configuration names: model, tokenizer, data, label tokens and test prompts."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from abft.data.encoding import EncodedPrompt, LabelTokens, encode, label_tokens
from abft.data.lengths import fit_texts, longest_that_fits
from abft.data.prompts import Prompt, evaluation_prompts
from abft.data.splits import TaskData, text_key
from abft.data.tasks import Example
from abft.method.settings import Calibration, Readout
from abft.model.checkpoints import apply_weights
from abft.model.loading import context_length, four_bit, load_model
from abft.model.qk_weights import softmax_layers
from abft.runs.config import ResolvedConfig, RunConfig, resolve
from abft.runs.run_folder import read_config, read_digest, read_heads
from abft.runs.task_data import load_run_data
from abft.scoring import metrics
from abft.scoring.calibration import CONTENT_FREE, calibrated, prior
from abft.scoring.evaluate import HeadReport, check_finite, evaluate
from abft.scoring.votes import head_mask

CONTENT_FREE_PROMPTS = 96  # their mean prediction is the prior of content-free calibration


@dataclass
class Session:
    """A model with its data, ready to be trained or measured.

    Attributes:
        config: the settings, all filled in except for the learning rate.
        label_tokens: the token, or tokens, of every class.
        written: the test prompts as text.
        prompts: the test prompts as tokens.
        whole: the data before long texts were cut, to recognise its texts in other tasks.
        heads: the (layer, head) pairs that training chose; None = none were chosen.
    """

    config: ResolvedConfig
    data: TaskData
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    label_tokens: LabelTokens
    written: Sequence[Prompt]
    prompts: Sequence[EncodedPrompt]
    whole: TaskData
    heads: list[tuple[int, int]] | None = None

    @property
    def layers(self) -> list[int]:
        """The layers with softmax attention, by their number in the model."""
        return softmax_layers(self.model)

    def encode(self, written: Sequence[Prompt]) -> list[EncodedPrompt]:
        """Tokenize prompts for this model; AbftError for one that is too long for it."""
        style, limit = self.config.prompt_style, context_length(self.model)
        return encode(self.tokenizer, written, style, limit, self.label_tokens)

    def evaluate(
        self,
        prompts: Sequence[EncodedPrompt],
        bar: tqdm,
        head_gates: dict[int, Tensor] | None = None,
        readout: Readout = "label_words",
    ) -> tuple[np.ndarray, HeadReport]:
        """Return label probabilities (N, C) and head statistics of encoded prompts."""
        return evaluate(
            self.model,
            prompts,
            self.label_tokens,
            batch_size=self.config.eval_batch_size,
            fixed_threshold=self.config.threshold,
            head_gates=head_gates,
            readout=readout,
            heads_LH=head_mask(self.model, self.heads) if readout == "attention" else None,
            progress=bar.update,
        )

    @property
    def distinct_queries(self) -> int:
        """The number of different test queries: more prompts of one query are no new evidence."""
        return min(len(self.prompts), len(self.data.test))

    def measure(
        self, title: str, readout: Readout = "label_words", calibrate: Calibration = "none"
    ) -> tuple[dict[str, float], HeadReport]:
        """Return metrics and head statistics on the test prompts, with a progress bar.

        `calibrate` divides by one prior for all prompts: the mean prediction for texts without
        content after the first prompts' demonstrations ("content_free"), or the mean prediction
        over all prompts ("batch").
        """
        if readout == "attention":
            print(f"{title}: {heads_read(self.heads)}", file=sys.stderr)
        without = self._content_free_prompts() if calibrate == "content_free" else []
        with progress_bar(title, len(self.prompts) + len(without)) as bar:
            probabilities, heads = self.evaluate(self.prompts, bar, readout=readout)
            if calibrate == "batch":
                probabilities = calibrated(probabilities, prior(probabilities))
            elif without:
                of_nothing, _ = self.evaluate(without, bar, readout=readout)
                probabilities = calibrated(probabilities, prior(of_nothing))
        summary = summarize(probabilities, self.prompts, heads)

        # Accuracy can hide that a rare class is never predicted.
        targets = np.array([prompt.target for prompt in self.prompts])
        classes = metrics.never_predicted(probabilities.argmax(1), targets)
        never = [self.data.task.labels[c] for c in classes]
        if never:
            print(
                f"{title}: {', '.join(map(repr, never))} is never predicted "
                f"(macro-F1 {summary['macro_f1']:.3f})",
                file=sys.stderr,
            )
        return summary, heads

    def _content_free_prompts(self) -> list[EncodedPrompt]:
        """Return prompts of texts without content, with the first test prompts' demonstrations."""
        nothing = tuple(Example(text, 0) for text in CONTENT_FREE)
        data, config = replace(self.data, test=nothing), self.config
        count = min(CONTENT_FREE_PROMPTS, len(self.prompts))
        return self.encode(evaluation_prompts(data, count, config.k, config.prompt_style))


def open_session(
    config: RunConfig,
    run: str | Path | None = None,
    *,
    data: TaskData | None = None,
) -> Session:
    """Load what a configuration names; everything is checked before the first forward pass.

    Texts that do not fit are cut, with a message on stderr.

    Args:
        config: names model, data and prompts.
        run: a folder with trained weights to apply.
        data: what `load_run_data` returned, if it was called before.

    Raises:
        AbftError: bad data, no such model, prompts that are too long, weights of another model.
    """
    config = resolve(config)
    data = load_run_data(config) if data is None else data
    model, tokenizer = load_run_model(config)
    tokens = label_tokens(tokenizer, data.task, config.prompt_style)
    whole = data
    data = cut_to_fit(data, config, tokenizer, tokens, context_length(model))

    written = evaluation_prompts(data, config.test_prompts, config.k, config.prompt_style)
    session = Session(config, data, model, tokenizer, tokens, written, (), whole)
    session.prompts = session.encode(written)
    if run is not None:
        session.model = apply_weights(model, run)
        say_if_data_changed(run, config, whole)
    # A merged run is a model: its folder names the heads.
    session.heads = read_heads(config.model if run is None else run)
    return session


def cut_to_fit(
    data: TaskData,
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    tokens: LabelTokens,
    limit: int | None,
) -> TaskData:
    """Return the data with long texts cut so that every prompt fits; say on stderr how many.

    Args:
        limit: the model's context in tokens; None = unlimited.

    Raises:
        AbftError: too little would be left of the texts, or too few different texts.
    """
    longest = config.max_text_tokens
    if longest is None:
        style = config.prompt_style
        longest = longest_that_fits(data, tokenizer, config.k, limit, tokens, style)
    fitted, cut = fit_texts(data, tokenizer, longest)
    if not cut:
        return fitted
    print(
        f"{data.task.name}: {cut} texts have more than {longest} tokens; only their beginning is "
        "read (--max-text-tokens)",
        file=sys.stderr,
    )

    # Texts that differ only in what was cut off could be both trained on and tested.
    pairs = zip(data.examples, fitted.examples, strict=True)
    keys = {text_key(after.text) for before, after in pairs if before != after}
    distinct = fitted.distinct(keys)
    alike = len(fitted.examples) - len(distinct.examples)
    if alike:
        print(f"{data.task.name}: {alike} texts begin alike and are left out", file=sys.stderr)
        distinct.check(config.k)
    return distinct


def say_if_data_changed(run: str | Path, config: RunConfig, data: TaskData) -> None:
    """Say on stderr if a run's own data, now `data`, have changed since it was trained on them."""
    own = read_config(run)
    changed = read_digest(run) not in (None, data.digest)
    if changed and (config.task_name, config.data) == (own.task_name, own.data):
        print(
            f"{config.data or config.task_name} is not what {run} was trained on, or is parted "
            "otherwise: texts of its training may be among those it is measured on",
            file=sys.stderr,
        )


def heads_read(heads: Sequence[tuple[int, int]] | None) -> str:
    """Return a message that says which heads the attention is read from."""
    if heads is None:
        return "read from the attention of all heads (its training chose none)"
    return f"read from the attention of the {len(heads)} heads that training chose"


def load_run_model(config: RunConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the base model that a configuration names."""
    return load_model(
        config.model,
        revision=config.revision,
        dtype=config.dtype,
        quantization_config=four_bit() if config.load_in_4bit else None,
        device=config.device,
        trust_remote_code=config.trust_remote_code,
    )


def summarize(
    probabilities_NC: np.ndarray, prompts: Sequence[EncodedPrompt], heads: HeadReport
) -> dict[str, float]:
    """Return accuracy, macro_f1, ece; heads over the threshold; a head's mean attention on labels.

    Raises:
        AbftError: probabilities that are not finite.
    """
    check_finite(probabilities_NC)
    targets = np.array([prompt.target for prompt in prompts])
    return {
        **metrics.scores(probabilities_NC, targets),
        "heads": heads.heads,
        "mean_correct_mass": float(heads.correct_mass_LH.mean()),
        "mean_incorrect_mass": float(heads.incorrect_mass_LH.mean()),
    }


def progress_bar(
    title: str, total: int | None, unit: str = "prompt", disable: bool = False
) -> tqdm:
    """Open a progress bar on stderr; `total` None = unknown."""
    return tqdm(
        total=total,
        desc=title,
        unit=unit,
        file=sys.stderr,
        mininterval=1,
        disable=disable,
    )
