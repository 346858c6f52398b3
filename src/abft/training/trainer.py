"""Define `ABFTTrainer`: transformers' Trainer with another loss, and only what differs.

The trainer gets its objective as an object and knows nothing of heads.
"""

import functools
import inspect
import json
import math
import pickle
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    set_seed,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import TrainOutput

from abft.data.batches import Batch, PseudoBatchSampler, collate
from abft.data.datasets import training_pool
from abft.data.encoding import EncodedPrompt, encode, first_tokens, label_tokens, with_answers
from abft.data.packing import pack
from abft.data.prompts import training_prompts
from abft.data.splits import TaskData
from abft.errors import AbftError, CannotResume
from abft.files import atomic_files, write_json, write_text
from abft.method.objectives import (
    OBJECTIVES,
    AnchoredObjective,
    Objective,
    check_objective,
    make_objective,
)
from abft.method.objectives.anchored import ANCHOR_TOKENS
from abft.method.settings import layer_numbers
from abft.model.attention import IMPLEMENTATION, causal_lm, decoder, row_attention
from abft.model.capabilities import capabilities
from abft.model.checkpoints import (
    base_samples,
    load_full_rank,
    read_adapter,
    save_adapter,
    save_full_rank,
)
from abft.model.loading import context_length, load_model, load_tokenizer
from abft.model.qk_weights import (
    add_lora,
    add_lora_everywhere,
    mask_lora,
    qk_modules,
    softmax_layers,
    train_full_rank,
)
from abft.model.weight_files import FULL_RANK_FILE, HEADS_FILE, WEIGHT_FILES
from abft.training.arguments import ABFTConfig
from abft.training.model_card import card_settings, model_card
from abft.training.sharding import check_sharding, with_used_output

if TYPE_CHECKING:
    import datasets
    from peft import LoraConfig


