"""Rank documents for a query by the attention of few heads."""
