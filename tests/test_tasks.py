import hashlib
import importlib.util
import pickle

import pytest

from abft.data import staicc
from abft.data.builtin import BUILTIN, TASKS, task_named
from abft.data.tasks import Task, Template
from abft.errors import AbftError


def test_template_parts():
    template = Template("review: {text} sentiment: {label}\n")
    assert (template.before_text, template.before_label, template.after_label) == (
        "review: ",
        " sentiment: ",
        "\n",
    )


@pytest.mark.parametrize(
    "pattern", ["{label} {text}\n", "{text} only", "{text} {text} {label}\n", "{text} {label}"]
)
def test_bad_templates(pattern):
    with pytest.raises(AbftError, match="template"):
        Template(pattern)


def test_a_query_ends_without_spaces_but_with_all_else():
    template = Template("{text}  ->\n {label}\n")
    assert template.after_query("staicc") == "  ->\n "
    assert template.after_query("consistent") == "  ->\n"
    assert Template("{text}\t{label}\n").after_query("consistent") == "\t"


def test_unknown_task_names_the_nearest():
    with pytest.raises(AbftError, match="did you mean SST2"):
        task_named("sst-2")
    assert task_named("trec") is TASKS["TREC"]


def test_staicc_protocol_uses_staicc_words():
    assert task_named("SUBJ").label_words == ("objective", "subjective")
    assert task_named("SUBJ", "staicc").label_words == ("false", "true")


def test_label_words():
    task = TASKS["SST2"].with_words({"negative": "bad"})
    assert task.label_words == ("bad", "positive")
    numbered = Task("t", task.template, ("0", "1"), ("no", "yes"))
    assert numbered.with_words({"1": "maybe"}).label_words == ("no", "maybe")
    with pytest.raises(AbftError, match="2 labels but 3 label words"):
        Task("t", task.template, ("0", "1"), ("no", "yes", "maybe"))
    with pytest.raises(AbftError, match="empty or padded"):
        task.with_words({"negative": ""})
    with pytest.raises(AbftError, match="unknown labels"):
        task.with_words({"neutral": "meh"})
    with pytest.raises(AbftError, match="share a label word"):
        task.with_words({"negative": "positive"})
    with pytest.raises(AbftError, match="at least 2"):
        Task("t", task.template, ("one",), ("one",))
    with pytest.raises(AbftError, match="empty or padded"):
        task.with_words({"negative": " bad"})


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("ABFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("record", BUILTIN.values(), ids=lambda record: record.name)
def test_tables_are_unpickled_once_and_equal_staiccs(record, cache, monkeypatch):
    path = staicc._staicc_file(record.table)
    expected = [(text, label) for (text,), label in pickle.loads(path.read_bytes())]
    assert staicc.read_table(record.table) == expected

    def refuse(*arguments):
        raise AssertionError("unpickled again")

    monkeypatch.setattr(staicc, "_unpickle", refuse)
    assert staicc.read_table(record.table) == expected


def test_a_damaged_copy_of_a_table_is_made_again(cache):
    expected = staicc.read_table("trec")
    (copy,) = cache.rglob("*.json")
    content = copy.read_bytes()
    for damaged in (content[:-10], content.replace(b"What", b"Whom", 1), b"", b"\xff\n[]"):
        copy.write_bytes(damaged)
        assert staicc.read_table("trec") == expected
        assert copy.read_bytes() == content


def test_tables_without_a_cache(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ABFT_CACHE", str(tmp_path / "file"))
    assert len(staicc.read_table("trec")) == 5952


class _Code:
    """A pickle of it creates a file when it is read."""

    def __reduce__(self):
        return open, ("ran", "w")


def test_no_pickle_runs_code(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickled = tmp_path / "trec.dataset"
    pickled.write_bytes(pickle.dumps([(["text"], _Code())]))
    monkeypatch.setattr(staicc, "_staicc_file", lambda name: pickled)
    with pytest.raises(AbftError, match=r"not that of StaICC 0\.1\.1; .* could run code"):
        staicc.read_table("trec")

    # Not even one of the known digest.
    digest = hashlib.sha256(pickled.read_bytes()).hexdigest()
    with pytest.raises(pickle.UnpicklingError, match=r"it names io\.open"):
        staicc._unpickle(pickled, digest)
    assert not (tmp_path / "ran").exists()


def test_a_task_without_its_data(cache, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AbftError, match=r"pip install 'abft\[staicc\]'"):
        staicc.read_table("trec")
