"""Write a task with other templates or label words, for the consistency and renaming scenarios."""

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
    """Return a task with each of StaICC's nine templates.

    They are an L9 table over instruction, text prefix, label prefix and separator.
    """
    template = task.template

    # StaICC has no other instructions for own data.
    record = BUILTIN.get(task.name)
    first, second = record.instructions if record else _OWN_INSTRUCTIONS
    instructions = (template.instruction, first, second)
    third_prefix = f"{record.other_text_name if record else 'input'}: "
    prefixes = (template.before_text, "text: ", third_prefix)

    # The spaces or line ends between text and label prefix stay what they are.
    own_label_prefix = template.before_label.lstrip()
    gap = template.before_label[: len(template.before_label) - len(own_label_prefix)]
    label_prefixes = (own_label_prefix, "label: ", "Label: ")
    separators = (template.after_label, " ", "\t")

    tasks = []
    for i, p, q, s in _L9:
        pattern = f"{prefixes[p]}{{text}}{gap}{label_prefixes[q]}{{label}}{separators[s]}"
        tasks.append(replace(task, template=Template(pattern, instructions[i])))
    return tasks


def renamed(task: Task) -> dict[str, Task]:
    """Return the task with other label words, by the kind of renaming.

    Synonyms (built-in tasks), the same words swapped, words without meaning in the task.
    """
    words, record = task.label_words, BUILTIN.get(task.name)
    choices = {
        "synonyms": tuple(record.synonyms.split()) if record else None,
        "swapped": (*words[1:], words[0]),
        "arbitrary": _ARBITRARY[: len(words)] if len(words) <= len(_ARBITRARY) else None,
    }
    return {
        name: replace(task, label_words=label_words)
        for name, label_words in choices.items()
        if label_words is not None
    }
