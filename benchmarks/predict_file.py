"""`abft predict` on a file: texts per second of one and two processes, memory over 100,000 texts.

    python benchmarks/predict_file.py speed --output results/speed/predict_file.json
    python benchmarks/predict_file.py memory --output results/speed/predict_memory.json

`speed` predicts SST2 texts behind 16 demonstrations with SmolLM2, in one process and then with
`--engine ray` in two, one core each, on the same file; the answers have to be equal. `memory` does
one process with a random model of two small layers, so that a file of 100,000 texts takes minutes.
The time of a file of 16 texts is taken off before a rate is computed: loading the model, reading
the demonstrations and starting Ray. Memory is the resident memory of all processes; what they share
is counted in each.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from record import write

EVERY = 0.5  # seconds between looks at memory and chunks
FEW = 16  # texts of the file that measures the start


def small_model(folder):
    """Two random layers with the tokenizer of the default model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from abft.model.loading import load_tokenizer

    tokenizer = load_tokenizer("SmolLM2-135M-Instruct")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **heads)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


def abft(*arguments, **environment):
    """The command line in a process of its own, with one thread for torch."""
    return subprocess.Popen(
        [sys.executable, "-m", "abft", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stderr=subprocess.DEVNULL,
    )


def finished_run(folder, model):
    """One training step: only the speed of predictions matters."""
    sizes = ("--nd", 16, "--nb", 16, "--test-prompts", 0)
    done = abft("train", "--model", model, "--task", "SST2", *sizes, "--output", folder).wait()
    assert done == 0, "training failed"
    return folder


def texts_file(path, count):
    """SST2 texts, over and over, each with its number so that none is equal to another."""
    import pandas

    from abft import load_task

    texts = [example.text for example in load_task("SST2").train]
    pandas.DataFrame({"text": [f"{texts[i % len(texts)]} ({i})" for i in range(count)]}).to_parquet(
        path
    )
    return path


def resident(process):
    """Memory of a process and of all that it started, in MiB."""
    total = 0
    for each in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += each.memory_info().rss
    return round(total / 2**20)


def predicted(run, data, output, *options):
    """Predict a file; return seconds, and (seconds, chunks that are written, MiB) over time."""
    output.unlink(missing_ok=True)
    started = time.perf_counter()
    command = abft("predict", "--run", run, "--data", data, "--output", output, *options)
    process = psutil.Process(command.pid)
    parts = output.with_name(f"{output.name}.parts")
    chunks = []
    while command.poll() is None:
        time.sleep(EVERY)
        written = len(list(parts.glob("[0-9]*.parquet")))
        if written > (chunks[-1][1] if chunks else 0):
            chunks.append((round(time.perf_counter() - started, 1), written, resident(process)))
    assert command.returncode == 0, "prediction failed"
    return time.perf_counter() - started, chunks


def rated(folder, run, texts, *options):
    """The same, with the rate: without what a file of few texts takes too."""
    few, many = (texts_file(folder / f"{count}.parquet", count) for count in (FEW, texts))
    start, _ = predicted(run, few, folder / "few_out.parquet", *options)
    seconds, chunks = predicted(run, many, folder / "out.parquet", *options)
    rate = (texts - FEW) / (seconds - start)
    found = {"texts_per_second": round(rate, 1), "seconds": round(seconds, 1)}
    return {**found, "seconds_few": round(start, 1), "chunks": chunks}


def speed(options, folder):
    """One process, then two, on the same file; round by round."""
    import pandas

    run = finished_run(folder / "run", "SmolLM2-135M-Instruct")
    ways = {"one process": (), "two processes": ("--engine", "ray", "--cpus-per-worker", 1)}
    rounds = []
    for _ in range(options.rounds):
        each, answers = {}, []
        for name, arguments in ways.items():
            each[name] = rated(folder, run, options.texts, *arguments)
            answers.append(pandas.read_parquet(folder / "out.parquet"))
            print(name, {k: v for k, v in each[name].items() if k != "chunks"}, flush=True)
        rounds.append(each)
        pandas.testing.assert_frame_equal(*answers, atol=1e-6)
        write(options.output, {"texts": options.texts, "rounds": rounds})


def memory(options, folder):
    """One process and a small random model."""
    run = finished_run(folder / "run", small_model(folder / "model"))
    found = rated(folder, run, options.texts)
    quarter = max(len(found["chunks"]) // 4, 1)
    for name, part in (("first", found["chunks"][:quarter]), ("last", found["chunks"][-quarter:])):
        print(f"{name} quarter: {max(chunk[2] for chunk in part)} MiB at most")
    write(options.output, {"texts": options.texts, **found})


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("speed", "memory"))
    parser.add_argument("--texts", type=int, help="default: 2048 and 100,000")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    options.texts = options.texts or {"speed": 2048, "memory": 100_000}[options.what]
    with tempfile.TemporaryDirectory() as folder:
        {"speed": speed, "memory": memory}[options.what](options, Path(folder))


if __name__ == "__main__":
    main()
