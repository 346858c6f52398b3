"""Label texts with a merged run and stock transformers, without abft.

    abft merge runs/mine merged
    python examples/without_abft.py merged "a film to remember" "two hours of my life"

`merged/task.json` holds the template, the labels and the demonstrations. A label's probability is
the product of its tokens' probabilities after the prompt, each after those before; then shares of
the sum. Where one label begins with another (1 and 10), the token after each label counts too. Any
engine that returns log-probabilities of given tokens can compute it in the same way.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def label_probabilities(folder, texts):
    """Return the probability of every label for each text."""
    record = json.loads((Path(folder) / "task.json").read_text(encoding="utf-8"))
    if record["prompt_style"] != "consistent":
        raise SystemExit("this run scores labels as StaICC does, which this script does not")
    task, demonstrations = record["task"], record["demonstrations"]
    pattern, instruction = task["template"]["pattern"], task["template"]["instruction"]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    # Not str.format: texts may hold braces.
    before_text, rest = pattern.split("{text}")
    before_label, after_label = rest.split("{label}")
    shown = instruction
    for each in demonstrations:
        word = task["label_words"][each["label"]]
        shown += before_text + each["text"] + before_label + word + after_label

    # The prompt ends where the label begins; the space before it belongs to the label's token.
    space = " " if before_label.endswith(" ") else ""

    results = []
    for text in texts:
        prompt = shown + before_text + text + before_label.rstrip(" ")
        start = len(tokenizer(prompt)["input_ids"])

        # Tokens of each label in a demonstration, and how the next demonstration begins.
        followed, ends = [], []
        for word in task["label_words"]:
            label = prompt + space + word
            followed.append(tokenizer(label + after_label + before_text)["input_ids"])
            ends.append(len(tokenizer(label)["input_ids"]))
        alone = [ids[start:end] for ids, end in zip(followed, ends, strict=True)]
        if any(a != b and b[: len(a)] == a for a in alone for b in alone):
            ends = [end + 1 for end in ends]

        scores = []
        for label_ids, end in zip(followed, ends, strict=True):
            ids = torch.tensor([label_ids[:end]])
            with torch.no_grad():
                log_probabilities = model(ids).logits[0].double().log_softmax(-1)
            positions = range(start, ids.shape[1])
            scores.append(sum(log_probabilities[p - 1, ids[0, p]] for p in positions))
        shares = torch.stack(scores).softmax(-1).tolist()
        results.append(dict(zip(task["labels"], shares, strict=True)))
    return results


if __name__ == "__main__":
    folder, *texts = sys.argv[1:]
    for text, shares in zip(texts, label_probabilities(folder, texts), strict=True):
        label = max(shares, key=shares.get)
        print(f"{label}\t{shares[label]:.3f}\t{text}")
