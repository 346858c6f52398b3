"""Draw the held-out queries, and prompts to train on and to measure with."""

import random
from collections.abc import Sequence

from abft.data.encoding import EncodedPrompt
from abft.ranker.prompts import RankingPrompts
from abft.ranker.queries import RankingQuery, by_candidates

HELD_OUT, MOST_HELD_OUT, FEWEST_HELD_OUT = 0.2, 128, 4
WEIGHED_GROUPS = 64  # of queries that share documents, by which heads are weighed


def split(
    queries: Sequence[RankingQuery], seed: int
) -> tuple[list[RankingQuery], list[RankingQuery]]:
    """Return the held-out queries, and those to train on; no text is in both."""
    texts = list(dict.fromkeys(query.text for query in queries))
    count = max(FEWEST_HELD_OUT, min(round(HELD_OUT * len(texts)), MOST_HELD_OUT))
    chosen = set(random.Random(f"held out {seed}").sample(texts, count))
    held_out = [query for query in queries if query.text in chosen]
    return held_out, [query for query in queries if query.text not in chosen]


def training_prompts(
    queries: Sequence[RankingQuery],
    prompts: RankingPrompts,
    count: int,
    together: int,
    shown: int,
    seed: int,
) -> list[EncodedPrompt]:
    """Draw groups of `together` prompts that show the same documents in a random order.

    Args:
        queries: from which prompts are drawn, every one equally often.
        count: number of groups.
        together: prompts in a group, whose queries share documents; 1 = every query may have
            candidates of its own.
        shown: documents in a group at most, unless its queries need more.
    """
    pools = list(by_candidates(queries).values())
    encoded = []
    for number in range(count):
        generator = random.Random(f"ranking {seed} {number}")
        (pool,) = generator.choices(pools, [len(pool) for pool in pools])
        group = _with_fewer_documents(generator.sample(pool, together), shown, generator)
        written = prompts.documents(group[0].candidates)
        ids = prompts.queries([query.text for query in group])
        for query, query_ids in zip(group, ids, strict=True):
            relevant = [i in query.relevant for i in range(len(written))]
            encoded.append(prompts.prompt(written, query_ids, relevant))
    return encoded


def measured_queries(
    queries: Sequence[RankingQuery], together: int, shown: int, seed: int
) -> list[RankingQuery]:
    """Return every query with the documents of a training prompt: at most `shown`, drawn at random.

    Up to `together` queries that share their candidates share the drawn documents.
    """
    generator = random.Random(f"measured {seed}")
    drawn = []
    for pool in by_candidates(queries).values():
        for start in range(0, len(pool), together):
            drawn += _with_fewer_documents(pool[start : start + together], shown, generator)
    return drawn


def weighed_groups(
    queries: Sequence[RankingQuery], together: int, shown: int, seed: int
) -> list[list[RankingQuery]]:
    """Draw groups of queries that share documents, at most `WEIGHED_GROUPS`; each query once."""
    groups = list(by_candidates(measured_queries(queries, together, shown, seed)).values())
    random.Random(f"weighed {seed}").shuffle(groups)
    return groups[:WEIGHED_GROUPS]


def _with_fewer_documents(
    asked: Sequence[RankingQuery], shown: int, generator: random.Random
) -> list[RankingQuery]:
    """Draw fewer documents for queries that share their candidates, in a random order."""
    documents = _shown(asked, shown, generator)
    texts = tuple(asked[0].candidates[i] for i in documents)
    return [
        RankingQuery(
            query.text, texts, frozenset(n for n, i in enumerate(documents) if i in query.relevant)
        )
        for query in asked
    ]


def _shown(asked: Sequence[RankingQuery], shown: int, generator: random.Random) -> list[int]:
    """Draw documents: for each query one that is relevant and one that is not, then any others.

    There are more than `shown` if the queries need them.
    """
    everything = range(len(asked[0].candidates))
    if len(everything) <= shown:
        return generator.sample(everything, len(everything))
    needed = {generator.choice(sorted(query.relevant)) for query in asked}
    for query in asked:
        if needed <= query.relevant:
            needed.add(generator.choice([i for i in everything if i not in query.relevant]))
    others = [i for i in everything if i not in needed]
    chosen = [*sorted(needed), *generator.sample(others, max(shown - len(needed), 0))]
    return generator.sample(chosen, len(chosen))


def most_together(queries: Sequence[RankingQuery], most: int) -> int:
    """Return how many queries can share the documents of a prompt: `most`, or fewer."""
    return min(most, *map(len, by_candidates(queries).values()))
