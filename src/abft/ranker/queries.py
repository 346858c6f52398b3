"""Check queries, their candidates and which of these are relevant; draw training prompts."""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from abft.data.encoding import EncodedPrompt
from abft.ranker.prompts import RankingPrompts


@dataclass(frozen=True)
class RankingQuery:
    """A query with its candidate documents.

    Attributes:
        candidates: distinct texts.
        relevant: numbers of those that answer the query; some, but not all.
    """

    text: str
    candidates: tuple[str, ...]
    relevant: frozenset[int]


def text_of(value: object, what: str) -> str:
    """Return a text. Raises ValueError for anything else, or for one without content."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{what} is {value!r}; expected a text that is not empty")
    return value


def ranking_queries(
    queries: Sequence[str],
    candidates: Sequence[str] | Sequence[Sequence[str]],
    relevant: Sequence[int | Collection[int]],
) -> list[RankingQuery]:
    """Return checked queries.

    Args:
        queries: N texts.
        candidates: documents that all queries share, or N lists of them.
        relevant: for each query the number of the document that answers it, or several.

    Raises:
        ValueError: what makes no sense, with the number of the query.
    """
    if isinstance(queries, str) or isinstance(candidates, str):
        raise ValueError("expected lists of texts, got one text")
    queries, candidates, relevant = list(queries), list(candidates), list(relevant)
    if not queries or len(relevant) != len(queries):
        raise ValueError(
            f"got {len(queries)} queries and relevant documents for {len(relevant)}; expected "
            "one entry for each query, and at least one query"
        )
    shared = all(isinstance(document, str) for document in candidates)
    if not shared and len(candidates) != len(queries):
        raise ValueError(f"got {len(queries)} queries and {len(candidates)} lists of candidates")

    checked = []
    for number, query in enumerate(queries):
        documents = candidates if shared else list(candidates[number] or [])
        where = f"query {number}"
        texts = [text_of(d, f"{where}: candidate {i}") for i, d in enumerate(documents)]
        right = relevant[number]
        numbers = frozenset([right] if isinstance(right, int) else right)
        if not numbers:
            raise ValueError(f"{where} has no relevant candidate")
        if not numbers <= set(range(len(texts))):
            raise ValueError(f"{where}: relevant {sorted(numbers)}, of {len(texts)} candidates")

        # Equal documents are one, which is relevant or not.
        at = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        right_texts = {texts[i] for i in numbers}
        if any(text in right_texts and i not in numbers for i, text in enumerate(texts)):
            raise ValueError(f"{where}: the same text is relevant and irrelevant")
        if len(right_texts) == len(at):
            raise ValueError(f"{where}: all candidates are relevant")
        found = frozenset(at[text] for text in right_texts)
        checked.append(RankingQuery(text_of(query, where), tuple(at), found))
    return checked


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
        count: groups.
        together: prompts of a group, asked of the same documents; 1 = every query may have
            candidates of its own.
        shown: documents of a group at most.
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
    """Return every query with the documents of a training prompt: at most `shown`, drawn.

    Up to `together` queries that share their candidates share what is drawn.
    """
    generator = random.Random(f"measured {seed}")
    drawn = []
    for pool in by_candidates(queries).values():
        for start in range(0, len(pool), together):
            drawn += _with_fewer_documents(pool[start : start + together], shown, generator)
    return drawn


def by_candidates(
    queries: Sequence[RankingQuery],
) -> dict[tuple[str, ...], list[RankingQuery]]:
    """Return the queries that share their candidates together, in order."""
    found: dict[tuple[str, ...], list[RankingQuery]] = {}
    for query in queries:
        found.setdefault(query.candidates, []).append(query)
    return found


def _with_fewer_documents(
    asked: Sequence[RankingQuery], shown: int, generator: random.Random
) -> list[RankingQuery]:
    """Draw the documents that queries are asked of, in a new order."""
    documents = _shown(asked, shown, generator)
    texts = tuple(asked[0].candidates[i] for i in documents)
    return [
        RankingQuery(
            query.text, texts, frozenset(n for n, i in enumerate(documents) if i in query.relevant)
        )
        for query in asked
    ]


def _shown(asked: Sequence[RankingQuery], shown: int, generator: random.Random) -> list[int]:
    """Draw documents that queries are asked of: a relevant one each, and any others."""
    everything = range(len(asked[0].candidates))
    if len(everything) <= shown:
        return generator.sample(everything, len(everything))
    needed = {generator.choice(sorted(query.relevant)) for query in asked}
    others = [i for i in everything if i not in needed]
    chosen = [*sorted(needed), *generator.sample(others, max(shown - len(needed), 1))]
    return generator.sample(chosen, len(chosen))


def most_together(queries: Sequence[RankingQuery], most: int) -> int:
    """Return how many queries can be asked of the same documents: `most`, or fewer."""
    return min(most, *map(len, by_candidates(queries).values()))
