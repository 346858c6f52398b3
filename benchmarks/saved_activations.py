"""What a training step keeps for its backward pass, by kind, in MiB; parameters are not counted.

python benchmarks/saved_activations.py --output results/speed/saved_activations.json
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import torch

from abft import ABFTObjective, Batch, PIDController, load_model
from abft.model.attention import decoder, row_attention
from abft.model.qk_weights import train_full_rank
from record import write


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()

    model, _ = load_model("SmolLM2-135M-Instruct")
    train_full_rank(model)
    model.train()
    B, n = options.batch_size, options.tokens
    correct = torch.tensor([[True, False, True, False]]).expand(B, -1)
    positions = (torch.arange(1, 5) * (n // 6)).expand(B, -1)
    batch = Batch(
        torch.randint(3, 40_000, (B, n)), torch.full((B,), n - 1), positions, correct, ~correct
    )
    owned = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept, mebibytes = {}, Counter()

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned and storage.data_ptr() not in kept:
            kept[storage.data_ptr()] = tensor  # alive, so that no address is used twice
            made_by = tensor.grad_fn.name() if tensor.grad_fn else "no gradient"
            mebibytes[f"{tuple(tensor.shape)} {made_by}"] += storage.nbytes() / 2**20
        return tensor

    objective = ABFTObjective(PIDController(), fixed_threshold=0.001)
    with (
        row_attention(model),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        loss, _ = objective(decoder(model), batch)
    assert loss.requires_grad
    mlp = sum(
        size
        for kind, size in mebibytes.items()
        if kind.startswith(f"({B}, {n}, {model.config.intermediate_size})")
    )
    result = {
        "tokens": n,
        "batch_size": B,
        "total": mebibytes.total(),
        "mlp": mlp,
        "kinds": dict(mebibytes.most_common(12)),
    }
    print(json.dumps(result, indent=1))
    write(options.output, result)


if __name__ == "__main__":
    main()
