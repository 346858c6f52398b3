"""`AttentionRanker`: documents that are kept, training, ranking in rounds, files, wrong input."""

import copy
import itertools
import json
import pickle
import random
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import abft.method.head_finder
import abft.ranker.ranker
import abft.ranker.training
from abft.data.batches import Batch
from abft.data.encoding import attention_target
from abft.errors import AbftError
from abft.method.head_statistics import label_attention
from abft.model.attention import decoder, read_batch, row_attention, up_to_layer
from abft.ranker import AttentionRanker
from abft.ranker.attribution import RANDOM_ORDERS, _tokens, deletion_curve
from abft.ranker.beir import load_beir
from abft.ranker.documents import DocumentReader
from abft.ranker.draws import (
    measured_queries,
    most_together,
    split,
    training_prompts,
    weighed_groups,
)
from abft.ranker.head_weights import fit_head_weights
from abft.ranker.peers import PEERS, bm25, peers, tfidf
from abft.ranker.prompts import RankingPrompts
from abft.ranker.queries import (
    RankingQuery,
    by_candidates,
    queries_without_labels,
    ranking_queries,
)
from abft.ranker.recall import warn_of_better_peers
from abft.ranker.training import train_heads
from abft.scoring.inspect import attention_rows
from command_line import arguments, invoke, refused
from tiny import tiny_model, tokenizer

WORDS = ("great", "good", "joy", "bad", "poor", "sad", "film", "life")


@pytest.fixture(scope="module")
def settings(model_folder):
    return {
        "model": str(model_folder),
        "device": "cpu",
        "heads": 3,
        "max_document_tokens": 40,
        "max_query_tokens": 40,
        "progress": False,
    }


