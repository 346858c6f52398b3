"""Other templates and label words for a task, for the consistency and renaming scenarios."""

from dataclasses import replace

from abft.data.builtin import BUILTIN
from abft.data.tasks import Task, Template

_OWN_INSTRUCTIONS = ("Please classify the following text. ", "Which label fits this text? ")

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
    """Return StaICC's nine templates of a task.

    An L9 table over instruction, text prefix, label prefix and separator.
    """
    record = BUILTIN.get(task.name)
    first, second = record.instructions if record else _OWN_INSTRUCTIONS
    third_prefix = f"{record.other_text_name if record else 'input'}: "
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
    """Return the task with other label words, by the kind of renaming.

    Synonyms (built-in tasks), the same words swapped, words without meaning here.
    """
    words, record = task.label_words, BUILTIN.get(task.name)
    choices = {
        "synonyms": tuple(record.synonyms.split()) if record else None,
        "swapped": (*words[1:], words[0]),
        "arbitrary": _ARBITRARY[: len(words)] if len(words) <= len(_ARBITRARY) else None,
    }
    return {
        name: replace(task, label_words=chosen)
        for name, chosen in choices.items()
        if chosen is not None
    }
