"""Read documents once, keep their keys and values, and let queries look at them.

A document attends only to the beginning of the prompt and to itself, so that its keys and values
serve every set of documents and every query.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from abft.method.head_statistics import span_sums
from abft.model.attention import decoder, read_rows, row_attention, up_to_layer
from abft.model.cache import cache_arguments

BATCH_TOKENS = 2048  # of documents, in a forward pass
QUERY_TOKENS = 256  # of queries, in a forward pass at most
ROW_BYTES = 2**29  # of a forward pass: each query token has a row over all tokens in every head
KEPT_BYTES = 2 * 2**30  # of single documents' keys and values that are kept

Layers = list[tuple[Tensor, Tensor]]  # keys and values of each layer, (1, H, S, d) each


@dataclass(frozen=True)
class KeptDocuments:
    """The keys and values of the beginning and of D documents, concatenated.

    Attributes:
        layers: keys and values of each layer that is run, (1, H, S, d) each.
        spans: (start, end) of each document among the S tokens.
        longest: tokens of the longest document, after which the query's positions continue.
        beginning: number of tokens before all documents.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    spans: tuple[tuple[int, int], ...]
    longest: int
    beginning: int

    @property
    def tokens(self) -> int:
        """Return S."""
        return self.layers[0][0].shape[2]


