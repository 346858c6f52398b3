"""The objectives that can be trained: a class for each, listed here by name.

`abft train --objective`, its help, the defaults that depend on the objective, model cards, tables,
the report and the benchmark read everything they need from these classes. To add an objective,
write a class in a file of its own and add a line to `OBJECTIVES`.
"""

from typing import TYPE_CHECKING

from abft.errors import AbftError
from abft.method.objectives.anchored import KL_CAPTION, AnchoredObjective
from abft.method.objectives.base import Caption, Objective, RowObjective
from abft.method.objectives.combined import CombinedObjective
from abft.method.objectives.contrastive import ContrastiveObjective
from abft.method.objectives.end_to_end import E2EObjective
from abft.method.objectives.paper import ABFTObjective
from abft.method.objectives.vote import VoteObjective

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from abft.method.settings import MethodSettings
    from abft.model.attention import Implementation

__all__ = [
    "DEFAULT_OBJECTIVE",
    "OBJECTIVES",
    "ABFTObjective",
    "AnchoredObjective",
    "Caption",
    "CombinedObjective",
    "ContrastiveObjective",
    "E2EObjective",
    "Objective",
    "RowObjective",
    "VoteObjective",
    "check_objective",
    "make_objective",
    "objective_title",
    "training_captions",
]

OBJECTIVES: dict[str, type[RowObjective]] = {
    "vote": VoteObjective,
    "contrastive": ContrastiveObjective,
    "abft": ABFTObjective,
    "e2e": E2EObjective,
}

# What `abft train`, `RunConfig` and `ABFTClassifier` train unless told otherwise.
DEFAULT_OBJECTIVE = "vote"


def check_objective(settings: "MethodSettings", k: int) -> None:
    """Raise AbftError for settings that have no effect with the chosen objective, or make no sense.

    Args:
        settings: the objective's name and settings; what is left open (None) is not checked.
        k: demonstrations in a prompt.
    """
    from abft.settings import changed, settings_of

    for name, known in settings_of(settings).items():
        own = known.objectives
        if own and settings.objective not in own and changed(settings, [name]):
            raise AbftError(
                f"{name} goes with objective {own[0]!r} and has no effect on "
                f"{settings.objective!r}; add --objective {own[0]}, or --recipe paper"
            )
    OBJECTIVES[settings.objective].check(settings, k)


def make_objective(
    settings: "MethodSettings", model: "PreTrainedModel", implementation: "Implementation"
) -> RowObjective:
    """Make the objective that the settings name, plus cross-entropy where it has a weight.

    Args:
        settings: the objective's name and settings, resolved.
        model: the whole model, whose LM head cross-entropy reads.
        implementation: how attention rows are read, `abft.capabilities(model).implementation`.
    """
    from abft.model.attention import causal_lm
    from abft.model.capabilities import capabilities

    chosen = OBJECTIVES[settings.objective]
    if chosen.reads_output or settings.cross_entropy:
        capabilities(causal_lm(model)).check_lm_head()
    objective = chosen.from_settings(settings, model, implementation)
    if not settings.cross_entropy:
        return objective
    e2e = E2EObjective.from_settings(settings, model, implementation)
    return CombinedObjective(objective, e2e, settings.cross_entropy)


def objective_title(settings: "MethodSettings") -> str:
    """Return what the report and tables call the training."""
    title = OBJECTIVES[settings.objective].long_title
    if settings.cross_entropy:
        title += " plus cross-entropy of the label word"
    return f"{title}, anchored (kl {settings.kl:g})" if settings.kl else title


def training_captions(settings: "MethodSettings") -> dict[str, Caption]:
    """Return title, axis and caption of every quantity that training logs, by its name."""
    captions = dict(OBJECTIVES[settings.objective].captions)
    added = []
    if settings.cross_entropy:
        added.append(f"{settings.cross_entropy:g} x the cross-entropy of the label word")
        captions["cross_entropy"] = Caption(
            "Cross-entropy of the label word",
            "cross-entropy (mean over prompts)",
            E2EObjective.captions["loss"].caption,
        )
    if settings.kl:
        added.append(f"{settings.kl:g} x the divergence from the untouched model")
        captions["kl"] = KL_CAPTION
    if added:
        loss = captions["loss"]
        all_of_it = f"{loss.caption} The line is this loss plus {' plus '.join(added)}."
        captions["loss"] = Caption(loss.title, loss.axis, all_of_it)
    return captions
