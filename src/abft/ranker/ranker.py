"""Define `AttentionRanker`, which ranks documents by how much a query's tokens look at them."""

import functools
import json
import math
import operator
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, get_args

import numpy as np

from abft.errors import AbftError
from abft.files import atomic_folder
from abft.method.objectives.contrastive import LAYER
from abft.model.loading import absolute_model
from abft.ranker.draws import (
    FEWEST_HELD_OUT,
    measured_queries,
    most_together,
    split,
    training_prompts,
    weighed_groups,
)
from abft.ranker.peers import PEERS, Scorer, peers
from abft.ranker.prompts import EMPTY_QUERY, Looking, RankingPrompts
from abft.ranker.queries import (
    RankingQuery,
    by_candidates,
    queries_without_labels,
    ranking_queries,
    texts_of,
)
from abft.ranker.recall import first_is_relevant, warn_of_better_peers
from abft.ranker.rounds import Scored, rank_in_rounds
from abft.runs.config import Device

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from abft.method.objectives.contrastive import ContrastiveObjective
    from abft.ranker.attribution import DeletionCurve
    from abft.ranker.documents import DocumentReader, KeptDocuments
    from abft.ranker.head_weights import HeadWeights

FILE, FORMAT = "ranker.json", 2
FINDER_GROUPS = 32  # groups of prompts by which heads are chosen
TEMPLATE_TOKENS = 32  # about how many a prompt has besides beginning, document and query

# Settings that are whole numbers, and the smallest value of each.
_COUNTS = {
    "shown": 2,
    "documents_per_pass": 2,
    "together": 1,
    "steps": 0,
    "max_document_tokens": 1,
    "max_query_tokens": 1,
}

P = ParamSpec("P")
T = TypeVar("T")


def _one_at_a_time(method: Callable[P, T]) -> Callable[P, T]:
    """Make other threads wait while a method reads or trains the ranker's model."""

    @functools.wraps(method)
    def locked(*args: P.args, **kwargs: P.kwargs) -> T:
        with args[0]._lock:  # type: ignore[attr-defined]
            return method(*args, **kwargs)

    return locked


@dataclass(frozen=True)
class Ranked:
    """A document with its place in a ranking.

    Attributes:
        index: its index in the list of documents.
        score: from the heads' attention on it minus that of an empty query. Higher is better among
            documents that were read together: all of them or, in a ranking in rounds, one group.
        document: the text.
    """

    index: int
    score: float
    document: str


