import contextlib
import io
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import pandas as pd
import pytest

from abft.data.builtin import TASKS, load_task
from abft.data.datasets import labelled_splits, load_data, read_table, texts_of, training_pool
from abft.data.draws import demonstration_sets, split_held_out
from abft.data.splits import lcg_indices, text_key, unique, without_texts_of
from abft.data.tasks import Example
from abft.errors import AbftError
from abft.runs.prediction_files import Parts, prediction_rows
from tiny import staicc_loader


def parts(data):
    return [{e.text.strip() for e in part} for part in (data.train, data.demonstrations, data.test)]


@pytest.mark.parametrize("name", TASKS)
def test_builtin_tasks_do_not_overlap(name):
    data = load_task(name)
    train, demonstrations, test = parts(data)
    assert not train & demonstrations
    assert not train & test
    assert not demonstrations & test
    assert len(train) == len(data.train)  # no text twice, so no prompt holds its own query
    assert len(data.test) == 512
    whole = {"FP": 512, "TEE": 3192}.get(name, 4096)
    assert whole - 50 < len(data.demonstrations) <= whole
    assert 900 < len(data.train) <= 1024
    assert {e.label for e in data.test} <= set(range(len(data.task.labels)))


@pytest.mark.parametrize("name", ["SST2", "FP", "TEE"])
def test_splits_equal_staicc(name):
    import abft.data.builtin

    with contextlib.redirect_stdout(io.StringIO()):
        from StaICC.util import dataset_interface

    loader = staicc_loader(name)
    demonstration_number = abft.data.builtin.BUILTIN[name].demonstrations
    theirs = dataset_interface.triplet_dataset(loader, 1024, demonstration_number, 512)
    ours = load_task(name, "staicc")
    assert [(e.text, e.label) for e in ours.test] == [(x[0][0], x[1]) for x in theirs.test.table]
    assert [(e.text, e.label) for e in ours.demonstrations] == [
        (x[0][0], x[1]) for x in theirs.demonstration.table
    ]
    pool = [(x[0][0], x[1]) for x in theirs.calibration.table]
    assert set(pool) >= {(e.text, e.label) for e in ours.train}
    sampler = dataset_interface.demonstration_sampler(4, demonstration_number, 50)
    assert lcg_indices(demonstration_number, [4] * 50) == [sampler[i] for i in range(50)]


def test_own_data_splits(reviews):
    data = load_data(reviews, "review", "stars")
    train, demonstrations, test = parts(data)
    assert data.task.labels == data.task.label_words == ("negative", "positive")
    assert data.task.name == "reviews"
    assert not train & demonstrations
    assert not train & test
    assert not demonstrations & test
    assert (len(train), len(demonstrations), len(test)) == (45, 45, 30)
    assert load_data(reviews, "review", "stars") == data


def test_every_format_gives_the_same(tmp_path, reviews):
    table = datasets.load_dataset("csv", data_files=str(reviews), split="train")
    table.to_json(tmp_path / "reviews.jsonl")
    table.to_parquet(tmp_path / "reviews.parquet")
    table.to_csv(tmp_path / "reviews.tsv", sep="\t", index=False)
    expected = load_data(reviews, "review", "stars")
    for name in ("reviews.jsonl", "reviews.parquet", "reviews.tsv"):
        assert load_data(tmp_path / name, "review", "stars") == expected
    assert load_data(table, "review", "stars", name="reviews") == expected


def test_rows_longer_than_the_header_are_refused(tmp_path):
    (tmp_path / "long.csv").write_text("text,label\n" + "".join(f"t{i},a,b\n" for i in range(20)))
    with pytest.raises(AbftError, match="rows have more cells than the header"):
        load_data(tmp_path / "long.csv")


def test_class_labels_and_numbers_become_strings():
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    table = datasets.Dataset.from_dict(
        {"text": [f"t{i}" for i in range(20)], "label": [0, 1] * 10}, features=features
    )
    assert load_data(table).task.labels == ("no", "yes")
    numbers = datasets.Dataset.from_dict(
        {"text": [f"t{i}" for i in range(20)], "label": [0, 1] * 10}
    )
    assert load_data(numbers).task.labels == ("0", "1")


def test_cells_of_text_files_stay_as_they_are_written(tmp_path):
    path = tmp_path / "zeros.csv"
    path.write_text("text,label\n" + "".join(f"t{i},0{i % 2}\n" for i in range(20)) + "NA,00\n")
    data = load_data(path)
    assert data.task.labels == ("00", "01")
    assert "NA" in set().union(*parts(data))


