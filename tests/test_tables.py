"""Files as people have them: encodings, separators, compressed, Excel, JSON, Parquet and lines."""

import bz2
import gzip
import json
import lzma

import datasets
import pandas
import pytest

from abft.data.datasets import load_data
from abft.data.tables import READERS, decoded, guess_encoding, open_table
from abft.errors import AbftError

ROWS = [
    ("El niño español comió mañana, en la peña", "bueno"),
    ("¡Qué película más mala! ¿Por qué?", "malo"),
    ('Dice "nada"; y punto', "malo"),
    ("Le café, très agréable", "bueno"),
]


def lines(separator, rows=ROWS):
    """A CSV file's text, every cell that needs it in quotes."""

    def cell(text):
        quoted = text.replace('"', '""')
        return f'"{quoted}"' if any(c in text for c in (separator, '"', "\n")) else text

    return "".join(f"{separator.join(map(cell, row))}\n" for row in [("text", "label"), *rows])


def read(path):
    frame = open_table(path, tuple(READERS)).read()
    return list(zip(frame["text"], frame["label"], strict=True))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252", "latin-1"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_encodings_and_separators_of_csv(tmp_path, encoding, separator):
    path = tmp_path / "reviews.csv"
    path.write_bytes(lines(separator).encode(encoding))
    file = open_table(path)
    assert file.columns == ("text", "label")
    assert read(path) == ROWS
    assert (file.assumed is None) == (encoding in ("utf-8", "utf-8-sig") and separator == ",")


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1250", "To był świetny film, żółte łódki. Zła obsługa i długie czekanie w kolejce"),
        ("cp1251", "Отличный фильм, всем советую. Ужасное обслуживание и долго"),
        ("koi8_r", "Отличный фильм, всем советую. Ужасное обслуживание и долго"),
        ("cp1253", "Πολύ καλή ταινία και ωραία μουσική. Κακή εξυπηρέτηση"),
        ("cp1254", "Çok güzel bir film, şiddetle öneririm ığdır. Kötü hizmet, geç geldi ağır"),
        (
            "cp932",
            "素晴らしい映画でした、また見たいと思います。ひどいサービスでした、もう行きません",
        ),
        ("gb18030", "这部电影非常好看，我们都很喜欢。服务太差了，再也不来"),
        ("cp949", "정말 좋은 영화였습니다. 서비스가 나빴다"),
    ],
)
def test_encodings_of_other_alphabets(tmp_path, encoding, text):
    path = tmp_path / "texts.tsv"
    # The first megabyte is plain ASCII.
    plain = "plain words in a row\tx\n" * 60_000
    path.write_bytes(f"text\tlabel\n{plain}{text}\ty\n".encode(encoding))
    assert read(path)[-1] == (text, "y")
    assert decoded(text.encode(encoding)) == text
    assert decoded(text.encode()) == text


def test_text_without_any_likely_encoding_is_read_all_the_same():
    assert guess_encoding(b"\x81\x8d\xff\xfe\x00") in ("cp1252", "gb18030", "cp932")


@pytest.mark.parametrize(
    ("ending", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)]
)
def test_compressed_text_files(tmp_path, ending, compress):
    path = tmp_path / f"reviews.csv.{ending}"
    path.write_bytes(compress(lines(";").encode("cp1252")))
    assert read(path) == ROWS
    assert load_data(path).task.name == "reviews"
    rows = tmp_path / f"reviews.jsonl.{ending}"
    text = "\n\n".join(json.dumps({"text": t, "label": label}) for t, label in ROWS)
    rows.write_bytes(compress(text.encode()))
    assert read(rows) == ROWS


def test_json_of_every_shape(tmp_path):
    records = [{"text": text, "label": label} for text, label in ROWS]
    columns = {"text": [r["text"] for r in records], "label": [r["label"] for r in records]}
    for content in (
        json.dumps(records),
        json.dumps(columns),
        "\n".join(map(json.dumps, records)),
        json.dumps(records, indent=2, ensure_ascii=False),
    ):
        path = tmp_path / "rows.json"
        path.write_text(content, encoding="utf-8")
        assert read(path) == ROWS
        assert open_table(path).columns == ("text", "label")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"}\nno json\n', "line 2"),
        ("a.jsonl", "[1, 2]\n", "line 1: expected an object"),
        ("a.json", "[1, 2]", "expected a list of objects"),
        ("a.json", '{"text": ["a"], "label": []}', "different length"),
        ("a.csv", 'text,label\n"never closed,x\n', "could not be read as csv"),
        ("a.csv", "text,label\na,b,c\n", "more cells than the header"),
        ("a.csv", "text,label\na,b\na,b,c\n", "Expected 2 fields"),
        ("a.csv.gz", "no gzip", "could not be read as csv"),
        ("a.parquet.gz", "x", "compressed in itself"),
        ("a.xlsx", "x", "could not be read as excel"),
        ("a.csv.zip", "x", "expected a file ending in"),
        ("a", "x", "no ending"),
    ],
)
def test_broken_files_are_refused_in_a_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(AbftError, match=message) as refusal:
        open_table(path).read()
    assert "\n" not in str(refusal.value)


