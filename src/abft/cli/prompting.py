"""`abft prompt`: what to send to an engine that knows nothing of abft."""

import json
from pathlib import Path
from typing import Annotated

import typer

from abft.cli.options import Json, Run, RunArgument, chosen_run
from abft.cli.quiet import quiet
from abft.data.tasks import Example, Task
from abft.errors import AbftError
from abft.method.settings import DATA


def prompt(
    text: Annotated[list[str], typer.Option(help="A text; repeat.", rich_help_panel=DATA)],
    argument: RunArgument = None,
    run: Run = None,
    as_json: Json = False,
) -> None:
    """Print the prompt of a text, as `abft predict` reads it, without loading a model.

    It ends where the label begins; --json adds the labels as they would follow it, including the
    next line feed where one label begins with another (1 and 10). Long texts are not cut.

    **Examples**

    `abft prompt runs/sst2 --text "a film to remember"`

    `abft prompt merged --text "a film to remember" --json` (a folder of `abft merge`)
    """
    from abft.data.prompts import write_prompt
    from abft.runs.run_folder import check_predictable, read_task

    if not all(map(str.strip, text)):
        raise AbftError("an empty --text")
    folder: Path = chosen_run(argument, run)
    check_predictable(folder)
    task, demonstrations, style = read_task(folder)

    labels: dict[str, str] = {}
    if as_json:
        if style != "consistent":
            raise AbftError(
                f"--json: the run's prompt style is {style!r}, which scores only the last token of "
                "a bare label word; other engines cannot do the same with the labels' texts"
            )
        labels = dict(zip(task.labels, _label_texts(folder, task), strict=True))
    for each in text:
        written = write_prompt(task, demonstrations, Example(each, 0), style).text
        record = {"prompt": written, "labels": labels}
        print(json.dumps(record, ensure_ascii=False) if as_json else written)


def _label_texts(folder: Path, task: Task) -> list[str]:
    """Return what follows a prompt for each label."""
    words = task.label_words
    if not any(a != b and b.startswith(a) for a in words for b in words):
        # A query ends without the space before its label, which belongs to the label's first token.
        space = " " if task.template.before_label.endswith(" ") else ""
        return [space + word for word in words]

    # Where one label begins with another, tokens decide how far to read.
    quiet()
    from abft.data.encoding import label_texts
    from abft.model.loading import load_tokenizer
    from abft.runs.run_folder import is_merged, read_config

    if is_merged(folder):
        return label_texts(load_tokenizer(str(folder)), task)
    config = read_config(folder)
    return label_texts(load_tokenizer(config.model, config.revision), task)