def test_duplicates_are_kept_once_and_test_texts_leave_training(tmp_path):
    rows = [f"text {i % 30},{'ab'[i % 2]}" for i in range(60)]
    (tmp_path / "d.csv").write_text("text,label\n" + "\n".join(rows))
    (tmp_path / "t.csv").write_text("text,label\ntext 3,a\nother,b\n")
    assert sum(map(len, parts(load_data(tmp_path / "d.csv")))) == 30
    data = load_data(tmp_path / "d.csv", test_source=tmp_path / "t.csv")
    train, demonstrations, test = parts(data)
    assert test == {"text 3", "other"}
    assert "text 3" not in train | demonstrations


def test_a_sorted_test_set_is_not_cut_to_one_class(reviews, tmp_path):
    rows = [f"sorted text {i},{'negative' if i < 600 else 'positive'}" for i in range(1200)]
    (tmp_path / "sorted.csv").write_text("review,stars\n" + "\n".join(rows))
    data = load_data(reviews, "review", "stars", test_source=tmp_path / "sorted.csv")
    assert len(data.test) == 512
    assert 150 < sum(e.label for e in data.test) < 360


def test_unlabelled_hub_splits_are_passed_over():
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )

    def split(labels):
        return datasets.Dataset.from_dict(
            {"text": [f"t{i}" for i in range(len(labels))], "label": labels}, features=features
        )

    train, hidden, validation = split([0, 1] * 4), split([-1] * 4), split([1, 0, 1])
    splits = datasets.DatasetDict({"train": train, "test": hidden, "validation": validation})
    assert labelled_splits(splits, "label") == [train, validation]
    assert len(load_data(splits).test) == 3
    with pytest.raises(AbftError, match=r'give one of them, such as train_dataset\["train"\]'):
        training_pool(splits)
    alone = datasets.DatasetDict({"train": train, "test": hidden})
    assert labelled_splits(alone, "label") == [train]
    # What another column says of a row does not matter.
    assert labelled_splits(alone, "text") == [train, hidden]
    with pytest.raises(AbftError, match="all 4 rows have an empty text or label"):
        load_data(hidden)


def numbered(count, start=0):
    return datasets.Dataset.from_dict(
        {
            "text": [f"t{start + i}" for i in range(count)],
            "label": ["ab"[i % 2] for i in range(count)],
        }
    )


