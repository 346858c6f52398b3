import pytest

from abft.data.builtin import TASKS, task_named
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
