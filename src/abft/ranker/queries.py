"""Check queries, their candidate documents, and which of these are relevant."""

import random
from collections import Counter
from collections.abc import Collection, Iterable, KeysView, Mapping, Sequence, Set
from dataclasses import dataclass
from numbers import Integral

import numpy as np

FEWEST_DOCUMENTS, FEWEST_WORDS = 4, 10  # needed to find heads without labels


@dataclass(frozen=True)
class RankingQuery:
    """A query with its candidate documents.

    Attributes:
        candidates: distinct texts.
        relevant: indices of the candidates that answer the query: at least one, but not all.
    """

    text: str
    candidates: tuple[str, ...]
    relevant: frozenset[int]


def text_of(value: object, what: str) -> str:
    """Return a text as it is. Raises ValueError for anything else, or for an empty text."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{what} is {value!r}; expected a text that is not empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} is {value!r}, which holds half a character") from None
    return value


def texts_of(values: object, what: str) -> list[str]:
    """Return texts as a list.

    Raises:
        ValueError: one text, a table, or what `text_of` refuses.
    """
    if isinstance(values, str):
        raise ValueError(f"expected a list of texts ({what}s), got one text")
    _check_order(values, f"a list of texts ({what}s)")
    if not isinstance(values, Iterable):
        raise ValueError(f"expected a list of texts ({what}s), got {values!r}")
    return [text_of(text, f"{what} {i}") for i, text in enumerate(values)]


def _check_order(values: object, expected: str) -> None:
    """Raise ValueError for tables, dictionaries and sets, whose items have no numbers."""
    unordered = isinstance(values, Mapping | Set) and not isinstance(values, KeysView)
    if unordered or getattr(values, "ndim", 1) != 1:
        raise ValueError(f"expected {expected}, got a {type(values).__name__}; give its texts")


def ranking_queries(
    queries: Sequence[str],
    candidates: Sequence[str] | Sequence[Sequence[str]],
    relevant: Sequence[int | Collection[int]],
) -> list[RankingQuery]:
    """Return checked queries.

    Args:
        queries: N texts.
        candidates: documents that all queries share, or N lists of them.
        relevant: for each query the index of the document that answers it, or several.

    Raises:
        ValueError: anything that makes no sense; the message has the number of the query.
    """
    if isinstance(candidates, str):
        raise ValueError("expected lists of candidates, got one text")
    if hasattr(candidates, "columns") or not isinstance(candidates, Iterable):
        kind = type(candidates).__name__
        raise ValueError(f"expected lists of candidates, got a {kind}; give its texts")
    if isinstance(candidates, Mapping | Set):
        _check_order(candidates, "lists of candidates")
    if isinstance(relevant, Mapping | Set | str) or not isinstance(relevant, Iterable):
        raise ValueError(
            "relevant: expected a list with an entry for each query, in their order, got a "
            f"{type(relevant).__name__}"
        )
    asked, lists = texts_of(queries, "query"), list(candidates)
    right = [_numbers(each) for each in relevant]
    if not asked or len(right) != len(asked):
        raise ValueError(
            f"got {len(asked)} queries and relevant documents for {len(right)}; expected one entry "
            "for each query, and at least one query"
        )
    # Lists, or one corpus for all queries; a wrong entry of either is reported below.
    shared = not any(isinstance(each, Iterable) and not isinstance(each, str) for each in lists)
    if not shared and len(lists) != len(asked):
        raise ValueError(f"got {len(asked)} queries and {len(lists)} lists of candidates")

    # A corpus may be large: it is checked once.
    corpus = _Candidates.of(lists, "candidates") if shared else None
    checked = []
    for i, (query, numbers) in enumerate(zip(asked, right, strict=True)):
        where = f"query {i}"
        documents = corpus
        if documents is None:
            if isinstance(lists[i], str) or not isinstance(lists[i], Iterable):
                raise ValueError(f"{where}: expected a list of candidates, got {lists[i]!r}")
            _check_order(lists[i], f"a list of candidates of {where}")
            documents = _Candidates.of(list(lists[i]), where)
        found = documents.relevant(numbers, where)
        checked.append(RankingQuery(query, documents.texts, found))
    return checked


@dataclass(frozen=True)
class _Candidates:
    """The distinct documents of a list, and which of them each entry of the list is."""

    texts: tuple[str, ...]
    places: tuple[int, ...]  # for each entry, its index in `texts`
    repeated: tuple[int, ...]  # the entries whose text occurs more than once

    @classmethod
    def of(cls, documents: Sequence[object], where: str) -> "_Candidates":
        checked = [text_of(text, f"{where}: candidate {i}") for i, text in enumerate(documents)]
        place = {text: i for i, text in enumerate(dict.fromkeys(checked))}
        times = Counter(checked)
        repeated = tuple(i for i, text in enumerate(checked) if times[text] > 1)
        return cls(tuple(place), tuple(place[text] for text in checked), repeated)

    def relevant(self, numbers: frozenset[int], where: str) -> frozenset[int]:
        """Return the indices in `texts` of relevant documents; ValueError if they are invalid."""
        if not numbers:
            raise ValueError(f"{where} has no relevant candidate")
        if not all(0 <= number < len(self.places) for number in numbers):
            raise ValueError(
                f"{where}: relevant {sorted(numbers)}, of {len(self.places)} candidates"
            )
        found = frozenset(self.places[number] for number in numbers)

        # Equal documents are one, which is either relevant or not.
        if len(found) < len(self.texts):
            same = {number for number in self.repeated if self.places[number] in found}
            if not same <= numbers:
                raise ValueError(f"{where}: the same text is relevant and irrelevant")
        if len(found) == len(self.texts):
            raise ValueError(f"{where}: all candidates are relevant")
        return found


def halves(text: str) -> tuple[str, str]:
    """Return the first three fifths of a text's words, and the rest."""
    words = text.split()
    cut = len(words) * 3 // 5
    return " ".join(words[:cut]), " ".join(words[cut:])