@dataclass(eq=False)
class AttentionRanker:
    """Ranks documents by the attention of heads, without generating anything.

    Before `fit`, it reads all heads, as in-context re-ranking does (ICR, arXiv 2410.02642). `fit`
    weighs the heads of the first layers so that relevant documents have the largest weighted sum,
    with InfoNCE (cross-entropy of a softmax) over a query's documents. If asked (`steps`), it first
    finds the heads that look at relevant documents (QRHead, arXiv 2506.09944; CoRe, arXiv
    2510.02219) and trains W_Q and W_K with the same loss so that they look at them more, as in
    BlockRank (arXiv 2510.05396).

    Args:
        model: what `abft.load_model` takes.
        heads: how many heads are trained, or "layer": those of one middle layer.
        steps: optimizer steps; 0 = no training. `validation_` says whether training helped.
        learning_rate: of W_Q and W_K; default: that of the contrastive objective.
        temperature: of the loss, > 0.
        looking: which tokens look: all of the "query", or the "last" one.
        shown: maximum number of documents in a training prompt.
        together: how many queries share a prompt's documents, if they have the same candidates.
        max_document_tokens, max_query_tokens: longer texts are cut, with a warning.
        instruction: says what all queries look for, such as "Which document has the same sentiment
            as the query?"; documents see it too.
        documents_per_pass: more documents than that are ranked in rounds.
        device: "auto", "cpu", "cuda", or "balanced" over several GPUs.
        random_state: seed that decides which queries are held out, and what is drawn.
        progress: whether `fit` shows a bar and prints what it measured.
    """

    model: str = "SmolLM2-135M-Instruct"
    _: KW_ONLY
    heads: int | str = 16
    steps: int = 0
    learning_rate: float | None = None
    temperature: float = 0.05
    looking: Looking = "query"
    shown: int = 20
    together: int = 8
    max_document_tokens: int = 128
    max_query_tokens: int = 128
    instruction: str = ""
    documents_per_pass: int = 128
    random_state: int = 0
    device: Device = "auto"
    progress: bool = True

    def __post_init__(self) -> None:
        self._named: str | None = None  # `model`, once its path was made absolute
        self._check_settings()
        self.heads_: list[tuple[int, int]] | None = None  # (layer, head); None = all
        self.head_weights_: HeadWeights | None = None  # None = the mean of `heads_`
        self.validation_: dict[str, float] = {}  # recall@1 on held-out queries, by method
        self._changed = False  # whether the model's weights are no longer the base model's
        self._model: PreTrainedModel | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._opened: tuple[str, str] | None = None  # the model and device that were loaded
        self._samples: dict[str, list[float]] = {}  # by which the base model is recognised
        self._reader: DocumentReader | None = None
        self._read_as: RankingPrompts | None = None  # how the reader's texts are written
        # Documents, and how an empty query looks at them.
        self._kept: tuple[tuple[str, ...], KeptDocuments, np.ndarray] | None = None
        self._lock = threading.RLock()

    def _check_settings(self) -> None:
        """Raise ValueError for settings that make no sense; they may be changed at any time.

        Values such as numpy's numbers and paths are converted to plain types, which `save` writes.
        """
        # Only once: in another working directory, the same name may be another folder.
        if self.model != self._named:
            self.model = self._named = absolute_model(self.model)
        for name, least in _COUNTS.items():
            setattr(self, name, _whole(name, getattr(self, name), least))
        self.random_state = _whole("random_state", self.random_state, 0)
        if self.heads != LAYER:
            self.heads = _whole("heads", self.heads, 1, f"a number, or {LAYER!r}")
        self.temperature = float(self.temperature)
        if self.learning_rate is not None:
            self.learning_rate = float(self.learning_rate)
            if not (self.learning_rate >= 0 and math.isfinite(self.learning_rate)):
                raise ValueError(f"learning_rate = {self.learning_rate}: expected at least 0")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature = {self.temperature}: expected more than 0")
        if not isinstance(self.instruction, str):
            raise ValueError(f"instruction = {self.instruction!r}: expected a text")
        if self.looking not in get_args(Looking):
            raise ValueError(f"looking = {self.looking!r}: expected {get_args(Looking)}")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()

    # Fit

    @_one_at_a_time
    def fit(
        self,
        queries: Sequence[str],
        candidates: Sequence[str] | Sequence[Sequence[str]],
        relevant: Sequence[int | Collection[int]],
    ) -> "AttentionRanker":
        """Find, train and weigh heads, on queries whose relevant documents are known.

        A fifth of the queries, between 4 and 128 texts, is held out, each with up to `shown` of its
        candidates, drawn at random: among more, every method finds the relevant one less often. On
        these, `validation_` says how often the first document is a relevant one (recall@1) for
        TF-IDF, BM25 and MiniLM (if they are installed), and for the heads: untrained and trained,
        their mean and weighted.

        Args:
            queries: N texts.
            candidates: documents that all queries share, or N lists of them.
            relevant: for each query the index of the document that answers it, or several, each
                once.

        Raises:
            ValueError: queries without relevant candidates, or with relevant ones only; empty
                texts; see `ranking_queries`.
            AbftError: a model family that cannot be used.
        """
        self._check_settings()
        checked = ranking_queries(queries, candidates, relevant)
        distinct = len({query.text for query in checked})
        if distinct < 2 * FEWEST_HELD_OUT:
            raise ValueError(
                f"got {distinct} distinct queries; expected at least {2 * FEWEST_HELD_OUT}"
            )
        seed = self.random_state
        held_out, training = split(checked, seed)
        held_out = measured_queries(held_out, self.together, self.shown, seed)

        self.validation_ = {}
        if self.progress:
            print(
                f"recall@1 on {len(held_out)} held-out queries, each with up to "
                f"{max(len(query.candidates) for query in held_out)} documents:",
                file=sys.stderr,
            )
        hits: dict[str, np.ndarray] = {}

        def measure(name: str, scorer: Scorer) -> None:
            hits[name] = first_is_relevant(held_out, scorer)
            self._say(name, float(hits[name].mean()))

        # Words are counted in all candidates, as a search engine would count them.
        corpus = [text for candidates_of in by_candidates(checked) for text in candidates_of]
        for name, scorer in peers(corpus).items():
            measure(name, scorer)

        self._untouched()
        measure("all heads, untrained (ICR)", self.scores)
        objective = self._find_heads(training, seed)
        measure("chosen heads, untrained (QRHead)", self.scores)
        self._weigh_heads(training, seed)
        ours = "weighted heads, untrained"
        measure(ours, self.scores)
        if self.steps:
            self._train(training, objective, seed)
            measure("chosen heads, trained", self.scores)
            self._weigh_heads(training, seed)
            ours = "weighted heads, trained"
            measure(ours, self.scores)
        warn_of_better_peers({name: hits[name] for name in PEERS if name in hits}, hits[ours])
        return self

    @_one_at_a_time
    def find_heads(self, documents: Sequence[str]) -> "AttentionRanker":
        """Find and weigh heads without labels, by how they look from a text's end at its beginning.

        Nothing is trained. `fit` goes by which documents are relevant instead.

        Args:
            documents: texts like those to rank; the same ones will do.

        Raises:
            ValueError: fewer than 4 texts of 10 words or more, as separated by spaces.
            AbftError: a model family that cannot be used.
        """
        self._check_settings()
        texts = texts_of(documents, "document")
        queries = queries_without_labels(texts, self.shown, self.random_state)
        self.validation_ = {}
        self._untouched()
        self._find_heads(queries, self.random_state)
        self._weigh_heads(queries, self.random_state)
        return self

    def _untouched(self) -> None:
        """Load the untrained model, and forget the heads that were found."""
        # An earlier fit may have changed the weights, and the caller the model's name.
        if self._changed or self._opened != (self.model, self.device):
            self._model = None
        self.heads_, self.head_weights_, self._changed = None, None, False
        self._forget()
        self._load()

    def _say(self, name: str, recall: float) -> None:
        self.validation_[name] = recall
        if self.progress:
            print(f"  {name}: {recall:.1%}", file=sys.stderr)

    def _find_heads(self, queries: Sequence[RankingQuery], seed: int) -> "ContrastiveObjective":
        from abft.ranker.training import find_heads

        together = most_together(queries, self.together)
        prompts = training_prompts(
            queries, self._prompts(), FINDER_GROUPS, together, self.shown, seed
        )
        assert self._model is not None
        objective = find_heads(self._model, prompts, self.heads, self.temperature, together)
        assert objective.chosen_LH is not None
        self.heads_ = [tuple(pair) for pair in objective.chosen_LH.nonzero().tolist()]
        self._forget()
        return objective

    def _weigh_heads(self, queries: Sequence[RankingQuery], seed: int) -> None:
        """Fit weights of the heads of the model as it is now."""
        from tqdm import tqdm

        from abft.ranker.documents import DocumentReader
        from abft.ranker.head_weights import examples, fit_head_weights, layers_read

        prompts = self._prompts()
        together = most_together(queries, self.together)
        groups = weighed_groups(queries, together, self.shown, seed)
        self._forget()
        assert self._model is not None
        assert self.heads_ is not None
        layers = layers_read(self._model, self.heads_ if self._changed else ())
        reader = DocumentReader(self._model, prompts.beginning, layers)
        shown = tqdm(groups, "weighing heads", leave=False, disable=None if self.progress else True)
        looks = list(examples(reader, prompts, shown, self._looking))
        self.head_weights_ = fit_head_weights(looks, len(layers))

    def _train(
        self, queries: Sequence[RankingQuery], objective: "ContrastiveObjective", seed: int
    ) -> None:
        from abft.ranker.training import GROUPS, train_heads

        together = most_together(queries, self.together)
        prompts = training_prompts(
            queries, self._prompts(), GROUPS * self.steps, together, self.shown, seed
        )
        assert self._model is not None
        assert self._tokenizer is not None
        # What was read with the old weights is no longer valid.
        self._forget()
        self._changed, self.head_weights_ = True, None
        try:
            train_heads(
                self._model,
                self._tokenizer,
                prompts,
                objective,
                steps=self.steps,
                together=together,
                learning_rate=self.learning_rate,
                seed=seed,
                progress=self.progress,
            )
        except BaseException:
            # Half-trained weights are dropped: the next call loads the untrained ones.
            self._model, self.heads_, self.head_weights_, self.validation_ = None, None, None, {}
            self._changed = False
            raise

    # Rank

    @_one_at_a_time
    def scores(self, queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
        """Return how much each query looks at each document, (N, D); higher is better.

        The attention of an empty query is subtracted, which makes documents comparable. After
        `fit`, the score is a weighted sum over heads, whose mean over the documents is 0. A query
        looks at all documents in one pass, whatever their number; the documents' keys and values
        are kept until other documents are given.

        Raises:
            ValueError: no documents, or an empty text.
        """
        documents, queries = texts_of(documents, "document"), texts_of(queries, "query")
        if not documents:
            raise ValueError("no documents to rank")
        kept, empty_KD = self._keep(tuple(documents))
        ids, cut = self._prompts().cut_queries(queries)
        if cut:
            warnings.warn(
                f"some queries have more than max_query_tokens = {self.max_query_tokens} tokens; "
                "only their beginning is read",
                stacklevel=3,
            )
        scores_ND = np.zeros((len(queries), len(documents)))
        for n, attention_KD in enumerate(self._attention(kept, ids)):
            calibrated_KD = attention_KD - empty_KD
            if self.head_weights_ is None:
                scores_ND[n] = calibrated_KD.mean(0)
            else:
                scores_ND[n] = self.head_weights_.scores(calibrated_KD)
        return scores_ND

    @_one_at_a_time
    def too_long(self, documents: Sequence[str]) -> int:
        """Return how many documents have more than `max_document_tokens`, and are cut."""
        return self._prompts().cut_documents(texts_of(documents, "document"))[1]

    @_one_at_a_time
    def too_long_queries(self, queries: Sequence[str]) -> int:
        """Return how many queries have more than `max_query_tokens`, and are cut."""
        return self._prompts().cut_queries(texts_of(queries, "query"))[1]

    @_one_at_a_time
    def rank(self, query: str, documents: Sequence[str], top: int | None = None) -> list[Ranked]:
        """Return the documents, best first; equal ones share their score.

        More than `documents_per_pass` are ranked in rounds: they are read in groups, and the better
        half of every group goes on to the next round. Those that a round leaves behind are ordered
        by their places in their groups.

        Args:
            top: how many documents to return; None = all.

        Raises:
            ValueError: as for `scores`.
        """
        documents = texts_of(documents, "document")
        if top is not None:
            top = _whole("top", top, 1)
        if isinstance(query, list | tuple):
            raise ValueError("rank takes one query; `scores` takes several")

        # Equal documents are read once.
        places: dict[str, list[int]] = {}
        for i, document in enumerate(documents):
            places.setdefault(document, []).append(i)
        self._check_settings()

        def by_score(group: Sequence[str]) -> list[Scored]:
            scores = self.scores([query], group)[0]
            order = np.argsort(-scores, kind="stable")
            return [(group[i], float(scores[i])) for i in order]

        ranked = rank_in_rounds(list(places), self.documents_per_pass, by_score)
        every = [Ranked(i, score, document) for document, score in ranked for i in places[document]]
        return every[:top]

    def _keep(self, documents: tuple[str, ...]) -> "tuple[KeptDocuments, np.ndarray]":
        """Return documents that were read, and an empty query's attention on them."""
        prompts = self._prompts()
        if self._kept is None or self._kept[0] != documents:
            assert self._reader is not None
            ids, cut = prompts.cut_documents(documents)
            if cut:
                warnings.warn(
                    f"some documents have more than max_document_tokens = "
                    f"{self.max_document_tokens} tokens; only their beginning is read",
                    stacklevel=4,
                )
            kept = self._reader.read(ids)
            (empty_KD,) = self._attention(kept, prompts.queries([EMPTY_QUERY]))
            self._kept = (documents, kept, empty_KD)
        return self._kept[1], self._kept[2]

    @property
    def _looking(self) -> int | None:
        """Return how many of a query's last tokens look; None = all."""
        return None if self.looking == "query" else 1

    @property
    def _layers(self) -> list[int] | None:
        """Return the layers that are read; None = all."""
        if self.head_weights_ is not None:
            return self.head_weights_.layers
        return None if self.heads_ is None else sorted({layer for layer, _ in self.heads_})

    def _attention(
        self, kept: "KeptDocuments", queries: Sequence[Sequence[int]]
    ) -> Iterator[np.ndarray]:
        """Yield each query's attention on each document, by the K heads that are read, (K, D)."""
        assert self._reader is not None
        chosen: Any = ...
        if self.head_weights_ is None and self.heads_ is not None:
            assert self._reader.layers is not None
            layers, heads = zip(*self.heads_, strict=True)
            chosen = ([self._reader.layers.index(layer) for layer in layers], list(heads))
        for attention_LHD in self._reader.attention(kept, queries, self._looking):
            attention = attention_LHD.double().cpu().numpy()
            yield attention[chosen].reshape(-1, len(kept.spans))

    @_one_at_a_time
    def attribute(self, prompt: str, spans: Sequence[tuple[int, int]]) -> np.ndarray:
        """Return each span's share of the heads' attention on all spans of a prompt, (K,).

        Any prompt will do; the heads look from its last token. `deletion_curve` says whether the
        model's answer depends on what they look at.

        Args:
            spans: (start, end) in characters, `end` excluded, in order.

        Raises:
            ValueError: spans that overlap, are empty or outside the prompt.
        """
        from abft.ranker.attribution import attribute

        self._load()
        assert self._model is not None
        assert self._tokenizer is not None
        return attribute(self._model, self._tokenizer, prompt, spans, self.heads_)

    @_one_at_a_time
    def deletion_curve(self, prompt: str, spans: Sequence[tuple[int, int]]) -> "DeletionCurve":
        """Remove spans of a prompt, those that the heads look at most first; see `DeletionCurve`.

        Arguments and errors are as for `attribute`; at least two spans.
        """
        from abft.ranker.attribution import deletion_curve

        self._load()
        assert self._model is not None
        assert self._tokenizer is not None
        return deletion_curve(self._model, self._tokenizer, prompt, spans, self.heads_)

    # Model

    def _prompts(self) -> RankingPrompts:
        self._load()
        assert self._tokenizer is not None
        return self._writer(self._tokenizer)

    def _writer(self, tokenizer: "PreTrainedTokenizerBase") -> RankingPrompts:
        return RankingPrompts(
            tokenizer,
            self.looking,
            self.max_document_tokens,
            self.max_query_tokens,
            self.instruction,
        )

    def _load(self) -> None:
        """Load the model, unless it is loaded already, and check that it can be used.

        If settings have changed since, what was read with the old ones is dropped.
        """
        self._check_settings()
        from abft.model.capabilities import capabilities
        from abft.model.checkpoints import base_samples
        from abft.model.loading import context_length, load_model
        from abft.model.qk_weights import qk_modules
        from abft.ranker.documents import DocumentReader

        if self._model is not None and self._opened != (self.model, self.device):
            raise ValueError(
                f"this ranker has read with {self._opened}; for {(self.model, self.device)} fit "
                "again, or make a new one"
            )
        if self._model is None:
            model, tokenizer = load_model(self.model, device=self.device)
            kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
            supported = capabilities(model)
            if kinds != {"full_attention"} or not supported.packs:
                raise AbftError(
                    f"model family {model.config.model_type!r} cannot read documents side by "
                    "side: every layer has to attend to all tokens before"
                )
            self._model, self._tokenizer = model.eval(), tokenizer
            self._opened = (self.model, self.device)
            self._samples = base_samples(model, qk_modules(model))
            self._forget()

        assert self._tokenizer is not None
        writer = self._writer(self._tokenizer)
        if self._reader is None or self._read_as != writer:
            beginning = writer.beginning
            limit = context_length(self._model)
            texts = self.max_document_tokens + self.max_query_tokens
            if limit is not None and len(beginning) + texts + TEMPLATE_TOKENS > limit:
                raise AbftError(
                    f"documents of {self.max_document_tokens} and queries of "
                    f"{self.max_query_tokens} tokens, after {len(beginning)} of the beginning, do "
                    f"not fit: the model reads at most {limit}"
                )
            self._forget()
            self._reader = DocumentReader(self._model.eval(), beginning, self._layers)
            self._read_as = writer

    def _forget(self) -> None:
        """Drop what was read with other weights, or for other heads."""
        self._reader = self._kept = None

    # Save and load

    @_one_at_a_time
    def save(self, folder: str | Path) -> None:
        """Write the heads, their weights, the settings and the trained W_Q and W_K (safetensors).

        Raises:
            ValueError: no heads were found yet, or the folder is not empty.
        """
        from abft.model.checkpoints import save_full_rank

        folder = Path(folder)
        self._check_settings()
        if self.heads_ is None:
            raise ValueError("nothing to save: call fit or find_heads first")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder} is not empty; give a new folder")
        record = {
            "format": FORMAT,
            "settings": {name: getattr(self, name) for name in SAVED},
            "heads": self.heads_,
            "head_weights": None if self.head_weights_ is None else self.head_weights_.to_json(),
            "base": self._samples,
            "validation": self.validation_,
            "trained": self._changed,
        }
        with atomic_folder(folder) as partial:
            if self._changed:
                save_full_rank(self._model, partial, self._samples)  # type: ignore[arg-type]
            text = json.dumps(record, indent=1) + "\n"
            (partial / FILE).write_text(text, encoding="utf-8")

    @classmethod
    def load(
        cls, folder: str | Path, device: Device = "auto", instruction: str | None = None
    ) -> "AttentionRanker":
        """Load a ranker that `save` wrote, and its base model.

        Args:
            instruction: used instead of the saved one.

        Raises:
            ValueError: no such folder, a damaged one, or one of a newer version.
            AbftError: weights of another base model.
        """
        from abft.model.checkpoints import check_base_weights, load_full_rank
        from abft.model.qk_weights import train_full_rank
        from abft.ranker.head_weights import HeadWeights

        path = Path(folder) / FILE
        if not path.is_file():
            raise ValueError(f"{folder} is no saved ranker: it has no {FILE}")
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["format"] > FORMAT:
                raise ValueError(f"{folder} is of a newer version of abft; update to load it")
            said = {} if instruction is None else {"instruction": instruction}
            ranker = cls(**{**record["settings"], "device": device, **said})
            heads = [(int(layer), int(head)) for layer, head in record["heads"]]
            weights = record.get("head_weights")  # an older version has none
            ranker.head_weights_ = None if weights is None else HeadWeights.from_json(weights)
            ranker.validation_ = dict(record["validation"])
            trained, base = bool(record["trained"]), dict(record.get("base", {}))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is damaged ({type(error).__name__}: {error})") from None
        ranker._load()
        model = ranker._model
        assert model is not None
        # Older versions recorded the base model's samples only for trained rankers.
        found_in = f"{path}: heads were found in another model than {ranker.model!r}"
        check_base_weights(model, base, found_in)
        if trained:
            train_full_rank(model)
            load_full_rank(model, folder)
        ranker.heads_, ranker._changed = heads, trained
        ranker._forget()
        return ranker


SAVED = tuple(f.name for f in fields(AttentionRanker) if f.name not in ("device", "progress"))


def _whole(name: str, value: object, least: int, expected: str = "a whole number") -> int:
    """Return a setting as an int. Raises ValueError if it is none, or below `least`."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"{name} = {value!r}: expected {expected}") from None
    if isinstance(value, bool):
        raise ValueError(f"{name} = {value!r}: expected {expected}")
    if number < least:
        raise ValueError(f"{name} = {number}: expected at least {least}")
    return number
