"""Rank more documents than one pass reads: in rounds, like a tournament."""

from collections.abc import Callable, Sequence

Scored = tuple[str, float]  # a document and its score


def rank_in_rounds(
    documents: Sequence[str], most: int, rank: Callable[[Sequence[str]], list[Scored]]
) -> list[Scored]:
    """Return all documents, best first.

    While more than `most` are left, they are ranked in groups, and the better half of every group
    goes on to the next round. Those that a round leaves behind are ordered by their places in
    their groups, then by their scores, and come after those that go on.

    Args:
        rank: returns a group's documents with their scores, best first.
    """
    left = list(documents)
    behind: list[Scored] = []
    while len(left) > most:
        # Groups of about the same size: their documents share the attention.
        count = -(-len(left) // most)
        winners: list[str] = []
        losers: list[tuple[int, Scored]] = []
        for number in range(count):
            ranked = rank(left[number::count])
            half = -(-len(ranked) // 2)
            winners += [document for document, _ in ranked[:half]]
            losers += enumerate(ranked[half:])
        losers.sort(key=lambda each: (each[0], -each[1][1]))
        behind = [*(scored for _, scored in losers), *behind]
        left = winners
    return [*rank(left), *behind]
