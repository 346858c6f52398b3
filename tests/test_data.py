import contextlib
import io
from pathlib import Path

import datasets
import pandas as pd
import pytest

from abft.cli.predictions import write_predictions
from abft.data.builtin import TASKS, load_task
from abft.data.datasets import labelled_splits, load_data, read_table, texts_of
from abft.data.splits import lcg_indices, text_key
from abft.errors import AbftError


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
        from StaICC.util import dataset_interface, hgf_dataset_loader

    loader = getattr(hgf_dataset_loader, abft.data.builtin.BUILTIN[name].loader)()
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
    assert labelled_splits(splits) == [train, validation]
    assert labelled_splits(datasets.DatasetDict({"train": train, "test": hidden})) == [train]
    with pytest.raises(AbftError, match="4 rows have an empty label"):
        load_data(hidden)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("", "is empty"),
        ("text,label\n", "no rows"),
        ("text,other\na,b\n", "no column 'label'; its columns are text, other"),
        ("text,label\na,x\nb,x\n", "one label only"),
        ("text,label\na,x\n,y\nc,x\n", "1 rows have an empty text .first: row 2"),
        ("text,label\na,x\nb,\n", "1 rows have an empty label"),
    ],
)
def test_bad_files(tmp_path, content, message):
    path = tmp_path / "bad.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(AbftError, match=message):
        load_data(path)


def test_broken_and_unknown_files(tmp_path):
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"no parquet at all")
    with pytest.raises(AbftError, match="could not be read as parquet"):
        load_data(broken)
    other = tmp_path / "data.xlsx"
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


@pytest.mark.parametrize("name", ["scored.csv", "scored.parquet"])
def test_labelled_tables_keep_whole_numbers_with_gaps(name, tmp_path):
    table = datasets.Dataset.from_dict({"id": [9007199254740993, None], "text": ["good", "bad"]})
    write_predictions(tmp_path / name, table["text"], [("x", {"x": 1.0})] * 2, table)
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
    table = datasets.Dataset.from_dict({"text": texts, "count": [1, None, 3, 4]})
    write_predictions(tmp_path / f"p{suffix}", texts, predictions, table)
    frame = pd.read_csv(tmp_path / f"p{suffix}", sep="\t" if suffix == ".tsv" else ",")
    assert frame["text"].tolist() == texts
    assert frame["count"].isna().tolist() == [False, True, False, False]
    assert frame["probability_good"].tolist() == [0.75] * 4
