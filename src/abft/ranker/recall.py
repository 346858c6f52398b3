"""Compare scorers by how often their best document is a relevant one (recall@1)."""

import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from abft.ranker.peers import Scorer
from abft.ranker.queries import RankingQuery, by_candidates

SURE = 0.05  # `fit` warns of a peer's lead if chance explains it with less than this probability


def first_is_relevant(queries: Sequence[RankingQuery], scorer: Scorer) -> np.ndarray:
    """Return for each query whether the best document of a scorer is a relevant one, (N,)."""
    hits = []
    for candidates, asked in by_candidates(queries).items():
        best = np.asarray(scorer([query.text for query in asked], list(candidates))).argmax(1)
        hits += [int(b) in query.relevant for b, query in zip(best, asked, strict=True)]
    return np.array(hits)


def warn_of_better_peers(peers_N: Mapping[str, np.ndarray], ours_N: np.ndarray) -> None:
    """Warn if the best peer leads by more than chance, in a sign test corrected for all peers."""
    best = max(peers_N, key=lambda name: peers_N[name].mean(), default=None)
    if best is None:
        return
    # Queries that only one of the two answers: if both are as good, each is as likely to.
    wins = int((peers_N[best] & ~ours_N).sum())
    either = int((peers_N[best] != ours_N).sum())
    chance = sum(math.comb(either, n) for n in range(wins, either + 1)) / 2**either
    if chance * len(peers_N) < SURE:
        warnings.warn(
            f"{best} finds a relevant document first more often ({peers_N[best].mean():.1%} "
            f"against {ours_N.mean():.1%} of {len(ours_N)} held-out queries, among the documents "
            "drawn for them): it is the better choice here",
            stacklevel=4,
        )
