"""Train on encoded prompts, and measure every few steps; what measuring takes does not count."""

import time


def recorded(options):
    """What a raw result keeps of the options."""
    left_out = ("output", "save", "run")
    return {name: value for name, value in vars(options).items() if name not in left_out}


def trained_heads(trainer):
    """The heads that the trainer has chosen on training prompts, (L, H) bool; None = all."""
    chosen = trainer.objective.chosen_LH
    return None if chosen is None else chosen.numpy()


def train_measured(model, tokenizer, prompts, options, prepare, custom=None, **settings):
    """Train as the options of a benchmark say.

    `prepare(trainer)` returns `measure(step, seconds)`, which is called before the first step and
    then every `options.every` steps. `custom`: an objective; else `settings`, more of
    `ABFTConfig`, name one. With `options.save` the trained weights are kept in that folder.
    """
    from transformers import PrinterCallback, TrainerCallback

    from abft.training.arguments import ABFTConfig
    from abft.training.trainer import ABFTTrainer

    class Measure(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.started = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step % options.every == 0:
                before = time.perf_counter()
                losses = [each["loss"] for each in state.log_history if "loss" in each]
                print("mean loss", round(sum(losses[-options.every :]) / options.every, 4))
                measure(state.global_step, before - self.started)
                model.train()
                self.started += time.perf_counter() - before

    arguments = ABFTConfig(
        output_dir=str(options.output.with_suffix("")),
        learning_rate=options.lr,
        warmup_steps=4,
        max_steps=options.steps,
        per_device_train_batch_size=options.queries,
        gradient_accumulation_steps=options.groups,
        queries=options.queries,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=options.seed,
        bf16=options.bf16,
        use_cpu=True,
        **settings,
    )
    trainer = ABFTTrainer(
        model, arguments, prompts, tokenizer, objective=custom, callbacks=[Measure()]
    )
    trainer.remove_callback(PrinterCallback)
    measure = prepare(trainer)
    measure(0, 0)
    trainer.train()
    if options.save:
        trainer.save_model(str(options.save))
