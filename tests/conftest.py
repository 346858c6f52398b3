"""Fixtures that several test files share."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import random
from pathlib import Path

import pytest
import torch

from abft.data.datasets import load_data
from abft.data.splits import TaskData
from command_line import arguments, invoke
from tiny import tiny_model, tokenizer

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def bpe():
    return tokenizer("bpe")


@pytest.fixture(scope="session")
def reviews(tmp_path_factory) -> Path:
    """A CSV of 120 separable reviews; the columns are `review` and `stars`."""
    generator = random.Random(0)
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    rows = ["review,stars"]
    for i in range(120):
        good = i % 2 == 0
        words = generator.sample(["great", "good", "joy"] if good else ["bad", "poor", "sad"], 2)
        rows.append(f'"{words[0]} and {words[1]}, number {i}",{"positive" if good else "negative"}')
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def review_data(reviews) -> TaskData:
    return load_data(reviews, "review", "stars", template="review: {text} sentiment: {label}\n")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, bpe) -> Path:
    """A tiny Llama and its tokenizer, saved as a stock checkpoint."""
    folder = tmp_path_factory.mktemp("model") / "tiny-llama"
    tiny_model("llama").save_pretrained(folder)
    bpe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def four_bit_model_folder(tmp_path_factory, bpe) -> Path:
    """A Llama whose weights fill 4-bit blocks of 64 entries, which bitsandbytes needs on CPUs with
    AVX512-BF16.
    """
    folder = tmp_path_factory.mktemp("model") / "wider-llama"
    tiny_model("llama", hidden_size=64).save_pretrained(folder)
    bpe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def options(model_folder, reviews):
    """A run of seconds on the tiny model."""
    return {
        "model": model_folder,
        "data": reviews,
        "text-column": "review",
        "label-column": "stars",
        "template": "review: {text} sentiment: {label}\\n",
        "objective": "abft",
        "queries": 1,
        "nd": 32,
        "nb": 8,
        "steps": 4,
        "lr": 0.01,
        "threshold": 0.03,
        "test-prompts": 20,
        "save-steps": 2,
        "device": "cpu",
    }


@pytest.fixture(scope="session")
def finished(options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = invoke("train", *arguments(options), "--output", folder)
    assert result.exit_code == 0, result.output
    assert "heads over threshold" in result.stdout
    return folder


@pytest.fixture(scope="session")
def e2e(options, tmp_path_factory):
    """An end-to-end run of the same model and data."""
    folder = tmp_path_factory.mktemp("runs") / "e2e"
    assert (
        invoke("train", *arguments({**options, "objective": "e2e"}), "--output", folder).exit_code
        == 0
    )
    return folder