def data(count=48, first=0):
    """Documents of a word each; a query names the one that it wants."""
    queries, candidates, relevant = [], [], []
    for i in range(first, first + count):
        shift = i % len(WORDS)
        words = [*WORDS[shift:], *WORDS[:shift]][:4]
        right = (i // 2) % 4
        queries.append(f"a {words[right]} thing {'abcdefg'[i % 7]}")
        candidates.append([f"this is {word}" for word in words])
        relevant.append(right)
    return queries, candidates, relevant


@pytest.fixture(scope="module")
def fitted(settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # words that are equal are TF-IDF's
        ranker = AttentionRanker(**settings, steps=60, learning_rate=1e-2, temperature=0.01)
        return ranker.fit(*data())


def whole(model, prompts, last=None):
    """Attention on the documents of prompts that are read whole, (P, L, H, K)."""
    with torch.no_grad(), row_attention(model), up_to_layer(decoder(model), last):
        batch = Batch.of(prompts, len(prompts), "cpu")
        rows, _ = read_batch(decoder(model), batch)
        return label_attention(rows, batch).transpose(0, 1)


@pytest.mark.parametrize(
    ("family", "layers", "part"),
    [
        *itertools.product(("llama", "qwen2", "gpt_neox"), (None, [0], [1]), (256,)),
        ("llama", None, 2),  # each query alone, in parts
        ("gpt_neox", [1], 3),
        ("llama", None, 14),  # two queries, then one
    ],
)
def test_documents_that_are_kept_are_looked_at_as_in_a_whole_prompt(
    family, layers, part, monkeypatch
):
    # Several batches of documents, and queries in parts, of which some do not look.
    monkeypatch.setattr("abft.ranker.documents.BATCH_TOKENS", 24)
    monkeypatch.setattr("abft.ranker.documents.QUERY_TOKENS", part)
    model = tiny_model(family)
    generator = torch.Generator().manual_seed(0)

    def tokens(count):
        return torch.randint(3, 600, (count,), generator=generator).tolist()

    beginning, queries = tokens(3), [tokens(5), tokens(9), tokens(4)]
    documents = [tokens(count) for count in (4, 9, 1, 13, 9)]
    ids, spans = list(beginning), []
    for document in documents:
        spans.append((len(ids), len(ids) + len(document)))
        ids += document
    reader = DocumentReader(model, beginning, layers)
    kept = reader.read(documents)
    for looking in (1, 4):
        prompts = [
            attention_target(
                [*ids, *query], spans, [True] + [False] * 4, looking=looking, blocks=True
            )
            for query in queries
        ]
        read = slice(None) if layers is None else layers
        found = list(reader.attention(kept, queries, looking))
        for each, expected in zip(found, whole(model, prompts)[:, read], strict=True):
            torch.testing.assert_close(each, expected, rtol=1e-4, atol=1e-6)


def test_documents_are_run_once_while_they_fit(monkeypatch):
    documents = [[5 + i, 9, 11 + i] for i in range(8)]
    size = 2 * 2 * 3 * 2 * 8 * 4  # layers, keys and values, tokens, heads, their size, bytes
    monkeypatch.setattr("abft.ranker.documents.KEPT_BYTES", 5 * size)
    model = tiny_model("llama")
    reader = DocumentReader(model, [3, 4])
    run, batches = reader._run, []
    monkeypatch.setattr(reader, "_run", lambda some: batches.append(len(some)) or run(some))

    first = reader.read(documents[:4])
    second = reader.read([*documents[3::-1], documents[4]])
    assert batches == [4, 1]
    assert all(document in reader._store._kept for document in map(tuple, documents[:5]))
    for number in range(2):
        for kept, again in zip(first.layers[number], second.layers[number], strict=True):
            for i, (start, end) in enumerate(first.spans):
                other, stop = second.spans[3 - i]
                assert torch.equal(kept[:, :, start:end], again[:, :, other:stop])

    # More than fit: some are run again, and what is returned is the same.
    reader.read(documents)
    assert (
        reader._store._used
        == 5 * size
        == 5 * sum(tensor.nbytes for pair in reader._store._kept.popitem()[1] for tensor in pair)
    )
    fresh = DocumentReader(model, [3, 4]).read(documents)
    for kept, again in zip(fresh.layers, reader.read(documents).layers, strict=True):
        torch.testing.assert_close(kept, again)


def test_a_document_larger_than_what_is_kept(monkeypatch):
    monkeypatch.setattr("abft.ranker.documents.KEPT_BYTES", 1)
    reader = DocumentReader(tiny_model("llama"), [3, 4])
    assert reader.read([[5, 6], [7]]).spans == ((2, 4), (4, 5))
    assert reader._store._kept == {}


def test_scores_are_the_heads_attention_without_an_empty_querys(fitted, tmp_path):
    documents = ["this is sad", "a film of joy", "poor"]
    prompts = fitted._prompts()
    written = prompts.documents(documents)
    ids = prompts.queries(["a sad thing", "N/A"])
    asked = [prompts.prompt(written, each, [True, False, False]) for each in ids]
    each = [whole(fitted._model, [prompt])[0].numpy() for prompt in asked]

    # Weighted: those of the layers up to the last head that was trained.
    weights = fitted.head_weights_
    assert weights.layers == list(range(1 + max(layer for layer, _ in fitted.heads_)))
    looks = (each[0] - each[1])[weights.layers].reshape(-1, 3)
    centred = looks - looks.mean(1, keepdims=True)
    scaled = centred / ((weights.spread_LH.ravel() + looks.std(1)) / 2)[:, None]
    expected = weights.weights_LH.ravel() @ scaled
    assert fitted.scores(["a sad thing"], documents)[0] == pytest.approx(expected, rel=1e-4)

    # A ranker of an older version has no weights: it reads the mean of its heads.
    fitted.save(tmp_path / "ranker")
    file = tmp_path / "ranker" / "ranker.json"
    record = json.loads(file.read_text()) | {"format": 1}
    del record["head_weights"]
    file.write_text(json.dumps(record))
    older = AttentionRanker.load(tmp_path / "ranker", "cpu")
    layers, heads = zip(*fitted.heads_, strict=True)
    expected = (each[0] - each[1])[list(layers), list(heads)].mean(0)
    assert older.scores(["a sad thing"], documents)[0] == pytest.approx(expected, abs=1e-6)


def test_documents_and_queries_see_the_instruction(settings):
    """What is read of kept documents is what one prompt that begins with it shows."""
    ranker = AttentionRanker(**settings, instruction="which  is\nsad?")
    documents = ["a sad film", "a film of joy"]
    prompts = ranker._prompts()
    plain = AttentionRanker(**settings)._prompts()
    said = plain.tokenizer("which is sad?\n")["input_ids"]
    assert list(prompts.beginning)[: len(said) - 1] == said[:-1]
    assert len(prompts.beginning) > len(plain.beginning)

    written = prompts.documents(documents)
    both = [prompts.prompt(written, ids, [True, False]) for ids in prompts.queries(["one", "N/A"])]
    each = [whole(ranker._model, [prompt])[0].numpy().mean((0, 1)) for prompt in both]
    scores = ranker.scores(["one"], documents)[0]
    assert scores == pytest.approx(each[0] - each[1], abs=1e-6)
    assert scores != pytest.approx(AttentionRanker(**settings).scores(["one"], documents)[0])
    with pytest.raises(AbftError, match="do not fit"):
        AttentionRanker(**settings, instruction="sad " * 1000).rank("one", documents)
    with pytest.raises(ValueError, match="instruction = None"):
        AttentionRanker(**settings, instruction=None)


def test_a_saved_ranker_keeps_its_instruction(settings, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ranker = AttentionRanker(**settings, instruction="which is meant?", steps=2)
        ranker.fit(*data(24)).save(tmp_path / "ranker")
    loaded = AttentionRanker.load(tmp_path / "ranker", "cpu")
    assert loaded.instruction == "which is meant?"
    documents = ["a sad film", "a film of joy"]
    expected = ranker.scores(["a sad thing"], documents)
    assert loaded.scores(["a sad thing"], documents) == pytest.approx(expected, abs=1e-7)

    # Another instruction, from Python and on the command line.
    other = AttentionRanker.load(tmp_path / "ranker", "cpu", instruction="which is of joy?")
    best, second = other.rank("a sad thing", documents)
    assert [best.score, second.score] != sorted(expected[0], reverse=True)
    file = tmp_path / "documents.txt"
    file.write_text("\n".join(documents))
    command = ("rank", "--run", tmp_path / "ranker", "--documents", file, "--device", "cpu")
    command = (*command, "--query", "a sad thing", "--instruction", "which is of joy?", "--json")
    scores = [json.loads(line)["score"] for line in invoke(*command).stdout.splitlines()]
    assert scores == pytest.approx([best.score, second.score], abs=1e-7)


def test_training_finds_the_documents_of_unseen_queries(fitted):
    found = fitted.validation_
    assert len(fitted.heads_) == 3
    assert found["chosen heads, trained"] >= found["chosen heads, untrained (QRHead)"] + 0.3
    assert found["chosen heads, trained"] >= 0.6
    assert found["weighted heads, untrained"] >= found["chosen heads, untrained (QRHead)"]
    assert found["weighted heads, trained"] >= found["chosen heads, trained"]
    queries, candidates, relevant = unseen = data(8, first=48)
    pairs = [set(zip(each[0], map(tuple, each[1]), strict=True)) for each in (unseen, data())]
    assert not pairs[0] & pairs[1]
    ranked = [fitted.rank(q, c)[0].index for q, c in zip(queries, candidates, strict=True)]
    assert np.mean(np.equal(ranked, relevant)) >= 0.6


def test_a_trained_ranker_is_saved_and_loaded(fitted, tmp_path):
    fitted.save(tmp_path / "ranker")
    other = AttentionRanker.load(tmp_path / "ranker", device="cpu")
    documents = [f"this is {word}" for word in WORDS]
    assert_same_ranking(other, fitted, "a poor thing", documents)
    assert other.validation_ == fitted.validation_
    with pytest.raises(ValueError, match="not empty"):
        fitted.save(tmp_path / "ranker")
    with pytest.raises(ValueError, match="no saved ranker"):
        AttentionRanker.load(tmp_path)
    (tmp_path / "ranker" / "ranker.json").write_text("{}")
    with pytest.raises(ValueError, match="damaged"):
        AttentionRanker.load(tmp_path / "ranker")


def assert_same_ranking(ranker, other, query, documents):
    """Documents that were read next to others round differently on some processors."""
    ranked, again = ranker.rank(query, documents), other.rank(query, documents)
    assert [each.index for each in ranked] == [each.index for each in again]
    assert [each.score for each in ranked] == pytest.approx([e.score for e in again], abs=1e-6)


def test_a_second_fit_begins_with_the_untrained_model(settings, tmp_path):
    """Also where the first one trained, or was loaded."""
    once = AttentionRanker(**settings, steps=4, learning_rate=1e-2).fit(*data(24))
    expected = dict(once.validation_)
    once.save(tmp_path / "once")
    again = once.fit(*data(24))
    assert again.validation_ == expected
    loaded = AttentionRanker.load(tmp_path / "once", device="cpu")
    loaded.save(tmp_path / "loaded")
    sizes = [sum(f.stat().st_size for f in (tmp_path / n).iterdir()) for n in ("once", "loaded")]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)
    documents = ["this is sad", "great joy"]
    same = AttentionRanker.load(tmp_path / "loaded", device="cpu")
    assert_same_ranking(same, again, "a sad thing", documents)
    loaded.progress = False
    assert loaded.fit(*data(24)).validation_ == expected

    # Without training nothing of it is left.
    again.steps = 0
    again.fit(*data(24)).save(tmp_path / "untrained")
    assert [file.name for file in (tmp_path / "untrained").iterdir()] == ["ranker.json"]
    other = AttentionRanker.load(tmp_path / "untrained", device="cpu")
    assert_same_ranking(other, again, "a sad thing", documents)


def test_a_shared_corpus_is_counted_once(settings, monkeypatch):
    """Words of N queries' corpus, not of N copies of it."""
    seen = []
    monkeypatch.setattr("abft.ranker.ranker.peers", lambda corpus: seen.append(list(corpus)) or {})
    corpus = [f"document {i}" for i in range(30)]
    queries = [f"query {i}" for i in range(12)]
    AttentionRanker(**settings, steps=0).fit(queries, corpus, list(range(12)))
    assert seen == [corpus]
    once = tfidf(["a film", "a life"])(["a film"], ["a film", "a life"])
    made = peers(["a film", "a life", "a film"])["TF-IDF"](["a film"], ["a film", "a life"])
    assert made == pytest.approx(once)


def test_every_installed_peer_is_asked():
    for name in {module for _, modules in PEERS.values() for module in modules}:
        pytest.importorskip(name)
    assert list(peers(["a film", "a life"])) == list(PEERS)


def test_nothing_is_left_of_a_fit_that_was_interrupted(settings, monkeypatch, tmp_path):
    """Neither half-trained weights, nor documents that were read with other ones."""
    documents = data(24)[1][0]
    untrained = AttentionRanker(**settings).scores(["x"], documents)

    def interrupted(*arguments, **options):
        train_heads(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr("abft.ranker.training.train_heads", interrupted)
    ranker = AttentionRanker(**settings, steps=20, learning_rate=1e-2)
    with pytest.raises(KeyboardInterrupt):
        ranker.fit(*data(24))
    assert (ranker.heads_, ranker.head_weights_, ranker.validation_) == (None, None, {})
    np.testing.assert_array_equal(ranker.scores(["x"], documents), untrained)
    with pytest.raises(ValueError, match="nothing to save"):
        ranker.save(tmp_path / "ranker")


def test_settings_of_other_types_are_saved(settings, tmp_path, monkeypatch):
    """Numbers of numpy, and a path that holds from every folder."""
    folder = Path(settings["model"])
    monkeypatch.chdir(folder.parent)
    numbers = {"steps": np.int64(0), "heads": np.int64(3), "random_state": np.int64(1)}
    changes = {**numbers, "model": Path(folder.name), "temperature": np.float32(0.5)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ranker = AttentionRanker(**{**settings, **changes}).fit(*data(24))
    ranker.save(tmp_path / "ranker")
    monkeypatch.chdir(tmp_path)
    loaded = AttentionRanker.load("ranker", "cpu")
    assert loaded.model == str(folder.resolve())
    documents = ["this is sad", "great joy"]
    assert_same_ranking(loaded, ranker, "a sad thing", documents)


def test_the_name_of_a_model_is_not_a_folder_that_lies_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("SmolLM2-135M-Instruct", "mine"):
        (tmp_path / name).mkdir()
    (tmp_path / "gpt2").write_text("notes")
    assert AttentionRanker().model == "SmolLM2-135M-Instruct"
    assert AttentionRanker("gpt2").model == "gpt2"
    assert AttentionRanker("mine").model == str(tmp_path / "mine")


def test_heads_belong_to_their_model(settings, bpe, tmp_path):
    """Another model under the same name is refused, also where nothing was trained."""
    base = tmp_path / "base"
    tiny_model("llama").save_pretrained(base)
    bpe.save_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ranker = AttentionRanker(**{**settings, "model": base}, steps=0).fit(*data(24))
    ranker.save(tmp_path / "ranker")
    tiny_model("llama", seed=1).save_pretrained(base)
    with pytest.raises(AbftError, match="heads were found in another model"):
        AttentionRanker.load(tmp_path / "ranker", "cpu")


@pytest.mark.parametrize(
    "change",
    [{"instruction": "which is sad?"}, {"looking": "last"}, {"max_document_tokens": 1}],
)
def test_settings_that_change_later_hold(settings, change):
    documents, query = ["a sad film", "great joy"], ["a sad thing"]
    ranker = AttentionRanker(**settings)
    before = ranker.scores(query, documents)
    ((name, value),) = change.items()
    setattr(ranker, name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fresh = AttentionRanker(**{**settings, **change}).scores(query, documents)
        np.testing.assert_array_equal(ranker.scores(query, documents), fresh)
    assert np.abs(fresh - before).max() > 1e-6
    ranker.model = "another"
    with pytest.raises(ValueError, match="make a new one"):
        ranker.scores(query, documents)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("documents_per_pass", 1),
        ("documents_per_pass", 0),
        ("looking", "all"),
        ("instruction", None),
        ("together", 0),
        ("shown", 0),
        ("shown", 2.5),
    ],
)
def test_settings_that_change_later_are_checked(settings, name, value):
    ranker = AttentionRanker(**settings)
    setattr(ranker, name, value)
    for call in (
        ranker.rank,
        lambda _, documents: ranker.scores(["q"], documents),
        lambda *_: ranker.fit(*data(24)),
        lambda *_: ranker.find_heads(["a great film " * 5] * 8),
    ):
        with pytest.raises(ValueError, match=name):
            call("q", ["a sad film", "great joy", "a film"])


def test_settings_that_change_later_are_saved(fitted, tmp_path):
    ranker = copy.copy(fitted)
    ranker.temperature, ranker.documents_per_pass = np.float32(0.5), np.int64(30)
    ranker.model = Path(ranker.model)
    ranker.save(tmp_path / "ranker")
    assert AttentionRanker.load(tmp_path / "ranker", "cpu").documents_per_pass == 30


def test_threads_get_their_own_scores(settings):
    ranker = AttentionRanker(**settings)
    sets = [["a sad film", "great joy"], ["a poor life", "a good film"]]
    expected = [ranker.scores(["x"], some) for some in sets]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda some: ranker.scores(["x"], some), sets * 20))
    for found, right in zip(results, expected * 20, strict=True):
        np.testing.assert_array_equal(found, right)
    again = copy.deepcopy(ranker)
    np.testing.assert_array_equal(again.scores(["x"], sets[0]), expected[0])
    again = pickle.loads(pickle.dumps(AttentionRanker(**settings)))
    np.testing.assert_array_equal(again.scores(["x"], sets[0]), expected[0])


def test_heads_are_found_without_labels(settings):
    """The same as from queries whose relevant documents are known, of the documents' halves."""
    words = [f"{a} {b} {c}" for a in WORDS for b in WORDS[:4] for c in "xyz"]
    documents = [f"{text} is the thing that we want more {text}" for text in words]
    ranker = AttentionRanker(**settings, shown=8)
    assert ranker.find_heads(documents) is ranker
    assert len(ranker.heads_) == 3

    queries = queries_without_labels(documents, 8, 0)
    assert sorted(f"{q.candidates[min(q.relevant)]} {q.text}" for q in queries) == sorted(documents)
    assert {len(query.candidates) for query in queries} == {8}
    together = most_together(queries, ranker.together)
    prompts = training_prompts(queries, ranker._prompts(), 32, together, 8, 0)
    each = []
    for prompt in prompts:
        rows = whole(ranker._model, [prompt])[0]
        right = torch.tensor([c == prompt.target for c in prompt.label_classes])
        each.append(rows[..., right].mean(-1) - rows[..., ~right].mean(-1))
    best = torch.stack(each).mean(0).flatten().topk(3).indices
    heads = rows.shape[1]
    assert ranker.heads_ == sorted((int(i) // heads, int(i) % heads) for i in best)

    # They are weighed by the same queries.
    groups = weighed_groups(queries, together, 8, 0)
    assert sorted(query.text for group in groups for query in group) == sorted(
        query.text for query in queries
    )
    looks = []
    for group in groups:
        written = ranker._prompts().documents(group[0].candidates)
        ids = ranker._prompts().queries(["N/A", *(query.text for query in group)])
        prompts = [ranker._prompts().prompt(written, each, [True] + [False] * 7) for each in ids]
        empty, *rows = whole(ranker._model, prompts)[:, 0].double().numpy()
        looks.append([(row - empty, q.relevant) for row, q in zip(rows, group, strict=True)])
    expected = fit_head_weights(looks, 1)
    found = ranker.head_weights_
    assert found.spread_LH == pytest.approx(expected.spread_LH, rel=1e-3)
    assert found.weights_LH == pytest.approx(expected.weights_LH, rel=0.02, abs=0.02)

    # What was trained is given up, what was found is kept.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained = AttentionRanker(**settings, shown=8, steps=2).fit(*data(24))
    trained.find_heads(documents)
    assert trained.heads_ == ranker.heads_
    assert trained.validation_ == {}
    asked = ["a sad thing"], ["this is sad", "great joy"]
    assert np.array_equal(trained.scores(*asked), ranker.scores(*asked))


@pytest.mark.parametrize("count", [4, 5, 7, 9])
@pytest.mark.parametrize("shown", [2, 3, 20])
def test_every_query_without_labels_has_another_candidate(count, shown):
    documents = [f"number {i} of many other texts that are long enough {i}" for i in range(count)]
    queries = queries_without_labels([*documents, "short", documents[0]], shown, 0)
    assert len(queries) == count
    assert all(len(query.candidates) > 1 and len(query.relevant) == 1 for query in queries)


def test_heads_cannot_be_found_in_few_or_short_texts(settings):
    ranker = AttentionRanker(**settings)
    long = "one two three four five six seven eight nine ten"
    alike = [f"{i} {long}" for i in range(10)], [f"{long} {i}" for i in range(10)]
    for documents in (["short"] * 10, [f"{i} {long} {i}" for i in range(3)], *alike):
        with pytest.raises(ValueError, match="expected at least 4"):
            ranker.find_heads(documents)
    with pytest.raises(ValueError, match="document 1 is ''"):
        ranker.find_heads([long, ""])
    with pytest.raises(ValueError, match="got one text"):
        ranker.find_heads(long)


def test_no_query_is_held_out_and_trained_on():
    queries = ranking_queries([f"query {i % 10}" for i in range(20)], ["a", "b"], [0] * 20)
    held_out, training = split(queries, seed=0)
    assert len(held_out) + len(training) == 20
    assert not {query.text for query in held_out} & {query.text for query in training}


def test_numbers_of_any_kind(settings):
    documents = np.array([["a", "b"], ["c", "d"]])
    (one, two) = ranking_queries(np.array(["x", "y"]), documents, np.array([1, 0]))
    assert (one.candidates, one.relevant, two.relevant) == (("a", "b"), {1}, {0})


def test_groups_that_need_many_documents():
    """More queries than documents are shown, and queries of which nearly all are relevant."""
    corpus = tuple(f"document {i}" for i in range(40))
    alone = [RankingQuery(f"query {i}", corpus, frozenset({i})) for i in range(8)]
    most = [RankingQuery(f"q{i}", corpus, frozenset(range(39))) for i in range(8)]
    for queries in (alone, most):
        for query in measured_queries(queries, together=8, shown=4, seed=0):
            assert 0 < len(query.relevant) < len(query.candidates) <= 9


def test_documents_are_ranked_in_rounds(settings):
    ranker = AttentionRanker(**settings, documents_per_pass=4)
    documents = [f"{a} {b}" for a in WORDS for b in WORDS[:3]]
    ranked = ranker.rank("joy and joy", documents)
    assert sorted(each.index for each in ranked) == list(range(len(documents)))
    assert [documents[each.index] for each in ranked] == [each.document for each in ranked]

    # Those that the first round leaves behind: first the third of each group, then the fourth.
    groups = [documents[number::6] for number in range(6)]
    behind = [[r.document for r in ranker.rank("joy and joy", group)][2:] for group in groups]
    left = [each.document for each in ranked[12:]]
    assert set(left[:6]) == {third for third, _ in behind}
    assert set(left[6:]) == {fourth for _, fourth in behind}

    # No group is much smaller than the others, where scores are on another scale.
    sizes, scores = [], ranker.scores
    ranker.scores = lambda queries, some: sizes.append(len(some)) or scores(queries, some)
    ranker.rank("joy and joy", documents[:5])
    assert sizes == [3, 2, 3]
    del ranker.scores

    # 24 documents in groups of 4 leave 12, then 6, in groups of 3 then 4, which are compared.
    finalists = [each.document for each in ranked[:4]]
    again = [each.document for each in ranker.rank("joy and joy", finalists)]
    assert again == finalists
    assert ranker.rank("joy and joy", documents, top=3) == ranked[:3]


def test_the_order_and_equal_documents_do_not_matter(settings):
    ranker = AttentionRanker(**settings)
    documents = ["this is bad", "great joy", "a sad film", "great joy"]
    ranked = ranker.rank("what is sad", documents)
    other = ranker.rank("what is sad", documents[::-1])
    assert [each.document for each in ranked] == [each.document for each in other]
    scores = {each.index: each.score for each in ranked}
    assert scores[1] == scores[3]
    assert len(ranked) == 4


def test_long_texts_are_cut(settings):
    ranker = AttentionRanker(**settings)
    beginning = "great joy " * 40
    long = [f"{beginning} one", f"{beginning} two"]
    with pytest.warns(UserWarning, match="max_document_tokens = 40"):
        first, second = ranker.scores(["x"], long)[0]
    assert first == pytest.approx(second, abs=1e-6)
    assert ranker.too_long([*long, "great joy"]) == 2
    with pytest.warns(UserWarning, match="some queries have more than max_query_tokens = 40"):
        ranker.scores([*long, "x"], ["great joy", "sad"])
    assert ranker.too_long_queries([*long, "x"]) == 2

    # What comes before a text does not count: one token of the text itself is always read.
    ranker = AttentionRanker(**{**settings, "max_query_tokens": 1, "max_document_tokens": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = ranker.scores(["sad", "great joy", "great"], ["sad", "great joy"])
    assert np.abs(scores).min() > 0


def test_training_prompts_show_relevant_documents(settings):
    ranker = AttentionRanker(**settings)
    corpus = tuple(f"document {i}" for i in range(30))
    queries = [RankingQuery(f"query {i}", corpus, frozenset({i, i + 10})) for i in range(10)]
    prompts = training_prompts(queries, ranker._prompts(), 5, 4, 8, seed=0)
    assert len(prompts) == 20
    for prompt in prompts:
        assert prompt.blocks
        assert len(prompt.label_positions) == 8
        assert 1 in prompt.label_classes
        assert 0 in prompt.label_classes
    assert prompts == training_prompts(queries, ranker._prompts(), 5, 4, 8, seed=0)
    assert prompts != training_prompts(queries, ranker._prompts(), 5, 4, 8, seed=1)

    own = [RankingQuery("a", ("x", "y"), frozenset({0})), *queries]
    assert most_together(queries, 8) == 8
    assert most_together(own, 8) == 1


@pytest.mark.parametrize(
    ("candidates", "relevant", "message"),
    [
        (["a", "b"], [()], "query 0 has no relevant candidate"),
        (["a", "b"], [(0, 1)], "all candidates are relevant"),
        (["a", "a", "b"], [(0, 1, 2)], "all candidates are relevant"),
        (["a", "a", "b"], [0], "the same text is relevant and irrelevant"),
        (["a", " "], [0], "candidate 1 is ' '"),
        (["a", None], [0], "candidate 1 is None"),
        (["a", float("nan"), "b"], [0], "candidate 1 is nan"),
        (["a", "b"], {0: 1}, "an entry for each query, in their order, got a dict"),
        (["a", "b"], [{0: 0, 1: 1}], "expected numbers of documents"),
        (["a", "b"], 3, "an entry for each query"),
        ([{"d1": "a", "d2": "b"}], [0], "got a dict"),
        ({"a", "b"}, [0], "got a set"),
        ([{"a", "b"}], [0], "got a set"),
        (None, [0], "got a NoneType"),
        (["a", "b"], [[1, 1]], "each once, got \\[1, 1\\]$"),
        (["a", "b\ud800"], [0], "half a character"),
        (["a", "b"], [2], "relevant \\[2\\], of 2 candidates"),
        (["a", "b"], [0, 1], "relevant documents for 2"),
        (["a", "b"], ["0"], "expected numbers of documents"),
        # A mask is no list of numbers, though Python takes True for 1.
        (["a", "b", "c"], [[False, False, True]], "flatnonzero"),
        (["a", "b", "c"], np.array([[0, 0, 1]]), "flatnonzero"),
        (["a", "b"], [True], "flatnonzero"),
        (["a", "b"], [[1.7]], "each once"),
        ({"a": 0, "b": 1}, [0], "got a dict"),
        ([["a", "b"], ["c", "d"]], [0], "2 lists of candidates"),
        ("ab", [0], "got one text"),
    ],
)
def test_queries_that_make_no_sense(candidates, relevant, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ranking_queries(["a query"], candidates, relevant)


def test_what_is_no_list_of_candidates_is_named():
    with pytest.raises(ValueError, match="query 1: expected a list of candidates, got 'c'"):
        ranking_queries(["q", "r"], [["a", "b"], "c"], [0, 0])
    keys = {"a": 1, "b": 2}.keys()  # in order
    assert ranking_queries(["q"], keys, [0])[0].candidates == ("a", "b")


def test_equal_candidates_are_one():
    (query,) = ranking_queries(["q"], ["a", "b", "a"], [(0, 2)])
    assert query.candidates == ("a", "b")
    assert query.relevant == {0}


def test_wrong_settings_and_calls(settings):
    ranker = AttentionRanker(**settings)
    for call, message in (
        (lambda: ranker.rank("q", []), "no documents"),
        (lambda: ranker.rank("q", ["a", ""]), "document 1 is ''"),
        (lambda: ranker.rank("", ["a"]), "query 0 is ''"),
        (lambda: ranker.rank(["q"], ["a"]), "one query"),
        (lambda: ranker.scores("q", ["a"]), "one text"),
        (lambda: ranker.rank("q", "a text"), "one text"),
        (lambda: ranker.rank("q", {"a": 1}), "got a dict"),
        (lambda: ranker.rank("q", np.array([["a"]])), "got a ndarray"),
        (lambda: ranker.rank("q", 5), "got 5"),
        (lambda: AttentionRanker(heads=True), "heads = True"),
        (lambda: AttentionRanker(steps=2.5), "steps = 2.5: expected a whole number"),
        (lambda: ranker.rank("q", ["a"], top=0), "top = 0"),
        (lambda: ranker.rank("q", ["a"], top=2.5), "top = 2.5"),
        (lambda: ranker.rank("q", {"a", "b"}), "got a set"),
        (lambda: AttentionRanker(temperature=float("nan")), "temperature = nan"),
        (lambda: AttentionRanker(learning_rate=-1), "learning_rate = -1"),
        (lambda: ranker.save("somewhere"), "call fit or find_heads first"),
        (
            lambda: ranker.fit(["q"] * 3, ["a", "b"], [0] * 3),
            "1 distinct queries",
        ),
        (lambda: AttentionRanker(heads=0), "heads = 0"),
        (lambda: AttentionRanker(steps=-1), "steps = -1"),
        (lambda: AttentionRanker(looking="all"), "looking"),
        (lambda: AttentionRanker(shown=1), "at least 2"),
        (lambda: AttentionRanker(max_query_tokens=0), "max_query_tokens = 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(AbftError, match="do not fit"):
        AttentionRanker(**{**settings, "max_document_tokens": 500}).rank("q", ["a"])


def test_a_family_with_sliding_windows_is_refused(tmp_path, bpe):
    tiny_model("gemma2").save_pretrained(tmp_path)
    bpe.save_pretrained(tmp_path)
    with pytest.raises(AbftError, match="side by side"):
        AttentionRanker(str(tmp_path), device="cpu").rank("q", ["a"])


def test_fit_says_when_something_simpler_is_better(settings):
    with pytest.warns(UserWarning, match="TF-IDF finds a relevant document first more often"):
        AttentionRanker(**settings, steps=0).fit(*data())


def test_the_command_ranks_a_file(fitted, tmp_path):
    fitted.save(tmp_path / "ranker")
    file = tmp_path / "documents.csv"
    file.write_text('text,number\nthis is great,1\n,2\n"this is\nsad",3\nthis is a film,4\n')
    command = ("rank", "--run", tmp_path / "ranker", "--documents", file, "--device", "cpu")
    done = invoke(*command, "--query", "a sad thing", "--json")
    assert done.exit_code == 0, done.output
    found = [json.loads(line) for line in done.stdout.splitlines()]
    documents = ["this is great", "this is\nsad", "this is a film"]
    expected = fitted.rank("a sad thing", documents)
    assert [each["text"] for each in found] == [each.document for each in expected]
    assert sorted(each["row"] for each in found) == [1, 3, 4]
    assert "rows 2" in done.stderr or "row 2" in done.stderr

    cut = invoke(*command, "--query", "a sad thing", "--max-document-tokens", 2, "--json")
    assert "3 of 3 documents have more than 2 tokens" in cut.stderr
    assert cut.stdout != done.stdout

    lines = invoke(*command, "--query", "a sad thing", "--top", 1).stdout.splitlines()
    assert [line.split("\t")[2] for line in lines] == [" ".join(expected[0].document.split())]


def test_the_command_finds_heads_and_keeps_them(bpe, tmp_path):
    deep = tmp_path / "deep"  # more heads than are chosen
    tiny_model("llama", num_hidden_layers=6).save_pretrained(deep)
    bpe.save_pretrained(deep)
    file, folder = tmp_path / "documents.txt", tmp_path / "ranker"
    first, _, _ = data(24)
    documents = [
        f"number {i}: {text} and {i} more of those that we have seen {i}"
        for i, text in enumerate(first)
    ]
    file.write_text("\n".join(documents))
    command = ("rank", "--documents", file, "--device", "cpu", "--query", "a sad thing", "--json")
    model = ("--model", deep)

    done = invoke(*command, *model, "--find-heads", folder)
    assert done.exit_code == 0, done.output
    assert f"next time: --run {folder}" in done.stderr
    by_heads = [json.loads(line)["score"] for line in done.stdout.splitlines()]
    ranker = AttentionRanker(str(deep), device="cpu").find_heads(documents)
    expected = [each.score for each in ranker.rank("a sad thing", documents, 10)]
    assert by_heads == pytest.approx(expected, abs=1e-7)

    again = invoke(*command, "--run", folder)
    assert again.stdout == done.stdout
    plain = invoke(*command, *model)
    assert "--find-heads FOLDER chooses better ones" in plain.stderr
    assert plain.stdout != done.stdout

    assert "is not an empty folder" in refused(*command, *model, "--find-heads", folder)
    assert "heads already" in refused(*command, "--run", folder, "--find-heads", tmp_path / "new")
    assert "names its model itself" in refused(*command, *model, "--run", folder)
    file.write_text("too short\n")
    assert "0 documents have 10 words" in refused(
        *command, *model, "--find-heads", tmp_path / "new"
    )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"documents": "missing.txt"}, "no such file"),
        ({"text-column": "review"}, "review"),
        ({"query": " "}, "--query"),
        ({"query": "caf\udce9"}, "half a character"),  # as Python reads bytes that are not UTF-8
        ({"run": "nowhere"}, "nowhere is no saved ranker"),
        ({"device": "abacus"}, "device = 'abacus': expected one of"),
        ({"top": 0}, "top = 0"),
    ],
)
def test_commands_that_make_no_sense(changes, message, tmp_path):
    file = tmp_path / "documents.csv"
    file.write_text("text\nsomething\n")
    options = {"query": "q", "documents": file, **changes}
    assert message in refused("rank", *arguments(options))


def beir_folder(folder):
    corpus = [
        {"_id": "d1", "title": "Joy", "text": "a great film"},
        {"_id": "d2", "title": "", "text": "a sad life"},
        {"_id": "d3", "text": "a poor film"},
        {"_id": "d4", "text": ""},
        {"_id": "d5", "title": "a sad", "text": "life"},
    ]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(each) + "\n" for each in corpus))
    asked = [{"_id": f"q{i}", "text": f"query {i}"} for i in range(3)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(each) + "\n" for each in asked))
    (folder / "qrels").mkdir()
    judged = "query-id\tcorpus-id\tscore\nq1\td2\t1\nq1\td3\t2\nq0\td1\t1\nq2\td1\t0\n"
    (folder / "qrels" / "test.tsv").write_text(judged)
    return folder


def test_a_data_set_in_beirs_format(tmp_path):
    queries, documents, relevant = load_beir(beir_folder(tmp_path))
    assert queries == ["query 1", "query 0"]
    assert documents == ["Joy a great film", "a sad life", "a poor film"]
    assert relevant == [[1, 2], [0]]
    assert [query.relevant for query in ranking_queries(queries, documents, relevant)] == [
        {1, 2},
        {0},
    ]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("corpus.jsonl", "{", "corpus.jsonl, line 1: expected JSON"),
        ("queries.jsonl", '{"text": "no id"}\n', "queries.jsonl, line 1"),
        ("qrels/test.tsv", "header\nq1\td2\n", "line 2: expected query, document, score"),
        ("qrels/test.tsv", "header\nq1\td9\t1\n", "unknown query or document"),
        ("qrels/test.tsv", "header\nq1\td2\t0\n", "no relevant documents"),
        ("qrels/test.tsv", "q1\td2\t0\n", "no relevant documents"),
        ("qrels/test.tsv", None, "no such file"),
        ("corpus.jsonl", b"\xff", "is not UTF-8"),
    ],
)
def test_damaged_data_sets(file, content, message, tmp_path):
    folder = beir_folder(tmp_path)
    path = folder / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(AbftError, match=message):
        load_beir(folder)


