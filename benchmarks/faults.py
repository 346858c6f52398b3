"""Faults on purpose: kills, full disks, damaged files, and what the next command makes of them.

    python benchmarks/faults.py --output results/faults.json

Commands run in children of this process, on a tiny random model with data made here. A killed
command is repeated (`abft train` with --resume); then its results have to equal those of an
undisturbed one, and every file has to be whole. Two kinds of kill: SIGKILL at a random moment, and
SIGKILL at the n-th renaming or deleting of a file, for every n.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # children are forked: no threads before
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import numpy as np  # noqa: E402
import yaml  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from tqdm.std import tqdm  # noqa: E402

from record import write  # noqa: E402

REFUSED = 2  # exit status of a command that says in one line what is wrong
COUNTED = ("replace", "unlink", "rmdir")  # of Path: where kills at file operations happen
LIMIT = 240.0  # seconds; no command here takes more than a few

# By default, the lock of progress bars is a semaphore that forked children share: one that is
# killed while it draws its bar would block all others forever. Nor may a thread hold it in a fork.
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0


# --- children ---------------------------------------------------------------------------------


def forked(action, log):
    """Run `action` in a child whose output goes to the file `log`; return its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child

    code = 1
    try:
        with open(log, "w", encoding="utf-8") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        action()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finished(child):
    """Wait for a child; return its exit status, negative for a signal."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError(f"a command did not end in {LIMIT:.0f} s")


def abft(*arguments):
    """Return the action that runs the command line."""

    def run():
        from abft.cli.app import main

        sys.argv = ["abft", *map(str, arguments)]
        main()

    return run


def killed_after(action, seconds, log):
    """Kill a child after so many seconds; return whether it was still running."""
    child = forked(action, log)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return finished(child) == -signal.SIGKILL


def dying_at(action, number):
    """Return an action whose process kills itself before the n-th file operation."""

    def run():
        count = 0

        def counted(method):
            def call(path, *arguments, **options):
                nonlocal count
                count += 1
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return method(path, *arguments, **options)

            return call

        for name in COUNTED:
            setattr(Path, name, counted(getattr(Path, name)))
        action()

    return run


# --- what is left -----------------------------------------------------------------------------


def broken_files(folder):
    """Files that the next command would read and that are not whole."""
    broken = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or ".partial" in str(path.relative_to(folder)):
            continue
        checkpoint = next((p for p in path.parents if p.name.startswith("checkpoint-")), None)
        if checkpoint is not None and not (checkpoint / "trainer_state.json").is_file():
            continue  # `last_checkpoint` passes over it
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix == ".yaml":
                yaml.safe_load(path.read_text(encoding="utf-8"))
            elif path.suffix == ".safetensors":
                load_file(path)
            elif path.suffix == ".npz":
                with np.load(path) as file:
                    [file[name] for name in file]
            elif path.suffix == ".html":
                assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
        except Exception as error:
            broken.append(f"{path.relative_to(folder)}: {error}")
    return broken


def results(folder):
    """Everything that has to be equal after a fault: weights, scores, predictions."""
    values = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        # Weights are deleted by and by; tables hold seconds.
        if not path.is_file() or name.startswith(("weights/", "tables/")):
            continue
        if path.suffix == ".safetensors":
            values[name] = {n: t.numpy().tobytes() for n, t in load_file(path).items()}
        elif path.suffix == ".npz":
            with np.load(path) as file:
                values[name] = {n: file[n].tobytes() for n in file}
        elif path.suffix == ".json":
            record = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(record, dict):
                for changing in ("training", "seconds", "machine"):
                    record.pop(changing, None)
            values[name] = record
    return values


def said(log):
    """What a command printed last."""
    lines = Path(log).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


# --- the commands -----------------------------------------------------------------------------


class Bench:
    """A tiny model, data, a finished run and the commands on them."""

    def __init__(self, folder):
        from tiny import tiny_model, tokenizer

        self.folder = folder
        tiny_model("llama").save_pretrained(folder / "model")
        tokenizer("bpe").save_pretrained(folder / "model")
        words = {"positive": ["great", "good", "joy"], "negative": ["bad", "poor", "sad"]}
        draw = random.Random(0)
        rows = [
            f"{' and '.join(draw.sample(words[label], 2))} number {i},{label}"
            for i in range(60)
            for label in words
        ]
        (folder / "data.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
        common = {
            "model": str(folder / "model"),
            "data": str(folder / "data.csv"),
            "nd": 32,
            "nb": 8,
            "batch_size": 8,
            "steps": 4,
            "save_steps": 1,
            "lr": 0.003,
            "test_prompts": 16,
            "device": "cpu",
        }
        (folder / "run.yaml").write_text(yaml.safe_dump(common))
        grid = {
            "models": [{"name": "tiny", "model": common["model"]}],
            "tasks": [{"name": "own", "data": common["data"]}],
            "methods": ["vanilla", "contextual_calibration", "e2e"],
            "scenarios": ["standard", "zero_shot"],
            "calibration_prompts": 8,
            "settings": {
                k: v for k, v in common.items() if k not in ("model", "data", "save_steps")
            },
        }
        (folder / "grid.yaml").write_text(yaml.safe_dump(grid))
        self.run = folder / "finished"
        self.log = folder / "log.txt"
        self.succeed(self.train(self.run))

    def succeed(self, action):
        code = finished(forked(action, self.log))
        if code != 0:
            raise RuntimeError(f"exit status {code}: {Path(self.log).read_text()[-2000:]}")

    def train(self, output):
        """Return the command that trains, or goes on with training."""
        resume = ["--resume"] if (output / "config.yaml").is_file() else []
        settings = [] if resume else ["--config", self.folder / "run.yaml"]
        return abft("train", *settings, *resume, "--output", output)

    def bench(self, output):
        return abft("bench", "--config", self.folder / "grid.yaml", "--output", output)

    def merge(self, output):
        if (output / "config.json").is_file():
            return lambda: None  # it is finished, and would be refused as occupied
        return abft("merge", self.run, output)

    def report(self, output):
        if not output.is_dir():
            shutil.copytree(self.run, output)
        return abft("report", output, "--test-prompts", "8", "--points", "2", "--resolution", "2")

    def save(self, output):
        """Return an action that saves a classifier over the one that is there."""

        def run():
            self.classifier.save(output)

        return run

    def fit(self):
        """Fit the classifier that `save` writes, in this process."""
        import pandas

        from abft import ABFTClassifier

        frame = pandas.read_csv(self.folder / "data.csv")
        self.classifier = ABFTClassifier(
            str(self.folder / "model"),
            objective="e2e",
            steps=2,
            learning_rate=0.05,
            device="cpu",
            random_state=0,
            progress=False,
        ).fit(frame["text"].tolist(), frame["label"].tolist())


def judged(bench, command, output, reference):
    """Check what a kill left, repeat the command, and compare; return the outcome in words."""
    broken = broken_files(output) if output.exists() else []
    if broken:
        return f"half-written: {broken[0]}"
    code = finished(forked(command(output), bench.log))
    if code != 0:
        return f"the next command failed: {said(bench.log)[:200]}"
    if broken_files(output):
        return f"half-written after the next command: {broken_files(output)[0]}"
    leftovers = [path.name for path in output.rglob("*.partial")]
    if leftovers:
        return f"left over: {leftovers[0]}"
    return compared(output, reference)


def compared(output, reference):
    """Return whether the results are equal, or the first file that differs."""
    measured = results(output)
    names = sorted(measured.keys() | reference.keys())
    differing = [name for name in names if measured.get(name) != reference.get(name)]
    return f"other results: {differing[0]}" if differing else "equal results"


def kills(bench, name, times, every, draw):
    """Kill a command at random moments and at every n-th file operation (0: none); return rows."""
    command = getattr(bench, name)
    undisturbed = bench.folder / f"{name}-reference"
    start = time.monotonic()
    bench.succeed(command(undisturbed))
    seconds = time.monotonic() - start
    reference = results(undisturbed)

    rows = []
    outcomes, reached = Counter(), 0
    for i in range(times):
        output = bench.folder / f"{name}-{i}"
        reached += killed_after(command(output), draw.uniform(0, seconds), bench.log)
        outcomes[judged(bench, command, output, reference)] += 1
        shutil.rmtree(output, ignore_errors=True)
    rows.append((f"{name}: SIGKILL at a random moment", times, outcomes))
    print(*rows[-1], f"({reached} while it ran)", flush=True)

    if every:
        outcomes = Counter()
        for number in range(1, 1000, every):
            output = bench.folder / f"{name}-at-{number}"
            code = finished(forked(dying_at(command(output), number), bench.log))
            if code != -signal.SIGKILL:
                break
            outcomes[judged(bench, command, output, reference)] += 1
            shutil.rmtree(output, ignore_errors=True)
        rows.append((f"{name}: SIGKILL at file operations", sum(outcomes.values()), outcomes))
        print(*rows[-1], flush=True)
    return rows


def classifier_kills(bench, times, draw):
    """Kill `save` over an existing classifier; it has to load, and to be the old or the new one."""
    from abft import ABFTClassifier

    texts = ["great and good", "bad and sad", "joy"]
    bench.fit()
    new = bench.classifier.predict_proba(texts)
    output = bench.folder / "classifier"
    bench.classifier.save(output)

    def judge():
        loaded = []
        try:
            loaded.append(ABFTClassifier.load(output).predict_proba(texts))
        except Exception as error:
            return f"does not load: {error}"
        return "equal results" if np.allclose(loaded[0], new, atol=1e-6) else "other results"

    rows = []
    start = time.monotonic()
    bench.classifier.save(output)
    seconds = time.monotonic() - start
    for title, number_of, actions in (
        (
            "SIGKILL at a random moment",
            times,
            lambda i: killed_after(bench.save(output), draw.uniform(0, seconds), bench.log),
        ),
        (
            "SIGKILL at file operations",
            1000,
            lambda i: finished(forked(dying_at(bench.save(output), i + 1), bench.log)) < 0,
        ),
    ):
        outcomes = Counter()
        for i in range(number_of):
            killed = actions(i)
            if number_of == 1000 and not killed:
                break
            outcomes[judge()] += 1
            bench.classifier.save(output)
        rows.append((f"ABFTClassifier.save: {title}", sum(outcomes.values()), outcomes))
        print(*rows[-1], flush=True)
    return rows


# --- damaged files, occupied folders, full disks ------------------------------------------------


def damages(bench, times):
    """Truncate and flip files of a finished run, and read it; return rows of the table."""
    expected = None
    rows = []
    predict = ("predict", "--text", "great and good", "--json")
    for name in ("qk_weights.safetensors", "config.yaml", "task.json", "metrics.json"):
        for kind in ("truncated", "one bit flipped"):
            outcomes = Counter()
            for seed in range(times):
                run = bench.folder / "damaged"
                shutil.rmtree(run, ignore_errors=True)
                shutil.copytree(bench.run, run)
                content = bytearray((run / name).read_bytes())
                draw = random.Random(seed)
                if kind == "truncated":
                    content = content[: draw.randrange(len(content))]
                else:
                    place = draw.randrange(len(content))
                    content[place] ^= 1 << draw.randrange(8)
                (run / name).write_bytes(content)
                if expected is None:
                    bench.succeed(abft(*predict, "--run", bench.run))
                    expected = said(bench.log)
                code = finished(forked(abft(*predict, "--run", run), bench.log))
                text = Path(bench.log).read_text(encoding="utf-8", errors="replace")
                if "Traceback" in text:
                    outcome = "traceback: " + said(bench.log)[:120]
                elif code != 0:
                    outcome = "refused in one line"
                else:
                    outcome = "equal results" if said(bench.log) == expected else "other results"
                outcomes[outcome] += 1
            rows.append((f"{name} of a run, {kind}: abft predict", times, outcomes))
            print(*rows[-1], flush=True)
    return rows


def two_at_once(bench):
    """Start the same command twice on one folder; return rows of the table."""
    rows = []
    for name in ("train", "bench"):
        output = bench.folder / f"{name}-twice"
        reference = results(bench.folder / f"{name}-reference")
        log = bench.folder / "second.txt"
        first = forked(getattr(bench, name)(output), bench.log)
        second = forked(getattr(bench, name)(output), log)
        codes = sorted((finished(first), finished(second)))
        text = bench.log.read_text() + log.read_text()
        outcome = compared(output, reference)
        refused = f"exit statuses {codes}"
        if codes == [0, REFUSED]:
            refused = "one refused in one line"
        if "Traceback" in text:
            refused += ", a traceback"
        outcomes = Counter({f"{refused}; {outcome}": 1})
        rows.append((f"{name}: two processes, one folder", 1, outcomes))
        print(*rows[-1], flush=True)
    return rows


@contextmanager
def mounted(folder, *options):
    """A tmpfs in `folder`; None where mounting is not allowed."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def disks(bench):
    """Write to full and to read-only disks; return rows of the table."""
    rows = []
    for kind, options in (
        ("full disk (128 KiB)", ("-o", "size=128k")),
        ("full disk (600 KiB)", ("-o", "size=600k")),
        ("read-only disk", ("-o", "ro")),
    ):
        for name in ("train", "bench", "merge"):
            with mounted(bench.folder / "disk", *options) as disk:
                if disk is None:
                    rows.append((f"{name}: {kind}", 0, Counter({"mounting is not allowed": 1})))
                    continue
                code = finished(forked(getattr(bench, name)(disk / "out"), bench.log))
                text = Path(bench.log).read_text(encoding="utf-8", errors="replace")
                broken = broken_files(disk)
                outcome = f"exit status {code}"
                if code == REFUSED:
                    outcome = "refused in one line"
                elif code == 0:
                    outcome = "it fits, and finishes"
                if "Traceback" in text:
                    outcome = "traceback: " + said(bench.log)[:120]
                elif broken:
                    outcome = f"half-written: {broken[0]}"
            rows.append((f"{name}: {kind}", 1, Counter({outcome: 1})))
            print(*rows[-1], flush=True)
    return rows


