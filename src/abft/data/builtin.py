"""Define the ten built-in tasks: a record each, the paper's label words, StaICC's data and splits.

Labels and templates are those of the paper (arXiv 2505.14233) and of StaICC 0.1.1; the order of the
classes is StaICC's.
"""

import functools
from dataclasses import dataclass, field

from abft.data.splits import (
    DEMONSTRATION_POOL,
    TEST_QUERIES,
    TRAIN_POOL,
    TaskData,
    lcg_indices,
    unique,
    without_texts_of,
)
from abft.data.staicc import read_table
from abft.data.tasks import Example, PromptStyle, Task, Template
from abft.errors import AbftError


@dataclass(frozen=True)
class BuiltinTask:
    """Holds everything about a built-in task."""

    name: str
    text_name: str  # before the text in a prompt
    label_name: str  # before the label in a prompt
    words: str  # label words, class by class
    table: str  # name of StaICC's file
    instructions: tuple[str, str]  # StaICC's two alternates, for the consistency scenario
    other_text_name: str  # StaICC's alternate
    synonyms: str  # other label words of the same meaning, class by class
    demonstrations: int = DEMONSTRATION_POOL  # size of StaICC's demonstration pool
    staicc_words: dict[str, str] = field(default_factory=dict)  # where StaICC's code differs
    family: str = "sentiment"  # tasks that are alike; a held-out family is not trained on
    in_paper: bool = True  # one of the paper's eight tasks

    @property
    def task(self) -> Task:
        """Return the task as prompts of the `consistent` style write it."""
        # All ten tasks are written in the same way, but for two names.
        template = Template(f"{self.text_name}: {{text}} {self.label_name}: {{label}}\n")
        words = tuple(self.words.split())
        return Task(self.name, template, words, words)


# Instructions that several tasks share.
_MOVIE_FEELING = "How would you describe the overall feeling of the movie based on this sentence? "
_CLASSIFY = "Please classify the sentiment of the following sentence. "
_HATE = (
    "Does this sentence contain hate speech? ",
    "Is this sentence an example of hate speech? ",
)

BUILTIN: dict[str, BuiltinTask] = {
    record.name: record
    for record in (
        BuiltinTask(
            name="SST2",
            text_name="sentence",
            label_name="sentiment",
            words="negative positive",
            table="sst2",
            instructions=(_MOVIE_FEELING, _CLASSIFY),
            other_text_name="review",
            synonyms="bad good",
        ),
        BuiltinTask(
            name="MR",
            text_name="review",
            label_name="sentiment",
            words="negative positive",
            table="rotten_tomatoes",
            instructions=(_MOVIE_FEELING, _CLASSIFY),
            other_text_name="sentence",
            synonyms="bad good",
        ),
        BuiltinTask(
            name="FP",
            text_name="sentence",
            label_name="sentiment",
            words="negative neutral positive",
            table="financial_phrasebank",
            instructions=(
                "What is the attitude towards the financial news in this sentence? ",
                "What is the emotional response to the financial news in this sentence? ",
            ),
            other_text_name="news",
            synonyms="bad normal good",
            demonstrations=512,
        ),
        BuiltinTask(
            name="SST5",
            text_name="sentence",
            label_name="sentiment",
            words="poor bad neutral good great",
            table="sst5",
            instructions=(_MOVIE_FEELING, "What mood does this sentence convey about the movie? "),
            other_text_name="review",
            synonyms="terrible negative average positive excellent",
        ),
        BuiltinTask(
            name="TREC",
            text_name="question",
            label_name="target",
            words="short entity description person location number",
            table="trec",
            instructions=(
                "What is the topic of the question? ",
                "What is the primary focus of this question? ",
            ),
            other_text_name="sentence",
            synonyms="brief thing explanation human place quantity",
            family="questions",
        ),
        BuiltinTask(
            name="AGNews",
            text_name="news",
            label_name="topic",
            words="world sports business science",
            table="agnews",
            instructions=("What is the topic of the news? ", "What is the news focused on? "),
            other_text_name="sentence",
            synonyms="global games finance technology",
            in_paper=False,
            family="topics",
        ),
        BuiltinTask(
            name="SUBJ",
            text_name="review",
            label_name="subjectiveness",
            words="objective subjective",
            table="subjective",
            instructions=(
                "Does this sentence reflect a personal opinion? ",
                "Is this sentence expressing a personal opinion or stating a fact? ",
            ),
            other_text_name="sentence",
            synonyms="factual personal",
            staicc_words={"objective": "false", "subjective": "true"},
            family="questions",
        ),
        BuiltinTask(
            name="TEE",
            text_name="tweet",
            label_name="emotion",
            words="anger joy positive sad",
            table="tweet_eval_emotion",
            instructions=(
                "What feeling does this sentence convey? ",
                "What emotion does this sentence express? ",
            ),
            other_text_name="sentence",
            synonyms="rage happiness hope sorrow",
            demonstrations=3192,
            family="tweets",
        ),
        BuiltinTask(
            name="TEH",
            text_name="tweet",
            label_name="hate speech",
            words="normal hate",
            table="tweet_eval_hate",
            instructions=_HATE,
            other_text_name="sentence",
            synonyms="fine abuse",
            family="tweets",
        ),
        BuiltinTask(
            name="HS18",
            text_name="tweet",
            label_name="hate speech",
            words="normal hate skip relation",
            table="hate_speech_18",
            instructions=_HATE,
            other_text_name="sentence",
            synonyms="fine abuse ignore context",
            in_paper=False,
            family="tweets",
        ),
    )
}

