"""A setting is declared once: what is derived from the field follows by itself."""

import dataclasses
import re
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import transformers
import typer
import yaml

import abft
from abft import ABFTClassifier, ABFTConfig
from abft.cli.app import app
from abft.cli.options import options_of
from abft.errors import AbftError
from abft.method.objectives import OBJECTIVES
from abft.method.settings import MethodSettings, PromptSettings
from abft.model.loading import EMBEDDED
from abft.runs.config import RECIPES, RunConfig, absolute_paths, config_values, resolve
from abft.settings import (
    check_settings,
    default_of,
    document_settings,
    from_mapping,
    setting,
    settings_of,
    with_default,
)
from command_line import arguments, invoke


@dataclass
class Base:
    size: int = setting(2, "How large.", at_least=1, card=True)


@dataclass
class Example(Base):
    name: str = setting("a", "Which.", choices=lambda: ("a", "b"))
    share: float = setting(0.5, "A share.", at_least=0, below=1)
    left: int | None = setting(None, "What is left.", follows="the rest", at_least=0)
    kind: Literal["x", "y"] | None = setting(None, "A kind.")
    words: dict[str, str] = setting({}, "Words.")
    numbers: list[int] = setting([0], "Numbers.")
    where: Path | None = setting(None, "A place.")

    def __post_init__(self):
        check_settings(self)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 0}, "size = 0: expected at least 1"),
        ({"size": True}, "size = True: expected a whole number"),
        ({"size": 1.0}, "size = 1.0: expected a whole number"),
        ({"size": None}, "size = None: expected a whole number"),
        ({"name": "c"}, "name = 'c': expected one of a, b"),
        ({"share": 1}, "share = 1: expected a number from 0 to less than 1"),
        ({"share": float("nan")}, "share = nan"),
        ({"left": -1}, "left = -1: expected at least 0"),
        ({"kind": "z"}, "kind = 'z': expected one of x, y"),
        ({"words": {"a": True}}, "label: word pairs of text"),
        ({"share": "half"}, "share = 'half': expected a number"),
        ({"numbers": [1, "2"]}, "expected a list of whole numbers"),
        ({"where": "here"}, "where = 'here'"),
        ({"sizes": 1}, "there: unknown key 'sizes'; did you mean 'size'?"),
    ],
)
def test_values_out_of_type_or_bounds_are_refused(values, message):
    with pytest.raises(AbftError, match=re.escape(message)):
        from_mapping(Example, values, "there")


def test_values_of_their_types_pass():
    given = {"size": 3, "share": 0, "left": 0, "kind": "y", "numbers": [], "where": Path("x")}
    assert dataclasses.asdict(from_mapping(Example, given, "there")) == {
        **given,
        "name": "a",
        "words": {},
    }
    assert Example().words is not Example().words


def test_another_default_keeps_everything_else():
    @dataclass
    class Other(Base):
        size: int = with_default(Base, "size", 7)

    assert (Other().size, default_of(Base, "size")) == (7, 2)
    assert settings_of(Other) == settings_of(Base)


def test_every_setting_is_an_option_a_key_and_documented():
    """One field is enough: nothing else in the package lists the settings."""
    train = typer.main.get_command(app).commands["train"]
    options = {option.name: option for option in train.params}
    known = settings_of(RunConfig)
    assert set(known) == {f.name for f in fields(RunConfig)}
    for name, each in known.items():
        assert options[name].help.startswith(each.help[:40].replace("\\n", "\\n"))
        assert options[name].default is None  # a value means that the user gave it
    written = yaml.safe_load(yaml.safe_dump(config_values(resolve(RunConfig()))))
    assert set(written) == {"version", *known}
    assert all(set(recipe) <= set(known) for recipe in RECIPES.values())


def test_measuring_commands_have_the_settings_that_decide_what_is_measured():
    for command in ("eval", "heads"):
        options = {o.name for o in typer.main.get_command(app).commands[command].params}
        measuring = {name for name, each in settings_of(RunConfig).items() if each.measuring}
        assert measuring <= options
        assert not options & {"lr", "steps", "objective", "A0", "nb"}


def test_trainer_and_run_share_the_methods_settings(tmp_path):
    ours, theirs = settings_of(RunConfig), settings_of(ABFTConfig)
    shared = {*settings_of(MethodSettings), *settings_of(PromptSettings)}
    assert shared <= set(ours) & set(theirs)
    assert all(ours[name] == theirs[name] for name in shared)
    paper = ABFTConfig(output_dir=str(tmp_path), report_to="none")
    recipe = {**RECIPES["paper"], "learning_rate": 2e-5, "max_steps": 32}
    same = {name: value for name, value in recipe.items() if hasattr(paper, name)}
    assert {"queries", "objective", "A0", "learning_rate", "nb"} <= set(same)
    assert {name: getattr(paper, name) for name in same} == same