def foreign_checkpoint(bench):
    """Resume a run into which a checkpoint of another base model was copied."""
    from abft.training.trainer import last_checkpoint
    from tiny import tiny_model, tokenizer

    other = bench.folder / "other-model"
    tiny_model("llama", hidden_size=48).save_pretrained(other)
    tokenizer("bpe").save_pretrained(other)
    outcomes = Counter()
    runs = {}
    for name, model in (("mine", bench.folder / "model"), ("theirs", other)):
        runs[name] = bench.folder / name
        command = abft(
            *("train", "--config", bench.folder / "run.yaml", "--model", model),
            *("--steps", 400, "--output", runs[name]),
        )
        child = forked(command, bench.log)

        # A state that is being written when the child is killed is no checkpoint.
        while last_checkpoint(runs[name]) is None:
            if os.waitpid(child, os.WNOHANG)[0]:
                raise RuntimeError(f"no checkpoint was written: {said(bench.log)}")
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        finished(child)
    for path in runs["mine"].glob("checkpoint-*"):
        shutil.rmtree(path)
    for path in runs["theirs"].glob("checkpoint-*"):
        shutil.copytree(path, runs["mine"] / path.name)
    code = finished(forked(abft("train", "--resume", "--output", runs["mine"]), bench.log))
    text = Path(bench.log).read_text(encoding="utf-8", errors="replace")
    if "Traceback" in text:
        outcomes["traceback: " + said(bench.log)[:120]] += 1
    else:
        outcomes["refused in one line" if code == REFUSED else f"exit status {code}"] += 1
    row = ("a checkpoint of another model in the run folder: abft train --resume", 1, outcomes)
    print(*row, flush=True)
    return [row]


COMMANDS = ("train", "bench", "merge", "report")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=50, help="random kills of each command")
    parser.add_argument("--commands", nargs="+", default=COMMANDS, choices=COMMANDS)
    parser.add_argument("--every", type=int, default=1, help="kill at every n-th file operation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()

    # Everything that takes long to import, once, before children are forked.
    import abft.analysis.study
    import abft.bench.engine
    import abft.cli.app
    import abft.report.page
    import abft.runs.train  # noqa: F401

    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        rows = damages(bench, min(options.times, 10)) + disks(bench) + foreign_checkpoint(bench)
        for name in options.commands:
            every = 0 if name == "report" else options.every
            rows += kills(bench, name, options.times, every, draw)
        if {"train", "bench"} <= {*options.commands}:
            rows += two_at_once(bench)
        rows += classifier_kills(bench, options.times, draw)

    record = [
        {"fault": fault, "times": times, "outcomes": dict(outcomes)}
        for fault, times, outcomes in rows
    ]
    write(options.output, {"seed": options.seed, "faults": record})


if __name__ == "__main__":
    main()