class ABFTTrainer(Trainer):
    """Trains W_Q and W_K of a causal LM so that its attention heads look at the correct labels.

    Args:
        model: a model, or what `load_model` takes. It is changed: only W_Q and W_K stay
            trainable.
        args: default `ABFTConfig()`.
        train_dataset: a `TaskData` (prompts are drawn from its training pool); a `datasets.Dataset`
            with a column of texts and one of labels (prompts are drawn from all rows); or encoded
            prompts, of which every `args.queries` consecutive ones are packed.
        processing_class: the fast tokenizer; default: the model's own.
        peft_config: a `LoraConfig`; target modules default to W_Q and W_K. Without it they train at
            full rank.
        quantization_config: for a model given by name, e.g. `abft.model.loading.four_bit()`; needs
            `peft_config`.
        objective: default: the one that `args.objective` and `args.cross_entropy` name. In either
            case, `args.kl` adds the KL divergence from the untouched model.
        callbacks, optimizers: as in `transformers.Trainer`.

    Raises:
        AbftError: anything that would make training wrong or impossible; before training starts.
    """

    loss_is_scaled_for_ga = False
    args: ABFTConfig

    def __init__(
        self,
        model: PreTrainedModel | str,
        args: ABFTConfig | None = None,
        train_dataset: "TaskData | datasets.Dataset | Sequence[EncodedPrompt] | None" = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: "LoraConfig | None" = None,
        quantization_config: object | None = None,
        objective: Objective | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        args = ABFTConfig() if args is None else args
        # nn.DataParallel would multiply the pseudo-batch; `accelerate launch` uses all GPUs.
        if args.n_gpu > 1:
            args._n_gpu = 1

        if isinstance(model, str):
            device = "cpu" if args.use_cpu else "auto"
            model, tokenizer = load_model(
                model, quantization_config=quantization_config, device=device
            )
            processing_class = processing_class or tokenizer
        elif quantization_config is not None:
            raise AbftError(
                "quantization_config is for a model given by name; this model is loaded already"
            )
        if processing_class is None:
            if not model.config.name_or_path:
                raise AbftError(
                    "the model has no name to load a tokenizer of: give processing_class"
                )
            processing_class = load_tokenizer(model.config.name_or_path)

        # A `datasets.Dataset` becomes a task, and a task becomes encoded prompts.
        if hasattr(train_dataset, "column_names"):
            train_dataset = training_pool(
                train_dataset, args.text_column, args.label_column, args.template
            )
        self.task = train_dataset.task if isinstance(train_dataset, TaskData) else None
        if isinstance(train_dataset, TaskData):
            if objective is None:
                check_objective(args, args.k)
            tokens = label_tokens(processing_class, train_dataset.task, args.prompt_style)
            reads_attention = OBJECTIVES[args.objective].reads_attention
            if not reads_attention and len(set(first_tokens(tokens))) < len(tokens):
                raise AbftError(
                    "cross-entropy is taken of a label's first token, and two labels begin with "
                    "the same token. Train on attention too (--objective vote), or map one of "
                    "them to another word (--label-words 'LABEL=word')"
                )

            prompts = training_prompts(
                train_dataset,
                args.nd,
                args.k,
                args.prompts_seed,
                args.prompt_style,
                args.queries,
                args.sampling,
            )
            encoded = encode(processing_class, prompts, args.prompt_style, context_length(model))
            train_dataset = with_answers(encoded, tokens)
        if not train_dataset:
            raise AbftError("train_dataset: expected a TaskData or encoded prompts, got nothing")

        supported = capabilities(model)
        self.implementation = supported.implementation
        count = args.nd if self.task is not None else len(train_dataset)
        if count % args.queries:
            raise AbftError(
                f"queries = {args.queries} has to divide the number of training prompts, {count}"
            )

        # Where they cannot be packed, prompts that share demonstrations are read one by one: the
        # result is the same, but it takes longer.
        packable = self.implementation == IMPLEMENTATION and supported.packs
        self.packed = args.queries > 1 and packable

        # LoRA's initial weights are random.
        set_seed(args.seed)
        model = _select_weights(model, args, peft_config)
        self._own_objective = objective
        if objective is None:
            made = make_objective(args, model, self.implementation)
            with _without_dropout(model):
                made.prepare(model, train_dataset, args.queries if self.packed else 1)
            objective = made
        self.objective = AnchoredObjective(objective, args.kl, model) if args.kl else objective

        # Saved weights carry samples of the base, which training is about to change.
        base = causal_lm(model)
        self._base_samples = base_samples(base, qk_modules(base))

        # Metrics are summed over the micro-batches of a pseudo-batch.
        self._sums: dict[str, Tensor] = {}
        self._micro_batches = 0
        self.step_metrics: dict[str, float] = {}

        super().__init__(
            model=model,
            args=args,
            data_collator=functools.partial(collate, queries=args.queries if self.packed else 1),
            train_dataset=train_dataset,
            processing_class=processing_class,
            callbacks=[_Step(self), *(callbacks or [])],
            optimizers=optimizers,
        )
        check_sharding(self)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Train as `Trainer.train`. Dropout is off meanwhile; stock attention is back afterwards.

        `resume_from_checkpoint=True` takes the newest complete checkpoint; a checkpoint of the last
        step is only loaded.
        """
        if resume_from_checkpoint is True:
            newest = last_checkpoint(self.args.output_dir)
            if newest is None:
                raise AbftError(f"no complete checkpoint in {self.args.output_dir}")
            resume_from_checkpoint = str(newest)

        # After a checkpoint of the last step there is nothing to train.
        if resume_from_checkpoint:
            state_file = Path(resume_from_checkpoint) / "trainer_state.json"
            state = TrainerState.load_from_json(str(state_file))
            if 0 < self.args.max_steps <= state.global_step:
                self._load_from_checkpoint(str(resume_from_checkpoint))
                self.state = state
                restore_objective(self.objective, state)
                return TrainOutput(state.global_step, 0.0, {})

        with row_attention(self.model, self.implementation), _without_dropout(self.model):
            return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the objective's loss, without running the LM head.

        Only if a wrapper such as DDP has to be called, one position goes through the LM head.
        """
        batch = Batch(**inputs)
        # FSDP2 gathers what the outermost module holds when it is called.
        wrapped = model is not self.model or self.is_fsdp_enabled
        module = self._wrapped(model) if wrapped else decoder(self.model)

        # accelerate's own autocast covers the whole model's forward only.
        with self.accelerator.autocast():
            loss, metrics = self.objective(module, batch)

        if not loss.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                "the loss has no gradient: activation checkpointing must be non-reentrant"
            )

        for name, value in {"loss": loss.detach(), **metrics}.items():
            zero = torch.zeros((), device=value.device)
            self._sums[name] = self._sums.get(name, zero) + value.float()
        self._micro_batches += 1
        # A model on several GPUs leaves the loss where its last part is.
        loss = loss.to(self.args.device)
        return (loss, {}) if return_outputs else loss

    def _wrapped(self, model: nn.Module) -> Any:
        """Return a call of a wrapper such as DDP that gives hidden states, as the decoder would.

        The wrapper has to be called whole; it then computes the logits of one position only, where
        it can.
        """
        call: Any = model
        arguments = inspect.signature(causal_lm(self.model).forward).parameters
        if "logits_to_keep" in arguments:
            call = functools.partial(model, logits_to_keep=1)
        if self.is_fsdp_enabled:
            call = with_used_output(call)
        return _with_hidden(call, decoder(self.model))

    def finish_pseudo_batch(self) -> None:
        """Give the means of the last pseudo-batch to the objective (and its PID) and to the log.

        They are means over all processes.

        Raises:
            AbftError: a loss that is not finite; the step is not taken.
        """
        names = list(self._sums)
        # A model on several GPUs leaves its sums on different ones.
        sums = torch.stack([self._sums[name].to(self.args.device) for name in names])
        means = self.accelerator.reduce(sums / self._micro_batches, reduction="mean")
        self._sums, self._micro_batches = {}, 0

        metrics = dict(zip(names, means.tolist(), strict=True))
        if not math.isfinite(metrics["loss"]):
            raise AbftError(
                f"the loss of step {self.state.global_step + 1} is {metrics['loss']}; that step "
                "was not taken, but an earlier one may have corrupted the weights. Start over "
                "with a smaller learning rate, or in float32."
            )
        self.step_metrics = {**metrics, **self.objective.after_step(metrics)}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as `Trainer.log`, with the step's own metrics besides the loss."""
        if "loss" in logs and self.step_metrics:
            logs = {**self.step_metrics, **logs}
        super().log(logs, start_time)

    @functools.cached_property
    def _group_lengths(self) -> list[int]:
        """The number of tokens of each group that shares demonstrations.

        It is the length of the pack or, if prompts are read one by one, of the longest prompt.
        """
        prompts, queries = self.train_dataset, self.args.queries
        groups = [prompts[start : start + queries] for start in range(0, len(prompts), queries)]
        if self.packed:
            return [len(pack(group).input_ids) for group in groups]
        return [max(len(prompt.input_ids) for prompt in group) for group in groups]

    @property
    def tokens_per_step(self) -> float:
        """Return how many tokens the model reads in an optimizer step, on average."""
        return sum(self._group_lengths) / len(self._group_lengths) * self._sequences_per_step

    @property
    def anchored_tokens_per_step(self) -> float:
        """Return how many of these tokens `kl` compares: the beginnings of sequences."""
        lengths = [min(length, ANCHOR_TOKENS) for length in self._group_lengths]
        return sum(lengths) / len(lengths) * self._sequences_per_step

    @property
    def _sequences_per_step(self) -> float:
        return self.args.nb / self.args.queries if self.packed else self.args.nb

    def _get_train_sampler(self, train_dataset: Any = None) -> PseudoBatchSampler:
        """Return the order of the prompts; those that share demonstrations stay together."""
        size, seed, queries = self.args.nb, self.args.prompts_seed, self.args.queries
        return PseudoBatchSampler(self._group_lengths, size, seed, queries)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save a stock PEFT adapter, or only the changed tensors; never the whole model."""
        folder = Path(output_dir or self.args.output_dir)
        if not self.args.should_save:
            return

        with atomic_files(folder) as staging:
            model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            if hasattr(model, "get_base_model"):
                save_adapter(model, staging, self._base_samples, state_dict)
            else:
                save_full_rank(model, staging, self._base_samples)
            chosen_LH = getattr(self.objective, "chosen_LH", None)
            if chosen_LH is not None:
                layers = softmax_layers(causal_lm(model))
                heads = [[layers[layer], head] for layer, head in chosen_LH.nonzero().tolist()]
                write_json(staging / HEADS_FILE, {"heads": heads})
            if self.processing_class is not None:
                self.processing_class.save_pretrained(staging)

            # Weights that another training left here would be taken for these.
            for name in WEIGHT_FILES:
                if not (staging / name).is_file():
                    (folder / name).unlink(missing_ok=True)

            # PEFT writes an empty template as the card: replace it. Else, an existing card stays.
            card = staging / "README.md"
            if card.is_file() or not (folder / "README.md").is_file():
                card.write_text(self._card(), encoding="utf-8")

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        """Load the weights of a checkpoint, an adapter as `Trainer` does.

        The model may have been trained already: its base is recognised by earlier samples of it.
        """
        target = self.model if model is None else model
        try:
            if hasattr(target, "get_base_model"):
                read_adapter(target, resume_from_checkpoint, self._base_samples)
                with _readable(resume_from_checkpoint):
                    super()._load_from_checkpoint(resume_from_checkpoint, model)
            else:
                load_full_rank(target, resume_from_checkpoint, samples=self._base_samples)
        except AbftError as error:
            raise CannotResume(str(error)) from None

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _readable(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _readable(checkpoint):
            super()._load_rng_state(checkpoint)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push a checkpoint as `Trainer` does, with the newest weights in the pushed folder."""
        # `Trainer` copies only the files that it knows.
        newest = Path(checkpoint_folder) / FULL_RANK_FILE
        if newest.is_file():
            shutil.copy(newest, self.args.output_dir)
        super()._push_from_checkpoint(checkpoint_folder)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write README.md, the model card, to the output folder."""
        if self.is_world_process_zero():
            write_text(Path(self.args.output_dir, "README.md"), self._card())

    def _card(self) -> str:
        """Write the model card, with the settings of this training."""
        arguments = {name: getattr(self.args, name) for name in ("learning_rate", "max_steps")}
        own = self._own_objective is not None
        settings = card_settings(self.args, own_objective=own, own_prompts=self.task is None)
        return model_card(
            str(self.model.config.name_or_path),
            self.task,
            self.args,
            "adapter" if hasattr(self.model, "get_base_model") else "full_rank",
            shown={**arguments, **settings},
            prompt_style=self.args.prompt_style,
            own_objective=self._own_objective,
        )


class _Step(TrainerCallback, ExportableState):
    """Closes each pseudo-batch before the optimizer's step, and measures the seconds of the step.

    It also carries the objective's state through checkpoints.
    """

    def __init__(self, trainer: ABFTTrainer) -> None:
        self.trainer = trainer
        self.started = 0.0

    def state(self) -> dict:
        """Return what checkpoints hold of this callback: the objective's state."""
        return {"args": {}, "attributes": {"objective": self.trainer.objective.state()}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A training that ended in the middle of a step leaves sums of its micro-batches.
        self.trainer._sums, self.trainer._micro_batches = {}, 0
        if state.global_step > 0:
            restore_objective(self.trainer.objective, state)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.finish_pseudo_batch()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.step_metrics["seconds"] = time.perf_counter() - self.started


def last_checkpoint(folder: str | Path) -> Path | None:
    """Return the newest *complete* checkpoint in a run folder, None without one.

    trainer_state.json is written last, so it has to parse.
    """
    checkpoints = []
    for path in Path(folder).glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")

        # A checkpoint cut short has no state, or half of one.
        try:
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue

        if number.isdigit() and state.get("global_step") == int(number):
            checkpoints.append((int(number), path))
    return max(checkpoints)[1] if checkpoints else None


@contextmanager
def _readable(checkpoint: str | None) -> Iterator[None]:
    """Raise AbftError for a part of a checkpoint that is damaged, or that torch refuses to load."""
    try:
        yield
    except torch.OutOfMemoryError:  # a RuntimeError too
        raise
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CannotResume(
            f"{checkpoint} could not be read: {reason[:160]}. Delete it to go on from another"
        ) from None


def restore_objective(objective: Objective, state: TrainerState) -> None:
    """Hand an objective the state that a checkpoint holds."""
    saved = state.stateful_callbacks.get(_Step.__name__)
    if saved:
        objective.restore(saved["attributes"]["objective"])


def _select_weights(
    model: PreTrainedModel, args: ABFTConfig, peft_config: "LoraConfig | None"
) -> PreTrainedModel:
    """Changes `model`: leaves W_Q and W_K trainable, at full rank or through LoRA."""
    everywhere, layers = args.lora_targets == "all-linear", layer_numbers(args.layers)
    if everywhere and (peft_config is None or layers is not None):
        raise AbftError("lora_targets = 'all-linear' goes with peft_config, without layers")

    # A baseline, which trains more than W_Q and W_K.
    if peft_config is not None and everywhere:
        return add_lora_everywhere(model, peft_config)  # type: ignore[return-value]
    if peft_config is not None:
        return add_lora(model, peft_config, layers)  # type: ignore[return-value]

    # The model is the caller's own PEFT model.
    if hasattr(model, "get_base_model"):
        if layers is not None:
            raise AbftError("layers goes with peft_config; this model has its adapter already")
        mask_lora(model)  # type: ignore[arg-type]
        return model

    if getattr(model, "is_quantized", False):
        raise AbftError(
            "a quantised model trains through LoRA only: give peft_config (--lora-r 16)"
        )
    train_full_rank(model, layers)
    return model


def _with_hidden(call: Any, inner: nn.Module) -> Any:
    """Wrap `call` so that it returns hidden states and attentions, as the decoder `inner` would.

    A whole model returns other things first: logits or, in mixtures of experts, the routers' loss.
    """

    def wrapper(**inputs: Any) -> BaseModelOutput:
        hidden: list[Tensor] = []
        handle = inner.register_forward_hook(
            lambda module, arguments, output: hidden.append(output[0])
        )
        try:
            output = call(**inputs)
        finally:
            handle.remove()
        return BaseModelOutput(hidden[-1], attentions=output.get("attentions"))

    return wrapper


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Changes `model` while open: its dropout is off.

    The rows are a measurement, and dropout below them is noise in it.
    """
    before = []
    for module in model.modules():
        # Attention keeps its rate as a number, such as `attention_dropout`.
        numbers = [name for name, value in vars(module).items() if isinstance(value, float)]
        names = [name for name in numbers if "drop" in name]
        names += ["p"] if isinstance(module, nn.Dropout) else []
        before += [(module, name, getattr(module, name)) for name in names]
    try:
        for module, name, _ in before:
            setattr(module, name, 0.0)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