@pytest.mark.parametrize(
    ("count", "train", "demonstrations", "test"),
    [(11, 5, 4, 2), (12, 5, 4, 3), (2600, 1024, 1064, 512), (8000, 1024, 4096, 512)],
)
def test_sizes_of_the_parts(count, train, demonstrations, test):
    """A quarter is held out, at most 512; of the rest one half trains, at most 1,024."""
    data = load_data(numbered(count))
    assert list(map(len, parts(data))) == [train, demonstrations, test]
    given = load_data(numbered(count), test_source=numbered(600, start=10**6))
    rest = [min(1024, (count + 1) // 2), min(4096, count - min(1024, (count + 1) // 2))]
    assert list(map(len, parts(given))) == [*rest, 512]


def test_splits_of_hub_data_sets(monkeypatch):
    """The test split comes first, also of a source of test queries; one split alone trains."""
    train, test, validation = numbered(40), numbered(4, 100), numbered(6, 200)
    hub = {
        "some/all": {"train": train, "validation": validation, "test": test},
        "some/test": {"test": train},
        "some/other": {"train": numbered(9, 300), "test": numbered(5, 400)},
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict(hub[name]))
    assert parts(load_data("some/all"))[2] == {*test["text"]}
    assert labelled_splits(datasets.DatasetDict(hub["some/test"]), "label") == [train]
    assert len(load_data("some/test").test) == 10
    asked = load_data("some/all", test_source="some/other")
    assert parts(asked)[2] == {f"t{400 + i}" for i in range(5)}
    assert set().union(*parts(asked)[:2]) == {*train["text"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("", "is empty"),
        ("text,label\n", "no rows"),
        ("text,other\na,b\n", "no column 'label'; its columns are text, other"),
        ("text,label\na,x\nb,x\n", "one label only"),
        ("text,label\na,x\n,y\nc,x\n", "1 of 3 rows have an empty text or label .row 2"),
        ("text,label\na,x\nb,\n", "1 of 2 rows have an empty text or label .row 2"),
    ],
)
def test_bad_files(tmp_path, content, message):
    path = tmp_path / "bad.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(AbftError, match=message):
        load_data(path, strict=True)


def test_broken_and_unknown_files(tmp_path):
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"no parquet at all")
    with pytest.raises(AbftError, match="could not be read as parquet"):
        load_data(broken)
    other = tmp_path / "data.docx"
    other.write_text("x")
    with pytest.raises(AbftError, match="expected a file ending in"):
        load_data(other)
    with pytest.raises(AbftError, match="neither a file"):
        load_data("someone/no-such-data-set")


def test_unknown_test_labels(tmp_path, reviews):
    (tmp_path / "t.csv").write_text("review,stars\nfine,neutral\n")
    with pytest.raises(AbftError, match="neutral"):
        load_data(reviews, "review", "stars", test_source=tmp_path / "t.csv")


def test_too_few_examples(tmp_path):
    (tmp_path / "few.csv").write_text(
        "text,label\n" + "\n".join(f"t{i},{'ab'[i % 2]}" for i in range(8))
    )
    data = load_data(tmp_path / "few.csv")
    with pytest.raises(AbftError, match="k = 4 demonstrations and a query need 5"):
        data.check(4)


def test_texts_of_a_file(reviews):
    texts = texts_of(read_table(reviews), "review", "reviews")
    assert len(texts) == 120
    assert texts[1].endswith("number 1")


def write_predictions(path, frame, predictions):
    parts = Parts(path, {}, 1000)
    parts.start()
    parts.write(0, prediction_rows(frame, "text", predictions, list(predictions[0][1])))
    parts.join()


@pytest.mark.parametrize("name", ["scored.csv", "scored.parquet"])
def test_labelled_tables_keep_whole_numbers_with_gaps(name, tmp_path):
    table = datasets.Dataset.from_dict({"id": [9007199254740993, None], "text": ["good", "bad"]})
    table.to_parquet(tmp_path / "source.parquet")
    frame = read_table(tmp_path / "source.parquet")
    write_predictions(tmp_path / name, frame, [("x", {"x": 1.0})] * 2)
    written = datasets.load_dataset(
        Path(name).suffix[1:], data_files=str(tmp_path / name), split="train"
    )
    assert written["predicted_label"] == ["x", "x"]
    written = (tmp_path / name).read_text() if name.endswith("csv") else str(written["id"][0])
    assert "9007199254740993" in written
    assert "9007199254740993.0" not in written


def test_texts_are_compared_by_letters_with_their_marks():
    """Without its marks every Hindi word of the same consonants is one text."""
    assert text_key("कि") != text_key("की")
    assert text_key("Good film!") == text_key("good  film") == "goodfilm"
    assert text_key("caf\u00e9") == text_key("cafe\u0301") != text_key("cafe")
    # The mark after a symbol makes it an emoji; it is no letter's.
    assert text_key("fine \u2764\ufe0f") == text_key("fine")
    assert text_key("\u2764\ufe0f") != text_key("\u2600\ufe0f")


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_lone_carriage_return_survives_a_table(tmp_path, suffix):
    texts = ["one\rtwo", "three\nfour", 'five, "six"\t', "seven"]
    predictions = [("good", {"good": 0.75, "bad": 0.25})] * len(texts)
    frame = pd.DataFrame({"text": texts, "count": [1, None, 3, 4]})
    write_predictions(tmp_path / f"p{suffix}", frame, predictions)
    frame = pd.read_csv(tmp_path / f"p{suffix}", sep="\t" if suffix == ".tsv" else ",")
    assert frame["text"].tolist() == texts
    assert frame["count"].isna().tolist() == [False, True, False, False]
    assert frame["probability_good"].tolist() == [0.75] * 4


def test_the_first_of_equal_texts_is_kept_with_its_label():
    examples = [
        Example("b", 0),
        Example("A fine film.", 1),
        Example("a FINE film", 0),
        Example("B!", 1),
        Example("c", 1),
    ]
    assert Counter(unique(examples)) == Counter([examples[0], examples[1], examples[4]])
    by_label = unique(examples, key=lambda example: example.label)
    assert Counter(by_label) == Counter(examples[:2])
    assert unique(examples[1:2] + examples[3:]) == examples[1:2] + examples[3:]


def test_texts_of_symbols_only_are_different_texts(tmp_path):
    symbols = ["!!!", "???", "🙂", "🙁", "🙂🙂", "...", "♥", "-"]
    keys = [text_key(text) for text in symbols]
    assert len({*keys, text_key("a"), text_key("1")}) == len(symbols) + 2
    assert "" not in keys
    assert text_key(" !!!\n") == text_key("!!!")
    assert text_key("No. 1, Straße!") == text_key("no 1 STRASSE") != text_key("no 2 strasse")

    rows = [f'"{text}",{"ab"[i % 2]}' for i, text in enumerate([*symbols, " 🙂 "])]
    (tmp_path / "symbols.csv").write_text("text,label\n" + "\n".join(rows), encoding="utf-8")
    assert set().union(*parts(load_data(tmp_path / "symbols.csv"))) == set(symbols)
    kept = without_texts_of([Example(t, 0) for t in symbols], [Example("🙂 ", 1), Example("x", 1)])
    assert [example.text for example in kept] == [text for text in symbols if text != "🙂"]


def test_texts_are_taken_out_of_every_part(review_data):
    texts = [part[1].text for part in (review_data.train, review_data.demonstrations)]
    texts.append(review_data.test[1].text)
    fewer = review_data.without({text_key(text.upper()) for text in texts})
    for part in ("train", "demonstrations", "test"):
        whole = getattr(review_data, part)
        assert getattr(fewer, part) == (whole[0], *whole[2:])


def test_pools_of_exactly_the_size_that_prompts_need(review_data):
    few = replace(
        review_data, train=review_data.train[:6], demonstrations=review_data.demonstrations[:4]
    )
    few.check(4, queries=2)
    few.check(4)
    with pytest.raises(AbftError, match="has 6 examples, k = 4 .* 3 queries need 7.*--queries 1"):
        few.check(4, queries=3)
    with pytest.raises(AbftError, match="has 4 examples, k = 5 needs at least 5"):
        few.check(5)
    with pytest.raises(AbftError, match="no test examples"):
        replace(few, test=()).check(4)
    same = tuple(example for example in review_data.train if example.label == 1)
    with pytest.raises(AbftError, match="has the same label"):
        replace(review_data, train=same).check(4)


def of_classes(*counts):
    return [Example(f"{c} {i}", c) for c, count in enumerate(counts) for i in range(count)]


@pytest.mark.parametrize(
    ("counts", "share", "quotas", "size"),
    [
        ((80, 20), 0.1, (8, 2), 10),
        ((50, 50), 0.02, (4, 4), 8),  # at least 8
        ((1500, 500), 0.25, (192, 64), 256),  # at most 256
        ((7, 7), 0.9, (4, 4), 7),  # at most half; halves are rounded, and one class loses a text
        ((78, 78), 0.1, (8, 8), 16),  # 15.6, rounded
        ((7, 6), 0.9, (3, 3), 6),
        ((13, 1, 1, 1), 0.5, (6, 0, 0, 0), 6),  # never the last text of a class
        ((44, 44, 10, 2), 0.1, (4, 4, 1, 1), 10),  # one of a class whose share is 0.2 texts
    ],
)
def test_the_same_share_of_every_class_is_held_out(counts, share, quotas, size):
    examples = of_classes(*counts)
    draws = []
    for seed in range(5):
        training, held_out = split_held_out(examples, share, random.Random(seed))
        assert Counter([*training, *held_out]) == Counter(examples)
        by_class = Counter(example.label for example in held_out)
        assert all(by_class[c] <= quota for c, quota in enumerate(quotas))
        assert len(held_out) == size
        draws.append(frozenset(held_out))
    assert len({*draws}) == 5


def test_demonstrations_go_through_classes_and_texts_in_turn():
    """Three classes and sets of four: every class comes 4 times in 3 sets, its texts in rounds."""
    examples = of_classes(2, 3, 8)
    firsts = set()
    for seed in range(10):
        sets = demonstration_sets(examples, 4, 6, random.Random(seed))
        assert [len(each) for each in sets] == [4] * 6
        for shown in sets:
            assert sorted(Counter(example.label for example in shown).values()) == [1, 1, 2]
        drawn = [example for each in sets for example in each]
        assert Counter(example.label for example in drawn) == {0: 8, 1: 8, 2: 8}

        # 2 texts four times each, 3 texts three times or twice, 8 texts once.
        times = Counter(drawn)
        assert sorted(times.values()) == [1] * 8 + [2, 3, 3] + [4, 4]
        firsts.add(max(Counter(example.label for example in sets[0]).items(), key=lambda i: i[1]))
    assert {label for label, _ in firsts} == {0, 1, 2}  # which class comes twice is shuffled

    # With sets of three, only the order inside of a set and that of the texts are left to chance.
    sets = demonstration_sets(examples, 3, 20, random.Random(0))
    assert {shown[-1].label for shown in sets} == {0, 1, 2}
    first_texts = {
        demonstration_sets([*of_classes(0, 0, 8), *of_classes(1)], 2, 1, random.Random(seed))[0][at]
        for seed in range(20)
        for at in (0, 1)
    }
    assert len(first_texts) > 5