def queries_without_labels(documents: Sequence[str], shown: int, seed: int) -> list[RankingQuery]:
    """Make a query from each document that is long enough: its end, for which its beginning is
    relevant.

    The candidates are the beginnings of about `shown` documents, drawn at random, whose queries
    share them. Of texts that begin alike, or end alike, one is kept.

    Raises:
        ValueError: fewer than `FEWEST_DOCUMENTS` documents of at least `FEWEST_WORDS` words.
    """
    long = [text for text in documents if len(text.split()) >= FEWEST_WORDS]
    ends = {rest: first for first, rest in map(halves, long)}
    parts = [(first, rest) for first, rest in {first: rest for rest, first in ends.items()}.items()]
    if len(parts) < FEWEST_DOCUMENTS:
        raise ValueError(
            f"{len(parts)} documents have {FEWEST_WORDS} words or more and begin and end "
            f"differently; expected at least {FEWEST_DOCUMENTS}"
        )
    random.Random(f"halves {seed}").shuffle(parts)

    # Pools of about the same size, none of a single document.
    pools = max(len(parts) // shown, 1)
    queries = []
    for number in range(pools):
        pool = parts[number::pools]
        candidates = tuple(first for first, _ in pool)
        queries += [
            RankingQuery(rest, candidates, frozenset([i])) for i, (_, rest) in enumerate(pool)
        ]
    return queries


def _numbers(relevant: object) -> frozenset[int]:
    """Return one number, or several, as a set."""
    numbers = relevant
    if isinstance(relevant, Integral):
        numbers = [relevant]
    # A zero-dimensional array holds one number.
    if hasattr(numbers, "tolist"):
        numbers = numbers.tolist()
        numbers = numbers if isinstance(numbers, list) else [numbers]
    if isinstance(numbers, str | Mapping) or not isinstance(numbers, Iterable):
        raise ValueError(f"relevant: expected numbers of documents, got {relevant!r}")
    given = list(numbers)
    found = frozenset(int(n) for n in given if isinstance(n, Integral) and not isinstance(n, bool))
    if len(found) < len(given):
        # Most likely a mask was given, with a value for each candidate.
        boolean = any(isinstance(n, bool | np.bool_) for n in given)
        mask = (boolean or len(given) > 2) and all(n in (0, 1) for n in given)
        remedy = "; numpy.flatnonzero(mask) gives those of a mask" if mask else ""
        raise ValueError(
            f"relevant: expected whole numbers of documents, each once, got {relevant!r}{remedy}"
        )
    return found


def by_candidates(
    queries: Sequence[RankingQuery],
) -> dict[tuple[str, ...], list[RankingQuery]]:
    """Group the queries that share their candidates, in order."""
    groups: dict[tuple[str, ...], list[RankingQuery]] = {}
    # To hash a large corpus takes long; queries that share one usually hold the same tuple.
    by_identity: dict[int, list[RankingQuery]] = {}
    for query in queries:
        group = by_identity.get(id(query.candidates))
        if group is None:
            group = groups.setdefault(query.candidates, [])
            by_identity[id(query.candidates)] = group
        group.append(query)
    return groups
