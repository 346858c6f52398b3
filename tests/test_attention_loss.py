"""A loss on attention inside training loops of others."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

from abft.data.batches import Batch
from abft.data.encoding import attention_target
from abft.errors import AbftError
from abft.method.objectives import ABFTObjective, ContrastiveObjective, E2EObjective, VoteObjective
from abft.method.pid import PIDController
from abft.model.attention import decoder, row_attention
from abft.training.attention_loss import AttentionCollator, attention_loss
from tiny import tiny_model

EXAMPLES = Path(__file__).parent.parent / "examples"
SPANS = ([2, 5, 9], [(2, 4), (5, 8), (9, 10)])


def rows(count=8, at=SPANS[0]):
    """Sequences of different length; the language model learns the last three tokens."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for i in range(count):
        ids = torch.randint(3, 600, (14 + i % 3,), generator=generator).tolist()
        labels = [-100] * (len(ids) - 3) + ids[-3:]
        right = [n == i % 3 for n in range(3)]
        looks = {"looks_from": len(ids) - 4, "looks_at": at, "looks_right": right}
        made.append({"input_ids": ids, "labels": labels, **looks})
    return made


def padded(features):
    """A collator as loops have them."""
    longest = max(len(each["input_ids"]) for each in features)

    def fill(name, value):
        return torch.tensor(
            [each[name] + [value] * (longest - len(each[name])) for each in features]
        )

    ids = fill("input_ids", 0)
    return {"input_ids": ids, "labels": fill("labels", -100), "attention_mask": (ids > 0).long()}


def own_loss(model, objective, made):
    """The same loss, by the package's own way."""
    prompts = [
        attention_target(
            row["input_ids"][: row["looks_from"] + 1], row["looks_at"], row["looks_right"]
        )
        for row in made
    ]
    with row_attention(model):
        return objective(decoder(model), Batch.of(prompts, 1, "cpu"))[0]


def trainer_of(model, made, folder, **arguments):
    settings = {"max_steps": 6, "learning_rate": 1e-2, "per_device_train_batch_size": 8}
    plain = {"report_to": "none", "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
    settings = {**settings, **plain, "remove_unused_columns": False, **arguments}
    return Trainer(model, TrainingArguments(str(folder), **settings), padded, made)


@pytest.mark.parametrize("at", SPANS)
@pytest.mark.parametrize("objective", [VoteObjective(), ContrastiveObjective()])
def test_the_loss_of_a_trainer_has_the_attentions_added(objective, at, tmp_path):
    model, made = tiny_model("llama"), rows(at=at)
    trainer = trainer_of(model, made, tmp_path)
    expected = model(**padded(made)).loss + 0.5 * own_loss(model, objective, made)
    with attention_loss(trainer, objective, weight=0.5):
        loss = trainer.compute_loss(model, trainer.data_collator(made))
        both = trainer.compute_loss(model, trainer.data_collator(made), return_outputs=True)
    assert loss.item() == both[0].item() == pytest.approx(expected.item(), rel=1e-4)
    assert both[1].logits.shape[0] == len(made)
    loss.backward()
    gradient = model.model.layers[0].self_attn.q_proj.weight.grad
    model.zero_grad()
    expected.backward()
    expected = model.model.layers[0].self_attn.q_proj.weight.grad
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)


def test_rows_of_a_loss_that_failed_are_not_read_again(tmp_path):
    """A batch that ran out of memory after its forward pass, and the next one, which is smaller."""
    model, made = tiny_model("llama"), rows()
    trainer = trainer_of(model, made, tmp_path)
    real, calls = trainer.compute_loss, []

    def failing(*arguments, **options):
        result = real(*arguments, **options)
        calls.append(result)
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return result

    trainer.compute_loss = failing
    expected = model(**padded(made[:4])).loss + own_loss(model, VoteObjective(), made[:4])
    with attention_loss(trainer, VoteObjective()):
        with pytest.raises(RuntimeError, match="out of memory"):
            trainer.compute_loss(model, trainer.data_collator(made))
        loss = trainer.compute_loss(model, trainer.data_collator(made[:4]))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("at", SPANS)
def test_rows_of_a_data_set_in_torchs_format(at):
    def lists(features):
        return padded([{k: list(map(int, v)) for k, v in each.items()} for each in features])

    made = rows(4, at)
    tensors = [{name: torch.tensor(value) for name, value in row.items()} for row in made]
    # Spans of different rows are lists of tensors.
    tensors[1]["looks_at"] = list(tensors[1]["looks_at"])
    expected = AttentionCollator(padded)(made)
    batch = AttentionCollator(lists)(tensors)
    assert batch.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(batch[name], tensor), name


def test_positions_next_to_spans_are_refused():
    mixed = [*rows(1, SPANS[0]), *rows(1, SPANS[1])]
    for made in (mixed, mixed[::-1]):
        with pytest.raises(ValueError, match="give spans in all"):
            AttentionCollator(padded)(made)


def trained(made, folder, weight, **arguments):
    model = tiny_model("llama")
    trainer = trainer_of(model, made, folder, **arguments)
    with attention_loss(trainer, VoteObjective(), weight):
        trainer.train()
    return model