class DocumentReader:
    """Computes attention of queries on documents, with the first layers of a model.

    Args:
        model: a causal LM of a family that can pack prompts.
        beginning: tokens before all documents.
        layers: layers whose attention is read, ascending; None = all. Layers after the last of them
            are not run.
    """

    def __init__(
        self, model: PreTrainedModel, beginning: Sequence[int], layers: Sequence[int] | None = None
    ) -> None:
        self.model, self.layers = model, layers
        self._last = layers[-1] if layers else None
        self.beginning = list(beginning)
        self._device = next(model.parameters()).device
        self._inner = decoder(model)
        self._head: DynamicCache | None = None
        self._store = _Store(KEPT_BYTES)

    @torch.no_grad()
    def read(self, documents: Sequence[Sequence[int]]) -> KeptDocuments:
        """Return keys and values of documents; those that are not kept are run, many at once.

        Raises:
            ValueError: no documents, or one without tokens.
        """
        if not documents or not all(documents):
            raise ValueError("expected documents, each with at least one token")

        keys = [tuple(document) for document in documents]
        read = {key: layers for key in set(keys) if (layers := self._store.get(key)) is not None}
        start = len(self.beginning)
        # Documents of similar length pad little.
        order = sorted(set(keys) - set(read), key=lambda key: (len(key), key))
        while order:
            # The last one is the longest of those that are left.
            fit = max(BATCH_TOKENS // (start + len(order[-1])), 1)
            batch, order = order[-fit:], order[:-fit]
            for key, layers in zip(batch, self._run(batch), strict=True):
                read[key] = layers
                self._store.add(key, layers)
        kept = [read[key] for key in keys]

        spans, end = [], start
        for document in documents:
            spans.append((end, end + len(document)))
            end += len(document)
        first = self._beginning()
        joined = tuple(
            (
                torch.cat([head_keys, *(layers[number][0] for layers in kept)], 2),
                torch.cat([head_values, *(layers[number][1] for layers in kept)], 2),
            )
            for number, (head_keys, head_values) in enumerate(first)
        )
        return KeptDocuments(joined, tuple(spans), max(map(len, documents)), start)

    def attention(
        self,
        kept: KeptDocuments,
        queries: Sequence[Sequence[int]],
        looking: int | None = None,
    ) -> Iterator[Tensor]:
        """Yield each query's attention on each document, (L, H, D): the mean over its last tokens.

        L counts the layers that are read. The attention is the same as in a prompt with `blocks`
        that is read as a whole.

        Args:
            queries: their tokens; short ones share a forward pass, and do not see each other.
            looking: how many of a query's last tokens look; None = all.
        """
        row_bytes = 4 * self.model.config.get_text_config().num_attention_heads
        row_bytes *= len(kept.layers) if self.layers is None else len(self.layers)
        row_bytes *= kept.tokens
        most = max(min(QUERY_TOKENS, ROW_BYTES // row_bytes), 1)
        for together in _passes(queries, most):
            yield from self._look(kept, together, looking, most)

    @torch.no_grad()
    def _look(
        self,
        kept: KeptDocuments,
        queries: Sequence[Sequence[int]],
        looking: int | None,
        most: int,
    ) -> Tensor:
        """Return the attention of queries that are read together, (N, L, H, D).

        A query with more than `most` tokens is read in parts.
        """
        N, device = len(queries), self._device
        lengths = torch.tensor([len(query) for query in queries], device=device)
        ids_T = torch.tensor([token for query in queries for token in query], device=device)
        query_T = torch.arange(N, device=device).repeat_interleave(lengths)
        index_T = torch.arange(len(ids_T), device=device)
        place_T = index_T - (lengths.cumsum(0) - lengths)[query_T]  # within its query
        looks_T = place_T >= (0 if looking is None else (lengths - looking)[query_T])
        cache = DynamicCache()
        for number, (keys, values) in enumerate(kept.layers):
            cache.update(keys, values, number)
        starts, ends = (torch.tensor([bounds]) for bounds in zip(*kept.spans, strict=True))
        sums: list[Tensor] = []
        with row_attention(self.model), up_to_layer(self._inner, self._last):
            # One pass, unless a single query has more than `most` tokens.
            for first in range(0, len(ids_T), most):
                part = slice(first, first + most)
                before = slice(0, first + len(ids_T[part]))
                same_TT = query_T[part, None] == query_T[before]
                earlier_TT = index_T[part, None] >= index_T[before]
                mask_TS = torch.nn.functional.pad(
                    same_TT & earlier_TT, (kept.tokens, 0), value=True
                )
                # Tokens that do not look only add keys and values. If none in this part looks, one
                # row is read and dropped.
                looking_P = looks_T[part].nonzero()[:, 0]
                rows, _ = read_rows(
                    self._inner,
                    ids_T[None, part],
                    looking_P if len(looking_P) else index_T[:1],
                    position_ids=(kept.beginning + kept.longest + place_T)[None, part],
                    attention_mask=mask_TS[None, None],
                    row_layers=self.layers,
                    **cache_arguments(self._inner, cache),
                )
                if not len(looking_P):
                    continue

                # Sum each query's rows, then over the tokens of each document.
                asking_P = query_T[part][looking_P]
                by_layer = []
                for rows_PHS in rows:
                    sums_NHS = rows_PHS.new_zeros(N, *rows_PHS.shape[1:])
                    sums_NHS.index_add_(0, asking_P.to(rows_PHS.device), rows_PHS)
                    by_layer.append(span_sums(sums_NHS, starts, ends).to(device))
                sums.append(torch.stack(by_layer, 1))
        looked_N = torch.zeros(N, device=device).index_add_(0, query_T, looks_T.float())
        return torch.stack(sums).sum(0) / looked_N[:, None, None, None]

    def _beginning(self) -> Layers:
        """Return keys and values of the beginning, layer by layer, (1, H, S, d)."""
        if self._head is None:
            ids = torch.tensor([self.beginning], device=self._device)
            self._head = self._cached(ids, DynamicCache())
        return [(layer.keys, layer.values) for layer in self._head.layers]

    def _run(self, documents: Sequence[Sequence[int]]) -> list[Layers]:
        """Return keys and values of each document's own tokens, layer by layer."""
        B, longest = len(documents), max(map(len, documents))
        start = len(self.beginning)
        ids = torch.zeros(B, longest, dtype=torch.long, device=self._device)
        for b, document in enumerate(documents):
            ids[b, : len(document)] = torch.tensor(list(document))
        cache = DynamicCache()
        for number, (keys, values) in enumerate(self._beginning()):
            cache.update(keys.expand(B, -1, -1, -1), values.expand(B, -1, -1, -1), number)

        # Padding follows a document's tokens, where causal attention never looks.
        cache = self._cached(ids, cache, start)
        return [
            [
                (
                    layer.keys[b : b + 1, :, start : start + len(document)],
                    layer.values[b : b + 1, :, start : start + len(document)],
                )
                for layer in cache.layers
            ]
            for b, document in enumerate(documents)
        ]

    def _cached(self, ids: Tensor, cache: DynamicCache, start: int = 0) -> DynamicCache:
        positions = torch.arange(start, start + ids.shape[1], device=self._device)[None]
        with up_to_layer(self._inner, self._last):
            self._inner(
                input_ids=ids,
                position_ids=positions.expand(len(ids), -1),
                **cache_arguments(self._inner, cache),
            )
        return cache


def _passes(queries: Sequence[Sequence[int]], most: int) -> Iterator[list[Sequence[int]]]:
    """Yield queries in order, in groups of at most `most` tokens; a longer query comes alone."""
    together: list[Sequence[int]] = []
    for query in queries:
        if together and sum(map(len, together)) + len(query) > most:
            yield together
            together = []
        together.append(query)
    if together:
        yield together


class _Store:
    """Keeps keys and values of documents up to a size; drops random ones to make room.

    A corpus that does not fit is read in the same order again and again: dropping the oldest would
    drop every document before it is needed again.
    """

    def __init__(self, size: int) -> None:
        self.size, self._used = size, 0
        self._kept: dict[tuple[int, ...], Layers] = {}
        self._generator = random.Random(0)

    def get(self, key: tuple[int, ...]) -> Layers | None:
        return self._kept.get(key)

    def add(self, key: tuple[int, ...], layers: Layers) -> None:
        # Copies: views would keep the whole batch in memory.
        layers = [(keys.clone(), values.clone()) for keys, values in layers]
        needed = _bytes(layers)
        if needed > self.size:
            return
        while self._used + needed > self.size:
            dropped = self._generator.choice(list(self._kept))
            self._used -= _bytes(self._kept.pop(dropped))
        self._kept[key] = layers
        self._used += needed


def _bytes(layers: Layers) -> int:
    return sum(tensor.nbytes for pair in layers for tensor in pair)