def test_data_sets_without_a_header_and_with_empty_lines(tmp_path):
    folder = beir_folder(tmp_path)
    expected = load_beir(folder)
    path = folder / "qrels" / "test.tsv"
    _, judgements = path.read_text().split("\n", 1)
    path.write_text(judgements + "\n\n")
    corpus = folder / "corpus.jsonl"
    corpus.write_text(corpus.read_text() + "\n\n")
    assert load_beir(folder) == expected


def test_queries_are_measured_with_as_many_documents_as_training_shows():
    corpus = tuple(f"document {i}" for i in range(50))
    queries = [RankingQuery(f"query {i}", corpus, frozenset({i})) for i in range(10)]
    measured = measured_queries(queries, together=4, shown=8, seed=0)
    assert [each.text for each in measured] == [each.text for each in queries]
    for before, each in zip(queries, measured, strict=True):
        assert len(each.candidates) == 8
        assert [each.candidates[i] for i in each.relevant] == [corpus[i] for i in before.relevant]
    assert len({each.candidates for each in measured}) == 3


def test_attribution_sums_the_last_tokens_attention(fitted):
    prompt = "this is bad and this is great joy, so the film is"
    spans = [(0, 11), (15, 33), (34, 37)]
    texts = [prompt[start:end] for start, end in spans]
    assert texts == ["this is bad", " this is great joy", " so"]
    model, tokenizer = fitted._model, fitted._tokenizer
    ids = tokenizer(prompt).input_ids
    pieces = [tokenizer(text).input_ids for text in texts]
    rows_LHS = attention_rows(model, [ids])[:, 0].double().numpy()
    expected = np.zeros(3)
    for n, piece in enumerate(pieces):
        (start,) = [i for i in range(len(ids)) if ids[i : i + len(piece)] == piece]
        for layer, head in fitted.heads_:
            expected[n] += rows_LHS[layer, head, start : start + len(piece)].sum()
    found = fitted.attribute(prompt, spans)
    assert found == pytest.approx(expected / expected.sum(), abs=1e-6)
    assert found.sum() == pytest.approx(1)

    for wrong in ([], [(3, 3)], [(0, 5), (4, 8)], [(0, 500)]):
        with pytest.raises(ValueError, match="expected non-empty ones in order"):
            fitted.attribute(prompt, wrong)