def test_a_plain_trainer_trains_attention(tmp_path):
    made = rows()
    losses = [
        own_loss(model, VoteObjective(), made).item()
        for model in (
            tiny_model("llama"),
            trained(made, tmp_path / "with", 5.0),
            trained(made, tmp_path / "without", 0.0),
        )
    ]
    assert losses[1] < losses[0] - 0.2
    assert losses[1] < losses[2] - 0.2


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_accumulation_and_checkpointing_change_nothing(checkpointing, tmp_path):
    made = rows()
    one = trained(made, tmp_path / "one", 2.0)
    many = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    other = trained(made, tmp_path / "many", 2.0, gradient_checkpointing=checkpointing, **many)
    for name, parameter in one.named_parameters():
        torch.testing.assert_close(parameter, other.get_parameter(name), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("lora", [False, True])
def test_trls_trainer_trains_attention(lora, tmp_path, bpe):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    peft = pytest.importorskip("peft")
    made = rows()
    model = tiny_model("llama")
    before = own_loss(model, VoteObjective(), made).item()
    arguments = trl.SFTConfig(
        str(tmp_path),
        max_steps=6,
        learning_rate=1e-2,
        per_device_train_batch_size=8,
        report_to="none",
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    config = peft.LoraConfig(r=8, target_modules=["q_proj", "k_proj"]) if lora else None
    trainer = trl.SFTTrainer(
        model,
        arguments,
        train_dataset=datasets.Dataset.from_list(made),
        processing_class=bpe,
        peft_config=config,
    )
    with attention_loss(trainer, VoteObjective(), 5.0):
        trainer.train()
    whole = trainer.model.get_base_model() if lora else trainer.model
    assert own_loss(whole, VoteObjective(), made).item() < before - 0.1


def test_evaluation_has_the_loss_too_and_no_attentions(tmp_path):
    model, made = tiny_model("llama"), rows()
    many = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    trainer = trainer_of(model, made, tmp_path, per_device_eval_batch_size=8, **many)
    seen = []
    trainer.compute_metrics = lambda found: seen.append(found.predictions) or {}
    for _ in range(2):
        expected = model(**padded(made)).loss + 3 * own_loss(model, VoteObjective(), made)
        with attention_loss(trainer, VoteObjective(), 3.0):
            found = trainer.evaluate(made)["eval_loss"]
            assert found == pytest.approx(expected.item(), rel=1e-4)
            trainer.train()
    assert seen[0].shape[0] == len(made)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"looks_from": 99}, "looks_from = 99: the row has 14 tokens"),
        ({"looks_at": []}, "expected distinct candidates"),
        ({"looks_right": None}, "no column 'looks_right'"),
    ],
)
def test_rows_that_make_no_sense(change, message):
    (row,) = rows(1)
    row = {name: value for name, value in {**row, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        AttentionCollator(padded)([row])


def test_a_collator_that_pads_on_the_left_is_refused():
    def left(features):
        batch = padded(features)
        return {name: tensor.flip(1) for name, tensor in batch.items()}

    with pytest.raises(ValueError, match="pad on the right"):
        AttentionCollator(left)(rows())


def test_reentrant_checkpointing_is_refused(tmp_path):
    arguments = {"gradient_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(AbftError, match="checkpointing is reentrant"):
        trained(rows(), tmp_path, 1.0, gradient_checkpointing=True, **arguments)


def test_what_cannot_be_added(tmp_path):
    model = tiny_model("llama")
    trainer = trainer_of(model, rows(), tmp_path)
    with pytest.raises(ValueError, match="no loss on attention"):
        attention_loss(trainer, E2EObjective(model)).__enter__()
    with pytest.raises(ValueError, match="changes between steps"):
        attention_loss(trainer, ABFTObjective(PIDController())).__enter__()
    trainer = trainer_of(model, rows(), tmp_path, remove_unused_columns=True)
    with pytest.raises(AbftError, match="remove_unused_columns=False"):
        attention_loss(trainer, VoteObjective()).__enter__()


def test_the_trainer_is_as_before_after_an_error(tmp_path):
    model = tiny_model("llama")
    trainer = trainer_of(model, rows(), tmp_path)
    collator = trainer.data_collator
    with pytest.raises(KeyError), attention_loss(trainer, VoteObjective()):
        raise KeyError
    assert trainer.data_collator is collator
    assert trainer.compute_loss.__func__ is Trainer.compute_loss
    assert model.config._attn_implementation == "sdpa"
    assert not decoder(model)._forward_hooks


def test_the_example_runs(bpe, monkeypatch, capsys):
    pytest.importorskip("trl")
    pytest.importorskip("StaICC")
    spec = importlib.util.spec_from_file_location("sft", EXAMPLES / "sft.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.setattr(example, "load_model", lambda name: (tiny_model("llama"), bpe))
    monkeypatch.setattr("sys.argv", ["sft.py", "--steps", "2", "--tests", "4"])
    example.main()
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if "%" in line] == [
        "before",
        "after",
    ]
