"""Label texts with a merged run behind llama.cpp's server.

    python convert_hf_to_gguf.py merged --outfile merged.gguf --outtype f16
    llama-server -m merged.gguf --port 8080 &
    abft prompt merged --text "a film to remember" --json | python examples/llama_server.py

`abft prompt` writes what to send. The server says the log-probability of the token that it
generates, taken before sampling; a bias makes it generate the tokens of a label, one request each.
It keeps the beginning of the prompt, so that only the first request reads the demonstrations.
"""

import json
import math
import sys
import urllib.request

BIAS = 1e6  # larger than any logit


def post(server, path, body):
    """Send JSON, return JSON."""
    data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{server}{path}", data, kind)) as answer:
        return json.load(answer)


def label_probabilities(server, prompt, labels):
    """Return the probability of every label; `labels`: what follows the prompt for each."""

    def token_ids(text):
        return post(server, "/tokenize", {"content": text, "add_special": True})["tokens"]

    start = len(token_ids(prompt))
    scores = {}
    for label, written in labels.items():
        ids = token_ids(prompt + written)
        scores[label] = 0.0
        for position in range(start, len(ids)):
            request = {"prompt": ids[:position], "n_predict": 1, "n_probs": 1, "temperature": 0}
            request["logit_bias"] = [[ids[position], BIAS]]
            (said,) = post(server, "/completion", request)["completion_probabilities"]
            assert said["id"] == ids[position], "the server generated another token"
            scores[label] += said["logprob"]

    largest = max(scores.values())
    shares = {label: math.exp(score - largest) for label, score in scores.items()}
    return {label: share / sum(shares.values()) for label, share in shares.items()}


if __name__ == "__main__":
    server = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
    for line in sys.stdin:
        print(json.dumps(label_probabilities(server, **json.loads(line)), ensure_ascii=False))