def test_the_classifier_says_what_the_settings_say():
    for argument, name in (("model", "model"), ("learning_rate", "lr"), ("objective", "objective")):
        assert f"{argument}: {settings_of(RunConfig)[name].help}" in ABFTClassifier.__doc__

    @document_settings(Base, {"length": "size"})
    class Documented:
        """Something.

        Args:
            other: of another kind.
        """

    assert "length: How large." in Documented.__doc__


def test_help_names_every_objective():
    shown = " ".join(invoke("train", "--help").output.replace("│", " ").split())
    for name, objective in OBJECTIVES.items():
        assert f"{name}: {objective.summary.split(',')[0]}" in shown
        assert f"{name} {objective.default_steps}" in shown


def test_own_settings_of_an_objective_are_tagged_with_it():
    assert {n for n, s in settings_of(RunConfig).items() if "abft" in s.objectives} == {
        *("A0", "B0", "Cp", "Ci", "Cd", "pid", "head_filter")
    }
    for each in settings_of(RunConfig).values():
        assert set(each.objectives) <= set(OBJECTIVES)


def test_options_of_a_new_setting():
    options = {option.name: option for option in options_of(Example)}
    assert set(options) == set(settings_of(Example))
    assert options["size"].annotation.__metadata__[0].help == "How large."
    assert all(option.default is None for option in options.values())


def test_few_functions_lie_between_the_command_line_and_the_optimizer(
    options, tmp_path, monkeypatch
):
    depths = []
    create = transformers.Trainer.create_optimizer

    def counted(trainer, *rest):
        frame, own = sys._getframe(1), []
        while frame is not None:
            if Path(frame.f_code.co_filename).is_relative_to(Path(abft.__file__).parent):
                own.append(frame.f_code.co_name)
            frame = frame.f_back
        depths.append(own)
        return create(trainer, *rest)

    monkeypatch.setattr(transformers.Trainer, "create_optimizer", counted)
    given = {**options, "steps": 1, "test-prompts": 0}
    assert invoke("train", *arguments(given), "--output", tmp_path / "run").exit_code == 0
    assert len(depths[0]) <= 6, depths[0]


def test_values_are_read_as_they_are_meant(tmp_path):
    """In Python as in YAML, which reads 3e-4 as text."""
    layered = RunConfig(layers=[1, "3-5"], heads=8, objective="contrastive", lr="3e-4")
    assert (layered.layers, layered.heads, layered.lr) == ("1,3-5", "8", 3e-4)
    mixed = RunConfig(tasks=["SST2", "TREC"], words=("own",), shots=8, train_on="mixture")
    assert (mixed.tasks, mixed.words, mixed.shots) == ("SST2,TREC", "own", "8")

    lines = "lr: 3e-4\nlayers: 1\nlabel_words: {0: bad}\ndata: a.csv\n"
    values = yaml.safe_load(lines)
    assert values["lr"] == "3e-4"
    config = RunConfig.from_dict(values, "there")
    assert (config.lr, config.layers, config.label_words) == (3e-4, "1", {"0": "bad"})
    numbers = RunConfig(lr=np.float32(0.5), steps=np.int64(8), layers=range(3), heads=np.int64(4))
    assert (numbers.lr, numbers.steps, numbers.layers, numbers.heads) == (0.5, 8, "0,1,2", "4")
    assert {type(numbers.lr), type(numbers.steps)} == {float, int}
    for name, value in (
        *(("lr", "much"), ("lr", "nan"), ("steps", "8"), ("steps", np.bool_(True))),
        # YAML reads 0123456, which may be a commit, as another number.
        *(("model", ["a"]), ("revision", 42798), ("text_column", 8)),
    ):
        with pytest.raises(AbftError, match=f"{name} = "):
            RunConfig(**{name: value})


def test_a_folder_does_not_hide_the_embedded_model(tmp_path, monkeypatch):
    """Every way to name a model takes the name as `load_model` does."""
    monkeypatch.chdir(tmp_path)
    for name in (EMBEDDED, "mine"):
        (tmp_path / name).mkdir()
    (tmp_path / "gpt2").write_text("notes")
    for named, expected in ((EMBEDDED,) * 2, ("gpt2",) * 2, ("mine", str(tmp_path / "mine"))):
        assert absolute_paths(RunConfig, {"model": named}) == {"model": expected}