TASKS: dict[str, Task] = {name: record.task for name, record in BUILTIN.items()}
PAPER_TASKS: tuple[str, ...] = tuple(name for name, record in BUILTIN.items() if record.in_paper)


def task_named(name: str, prompt_style: PromptStyle = "consistent") -> Task:
    """Return one of the ten built-in tasks, e.g. "SST2".

    Raises:
        AbftError: an unknown name; the message names the nearest task.
    """
    # Names are accepted in any case.
    records = {record.name.lower(): record for record in BUILTIN.values()}
    record = records.get(name.lower())
    if record is None:
        from difflib import get_close_matches  # only where something is refused

        matches = get_close_matches(name.lower(), records, n=1)
        hint = f"did you mean {records[matches[0]].name}? " if matches else ""
        raise AbftError(
            f"unknown task {name!r}: {hint}Known tasks: {', '.join(BUILTIN)}. "
            "For your own data use --data FILE."
        )

    task = TASKS[record.name]
    return task.with_words(record.staicc_words) if prompt_style == "staicc" else task


@functools.cache
def load_task(name: str, prompt_style: PromptStyle = "consistent") -> TaskData:
    """Load a built-in task with StaICC's splits.

    There are 1,024 training, 4,096 demonstration (FP 512, TEE 3,192) and 512 test examples. Some
    are dropped so that no text is in two parts, even with other case or punctuation: demonstrations
    that are test queries too (at most 1 in 100; not in the `staicc` prompt style, which keeps
    StaICC's own), and training examples that occur elsewhere or twice (at most 2 in 100).

    Raises:
        AbftError: unknown task, or the StaICC package is missing or of another version.
    """
    task = task_named(name, prompt_style)
    record = BUILTIN[task.name]
    rows = read_table(record.table)

    # StaICC draws all parts in one go, in this order.
    sizes = (TRAIN_POOL, record.demonstrations, TEST_QUERIES)
    (indices,) = lcg_indices(len(rows), [sum(sizes)])
    examples = [Example(*rows[i]) for i in indices]

    train, rest = examples[:TRAIN_POOL], examples[TRAIN_POOL:]
    demonstrations, test = rest[: record.demonstrations], rest[record.demonstrations :]

    # No text is in two parts. Test queries stay as they are, so that results can be compared.
    if prompt_style == "consistent":
        demonstrations = without_texts_of(demonstrations, test)
    train = without_texts_of(unique(train), rest)
    return TaskData(task, tuple(train), tuple(demonstrations), tuple(test))