def test_the_deletion_curve_removes_what_is_looked_at_first(fitted):
    prompt = "this is bad and this is great joy, so the film is"
    spans = [(0, 11), (15, 33), (34, 37)]
    model, tokenizer = fitted._model, fitted._tokenizer
    curve = deletion_curve(model, tokenizer, prompt, spans, fitted.heads_)

    def log_probabilities(text):
        with torch.no_grad():
            return model(torch.tensor([tokenizer(text).input_ids])).logits[0, -1].log_softmax(-1)

    answer = log_probabilities(prompt).argmax()
    first = int(fitted.attribute(prompt, spans).argmax())
    start, end = spans[first]
    expected = [
        log_probabilities(text)[answer].item() for text in (prompt, prompt[:start] + prompt[end:])
    ]
    assert curve.by_attention[:2] == pytest.approx(expected, abs=1e-5)
    assert len(curve.by_attention) == len(curve.at_random) == 4
    assert curve.by_attention[[0, -1]] == pytest.approx(curve.at_random[[0, -1]], abs=1e-5)
    # The baseline: a mean over random orders.
    generator = random.Random(0)
    orders = [generator.sample(range(3), 3) for _ in range(RANDOM_ORDERS)]

    def left(order):
        kept = prompt
        for i in sorted(order, reverse=True):
            kept = kept[: spans[i][0]] + kept[spans[i][1] :]
        return log_probabilities(kept)[answer].item()

    expected = np.mean([[left(order[:n]) for n in range(4)] for order in orders], 0)
    assert curve.at_random == pytest.approx(expected, abs=1e-5)
    middle = (curve.at_random - curve.by_attention)[1:3]
    assert curve.faithfulness == pytest.approx(middle.mean())
    same = fitted.deletion_curve(prompt, spans)
    assert same.by_attention == pytest.approx(curve.by_attention)
    with pytest.raises(ValueError, match="at least 2"):
        deletion_curve(model, tokenizer, prompt, spans[:1])
    with pytest.raises(ValueError, match="nothing would be left"):
        deletion_curve(model, tokenizer, prompt, [(0, 11), (11, len(prompt))])
    with pytest.raises(ValueError, match="at least one head"):
        deletion_curve(model, tokenizer, prompt, spans, [])


