"""Train on a part of a task's training pool and measure on the rest: what choices may be made on.

Neither the demonstrations nor the test queries of the benchmark are touched.
"""

import functools
import json
import tempfile
import time
from dataclasses import replace

from transformers import TrainerCallback

from abft import (
    ABFTConfig,
    ABFTTrainer,
    encode,
    evaluate,
    evaluation_prompts,
    label_tokens,
    load_model,
    load_task,
)
from abft.data.encoding import EncodedPrompt, with_answers
from abft.data.prompts import training_prompts
from abft.scoring.metrics import accuracy

TRAIN, DEMONSTRATIONS = (
    0.75,
    0.125,
)  # shares of the pool: for training prompts, for demonstrations of validation prompts


class _Validate(TrainerCallback):
    """Accuracy and heads on the held-out prompts every few steps, and the (CPU) seconds trained
    until then.
    """

    def __init__(self, score, every):
        self.score, self.every, self.scores = score, every, {}
        self.clocks = {"seconds": time.perf_counter, "cpu_seconds": time.process_time}
        self.trained, self.started = dict.fromkeys(self.clocks, 0.0), {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.started = {name: clock() for name, clock in self.clocks.items()}

    def on_step_end(self, args, state, control, **kwargs):
        for name, clock in self.clocks.items():
            self.trained[name] += clock() - self.started[name]
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.scores[state.global_step] = {**self.score(), **self.trained}
            print(state.global_step, json.dumps(self.scores[state.global_step]), flush=True)
        self.started = {name: clock() for name, clock in self.clocks.items()}


def split(data):
    """The training pool as training examples, demonstrations and test queries."""
    pool = data.train
    a, b = int(TRAIN * len(pool)), int((TRAIN + DEMONSTRATIONS) * len(pool))
    return replace(data, train=pool[:a], demonstrations=pool[a:b], test=pool[b:])


def dense(data, tokenizer, words, arguments):
    """Training prompts, and behind each set of demonstrations its own beginnings: every
    demonstration after the first is a query too. In a pack they cost no token. Changes `arguments`:
    packs and micro-batches grow.
    """
    m, k = arguments.queries, arguments.k
    shared = training_prompts(data, arguments.nd, k, arguments.seed, arguments.prompt_style, m)
    encoded = with_answers(encode(tokenizer, shared, arguments.prompt_style), words)
    prompts = []
    for start in range(0, len(encoded), m):
        group = encoded[start : start + m]
        prompts += group
        for j in range(1, k):
            label, end = group[0].label_classes[j], group[0].label_positions[j]
            prompts.append(
                EncodedPrompt(
                    group[0].input_ids[:end],
                    group[0].label_positions[:j],
                    group[0].label_classes[:j],
                    label,
                    words[label],
                )
            )
    arguments.queries = m + k - 1
    arguments.per_device_train_batch_size = (
        arguments.per_device_train_batch_size // m * arguments.queries
    )
    return prompts


def train_and_validate(
    model_name, task, settings, *, every, prompts, objective=None, dense_queries=False
):
    """Train with `settings` (of `ABFTConfig`) and return the validation before and during it, and
    the training log.

    `objective`, if given, replaces the one that the settings name. `dense_queries`: see `dense`.
    """
    data = split(load_task(task))
    model, tokenizer = load_model(model_name)
    tests = encode(tokenizer, evaluation_prompts(data, prompts, settings.get("k", 4)))
    words = label_tokens(tokenizer, data.task)
    source = (
        functools.partial(dense, data, tokenizer, words)
        if dense_queries
        else lambda arguments: data
    )
    return measured_training(model, tokenizer, source, tests, words, settings, every, objective)


def measured_training(model, tokenizer, source, tests, words, settings, every, objective=None):
    """Train, and return the settings, the validation on `tests` (encoded prompts) before and during
    it, and the log.

    `source` takes the `ABFTConfig` and returns what the trainer trains on; `words`: the labels'
    tokens.
    """
    targets = [prompt.target for prompt in tests]

    def score():
        probabilities, heads = evaluate(model, tests, words)
        right = "".join(
            str(int(found == target))
            for found, target in zip(probabilities.argmax(1), targets, strict=True)
        )
        return {"accuracy": accuracy(probabilities, targets), "heads": heads.heads, "right": right}

    before = score()
    validate = _Validate(score, every)
    trainer = trained(model, tokenizer, source, settings, [validate], objective)
    log = [
        {k: v for k, v in entry.items() if k != "epoch"}
        for entry in trainer.state.log_history
        if "heads" in entry
    ]
    return {"settings": settings, "before": before, "validation": validate.scores, "log": log}


def trained(model, tokenizer, source, settings, callbacks=(), objective=None):
    """Train a model in place, on what `source` returns for the `ABFTConfig`; return the trainer."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ABFTConfig(
            output_dir=folder, save_strategy="no", report_to="none", disable_tqdm=True, **settings
        )
        trainer = ABFTTrainer(
            model,
            arguments,
            source(arguments),
            tokenizer,
            callbacks=list(callbacks),
            objective=objective,
        )
        trainer.train()
    return trainer
