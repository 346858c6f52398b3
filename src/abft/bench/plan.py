"""What a grid will cost: forward passes that are still to be made, in seconds of this machine."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from abft.bench.calibration import calibration_prompts
from abft.bench.grid import Cell
from abft.bench.methods import METHODS
from abft.bench.scenarios import SCENARIOS, PromptSet
from abft.bench.store import Store, scores_key, texts_key
from abft.bench.subject import setting_of
from abft.data.encoding import label_tokens
from abft.data.prompts import Prompt, training_prompts
from abft.model.loading import layer_parameters, load_tokenizer

SAMPLE = 8  # prompts of a set whose tokens are counted


TRAINING_FACTOR = 2.6  # a training step against a forward pass of the same prompts (PERFORMANCE.md)


@dataclass(frozen=True)
class Plan:
    """A cell and its estimated seconds; `problem` is the error that it would end in, if one is
    known already.
    """

    cell: Cell
    seconds: float
    done: bool = False
    problem: str | None = None


def plan(cells: Sequence[Cell], store: Store) -> list[Plan]:
    """Estimate every cell; what cells share (training, predictions) counts for the first that needs
    it.
    """
    rate = flops_per_second()
    planner = _Planner(store)
    plans = []
    for cell in cells:
        if store.read(cell) is not None:
            plans.append(Plan(cell, 0.0, done=True))
            continue
        try:
            plans.append(Plan(cell, planner.flops(cell) / rate))
        except Exception as error:  # the cell will fail with it; the others need not
            plans.append(
                Plan(cell, 0.0, problem=" ".join(str(error).split()) or type(error).__name__)
            )
    return plans


def flops_per_second(size: int = 768) -> float:
    """Float32 matrix products on the device that `--device auto` takes."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    started, products = time.perf_counter(), 0
    while time.perf_counter() - started < 0.2:
        (a @ b).sum().item()
        products += 1
    return products * 2 * size**3 / (time.perf_counter() - started)


class _Planner:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.counted: set[str] = set()  # trainings and prompt sets that an earlier cell pays for
        self.models: dict[tuple, tuple] = {}
        self.sets: dict[tuple, list[PromptSet]] = {}

    def flops(self, cell: Cell) -> float:
        config = cell.config
        options = (config.model, config.revision, config.trust_remote_code)
        if options not in self.models:
            self.models[options] = load_tokenizer(*options), layer_parameters(*options)
        tokenizer, parameters = self.models[options]
        key = (options, cell.task, cell.scenario, config.k, config.test_prompts, config.protocol)
        setting = setting_of(cell, tokenizer)
        if key not in self.sets:
            self.sets[key] = SCENARIOS[cell.scenario].write(setting)
        tokens = 0.0
        kind = METHODS[cell.kind].calibration
        for prompt_set in self.sets[key]:
            words = label_tokens(tokenizer, prompt_set.data.task, config.protocol)
            groups = [prompt_set.prompts]
            if kind is not None:
                count = cell.calibration_prompts
                groups.append(
                    tuple(
                        calibration_prompts(
                            kind, prompt_set.data, count, prompt_set.k, cell.seed, config.protocol
                        )
                    )
                )
            for prompts in groups:
                name = scores_key(cell, words, prompts)
                if name not in self.counted and self.store.scores(name) is None:
                    tokens += _tokens(tokenizer, prompts)
                self.counted.add(name)
        texts = SCENARIOS[cell.scenario].texts
        if texts is not None and (name := texts_key(cell, texts(setting))) not in self.counted:
            self.counted.add(name)
            tokens += (
                0
                if self.store.scores(name)
                else sum(len(tokenizer(text)["input_ids"]) for text in texts(setting))
            )
        if (
            cell.weights is not None
            and cell.weights not in self.counted
            and not (self.store.weights(cell) / "metrics.json").is_file()
        ):
            sample = training_prompts(
                setting.data,
                SAMPLE * config.queries,
                config.k,
                cell.seed,
                config.protocol,
                config.queries,
            )[:: config.queries]
            tokens += (
                TRAINING_FACTOR * _tokens(tokenizer, sample) / SAMPLE * config.steps * config.nb
            )
            self.counted.add(cell.weights)
        return 2.0 * parameters * tokens


def _tokens(tokenizer: Any, prompts: Sequence[Prompt]) -> float:
    step = max(1, len(prompts) // SAMPLE)
    sample = [prompt.text for prompt in prompts[::step]]
    return sum(len(ids) for ids in tokenizer(sample)["input_ids"]) / len(sample) * len(prompts)
