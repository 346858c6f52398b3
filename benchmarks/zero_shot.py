"""Accuracy without demonstrations, before and after training: how much of a gain is undoing harm that demonstrations do.

python benchmarks/zero_shot.py --run runs/demo --output results/zero_shot_sst2.json
"""

import argparse
import json
from pathlib import Path

from abft import apply_weights, encode, label_probabilities, label_tokens
from abft.folder import read_config
from abft.metrics import accuracy
from abft.prompts import write_prompt
from abft.run import load_run_data, load_run_model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="folder of a finished run")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()

    config = read_config(options.run)
    data = load_run_data(config)
    model, tokenizer = load_run_model(config)
    words = label_tokens(tokenizer, data.task, config.protocol)
    written = [write_prompt(data.task, [], query, config.protocol) for query in data.test]
    prompts = encode(tokenizer, written, config.protocol)
    targets = [prompt.target for prompt in prompts]
    result = {"model": config.model, "task": data.task.name, "test_prompts": len(prompts), "k": 0}
    result["vanilla"] = accuracy(label_probabilities(model, prompts, words), targets)
    model = apply_weights(model, options.run)
    result["abft"] = accuracy(label_probabilities(model, prompts, words), targets)
    print(json.dumps(result))
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
