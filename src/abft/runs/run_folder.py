"""The run folder: what stands in it, written at once or not at all.

config.yaml (re-runnable), task.json (task and demonstrations for prediction), log.jsonl (a line a
step), metrics.json (written last: its presence means the run is complete), the weights and a model
card.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml

from abft.data.tasks import Example, Protocol, Task, Template
from abft.errors import AbftError
from abft.files import MIB, refuse_full_disk, write_text
from abft.model.checkpoints import ADAPTER_FILE, BASE_FILE, FULL_RANK_FILE
from abft.runs.config import RunConfig, read_yaml, with_settings_of_its_time

CONFIG, TASK, LOG, METRICS, VANILLA = (
    "config.yaml",
    "task.json",
    "log.jsonl",
    "metrics.json",
    "vanilla.json",
)


def read_config(folder: str | Path) -> RunConfig:
    """The configuration of a run folder."""
    path = _config_path(folder)
    return RunConfig.from_dict(with_settings_of_its_time(read_yaml(path)), str(path))


def _config_path(folder: str | Path) -> Path:
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise AbftError(f"{folder} is no run folder: it has no {CONFIG}")
    return path


def task_record(
    task: Task, demonstrations: Sequence[Example], protocol: Protocol
) -> dict[str, Any]:
    """What prediction needs besides the weights, JSON-ready."""
    return {
        "task": asdict(task),
        "protocol": protocol,
        "demonstrations": [asdict(e) for e in demonstrations],
    }


def read_record(run: str | Path, name: str = METRICS) -> dict[str, Any]:
    """What metrics.json (or vanilla.json) of a run holds. Raises AbftError if it is damaged."""
    path = Path(run) / name
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError("no object")
    except (OSError, ValueError) as error:
        raise AbftError(f"{path} is missing or damaged ({error})") from None
    return record


def read_task(folder: str | Path) -> tuple[Task, list[Example], Protocol]:
    """The task, demonstrations and protocol of a run folder."""
    path = Path(folder) / TASK
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        task = record["task"]
        template = Template(**task["template"])
        return (
            Task(task["name"], template, tuple(task["labels"]), tuple(task["label_words"])),
            [Example(**example) for example in record["demonstrations"]],
            record["protocol"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AbftError(
            f"{path} is missing or damaged ({type(error).__name__}); is {folder} the folder of "
            f"a run?"
        ) from None


def refuse_unfinished(run: str | Path) -> None:
    """Raise AbftError unless `run` is the folder of a finished run."""
    _config_path(run)
    if not (Path(run) / METRICS).is_file():
        raise AbftError(
            f"the run in {run} is not finished; go on with: abft train --resume --output {run}"
        )


def newest_run(folder: Path) -> Path:
    """The run in `folder` that finished last. Raises AbftError if there is none."""
    finished = [path for path in folder.glob(f"*/{METRICS}") if (path.parent / CONFIG).is_file()]
    if not finished:
        raise AbftError(
            f"no finished run in {folder}/; name one with --run, or train one with: abft train"
        )
    return max(finished, key=lambda path: path.stat().st_mtime).parent


def refuse_occupied(output: Path) -> None:
    """Raise AbftError if `output` cannot become a new run folder."""
    file = next((path for path in (output, *output.parents) if path.is_file()), None)
    if file is not None:
        raise AbftError(f"output {output}: {file} is a file; give a folder")
    if (output / CONFIG).is_file():
        raise AbftError(
            f"output folder {output} holds another run; use --overwrite to replace it or "
            f"--resume to go on with it"
        )
    if output.is_dir() and any(output.iterdir()):
        raise AbftError(
            f"output folder {output} holds files that are no abft run; give a new or empty folder"
        )


def refuse_other_settings(output: Path, config: RunConfig) -> None:
    """Raise AbftError unless the run in `output` was started with `config`; its learning rate may
    have been left open.
    """
    before = read_config(output)
    differing = [
        f.name
        for f in fields(config)
        if getattr(config, f.name) != getattr(before, f.name)
        and f.name != "trust_remote_code"
        and not (f.name == "lr" and config.lr is None)
    ]
    if differing:
        raise AbftError(
            f"cannot resume {output}: {', '.join(differing)} differ from its {CONFIG}. "
            "Resume with the same settings, or start over with --overwrite."
        )


def create_run(output: Path, config: RunConfig, overwrite: bool) -> None:
    """Make the run folder with its config.yaml; what an earlier run left there is deleted if
    `overwrite`.
    """
    if overwrite and (output / CONFIG).is_file():
        remove_run(output)
    else:
        refuse_occupied(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_text(
            output / CONFIG, yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)
        )
    except OSError as error:
        raise AbftError(
            f"output folder {output} cannot be written: {error.strerror or error}"
        ) from None


def remove_run(output: Path) -> None:
    """Delete what a run writes; leave other files alone."""
    remove_checkpoints(output)
    tokenizer = (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
    )
    weights = (FULL_RANK_FILE, ADAPTER_FILE, BASE_FILE, "adapter_config.json")
    for path in output.glob("*.partial"):  # what a killed process was writing
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in (CONFIG, TASK, LOG, METRICS, VANILLA, "README.md", *tokenizer, *weights):
        (output / name).unlink(missing_ok=True)


def remove_checkpoints(output: Path) -> None:
    """Delete the checkpoints of a run."""
    for path in output.glob("checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)


def refuse_small_disk(output: Path, trained_bytes: int) -> None:
    """Raise AbftError unless checkpoints fit: three of weights and two Adam moments each, and the
    final weights.
    """
    refuse_full_disk(output, 10 * trained_bytes)


def disk_error(output: Path, error: Exception) -> AbftError:
    """What a failed write means to the user."""
    free = shutil.disk_usage(output).free // MIB
    return AbftError(
        f"writing to {output} failed ({error}); {free} MiB free. "
        f"Make room, then go on with: abft train --resume --output {output}"
    )
