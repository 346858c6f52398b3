"""Name, read and write the files of a run folder.

It holds config.yaml (which can be run again), task.json (task and demonstrations for prediction),
log.jsonl (one line per step), heads.json (if the objective chose a few heads), metrics.json
(written last: a folder that has it is a finished run), the weights and a model card.
"""

import json
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from abft.data.tasks import Example, PromptStyle, Task, Template
from abft.errors import AbftError, CannotResume
from abft.files import locked, remove_partials, stamp_of_file, write_text
from abft.model.weight_files import HEADS_FILE, WEIGHT_FILES
from abft.runs.config import (
    ResolvedConfig,
    RunConfig,
    absolute_paths,
    config_values,
    current_values,
    resolve,
)
from abft.settings import read_yaml, settings_of

CONFIG, TASK, LOG, METRICS = "config.yaml", "task.json", "log.jsonl", "metrics.json"
BEFORE = "vanilla.json"  # the untouched model's metrics, until the run is finished
CARD = "README.md"
REPORT, ANALYSIS = "report.html", "analysis"  # what `abft report` and `abft analyze` write
LOCK = ".lock"  # held while a process trains there
PREVIOUS = ".replaced"  # holds the run that --overwrite replaces, until the new one is finished
VERSION = 2  # of metrics.json
READ_AS = ("text_column", "max_text_tokens")  # settings that a merged run keeps in its task.json

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)

# Quantities of metrics.json and log.jsonl: name in version 1 -> name now.
_RENAMED = {
    "right_mass": "correct_mass",
    "wrong_mass": "incorrect_mass",
    "mean_right_mass": "mean_correct_mass",
    "mean_wrong_mass": "mean_incorrect_mass",
}


def read_config(folder: str | Path, *, trust_remote_code: bool = False) -> ResolvedConfig:
    """Read the configuration of a run folder, also one of an older version.

    Remote code runs only if the caller asks for it *here*: what config.yaml says about it does not
    count, so a run folder from elsewhere cannot switch it on.

    Raises:
        AbftError: no run folder, or a damaged config.yaml.
    """
    path = _config_path(folder)
    values = current_values(read_yaml(path), str(path))
    values["trust_remote_code"] = trust_remote_code
    return resolve(RunConfig.from_dict(values, str(path)))


def _config_path(folder: str | Path) -> Path:
    path = Path(folder) / CONFIG
    if not Path(folder).exists():
        raise AbftError(f"no such folder: {folder}")
    if not path.is_file():
        raise AbftError(f"{folder} is no run folder: it has no {CONFIG}")
    return path


def task_record(
    task: Task, demonstrations: Sequence[Example], prompt_style: PromptStyle, digest: str
) -> dict[str, Any]:
    """Return what prediction needs besides the weights, JSON-ready.

    `digest`: of the data, by which later measurements notice that the data changed.
    """
    return {
        "data": digest,
        "task": asdict(task),
        "prompt_style": prompt_style,
        "demonstrations": [asdict(example) for example in demonstrations],
    }


