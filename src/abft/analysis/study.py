"""A finished run made ready for analyses: its model (and an end-to-end run's beside it), its data,
its prompts.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from abft.analysis.space import WeightSpace
from abft.data.encoding import EncodedPrompt, LabelTokens, encode, label_tokens
from abft.data.prompts import Prompt, evaluation_prompts
from abft.data.splits import TaskData
from abft.errors import AbftError
from abft.model.attention import Implementation
from abft.model.capabilities import supported_implementation
from abft.model.loading import context_length
from abft.model.qk_weights import qk_modules
from abft.runs.config import RunConfig
from abft.runs.run_folder import read_config, refuse_unfinished
from abft.runs.session import load_run_data, load_run_model
from abft.scoring import metrics
from abft.scoring.evaluate import HeadReport, evaluate

RUN, E2E = "run", "e2e"


@dataclasses.dataclass(frozen=True)
class Study:
    """What analyses read. `models` names points of the weight space: factors of the run's and the
    E2E run's change.
    """

    config: RunConfig
    data: TaskData
    tokenizer: PreTrainedTokenizerBase
    space: WeightSpace
    implementation: Implementation
    layers: tuple[int, ...]  # number in the model of every attention layer
    words: LabelTokens  # token, or tokens, of every class
    written: tuple[Prompt, ...]  # test prompts
    prompts: tuple[EncodedPrompt, ...]  # the same as tokens
    models: Mapping[str, Mapping[str, float]]  # before, after, perhaps e2e

    def encode(self, written: Sequence[Prompt]) -> list[EncodedPrompt]:
        return encode(
            self.tokenizer, written, self.config.protocol, context_length(self.space.model)
        )

    def evaluate(
        self,
        at: Mapping[str, float],
        prompts: Sequence[EncodedPrompt],
        bar: tqdm,
        head_gates: dict[int, Tensor] | None = None,
    ) -> tuple[np.ndarray, HeadReport]:
        """Label probabilities (N, C) and head statistics with the weights at a point of the
        space.
        """
        return evaluate(
            self.space.move(at),
            prompts,
            self.words,
            self.implementation,
            batch_size=self.config.eval_batch_size,
            fixed_threshold=self.config.threshold,
            head_gates=head_gates,
            progress=bar.update,
        )


def accuracy_of(probabilities_NC: np.ndarray, prompts: Sequence[EncodedPrompt]) -> float:
    """Accuracy; NaN where weights are so far away that probabilities are no numbers."""
    if not np.isfinite(probabilities_NC).all():
        return float("nan")
    return metrics.accuracy(probabilities_NC, np.array([prompt.target for prompt in prompts]))


def bar_of(title: str, prompts: int) -> tqdm:
    """A progress bar of prompts on stderr."""
    return tqdm(total=prompts, desc=title, unit="prompt", file=sys.stderr, mininterval=1)


def open_study(run: Path, e2e: Path | None, **changes: Any) -> Study:
    """Load a finished run. Nothing long happens here: prompts and weights are checked first.

    Args:
        changes: of the run's configuration; remote code runs only if asked for here.

    Raises:
        AbftError: weights of another model, prompts that are too long, data that are no longer
            there.
    """
    config = dataclasses.replace(read_config(run), **{"trust_remote_code": False, **changes})
    data = load_run_data(config)
    data.check(config.k)
    model, tokenizer = load_run_model(config)
    words = label_tokens(tokenizer, data.task, config.protocol)
    written = tuple(evaluation_prompts(data, config.test_prompts, config.k, config.protocol))
    prompts = tuple(encode(tokenizer, written, config.protocol, context_length(model)))
    layers = tuple(sorted({qk.layer for qk in qk_modules(model)}))
    runs = {RUN: run} if e2e is None else {RUN: run, E2E: e2e}
    implementation = supported_implementation(model)
    space = WeightSpace(model, runs)
    models: dict[str, dict[str, float]] = {"before": {}, "after": {RUN: 1.0}}
    if e2e is not None:
        models["e2e"] = {E2E: 1.0}
    return Study(
        config, data, tokenizer, space, implementation, layers, words, written, prompts, models
    )


def refuse_as_e2e(run: Path, e2e: Path) -> None:
    """Raise AbftError unless `e2e` is a finished end-to-end run of the same base model and data as
    `run`.
    """
    refuse_unfinished(e2e)
    ours, theirs = read_config(run), read_config(e2e)
    if theirs.objective != "e2e":
        raise AbftError(
            f"{e2e} is no end-to-end run (its objective is {theirs.objective!r}); compare it "
            f"with --compare"
        )
    for name in ("model", "revision", "dtype", "load_in_4bit", "task_name", "data"):
        if (mine := getattr(ours, name)) != (other := getattr(theirs, name)):
            raise AbftError(
                f"{run} has {name.removesuffix('_name')} {mine!r}, {e2e} has {other!r}: base "
                f"model and data have to be the same"
            )
