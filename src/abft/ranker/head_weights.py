"""Weigh heads: a document's score as a fitted sum over heads, instead of the mean of a few.

A listwise logistic regression (the loss is InfoNCE over a query's documents) over the attention of
each head, on a model that stays as it is. Heads that look at documents for reasons which have
nothing to do with the query get weights below 0.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from abft.method.losses import contrastive_loss
from abft.ranker.documents import DocumentReader
from abft.ranker.prompts import EMPTY_QUERY, RankingPrompts
from abft.ranker.queries import RankingQuery

READ_DEPTH = 2 / 3  # of an untrained model's layers: heads of later ones add nothing
PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)  # on the squared weights; strongest first
FOLDS = 5
ITERATIONS = 60

# A query's documents, as heads look at them (K, D), and the indices of those that are relevant.
Example = tuple[np.ndarray, Collection[int]]


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """Weights of all heads of the first layers.

    Attributes:
        weights_LH: (L, H).
        spread_LH: standard deviation of each head's attention over a query's documents, (L, H).
    """

    weights_LH: np.ndarray
    spread_LH: np.ndarray

    @property
    def layers(self) -> list[int]:
        """Return the layers whose attention is read."""
        return list(range(len(self.weights_LH)))

    def to_json(self) -> dict[str, list]:
        """Return what `from_json` takes."""
        return {"weights": self.weights_LH.tolist(), "spread": self.spread_LH.tolist()}

    @classmethod
    def from_json(cls, record: dict[str, list]) -> "HeadWeights":
        return cls(np.array(record["weights"], float), np.array(record["spread"], float))

    def scores(self, attention_KD: np.ndarray) -> np.ndarray:
        """Return the score of each document, (D,); their mean over the documents is 0.

        Args:
            attention_KD: attention on D documents of the K = L * H heads, layer by layer, without
                that of an empty query.
        """
        return self.weights_LH.ravel() @ _standardized(attention_KD, self.spread_LH.ravel())


def _standardized(attention_KD: np.ndarray, spread_K: np.ndarray) -> np.ndarray:
    """Make heads comparable: by their usual spread over documents, and by that for this query.

    By the usual one alone, queries with much attention on documents would decide the weights. By
    this query's alone, two documents would always be equally far apart.
    """
    centred_KD = attention_KD - attention_KD.mean(1, keepdims=True)
    scale_K = (spread_K + centred_KD.std(1)) / 2
    return centred_KD / np.where(scale_K > 0, scale_K, 1)[:, None]


def layers_read(model: PreTrainedModel, trained: Sequence[tuple[int, int]] = ()) -> list[int]:
    """Return the layers whose heads are weighed.

    Args:
        trained: (layer, head) of heads that were trained.
    """
    depth = round(READ_DEPTH * model.config.get_text_config().num_hidden_layers)
    return list(range(max(depth, 1, *(layer + 1 for layer, _ in trained))))


def examples(
    reader: DocumentReader,
    prompts: RankingPrompts,
    groups: Iterable[Sequence[RankingQuery]],
    looking: int | None,
) -> Iterator[list[Example]]:
    """Yield how the queries of each group look at the documents that they share.

    Args:
        looking: as for `DocumentReader.attention`.
    """
    for group in groups:
        kept = reader.read(prompts.documents(group[0].candidates))
        ids = prompts.queries([EMPTY_QUERY, *(query.text for query in group)])
        empty_KD, *looks = (
            attention_LHD.flatten(0, 1).double().cpu().numpy()
            for attention_LHD in reader.attention(kept, ids, looking)
        )
        yield [
            (look_KD - empty_KD, query.relevant)
            for look_KD, query in zip(looks, group, strict=True)
        ]


def fit_head_weights(groups: Sequence[Sequence[Example]], layers: int) -> HeadWeights:
    """Fit the weights of heads.

    The penalty on the squared weights is chosen by cross-validated loss; queries that share
    documents are in the same fold, if there are at least two groups of them.

    Args:
        groups: at least two queries in all.
        layers: L.
    """
    every = [example for group in groups for example in group]
    deviations = [look_KD - look_KD.mean(1, keepdims=True) for look_KD, _ in every]
    spread_K = np.sqrt(np.mean([each.var(1) for each in deviations], 0))
    data = _Data.of(every, spread_K)

    number_N = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    if len(groups) == 1:
        number_N = np.arange(len(every))
    fold_N = torch.from_numpy(number_N % min(FOLDS, number_N.max() + 1))
    losses = np.zeros(len(PENALTIES))
    for fold in fold_N.unique():
        fitted = _path(data.where(fold_N != fold))
        left_out = data.where(fold_N == fold)
        losses += [float(left_out.loss(weights_K)) * len(left_out.relevant) for weights_K in fitted]
    *_, weights_K = _path(data, int(losses.argmin()) + 1)
    return HeadWeights(weights_K.numpy().reshape(layers, -1), spread_K.reshape(layers, -1))


@dataclass(frozen=True)
class _Data:
    """Queries with up to D documents each.

    Attributes:
        looks: standardized attention, (N, D, K); zeros where a query has fewer documents.
        relevant, others: (N, D) bool.
    """

    looks: Tensor
    relevant: Tensor
    others: Tensor

    @classmethod
    def of(cls, every: Sequence[Example], spread_K: np.ndarray) -> "_Data":
        most = max(look_KD.shape[1] for look_KD, _ in every)
        looks_NDK = torch.zeros(len(every), most, len(spread_K), dtype=torch.double)
        relevant_ND = torch.zeros(len(every), most, dtype=torch.bool)
        others_ND = relevant_ND.clone()
        for n, (look_KD, relevant) in enumerate(every):
            count = look_KD.shape[1]
            looks_NDK[n, :count] = torch.from_numpy(_standardized(look_KD, spread_K).T)
            relevant_ND[n, list(relevant)] = True
            others_ND[n, :count] = ~relevant_ND[n, :count]
        return cls(looks_NDK, relevant_ND, others_ND)

    def where(self, chosen_N: Tensor) -> "_Data":
        return _Data(self.looks[chosen_N], self.relevant[chosen_N], self.others[chosen_N])

    def loss(self, weights_K: Tensor) -> Tensor:
        return contrastive_loss(self.looks @ weights_K, self.relevant, self.others, 1.0)


def _path(data: _Data, count: int = len(PENALTIES)) -> list[Tensor]:
    """Return the weights with each of the first penalties; each fit starts from the one before."""
    weights_K = torch.zeros(data.looks.shape[2], dtype=torch.double, requires_grad=True)
    fitted = []
    for penalty in PENALTIES[:count]:
        optimizer = torch.optim.LBFGS(
            [weights_K], max_iter=ITERATIONS, line_search_fn="strong_wolfe"
        )

        def closure(optimizer: torch.optim.LBFGS = optimizer, penalty: float = penalty) -> Tensor:
            optimizer.zero_grad()
            loss = data.loss(weights_K) + penalty * weights_K.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]
        fitted.append(weights_K.detach().clone())
    return fitted
