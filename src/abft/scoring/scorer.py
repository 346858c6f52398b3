"""Score labels with stock attention; a beginning that all prompts share is computed once."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from abft.data.encoding import EncodedPrompt, LabelTokens
from abft.data.packing import branch_mask, pack
from abft.model.attention import causal_lm, decoder, lock_of, read_output, row_attention
from abft.model.cache import cache_arguments
from abft.model.capabilities import capabilities, check_lengths, rotation_limit
from abft.scoring.evaluate import bucketed, check_finite, last_hidden
from abft.scoring.label_tree import LabelTree
from abft.scoring.observer import Observer

MIN_SHARED_TOKENS = 16  # shorter common beginnings are not worth a cache
PACK_TOKENS = 2048  # in one packed sequence, whose mask grows with the square


class LabelScorer:
    """Returns label probabilities of prompts, with stock attention, on one model.

    Changes `model` to eval mode. The beginning that all prompts of a call share, mainly the
    demonstrations, is run once. Its keys and values are kept for the next call, in case that begins
    in the same way; the rests of the prompts follow them, packed into one sequence. The beginning
    is run again whenever the weights have changed in any way, or another adapter is active.

    Args:
        model: a causal LM.
        label_tokens: the token, or tokens, of every class.
    """

    def __init__(self, model: PreTrainedModel, label_tokens: LabelTokens) -> None:
        model.eval()
        self.model, self.labels = model, LabelTree.of(label_tokens)
        self.inner, self.whole = decoder(model), causal_lm(model)
        capabilities(model).check_lm_head()
        self._lock = lock_of(model)
        # The tokens whose keys and values are kept, and a fingerprint of the weights at that time.
        self._kept: tuple[object, ...] = ()
        # Their keys and values, (1, Hkv, S, D) each, layer by layer.
        self._keys_values: list[tuple[Tensor, Tensor]] = []

    def __call__(
        self,
        prompts: Sequence[EncodedPrompt],
        *,
        shared: int | None = None,
        batch_size: int = 16,
        progress: Callable[[int], object] | None = None,
    ) -> np.ndarray:
        """Return label probabilities (N, C) float64.

        `shared`: keep no more than this many tokens, because later prompts will share no more;
        default: the whole shared beginning, or nothing of a single prompt. `progress` is called
        after each batch with its number of prompts.

        Raises:
            AbftError: probabilities that are not finite.
        """
        nothing_else = Observer(prompts)
        return self.observe(nothing_else, shared, batch_size, progress)

    @torch.no_grad()
    def observe(
        self,
        observer: Observer,
        shared: int | None = None,
        batch_size: int = 16,
        progress: Callable[[int], object] | None = None,
    ) -> np.ndarray:
        """Return the same for an observer's prompts, and show it hidden states and attention."""
        prompts = observer.prompts
        probabilities = np.zeros((len(prompts), len(self.labels.labels)))
        if not prompts:
            return probabilities

        # A beginning that is short, or a small part of the prompts, is not worth a cache.
        if shared is None:
            shared = 0 if len(prompts) == 1 else len(prompts[0].input_ids)
        shared = min(shared, common_prefix(prompts))
        longest = max(len(prompt.input_ids) for prompt in prompts)
        check_lengths(self.model, longest)
        worth = shared >= max(MIN_SHARED_TOKENS, longest // 4)

        # The kept keys and values, and the model's attention, belong to one call at a time.
        with self._lock:
            self.model.eval()
            cached = worth and capabilities(self.model).keeps_prefix
            if cached:
                self._keep(prompts[0].input_ids[:shared])

            limit = rotation_limit(self.model)
            for indices in bucketed(prompts, batch_size, limit):
                batch = self.labels.extended([prompts[i] for i in indices])
                if cached:
                    hidden_PD = self._after_shared(batch, shared, observer, indices)
                elif observer.asks and len(self.labels.beginnings) == 1:
                    hidden_PD = observer.run(self.model, indices)
                else:
                    # Labels of several tokens need passes of their own.
                    hidden_PD = last_hidden(self.inner, batch, batch_size, limit)
                    if observer.asks:
                        observer.run(self.model, indices)
                probabilities[indices] = self.labels.probabilities(self.whole, hidden_PD)
                if progress:
                    progress(len(indices))

        check_finite(probabilities)
        return probabilities

    @property
    def _device(self) -> torch.device:
        return next(self.inner.parameters()).device

    def _after_shared(
        self, prompts: Sequence[EncodedPrompt], start: int, observer: Observer, indices: list[int]
    ) -> Tensor:
        """Return the last hidden states, (P, D), of prompts whose first `start` tokens are kept.

        `indices`: the observer's indices of these prompts, each of which occurs with every inner
        node of the label tree.
        """
        rests = [
            dataclasses.replace(prompt, input_ids=prompt.input_ids[start:], label_positions=())
            for prompt in prompts
        ]

        # A pack holds a prompt's own tokens once, and the beginnings of labels after them.
        beginnings = self.labels.beginnings
        longest = max(len(rest.input_ids) for rest in rests) + sum(map(len, beginnings))
        count = max(1, PACK_TOKENS // longest)
        hidden = []
        for first in range(0, len(indices), count):
            chosen = indices[first : first + count]
            nodes = slice(first * len(beginnings), (first + count) * len(beginnings))
            hidden.append(self._packed(rests[nodes], start, observer, chosen))
        return torch.cat(hidden)

    def _packed(
        self, prompts: Sequence[EncodedPrompt], start: int, observer: Observer, indices: list[int]
    ) -> Tensor:
        """Return the same for rests of prompts, packed into one sequence after the kept tokens."""
        rests = pack(prompts)
        ends = [places[-1] for places in rests.places]

        # Every token attends to all of what is kept, and to its own branch.
        own = branch_mask(torch.tensor([rests.branch_ends], device=self._device))
        mask = torch.cat([own.new_ones(1, 1, own.shape[2], start), own], dim=-1)

        # A new cache: the model appends to the one that it is given.
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self._keys_values):
            cache.update(keys, values, layer)

        ids = torch.tensor([rests.input_ids], device=self._device)
        inputs = {
            "position_ids": torch.tensor([rests.position_ids], device=self._device) + start,
            "attention_mask": mask,
            **cache_arguments(self.inner, cache),
            "output_hidden_states": bool(observer.layers),
        }

        # Rows need our attention. Eager attention would need another mask than SDPA and ours.
        stock = self.whole.config._attn_implementation == "sdpa" and not observer.look
        with contextlib.nullcontext() if stock else row_attention(self.model):
            if observer.look:
                positions = torch.tensor(ends, device=self._device)
                rows, output = read_output(self.inner, ids, positions, **inputs)
            else:
                rows, output = (), self.inner(input_ids=ids, **inputs)

        # Each prompt is followed by its copies with beginnings of labels.
        nodes = len(self.labels.beginnings)
        for i, p in zip(indices, range(0, len(prompts), nodes), strict=True):
            places = torch.tensor(rests.places[p], device=self._device)
            seen = torch.cat([torch.arange(start, device=self._device), start + places])
            states = [output.hidden_states[layer][0, places] for layer in observer.layers]
            observer.see(i, states, [row_PHS[p][:, seen.to(row_PHS.device)] for row_PHS in rows])
        return output[0][0, ends]

    def _keep(self, ids: tuple[int, ...]) -> None:
        """Run `ids` and keep their keys and values, unless they are kept for the same weights."""
        weights = fingerprint(self.inner)
        if (ids, weights) == self._kept:
            return

        inputs = torch.tensor([ids], device=self._device)
        cache = DynamicCache()
        self.inner(input_ids=inputs, **cache_arguments(self.inner, cache))
        self._keys_values = [(layer.keys, layer.values) for layer in cache.layers]
        self._kept = (ids, weights)


def fingerprint(model: nn.Module) -> tuple[object, ...]:
    """Return a value that changes with the weights of a model and with its active adapters.

    Reads every weight once, which costs about a tenth of a forward pass of 20 tokens on a CPU.
    """
    parameters = list(model.parameters())
    places = [(id(p), p.data_ptr(), p._version, p.dtype, p.device) for p in parameters]

    # Fused optimizers, and whatever writes through `.data`, leave `_version` as it is.
    sums = [_sum(parameter) for parameter in parameters]

    # Switching adapters, or their scale, changes no weight.
    adapters = [
        (tuple(layer.active_adapters), layer.disable_adapters, tuple(layer.scaling.items()))
        for layer in model.modules()
        if hasattr(layer, "base_layer") and hasattr(layer, "scaling")
    ]
    return (*places, *(value.item() for value in sums), *adapters)


def _sum(parameter: Tensor) -> Tensor:
    """Return the sum of a weight's entries, or of its bytes if entries have less than 16 bits."""
    values = parameter.detach()
    if values.element_size() == 1:
        values = values.view(torch.uint8)
    # In half precision a sum would be rounded to three digits.
    return values.sum(dtype=torch.float32 if values.element_size() == 2 else None)


def label_probabilities(
    model: PreTrainedModel,
    prompts: Sequence[EncodedPrompt],
    label_tokens: LabelTokens,
    *,
    batch_size: int = 16,
    progress: Callable[[int], object] | None = None,
) -> np.ndarray:
    """Return label probabilities (N, C) float64, with stock attention, once: see `LabelScorer`.

    Changes `model` to eval mode.
    """
    return LabelScorer(model, label_tokens)(prompts, batch_size=batch_size, progress=progress)


def common_prefix(prompts: Sequence[EncodedPrompt]) -> int:
    """Return how many tokens all prompts begin with, at most one less than the shortest prompt."""
    # A beginning that the first and last prompt in sorted order share is shared by all.
    first, last = min(p.input_ids for p in prompts), max(p.input_ids for p in prompts)
    limit = min(len(p.input_ids) for p in prompts) - 1  # the query position itself is always run
    length = 0
    while length < limit and first[length] == last[length]:
        length += 1
    return length