def test_json_rows_may_leave_columns_out(tmp_path):
    """Every chunk has the columns of the whole file, in one order."""
    path = tmp_path / "rows.jsonl"
    rows = [{"text": f"text {i}"} for i in range(9)]
    rows[1]["note"], rows[5]["label"], rows[8] = "x", "a", {"label": "b", "text": "text 8"}
    path.write_text("\n".join(map(json.dumps, rows)))
    file = open_table(path)
    assert file.columns == ("text", "note", "label")
    assert [tuple(chunk.columns) for chunk in file.chunks(3)] == [file.columns] * 3
    assert list(file.read()["label"]) == [None] * 5 + ["a", None, None, "b"]


def test_half_characters_of_json_are_replaced(tmp_path):
    path = tmp_path / "cut.jsonl"
    path.write_text('{"text": "cut \\ud83d", "n": 1}\n{"text": "whole \\ud83d\\ude00", "n": 2}\n')
    assert list(open_table(path).read()["text"]) == ["cut \ufffd", "whole \U0001f600"]


def test_plain_quotation_marks_in_files_with_tabs(tmp_path, capsys):
    """Texts that begin with a mark swallow no rows, and keep it."""
    path = tmp_path / "tweets.tsv"
    rows = [(f"text {i}", "ab"[i % 2]) for i in range(30)]
    rows[4], rows[20], rows[25] = ('"never closed', "a"), ('"Great" film', "b"), ('"so"', "a")
    path.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    assert read(path) == rows
    load_data(path)
    assert "quotation marks are part of the cells (detected)" in capsys.readouterr().err

    # Quoted cells of several lines, as spreadsheets write them.
    rows[4], rows[20], rows[25] = ('two\nlines, "so"', "a"), ('"Great" film', "b"), ("so", "a")
    path.write_text(lines("\t", rows))
    assert read(path) == rows

    # Both: rows would be lost.
    path.write_text('text\tlabel\n"two\nlines"\ta\n"open\tb\nmore\ta\n"close\tb\n')
    with pytest.raises(AbftError, match="the row that ends in line 6 has a cell that begins"):
        open_table(path).read()

    # Cells of several lines with tabs are fine; so is a header in quotes.
    code = [("def f():\n\treturn 1", "a"), ("x", "b")]
    path.write_text('text\tlabel\n"def f():\n\treturn 1"\ta\nx\tb\n')
    assert read(path) == code
    path.write_text('"text"\t"label"\n"He said \\"hi\\""\t"a"\n"so"\t"b"\n')
    assert [label for _, label in read(path)] == ["a", "b"]


def test_a_damaged_byte_does_not_change_the_encoding(tmp_path):
    path = tmp_path / "reviews.csv"
    content = lines(",", ROWS * 5).encode()
    cut = content.replace("mañana".encode(), "ma\xc3ana".encode("latin-1"), 1)
    path.write_bytes(cut)
    file = open_table(path)
    assert "bytes that are not" in file.assumed
    read_rows = read(path)
    assert read_rows[0][0] == ROWS[0][0].replace("mañana", "ma\ufffdana")
    assert read_rows[1:] == (ROWS * 5)[1:]