def test_tf_idf():
    scorer = tfidf(["great joy", "sad life", "?", "great", "great"])
    scores = scorer(["a sad film", "great life"], ["great joy", "sad life"])
    assert scores.argmax(1).tolist() == [1, 1]  # "great" is everywhere
    assert not tfidf(["?", "!"])(["x"], ["?", "!"]).any()


def test_bm25():
    pytest.importorskip("bm25s")
    corpus = ["great great joy", "sad life", "a sad sad film of joy", "?"]
    lengths = [len(text.replace("?", "").split()) for text in corpus]

    def expected(word, i):
        counts = [text.split().count(word) for text in corpus]
        known = sum(count > 0 for count in counts)
        rarity = np.log(1 + (len(corpus) - known + 0.5) / (known + 0.5))
        length = 1 - 0.75 + 0.75 * lengths[i] / np.mean(lengths)
        return rarity * counts[i] / (counts[i] + 1.5 * length)

    scorer = bm25([*corpus, corpus[0]])
    shown = [2, 3, 0]
    scores = scorer(["Sad joy", "nothing", "!"], [corpus[i] for i in shown])
    assert scores[0] == pytest.approx([expected("sad", i) + expected("joy", i) for i in shown])
    assert not scores[1:].any()
    assert not bm25(["?", "!"])(["x"], ["?", "!"]).any()
    assert scorer([], corpus).shape == (0, 4)


