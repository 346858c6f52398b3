"""Count what a grid leaves to compute: prompts to score and to train on, cell by cell."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from abft.bench.calibration import calibration_prompts
from abft.bench.cell import Cell
from abft.bench.labelled_texts import labelled_texts
from abft.bench.methods import METHODS
from abft.bench.scenarios import SCENARIOS
from abft.bench.store import Store, scores_key, texts_key
from abft.bench.subject import setting_of
from abft.data.encoding import label_tokens
from abft.data.prompts import training_prompts
from abft.model.loading import load_tokenizer
from abft.runs.run_folder import METRICS


@dataclass(frozen=True)
class Plan:
    """A cell, and how many prompts are left; `problem` is the error that it would end in."""

    cell: Cell
    scored_prompts: int = 0
    training_prompts: int = 0
    done: bool = False
    problem: str | None = None

    @property
    def status(self) -> str:
        """Return one line for people."""
        if self.done:
            return "done"
        if self.problem is not None:
            return f"would fail: {self.problem}"
        return f"score {self.scored_prompts:,}, train on {self.training_prompts:,}"


def plan(cells: Sequence[Cell], store: Store) -> list[Plan]:
    """List what is left to compute for every cell.

    What cells share (trainings, predictions) counts for the first cell that needs it.
    """
    planner = _Planner(store)
    return [planner.plan(cell) for cell in cells]


class _Planner:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.counted: set[str] = set()  # trainings and prompt sets of earlier cells
        self.tokenizers: dict[tuple, PreTrainedTokenizerBase] = {}

    def plan(self, cell: Cell) -> Plan:
        if self.store.read(cell) is not None:
            return Plan(cell, done=True)
        try:
            if METHODS[cell.kind].classifier is not None:
                return self._fitted(cell)
            return Plan(cell, self._scored(cell), self._trained(cell))
        except Exception as error:
            # The cell will fail with it; the others need not.
            return Plan(cell, problem=" ".join(str(error).split()) or type(error).__name__)

    def _fitted(self, cell: Cell) -> Plan:
        """Return a plan that counts texts, for a classifier that reads no prompts."""
        setting = setting_of(cell, self._tokenizer(cell))
        count = cell.variant["texts"]
        texts = labelled_texts(setting.data.train, count, cell.seed)
        (prompt_set,) = SCENARIOS[cell.scenario].write(setting)
        return Plan(cell, len(prompt_set.prompts), len(texts))

    def _scored(self, cell: Cell) -> int:
        """Return the prompts (and texts) that no stored scores cover."""
        config, scenario = cell.config, SCENARIOS[cell.scenario]
        tokenizer = self._tokenizer(cell)
        setting = setting_of(cell, tokenizer)
        calibration = METHODS[cell.kind].calibration

        # By the key under which their scores are stored.
        counts: dict[str, int] = {}
        for prompt_set in scenario.write(setting):
            tokens = label_tokens(tokenizer, prompt_set.data.task, config.prompt_style)
            groups = [prompt_set.prompts]
            if calibration is not None:
                neutral_prompts = calibration_prompts(
                    calibration,
                    prompt_set.data,
                    cell.calibration_prompts,
                    prompt_set.k,
                    cell.seed,
                    config.prompt_style,
                )
                groups.append(tuple(neutral_prompts))
            counts |= {scores_key(cell, tokens, group): len(group) for group in groups}

        if scenario.texts is not None:
            texts = scenario.texts(setting)
            counts[texts_key(cell, texts)] = len(texts)

        left = {key: n for key, n in counts.items() if key not in self.counted}
        self.counted |= left.keys()
        return sum(n for key, n in left.items() if self.store.scores(key) is None)

    def _trained(self, cell: Cell) -> int:
        """Return the training prompts of a training that is still to come."""
        if cell.weights is None or cell.weights in self.counted:
            return 0
        if (self.store.weights(cell) / METRICS).is_file():
            return 0

        # One draw, which raises what the training would raise: too few examples.
        config = cell.config
        data = setting_of(cell, self._tokenizer(cell)).data
        training_prompts(data, config.queries, config.k, 0, config.prompt_style, config.queries)

        self.counted.add(cell.weights)
        return config.steps * config.nb

    def _tokenizer(self, cell: Cell) -> PreTrainedTokenizerBase:
        config = cell.config
        options = (config.model, config.revision, config.trust_remote_code)
        if options not in self.tokenizers:
            self.tokenizers[options] = load_tokenizer(*options)
        return self.tokenizers[options]