def read_task(folder: str | Path) -> tuple[Task, list[Example], PromptStyle]:
    """Read the task, demonstrations and prompt style of a run folder."""
    path = Path(folder) / TASK
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        task = record["task"]
        return (
            Task(
                task["name"],
                Template(**task["template"]),
                tuple(task["labels"]),
                tuple(task["label_words"]),
            ),
            [Example(**example) for example in record["demonstrations"]],
            record["prompt_style"] if "prompt_style" in record else record["protocol"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AbftError(
            f"{path} is missing or damaged ({type(error).__name__}); is {folder} the folder of a "
            "run?"
        ) from None


def read_digest(folder: str | Path) -> str | None:
    """Read the digest of the data that a run was trained on; None in older runs."""
    path = Path(folder) / TASK
    return _read_record(path).get("data") if path.is_file() else None


def read_metrics(run: str | Path) -> dict[str, Any]:
    """Read metrics.json, also of an older version. Raises AbftError if it is damaged.

    In version 1 the results were named "vanilla" and after the objective, now "before" and "after".
    """
    record = _read_record(Path(run) / METRICS)
    if "format" in record:
        return record
    objective = read_config(run).objective
    results = {"before": record.pop("vanilla", None), "after": record.pop(objective, None)}
    record["prompt_style"] = record.pop("protocol", "consistent")
    return {
        "format": VERSION,
        "objective": objective,
        **record,
        **{name: _renamed(result) for name, result in results.items() if result is not None},
    }


def read_heads(folder: str | Path) -> list[tuple[int, int]] | None:
    """Read the (layer, head) pairs that training chose; None where it chose none."""
    path = Path(folder) / HEADS_FILE
    if not path.is_file():
        return None
    try:
        return [(int(layer), int(head)) for layer, head in _read_record(path)["heads"]]
    except (KeyError, TypeError, ValueError) as error:
        raise AbftError(f"{path} is damaged ({type(error).__name__}: {error})") from None


def read_before(run: str | Path) -> dict[str, float] | None:
    """Read the untouched model's metrics of an unfinished run; None if not measured yet."""
    path = Path(run) / BEFORE
    return _renamed(_read_record(path)) if path.is_file() else None


def read_log(run: Path) -> list[dict[str, float]]:
    """Read the logged steps, up to the first damaged line."""
    lines: list[dict[str, float]] = []
    if (run / LOG).is_file():
        for line in (run / LOG).read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                step = json.loads(line)
            except ValueError:
                break
            if not isinstance(step, dict) or "step" not in step:
                break
            lines.append(_renamed(step))
    return lines


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError("no object")
    except (OSError, ValueError) as error:
        raise AbftError(f"{path} is missing or damaged ({error})") from None
    return record


def _renamed(record: dict[str, Any]) -> dict[str, Any]:
    return {_RENAMED.get(name, name): value for name, value in record.items()}


def check_finished(run: str | Path) -> None:
    """Raise AbftError unless `run` is the folder of a finished run."""
    _config_path(run)
    if not (Path(run) / METRICS).is_file():
        raise AbftError(
            f"the run in {run} is not finished; go on with: abft train --resume --output {run}"
        )


def check_predictable(folder: str | Path) -> None:
    """Raise AbftError unless `folder` is a finished run's, or one that `abft merge` wrote."""
    if not is_merged(folder):
        check_finished(folder)


def is_merged(folder: str | Path) -> bool:
    """Return whether `abft merge` wrote a folder: a plain checkpoint with the run's task."""
    files = (Path(folder) / name for name in (TASK, "config.json"))
    return all(path.is_file() for path in files) and not (Path(folder) / CONFIG).is_file()


def stamp(folder: str | Path) -> dict[str, Any]:
    """Return sizes and times of files, which change if another (merged) run replaces the run."""
    files = [Path(folder) / name for name in (TASK, METRICS, "config.json")]
    return {path.name: stamp_of_file(path) for path in files if path.is_file()}


def text_column_of(folder: str | Path) -> str:
    """Return the column of texts that a run was trained with."""
    if is_merged(folder):
        return _read_record(Path(folder) / TASK).get("text_column", "text")
    return read_config(folder).text_column


def max_text_tokens_of(folder: str | Path) -> int | None:
    """Return after how many tokens a run cut its texts; None = as many as fit."""
    if is_merged(folder):
        return _read_record(Path(folder) / TASK).get("max_text_tokens")
    return read_config(folder).max_text_tokens


def finished_runs(folder: Path) -> list[Path]:
    """Return the folders of finished runs in `folder`."""
    runs = [path.parent for path in folder.glob(f"*/{METRICS}")]
    return [run for run in runs if (run / CONFIG).is_file()]


def newest_run(folder: Path) -> Path:
    """Return the run in `folder` that finished last. Raises AbftError if there is none."""
    finished = finished_runs(folder)
    if not finished:
        raise AbftError(
            f"no finished run in {folder}/; name one with --run, or train one with: abft train"
        )
    return max(finished, key=lambda run: (run / METRICS).stat().st_mtime)


def check_free(output: Path, overwrite: bool = False) -> None:
    """Raise AbftError if `output` cannot become a run folder; `overwrite` may replace a run."""
    # A command that was killed may have set the run aside already.
    set_aside = (output / PREVIOUS / CONFIG).is_file() and not (output / CONFIG).is_file()
    if overwrite and (set_aside or (output / CONFIG).is_file()):
        return
    file = next((path for path in (output, *output.parents) if path.is_file()), None)
    if file is not None:
        raise AbftError(f"output {output}: {file} is a file; give a folder")
    if set_aside:
        raise AbftError(
            f"output folder {output} holds a run that was about to be replaced; use --overwrite"
        )
    if (output / CONFIG).is_file():
        raise AbftError(
            f"output folder {output} holds another run; use --overwrite to replace it or --resume "
            "to go on with it"
        )
    # Files that a killed process left half-written do not count.
    left = output.iterdir() if output.is_dir() else ()
    if any(path.suffix != ".partial" and path.name != LOCK for path in left):
        raise AbftError(
            f"output folder {output} holds files that are no abft run; give a new or empty folder"
        )


def check_new_folder(output: Path) -> None:
    """Raise AbftError unless `output` is a new or an empty folder."""
    if output.exists() and (output.is_file() or any(output.iterdir())):
        raise AbftError(f"output {output} exists and is not an empty folder")


def check_same_settings(output: Path, config: ResolvedConfig) -> None:
    """Raise AbftError unless the run in `output` was started with `config`.

    Its learning rate may be open (None), and settings without an effect on the result may differ.
    """
    before = read_config(output, trust_remote_code=config.trust_remote_code)
    before = replace(before, **absolute_paths(RunConfig, asdict(before)))  # relative in version 0.1
    differing = [
        name
        for name, each in settings_of(type(config)).items()
        if each.affects_result
        and getattr(config, name) != getattr(before, name)
        and not (name == "lr" and config.lr is None)
    ]
    if differing:
        raise CannotResume(
            f"cannot resume {output}: {', '.join(differing)} differ from its {CONFIG}. "
            "Resume with the same settings, or start over with --overwrite."
        )


def make_folder(output: Path) -> None:
    """Make the run folder. Raises AbftError if it cannot be made."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AbftError(
            f"output folder {output} cannot be made: {error.strerror or error}"
        ) from None


def alone_in(output: Path) -> AbstractContextManager[None]:
    """Keep other processes from training in a run folder. Raises AbftError if one does."""
    return locked(
        output / LOCK,
        f"another process is training in {output}; wait for it or give another --output",
    )


def create_run(output: Path, config: ResolvedConfig, overwrite: bool) -> None:
    """Make the run folder with its config.yaml; `overwrite` sets an earlier run aside."""
    check_free(output, overwrite)
    if (output / CONFIG).is_file():
        _set_aside(output)
    else:
        _remove_run(output)  # what is left of a run that was being deleted
    make_folder(output)
    try:
        text = yaml.safe_dump(config_values(config), sort_keys=False, allow_unicode=True)
        write_text(output / CONFIG, text)
    except OSError as error:
        drop_run(output)
        raise AbftError(
            f"output folder {output} cannot be written: {error.strerror or error}"
        ) from None


def finish_run(output: Path) -> None:
    """Delete what only an unfinished run needs, the replaced run, and half-written files."""
    (output / BEFORE).unlink(missing_ok=True)
    remove_checkpoints(output)
    shutil.rmtree(output / PREVIOUS, ignore_errors=True)
    remove_partials(output)


def drop_run(output: Path) -> None:
    """Delete a run that failed early, and restore the run that it was to replace."""
    _remove_run(output)
    for path in _run_files(output / PREVIOUS):
        path.replace(output / path.name)
    if (output / PREVIOUS).is_dir():
        (output / PREVIOUS).rmdir()


def _set_aside(output: Path) -> None:
    """Move the run in `output` to a subfolder, where it stays until the new one is finished."""
    previous = output / PREVIOUS
    if (previous / CONFIG).is_file():
        # A run was set aside before. If its replacement did not finish, keep the earlier run.
        if not (output / METRICS).is_file():
            _remove_run(output)
            return
        shutil.rmtree(previous)

    # The configuration moves last: until then the folder counts as a run, and moving can go on.
    previous.mkdir(exist_ok=True)
    for path in sorted(_run_files(output), key=lambda path: path.name == CONFIG):
        path.replace(previous / path.name)


def _remove_run(output: Path) -> None:
    """Delete the files that a run writes, its configuration last; leave other files alone."""
    for path in sorted(_run_files(output), key=lambda path: path.name == CONFIG):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _run_files(output: Path) -> list[Path]:
    """Return the files that a run wrote into its folder, including half-written ones."""
    names = (CONFIG, TASK, LOG, METRICS, BEFORE, CARD, *_TOKENIZER_FILES, *WEIGHT_FILES)
    files = [output / name for name in names if (output / name).is_file()]
    # What `abft report` and `abft analyze` measured of the run.
    analyses = [output / name for name in (REPORT, ANALYSIS) if (output / name).exists()]
    return [*output.glob("checkpoint-*"), *output.glob("*.partial"), *files, *analyses]


def remove_checkpoints(output: Path) -> None:
    """Delete the checkpoints of a run."""
    for path in output.glob("checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)
