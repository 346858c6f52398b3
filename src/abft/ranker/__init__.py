"""Rank documents for a query by the attention of a few heads."""

from abft.ranker.ranker import AttentionRanker, Ranked

__all__ = ["AttentionRanker", "Ranked"]