def test_blank_lines_of_one_column_are_rows(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("\n\ntext\ngood\n\nbad\n")
    assert list(open_table(path).read()["text"]) == ["good", "", "bad"]
    path.write_text("\ntext,label\ngood,a\n\nbad,b\n")
    assert read(path) == [("good", "a"), ("bad", "b")]


def test_columns_named_by_numbers_and_indices_are_kept(tmp_path):
    frame = pandas.DataFrame({"text": ["a", "b", "c"], 2024: ["x", "y", "z"], "id": [7, 3, 5]})
    frame.to_excel(tmp_path / "years.xlsx", index=False)
    assert list(open_table(tmp_path / "years.xlsx").read()["2024"]) == ["x", "y", "z"]
    frame.columns = frame.columns.map(str)
    for name, indexed in (("id", frame.set_index("id")), ("none", frame[::-1])):
        path = tmp_path / f"{name}.parquet"
        indexed.to_parquet(path)
        table = open_table(path)
        assert set(table.columns) == {"text", "2024", "id"}
        assert list(table.read().columns) == list(table.columns)
        assert sorted(table.read()["id"]) == [3, 5, 7]


def test_cells_that_are_no_plain_values(tmp_path):
    path = tmp_path / "rows.parquet"
    rows = [(f"good {i} é".encode(), b"ab"[i % 2 : i % 2 + 1]) for i in range(20)]
    pandas.DataFrame(rows, columns=["text", "label"]).to_parquet(path)
    data = load_data(path)
    assert data.task.labels == ("a", "b")
    assert "good 3 é" in {
        e.text for part in (data.train, data.demonstrations, data.test) for e in part
    }
    pandas.DataFrame({"text": ["a", "b"], "label": [["x"], ["y", "z"]]}).to_parquet(path)
    with pytest.raises(AbftError, match="column 'label' holds a"):
        load_data(path)


def test_excel_and_parquet(tmp_path):
    frame = pandas.DataFrame(ROWS, columns=["text", "label"])
    frame.to_excel(tmp_path / "reviews.xlsx", index=False)
    frame.to_parquet(tmp_path / "reviews.parquet", index=False)
    for name in ("reviews.xlsx", "reviews.parquet"):
        assert open_table(tmp_path / name).columns == ("text", "label")
        assert read(tmp_path / name) == ROWS


def test_classes_that_the_datasets_library_wrote_keep_their_names(tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = {"text": ["a", "b", "c"], "label": [1, 0, -1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "d.parquet")
    assert read(tmp_path / "d.parquet") == [("a", "yes"), ("b", "no"), ("c", None)]


def test_plain_lines_are_texts(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_bytes("uno, dos\r\n\r\nmañana".encode("cp1252"))
    frame = open_table(path, (".txt",)).read()
    assert list(frame["text"]) == ["uno, dos", "", "mañana"]
    with pytest.raises(AbftError, match="expected a file ending in"):
        open_table(path)


@pytest.mark.parametrize("name", ["d.csv", "d.jsonl", "d.json", "d.parquet", "d.xlsx", "d.txt"])
def test_chunks_hold_all_rows_once(tmp_path, name):
    path = tmp_path / name
    texts = [f"text {i}" for i in range(13)]
    frame = pandas.DataFrame({"text": texts, "number": range(13)})
    {
        "d.csv": lambda: frame.to_csv(path, index=False),
        "d.jsonl": lambda: frame.to_json(path, orient="records", lines=True),
        "d.json": lambda: frame.to_json(path, orient="records"),
        "d.parquet": lambda: frame.to_parquet(path),
        "d.xlsx": lambda: frame.to_excel(path, index=False),
        "d.txt": lambda: path.write_text("\n".join(texts)),
    }[name]()
    chunks = list(open_table(path, tuple(READERS)).chunks(4))
    assert [len(chunk) for chunk in chunks] == [4, 4, 4, 1]
    assert [text for chunk in chunks for text in chunk["text"]] == texts


def test_empty_rows_are_skipped_with_their_numbers_or_refused(tmp_path, capsys):
    rows = [(f"text {i}", "ab"[i % 2]) for i in range(40)]
    rows[3], rows[16], rows[30], rows[31] = ("", "a"), ("x", ""), ("  ", "b"), ("", "")
    path = tmp_path / "gaps.csv"
    path.write_text(lines(";", rows), encoding="cp1252")
    data = load_data(path)
    assert data.origin.rows == 40
    assert data.origin.skipped == 4
    assert sum(map(len, (data.train, data.demonstrations, data.test))) == 36
    said = capsys.readouterr().err
    assert "4 of 40 rows have an empty text or label (row 4, 17, 31, ...); skipped" in said
    assert "columns separated by ';' (detected)" in said
    with pytest.raises(AbftError, match="4 of 40 rows"):
        load_data(path, strict=True)


def test_duplicates_are_counted(tmp_path):
    path = tmp_path / "twice.csv"
    path.write_text(lines(",", [(f"Text {i % 20}", "ab"[i % 2]) for i in range(30)]))
    assert load_data(path).origin.duplicates == 10
