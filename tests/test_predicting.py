"""`abft predict` on files as people have them: streamed, resumed, with gaps, of merged runs."""

import contextlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas
import pytest

import abft.cli.labelling as labelling
import abft.cli.predicting as predicting
import abft.runs.predict_on_ray
from abft.errors import AbftError, RunInterrupted
from abft.runs.prediction_files import Parts
from abft.runs.predictor import Predictor
from abft.runs.run_folder import max_text_tokens_of, text_column_of
from command_line import invoke, refused

TEXTS = [f"{word} and {other}, text {i}" for i, (word, other) in enumerate([("great", "joy")] * 11)]
TEXTS[4] = "bad and sad"


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(labelling, "CHUNK_ROWS", 4)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "new.parquet"
    pandas.DataFrame({"number": range(11), "review": TEXTS}).to_parquet(path)
    return path


def labels(finished, texts=TEXTS):
    return [label for label, _ in Predictor.from_run(finished).predict(texts)]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_chunks_join_to_what_one_chunk_gives(finished, source, tmp_path, ending, monkeypatch):
    out = [tmp_path / f"{name}.{ending}" for name in ("parts", "whole")]
    # One text at a time: batches of other sizes round differently.
    command = ("predict", finished, "--data", source, "--batch-size", 1, "--output")
    assert invoke(*command, out[0]).exit_code == 0
    monkeypatch.setattr(labelling, "CHUNK_ROWS", 100)
    assert invoke(*command, out[1]).exit_code == 0
    if ending == "parquet":
        pandas.testing.assert_frame_equal(*map(pandas.read_parquet, out))
        assert list(pandas.read_parquet(out[0])["number"]) == list(range(11))
    else:
        assert out[0].read_bytes() == out[1].read_bytes()
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.usefixtures("small_chunks")
def test_an_interrupted_command_goes_on(finished, source, tmp_path, monkeypatch):
    out, calls = tmp_path / "scored.csv", []
    real = Predictor.predict

    def predict(self, texts, batch_size=16):
        calls.append(list(texts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, texts, batch_size)

    monkeypatch.setattr(Predictor, "predict", predict)
    command = ("predict", "--run", finished, "--data", source, "--output", out)
    stopped = invoke(*command)
    assert isinstance(stopped.exception, RunInterrupted)
    assert "8 rows are kept" in str(stopped.exception)
    assert not out.exists()

    # Another job may not take its parts.
    other = tmp_path / "other.parquet"
    pandas.DataFrame({"review": TEXTS[:3]}).to_parquet(other)
    assert "another job" in refused(*command[:4], other, "--output", out)

    result = invoke(*command)
    assert result.exit_code == 0, result.output
    assert "going on, 8 rows were labelled before" in result.stderr
    assert calls[3:] == [TEXTS[8:]]
    assert list(pandas.read_csv(out)["predicted_label"]) == labels(finished)


@pytest.mark.usefixtures("small_chunks")
def test_parts_may_have_gaps_but_belong_to_one_job(finished, source, tmp_path, monkeypatch):
    """As Ray's workers leave them when they are stopped; and the run may be another by now."""
    out, whole = tmp_path / "scored.csv", tmp_path / "whole.csv"
    command = ("predict", finished, "--data", source, "--batch-size", 1, "--output")
    assert invoke(*command, whole).exit_code == 0
    with monkeypatch.context() as patched:
        patched.setattr(Parts, "join", lambda parts: None)
        assert invoke(*command, out).exit_code == 0
    (tmp_path / "scored.csv.parts" / "000001.csv").unlink()
    before = (finished / "metrics.json").stat()
    os.utime(finished / "metrics.json")
    assert "another job" in refused(*command, out)
    os.utime(finished / "metrics.json", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert invoke(*command, out).exit_code == 0
    assert out.read_bytes() == whole.read_bytes()


def test_texts_of_stdin_are_a_job(finished, tmp_path, monkeypatch):
    out = tmp_path / "scored.csv"
    with monkeypatch.context() as patched:
        patched.setattr(Parts, "join", lambda parts: None)
        assert invoke("predict", finished, "--text", "great", "--output", out).exit_code == 0
    assert "another job" in refused("predict", finished, "--text", "bad", "--output", out)
    assert invoke("predict", finished, "--text", "great", "--output", out).exit_code == 0


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_rows_of_unequal_columns_and_types(finished, tmp_path, ending):
    """Columns that some rows lack or that hold several types; names as those of predictions."""
    path, out = tmp_path / "rows.jsonl", tmp_path / f"out.{ending}"
    rows = [{"review": text, "id": i} for i, text in enumerate(TEXTS)]
    rows[1]["note"], rows[6]["id"], rows[9]["probability_of_rain"] = "x", "six", 0.9
    rows[2]["tags"], rows[7]["tags"], rows[8]["tags"] = ["a"], {}, 2**70
    path.write_text("\n".join(map(json.dumps, rows)))
    result = invoke("predict", finished, "--data", path, "--batch-size", 1, "--output", out)
    assert result.exit_code == 0, result.output
    if ending == "jsonl":
        written = [json.loads(line) for line in out.read_text().splitlines()]
        assert [row["label"] for row in written] == labels(finished)
        assert {tuple(row["probabilities"]) for row in written} == {("negative", "positive")}
        return
    frame = pandas.read_csv(out) if ending == "csv" else pandas.read_parquet(out)
    assert list(frame.columns[:4]) == ["review", "id", "note", "tags"]
    assert list(frame["predicted_label"]) == labels(finished)
    if ending == "parquet":
        assert list(frame["tags"].dropna()) == ['["a"]', "{}", str(2**70)]
    assert list(frame["id"]) == ["0", "1", "2", "3", "4", "5", "six", "7", "8", "9", "10"]


def test_files_without_a_text(finished, tmp_path):
    path, out = tmp_path / "none.csv", tmp_path / "out.csv"
    command = ("predict", finished, "--data", path, "--output", out)
    path.write_text("review,id\n")
    assert "no rows" in refused(*command)
    path.write_text("review,id\n,1\n,2\n")
    assert "all 2 rows have an empty text" in refused(*command)
    assert not out.exists()


def test_rows_without_a_text_keep_their_place(finished, tmp_path):
    path, out = tmp_path / "gaps.csv", tmp_path / "out.csv"
    path.write_bytes("review;id\ngreat, and joy;1\n;2\ncafé bad;3\n".encode("latin-1"))
    result = invoke("predict", finished, "--data", path, "--output", out)
    assert result.exit_code == 0, result.output
    assert "1 of 3 rows have an empty text (row 2)" in result.stderr
    assert "encoding cp1252" in result.stderr
    frame = pandas.read_csv(out)
    assert list(frame["id"]) == [1, 2, 3]
    assert frame["predicted_label"].isna().tolist() == [False, True, False]
    assert frame["probability_positive"].isna().tolist() == [False, True, False]
    assert "1 of 3 rows" in refused("predict", finished, "--data", path, "--strict")

    rows = tmp_path / "out.jsonl"
    assert invoke("predict", finished, "--data", path, "--output", rows).exit_code == 0
    read = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    assert [row["label"] is None for row in read] == [False, True, False]
    assert read[2]["text"] == "café bad"


def test_plain_lines_and_long_texts(finished, tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("great and joy\n\n" + "bad " * 5000 + "\n")
    result = invoke("predict", finished, "--data", path, "--json")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(rows) == 2
    assert "1 texts are longer than the" in result.stderr
    assert "1 of 3 rows have an empty text (row 2)" in result.stderr


def test_stdin_of_any_encoding(finished, monkeypatch):
    content = "una película mañana\ngreat and joy\n"
    for encoding in ("utf-8", "latin-1"):
        stdin = io.TextIOWrapper(io.BytesIO(content.encode(encoding)))
        monkeypatch.setattr(sys, "stdin", stdin)
        assert predicting._stdin_lines() == content.splitlines()

    # As of a file of plain lines: blank lines keep their place, and only line ends part texts.
    stdin = io.TextIOWrapper(io.BytesIO("one\x85still one\u2028and\r\n\ntwo\n".encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert predicting._stdin_lines() == ["one\x85still one\u2028and", "", "two"]


@pytest.mark.parametrize("factor", [1, 2])
def test_a_merged_folder_predicts_with_the_runs_task(finished, tmp_path, factor):
    merged = tmp_path / "merged"
    assert invoke("merge", finished, merged, "--factor", factor).exit_code == 0
    result = invoke("predict", merged, "--text", "great and joy", "--json", "--device", "cpu")
    assert result.exit_code == 0, result.output
    shares = json.loads(result.stdout)["probabilities"]
    assert set(shares) == {"negative", "positive"}
    # How the run read its texts.
    assert max_text_tokens_of(merged) == max_text_tokens_of(finished)
    assert text_column_of(merged) == text_column_of(finished) == "review"
    if factor == 1:
        ((_, expected),) = Predictor.from_run(finished).predict(["great and joy"])
        assert shares == pytest.approx(expected, abs=1e-6)


def test_runs_are_named_in_both_ways_and_the_newest_is_the_default(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    os.symlink(finished, tmp_path / "runs" / "mine")
    text = ("--text", "great and joy")
    for given in ((finished,), ("--run", finished), ()):
        result = invoke("predict", *given, *text)
        assert result.exit_code == 0, result.output
        assert ("run: runs/mine (the newest)" in result.stderr) == (given == ())
    assert "got two runs" in refused("predict", finished, "--run", tmp_path, *text)
    assert invoke("merge", "out").exit_code == 0
    assert (tmp_path / "out" / "task.json").is_file()
    assert "got 3 folders" in refused("merge", "a", "b", "c")

    measured = invoke("eval", "--test-prompts", 4, "--json")
    assert json.loads(measured.stdout)["run"] == "runs/mine"
    model = json.loads((finished / "metrics.json").read_text())["model"]
    untouched = invoke(*("eval", "--model", model, "--task", "SST2", "--test-prompts", 4, "--json"))
    assert json.loads(untouched.stdout)["run"] is None


def test_parts_of_a_killed_command_are_not_taken_for_another(tmp_path):
    folder = tmp_path / "out.csv.parts"
    folder.mkdir()
    with pytest.raises(AbftError, match="another job"):
        Parts(tmp_path / "out.csv", {}, 4)


def test_a_merged_run_answers_the_same_without_abft(finished, review_data, tmp_path):
    """With stock transformers, from task.json alone, on 50 texts."""
    merged = tmp_path / "merged"
    assert invoke("merge", finished, merged).exit_code == 0
    texts = [example.text for example in (*review_data.train, *review_data.test)][:50]
    texts[0] = "braces {text} and {label}"
    assert len(texts) == 50
    expected = Predictor.from_run(finished).predict(texts)
    for (label, shares), theirs in zip(
        expected, without_abft().label_probabilities(merged, texts), strict=True
    ):
        assert theirs == pytest.approx(shares, abs=1e-5)
        assert max(theirs, key=theirs.get) == label


def without_abft():
    """The example script as a module."""
    spec = importlib.util.spec_from_file_location(
        "without_abft", Path(__file__).parent.parent / "examples" / "without_abft.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_labels_that_begin_with_others_without_abft(finished, tmp_path, bpe):
    """10 is not counted as 1, in the example and with the texts of `abft prompt`."""
    run, merged = tmp_path / "run", tmp_path / "merged"
    shutil.copytree(finished, run)
    record = json.loads((run / "task.json").read_text())
    record["task"]["label_words"] = ["1", "10"]
    (run / "task.json").write_text(json.dumps(record))
    assert invoke("merge", run, merged).exit_code == 0
    predictor = Predictor.from_run(run)
    ((_, shares),) = predictor.predict(["great and joy"])
    (theirs,) = without_abft().label_probabilities(merged, ["great and joy"])
    assert theirs == pytest.approx(shares, abs=1e-5)

    for folder in (run, merged):
        said = json.loads(invoke("prompt", folder, "--text", "great", "--json").stdout)
        assert said["labels"] == {"negative": " 1\n", "positive": " 10\n"}
    start = len(bpe(said["prompt"])["input_ids"])
    for text, tokens in zip(said["labels"].values(), predictor.label_tokens, strict=True):
        assert tuple(bpe(said["prompt"] + text)["input_ids"][start:]) == tokens

    record["prompt_style"] = "staicc"
    for folder in (run, merged):
        (folder / "task.json").write_text(json.dumps(record))
        assert "staicc" in refused("prompt", folder, "--text", "great", "--json")
    with pytest.raises(SystemExit, match="StaICC"):
        without_abft().label_probabilities(merged, ["great"])


def test_bytes_on_the_command_line_that_are_not_utf_8(finished):
    result = invoke("predict", finished, "--text", "caf\udce9 and joy")
    assert result.exit_code == 0, result.output
    assert "caf\ufffd and joy" in result.stdout


@pytest.mark.usefixtures("small_chunks")
def test_batch_calibration_counts_the_whole_file(finished, tmp_path):
    """Sorted by class, no chunk has the classes' frequencies; one row has no text."""
    texts = ["great and joy", "great", "good", "joy", "bad and sad", "bad", "poor", "sad"]
    texts = [f"{text}, number {i}" for i, text in enumerate(texts)] + ["poor"]
    predictor = Predictor.from_run(finished, calibrate="batch")
    expected = predictor.predict(texts)
    assert expected != Predictor.from_run(finished).predict(texts)

    source = tmp_path / "sorted.csv"
    pandas.DataFrame({"review": [*texts[:5], None, *texts[5:]]}).to_csv(source, index=False)
    command = ("predict", finished, "--data", source, "--calibrate", "batch")

    def check(rows):
        assert rows.pop(5)["label"] is None
        for row, (label, shares) in zip(rows, expected, strict=True):
            assert row["label"] == label
            assert row["probabilities"] == pytest.approx(shares, abs=1e-6)

    def lines(text):
        return [json.loads(line) for line in text.splitlines()]

    out, why = tmp_path / "out.jsonl", tmp_path / "why.jsonl"
    assert invoke(*command, "--output", out).exit_code == 0
    check(lines(out.read_text()))
    assert invoke(*command, "--explain", "--output", why).exit_code == 0
    check(lines(why.read_text()))
    shown = lines(invoke(*command, "--json").stdout)
    check([*shown[:5], {"label": None}, *shown[5:]])


@pytest.mark.usefixtures("small_chunks")
def test_batch_calibration_of_an_interrupted_command(finished, source, tmp_path, monkeypatch):
    out, whole = tmp_path / "out.csv", tmp_path / "whole.csv"
    command = ("predict", finished, "--data", source, "--calibrate", "batch", "--output")
    assert invoke(*command, whole).exit_code == 0

    # Killed while the calibrated parts are written.
    write, left = Parts.write, [4]

    def interrupted(parts, number, frame):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        write(parts, number, frame)

    monkeypatch.setattr(Parts, "write", interrupted)
    invoke(*command, out)
    assert not out.exists()
    monkeypatch.undo()
    monkeypatch.setattr(labelling, "CHUNK_ROWS", 4)
    assert invoke(*command, out).exit_code == 0
    assert out.read_text() == whole.read_text()


def test_the_prompt_to_send_elsewhere(finished):
    text = "great and joy"
    expected = Predictor.from_run(finished).prompt(text)
    printed = invoke("prompt", finished, "--text", text)
    assert printed.stdout == expected + "\n"
    assert expected.endswith(f"review: {text} sentiment:")
    record = json.loads(invoke("prompt", finished, "--text", text, "--json").stdout)
    assert record["prompt"] == expected
    assert record["labels"] == {"negative": " negative", "positive": " positive"}


def test_ray_gives_the_same_and_goes_on(finished, tmp_path, monkeypatch):
    """A real cluster of this machine; one chunk is there already, as after a kill."""
    pytest.importorskip("ray")
    monkeypatch.setattr(labelling, "CHUNK_ROWS", 4)
    source = tmp_path / "new.csv"
    rows = [f'"{text}",{i}' for i, text in enumerate(TEXTS)]
    rows[6] = ",6"
    source.write_text("review,number\n" + "\n".join(rows) + "\n")
    serial, parallel = tmp_path / "serial.csv", tmp_path / "ray.csv"
    shown = tmp_path / "shown.csv"  # workers get the demonstrations, not their file
    shown.write_text("review,label\ngreat,happy\nbad,unhappy\njoy,happy\n")
    command = ("predict", finished, "--demonstrations", shown, "--text-column", "review")
    command = (
        *command,
        "--readout",
        "attention",
        "--calibrate",
        "batch",
        "--data",
        source,
        "--batch-size",
        1,
        "--output",
    )
    assert invoke(*command, serial).exit_code == 0
    assert "probability_unhappy" in serial.read_text()

    join = Parts.join
    monkeypatch.setattr(Parts, "join", lambda parts: None)  # as if killed before
    assert invoke(*command, parallel, "--engine", "ray").exit_code == 0
    folder = tmp_path / "ray.csv.parts"
    # Calibration writes all parts again, but not the probabilities that they were made from.
    kept = [folder / f"00000{number}.npy" for number in range(2)]
    before = [part.stat().st_mtime_ns for part in kept]
    (folder / "000002.csv").unlink()

    def join_and_look(each):
        stamps.extend(part.stat().st_mtime_ns for part in kept)
        join(each)

    stamps = []
    monkeypatch.setattr(Parts, "join", join_and_look)
    result = invoke(*command, parallel, "--engine", "ray")
    assert result.exit_code == 0, result.output
    assert stamps == before
    assert "1 of 11" not in result.stderr  # row 7 is in a part that was there before
    assert parallel.read_text() == serial.read_text()


def test_devices_that_ray_does_not_have(finished, source, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setattr(
        abft.runs.predict_on_ray, "connected", lambda *_: contextlib.nullcontext({"CPU": 2.0})
    )
    command = ("predict", finished, "--data", source, "--output", tmp_path / "o.csv")
    command = (*command, "--engine", "ray", "--device")
    assert "Ray sees no GPU" in refused(*command, "cuda")
    assert "every worker has one GPU" in refused(*command, "balanced")


def test_options_of_ray_are_checked(finished, source, tmp_path):
    assert "expected one of serial, ray" in refused("predict", finished, "--engine", "dask")
    assert "goes with engine" in refused("predict", finished, "--ray-address", "a:1")
    assert "with --data and --output" in refused("predict", finished, "--engine", "ray")


def test_two_commands_do_not_write_the_same_file(finished, tmp_path):
    from filelock import FileLock

    (tmp_path / "new.csv").write_text("review\ngreat\nbad\n")
    command = ("predict", finished, "--data", tmp_path / "new.csv", "--text-column", "review")
    with FileLock(tmp_path / ".out.csv.lock"):
        said = refused(*command, "--output", tmp_path / "out.csv")
    assert "another process is writing" in said
    assert invoke(*command, "--output", tmp_path / "out.csv").exit_code == 0
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("predict", "--text", "x", "--json", "--output", "out.csv"), "--json is for the terminal"),
        (("predict", "--text", "x", "--cpus-per-worker", 2), "goes with engine = 'ray'"),
        (("prompt", "--text", "  "), "an empty --text"),
    ],
)
def test_options_without_an_effect_are_refused(finished, given, said):
    assert said in refused(given[0], finished, *given[1:])


@pytest.mark.parametrize("option", ["--data", "--run"])
def test_a_long_text_in_the_place_of_a_path(finished, option):
    """One line on stderr, and exit code 2; texts that the terminal cannot show are printed too."""
    command = [sys.executable, "-m", "abft", "predict", option, "text " * 100]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr

    command = [sys.executable, "-m", "abft", "prompt", str(finished), "--text", "gut 😀"]
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONIOENCODING"}
    utf8 = subprocess.run(command, capture_output=True, env={**plain, "LC_ALL": "C"}, check=True)
    assert "gut 😀" in utf8.stdout.decode("utf-8")
    environment = {**plain, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, capture_output=True, env=environment, check=True)
    assert b"gut \\ud83d\\ude00" in done.stdout
    done = subprocess.run([*command, "--json"], capture_output=True, env=environment, check=True)
    assert "gut 😀" in json.loads(done.stdout)["prompt"]
