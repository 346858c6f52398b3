"""Provide what FSDP and DeepSpeed need, and refuse what they cannot do."""

from typing import Any

from transformers import Trainer

from abft.errors import AbftError
from abft.model.qk_weights import qk_modules


def with_used_output(call: Any) -> Any:
    """Wrap `call` so that its rows depend on the output, with a gradient of 0.

    FSDP gathers a layer's weights for the backward pass when a gradient reaches the layer's output.
    The loss contains nothing above the last layer's rows, so that without this, the last layer's
    weights would not be there.
    """

    def wrapper(**inputs: Any) -> Any:
        output = call(**inputs)

        # The sum touches every entry of the output, so that its gradient, though 0, exists.
        zero = 0 * output["logits"].float().sum()
        attentions = output["attentions"]
        output["attentions"] = tuple(rows if rows is None else rows + zero for rows in attentions)
        return output

    return wrapper


def check_sharding(trainer: Trainer) -> None:
    """Raise AbftError for what FSDP and DeepSpeed cannot do correctly."""
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        return

    model = trainer.model
    if not hasattr(model, "get_base_model"):
        raise AbftError(
            "full-rank training with FSDP or DeepSpeed is not supported; use LoRA (peft_config, "
            "--lora-r 16)"
        )
    if any(qk.outputs is not None for qk in qk_modules(model.get_base_model())):
        raise AbftError(
            "this model family keeps W_V in one weight with W_Q and W_K, and FSDP and DeepSpeed "
            "drop the mask that holds W_V still; use DDP, or --device balanced in one process"
        )

    if trainer.args.kl:
        raise AbftError("kl keeps the untouched weights, which FSDP and DeepSpeed divide; use DDP")

    # The adapter is saved from whole tensors, which full state dicts hold.
    plugins = trainer.accelerator.state
    if trainer.is_fsdp_enabled:
        fsdp = plugins.fsdp_plugin
        if fsdp.fsdp_version != 2 or "FULL" not in str(fsdp.state_dict_type):
            raise AbftError(
                "FSDP: expected version 2 and full state dicts (fsdp_version: 2, "
                "fsdp_state_dict_type: FULL_STATE_DICT), as in "
                "examples/accelerate_config/fsdp2.yaml"
            )

    if trainer.is_deepspeed_enabled and plugins.deepspeed_plugin.zero_stage == 3:
        raise AbftError("DeepSpeed ZeRO-3 is not supported; use ZeRO-2 or FSDP2")
    if trainer.is_deepspeed_enabled and trainer.args.activation_checkpointing:
        raise AbftError(
            "DeepSpeed with PEFT forces reentrant activation checkpointing, which loses the "
            "gradient of the rows; turn activation_checkpointing off"
        )