def test_held_out_queries_choose_no_heads_and_train_nothing(settings, monkeypatch):
    given, real = [], abft.ranker.ranker.training_prompts

    def training_prompts(queries, *others):
        given.append({(query.text, query.candidates) for query in queries})
        return real(queries, *others)

    monkeypatch.setattr("abft.ranker.ranker.training_prompts", training_prompts)
    ranker = AttentionRanker(**settings, steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ranker.fit(*data(24))
    held_out, others = split(ranking_queries(*data(24)), 0)
    assert len(given) == 2
    for queries in given:
        assert not queries & {(query.text, query.candidates) for query in held_out}
        assert queries == {(query.text, query.candidates) for query in others}


def test_a_peer_has_to_be_clearly_better_to_be_named():
    """By a sign test: 8 wins of 9 have a chance of 2%, which is too much with three peers."""

    def peers(count, wins, losses):
        ours = np.array([False] * wins + [True] * losses + [True, False] * 20)
        theirs = np.array([True] * wins + [False] * losses + [True, False] * 20)
        worse = np.zeros_like(ours)
        return {"TF-IDF": theirs, **{f"peer {i}": worse for i in range(count - 1)}}, ours

    for given in (peers(3, 8, 1), peers(1, 4, 0), peers(1, 7, 2)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warn_of_better_peers(*given)
    for given in (peers(1, 8, 1), peers(1, 5, 0), peers(3, 7, 0)):
        with pytest.warns(UserWarning, match="TF-IDF finds a relevant document first more often"):
            warn_of_better_peers(*given)


def test_the_random_state_and_the_temperature_are_used(settings, monkeypatch):
    """And held-out queries are measured with as many documents as training shows."""
    queries, measured = [], []
    real = abft.ranker.ranker.measured_queries

    def measured_queries(held_out, together, shown, seed):
        queries.append([query.text for query in held_out])
        measured.append(real(held_out, together, shown, seed))
        return measured[-1]

    monkeypatch.setattr(abft.ranker.ranker, "measured_queries", measured_queries)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for state in (0, 0, 1):
            AttentionRanker(**settings, steps=0, random_state=state, shown=3).fit(*data())
    assert queries[0] == queries[1] != queries[2]
    assert {len(query.candidates) for query in measured[0]} <= {2, 3}

    losses = []
    for temperature in (0.05, 1.0):
        monkeypatch.setattr(
            abft.ranker.ranker.AttentionRanker,
            "_train",
            lambda self, training, objective, seed: losses.append(objective.temperature),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            AttentionRanker(**settings, steps=1, temperature=temperature).fit(*data(24))
    assert losses == [0.05, 1.0]


def test_training_leaves_the_global_generators_alone(settings):
    numbers = []
    for seed in (1, 1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            AttentionRanker(**settings, steps=1).fit(*data(24))
        numbers.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert numbers[0] == numbers[1]
    assert all(a != b for a, b in zip(numbers[0], numbers[2], strict=True))


def test_heads_are_found_with_little_memory(settings, monkeypatch):
    """Prompts are read one at a time if the rows of several are too large: the same heads."""
    packed = []
    real = abft.method.head_finder.head_scores

    def head_scores(model, prompts, implementation, queries):
        packed.append(queries)
        return real(model, prompts, implementation, queries)

    monkeypatch.setattr(abft.method.head_finder, "head_scores", head_scores)
    pairs = itertools.product(WORDS, WORDS)
    documents = [" ".join([one, other, *WORDS, other, one]) for one, other in pairs]
    heads = []
    for most in (2**29, 1):
        monkeypatch.setattr(abft.ranker.training, "ROW_BYTES", most)
        heads.append(AttentionRanker(**settings).find_heads(documents).heads_)
    assert packed == [8, 1]
    assert heads[0] == heads[1]


def test_a_shared_corpus_is_not_hashed_for_every_query():
    class Corpus(tuple):
        hashed = 0

        def __hash__(self):
            Corpus.hashed += 1
            return super().__hash__()

    shared = Corpus(f"document {i}" for i in range(9))
    queries = [RankingQuery(f"query {i}", shared, frozenset({i})) for i in range(9)]
    equal = RankingQuery("another", tuple(shared), frozenset({0}))
    assert by_candidates([*queries, equal]) == {shared: [*queries, equal]}
    assert Corpus.hashed < len(queries)


def test_prompts_of_tokenizers_with_special_tokens():
    """One at the very beginning; documents and queries have none, nor line ends of their own."""
    fast = tokenizer("sentencepiece")
    prompts = RankingPrompts(fast, looking="last")
    assert prompts.beginning[0] == fast.bos_token_id
    ids = (*prompts.documents(["good"]), *prompts.queries(["bad"]))
    assert all(fast.bos_token_id not in each for each in ids)
    assert prompts.documents(["a\nb  c"]) == prompts.documents(["a b c"])
    documents, (query,) = prompts.documents(["a", "b"]), prompts.queries(["c"])
    assert prompts.prompt(documents, query, [True, False]).looking == 1
    looking = RankingPrompts(fast, looking="query").prompt(documents, query, [True, False]).looking
    assert looking == len(query)


def test_tokens_of_a_span_may_begin_with_the_space_before_it():
    assert _tokens([(0, 4), (4, 9), (9, 12)], (5, 9)) == (1, 2)
    with pytest.raises(ValueError, match="holds no token"):
        _tokens([(0, 4), (4, 9)], (5, 7))
