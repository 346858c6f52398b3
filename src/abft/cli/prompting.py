"""`abft prompt`: what to send to an engine that knows nothing of abft."""

import json
from pathlib import Path
from typing import Annotated

import typer

from abft.cli.options import Json, Run, RunArgument, chosen_run
from abft.data.tasks import Example
from abft.errors import AbftError
from abft.method.settings import DATA


def prompt(
    text: Annotated[list[str], typer.Option(help="A text; repeat.", rich_help_panel=DATA)],
    argument: RunArgument = None,
    run: Run = None,
    as_json: Json = False,
) -> None:
    """Print the prompt of a text, as `abft predict` reads it, without loading a model.

    It ends where the label begins; --json adds the labels as they would follow it. Long texts are
    not cut.

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

    # A query ends without the space before its label, which belongs to the label's first token.
    space = " " if task.template.before_label.endswith(" ") and style == "consistent" else ""
    pairs = zip(task.labels, task.label_words, strict=True)
    labels = {label: space + word for label, word in pairs}
    for each in text:
        written = write_prompt(task, demonstrations, Example(each, 0), style).text
        record = {"prompt": written, "labels": labels}
        print(json.dumps(record, ensure_ascii=False) if as_json else written)
