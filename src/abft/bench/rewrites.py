"""Other templates and other label words for a task: what the consistency and renaming scenarios
rewrite.
"""

from dataclasses import replace

from abft.data.tasks import Task, Template

# StaICC 0.1.1: two instructions and a third text prefix for each task, beside its own template.
_ALTERNATES: dict[str, tuple[str, str, str]] = {
    "SST2": (
        "How would you describe the overall feeling of the movie based on this sentence? ",
        "Please classify the sentiment of the following sentence. ",
        "review: ",
    ),
    "MR": (
        "How would you describe the overall feeling of the movie based on this sentence? ",
        "Please classify the sentiment of the following sentence. ",
        "sentence: ",
    ),
    "FP": (
        "What is the attitude towards the financial news in this sentence? ",
        "What is the emotional response to the financial news in this sentence? ",
        "news: ",
    ),
    "SST5": (
        "How would you describe the overall feeling of the movie based on this sentence? ",
        "What mood does this sentence convey about the movie? ",
        "review: ",
    ),
    "TREC": (
        "What is the topic of the question? ",
        "What is the primary focus of this question? ",
        "sentence: ",
    ),
    "AGNews": ("What is the topic of the news? ", "What is the news focused on? ", "sentence: "),
    "SUBJ": (
        "Does this sentence reflect a personal opinion? ",
        "Is this sentence expressing a personal opinion or stating a fact? ",
        "sentence: ",
    ),
    "TEE": (
        "What feeling does this sentence convey? ",
        "What emotion does this sentence express? ",
        "sentence: ",
    ),
    "TEH": (
        "Does this sentence contain hate speech? ",
        "Is this sentence an example of hate speech? ",
        "sentence: ",
    ),
    "HS18": (
        "Does this sentence contain hate speech? ",
        "Is this sentence an example of hate speech? ",
        "sentence: ",
    ),
}


_OWN_DATA = ("Please classify the following text. ", "Which label fits this text? ", "input: ")


# The L9(3^4) orthogonal table: instruction, text prefix, label prefix, what follows the label.
_L9 = (
    (0, 0, 0, 0),
    (0, 1, 1, 1),
    (0, 2, 2, 2),
    (1, 0, 1, 2),
    (1, 1, 2, 0),
    (1, 2, 0, 1),
    (2, 0, 2, 1),
    (2, 1, 0, 2),
    (2, 2, 1, 0),
)


_SYNONYMS: dict[str, tuple[str, ...]] = {
    "SST2": ("bad", "good"),
    "MR": ("bad", "good"),
    "FP": ("bad", "normal", "good"),
    "SST5": ("terrible", "negative", "average", "positive", "excellent"),
    "TREC": ("brief", "thing", "explanation", "human", "place", "quantity"),
    "AGNews": ("global", "games", "finance", "technology"),
    "SUBJ": ("factual", "personal"),
    "TEE": ("rage", "happiness", "hope", "sorrow"),
    "TEH": ("fine", "abuse"),
    "HS18": ("fine", "abuse", "ignore", "context"),
}


_ARBITRARY = (
    "foo",
    "bar",
    "table",
    "river",
    "window",
    "paper",
    "stone",
    "cloud",
    "garden",
    "bottle",
    "street",
    "engine",
)


def alternate_templates(task: Task) -> list[Task]:
    """StaICC's nine templates of a task (an L9 table over instruction, text prefix, label prefix
    and separator).
    """
    first, second, third_prefix = _ALTERNATES.get(task.name, _OWN_DATA)
    template = task.template
    instructions = (template.instruction, first, second)
    prefixes = (template.before_text, "text: ", third_prefix)
    own_label_prefix = template.before_label.lstrip(" ")
    gap = template.before_label[: len(template.before_label) - len(own_label_prefix)]
    label_prefixes = (own_label_prefix, "label: ", "Label: ")
    separators = (template.after_label, " ", "\t")
    return [
        replace(
            task,
            template=Template(
                f"{prefixes[p]}{{text}}{gap}{label_prefixes[q]}{{label}}{separators[s]}",
                instructions[i],
            ),
        )
        for i, p, q, s in _L9
    ]


def renamed(task: Task) -> dict[str, Task]:
    """The task with other label words: synonyms (built-in tasks), the same words swapped, words
    without meaning here.
    """
    words = task.label_words
    choices = {
        "synonyms": _SYNONYMS.get(task.name),
        "swapped": (*words[1:], words[0]),
        "arbitrary": _ARBITRARY[: len(words)] if len(words) <= len(_ARBITRARY) else None,
    }
    return {
        name: replace(task, label_words=chosen)
        for name, chosen in choices.items()
        if chosen is not None
    }
