"""A run folder -> one HTML file: everything that is shown, and nothing that comes from
elsewhere.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from abft.analysis.analyze import DEFAULTS, Analyses, Choices, analyze
from abft.analysis.study import check_e2e_run
from abft.errors import AbftError
from abft.files import write_text
from abft.method.objectives import Caption, objective_title, training_captions
from abft.report.charts import TITLES, Arrays, Chart, confusion, reliability, training
from abft.report.inner_charts import (
    QUANTITIES,
    basin,
    causality,
    extrapolation,
    head_maps,
    layer_lines,
    quantity_of,
    weight_lines,
)
from abft.runs.config import ResolvedConfig
from abft.runs.run_folder import METRICS, read_before, read_config, read_log, read_metrics
from abft.scoring import metrics

MAX_BYTES = 15_000_000
TEMPLATES = Path(__file__).parent / "templates"


@dataclass
class Section:
    """A part of the page: charts, tables, and why something is missing."""

    name: str
    title: str
    lead: str
    charts: list[Chart] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def report(
    run: str | Path,
    output: str | Path | None = None,
    choices: Choices = DEFAULTS,
    compare: Sequence[Path] = (),
) -> Path:
    """Write the report of a run, RUN_DIR/report.html by default; analyses that are missing are
    computed first.

    Args:
        run: a run folder; of an unfinished run its settings and training are shown.
        output: the HTML file.
        choices: what to compute, and an end-to-end run to compare with.
        compare: other runs, whose training is drawn beside this one's.

    Raises:
        AbftError: no run folder, a path that cannot be written, an E2E run of another base model.
    """
    run = Path(run)
    path = run / "report.html" if output is None else Path(output)
    _check_output(path)

    # This run, and those to draw next to it.
    config = read_config(run)
    others = [*([] if choices.e2e is None else [choices.e2e]), *compare]
    folders = {"this run": run, **{_name(folder, others): folder for folder in others}}
    configs = {name: read_config(folder) for name, folder in folders.items()}
    if choices.e2e is not None:
        check_e2e_run(run, choices.e2e)

    finished = (run / METRICS).is_file()
    record = read_metrics(run) if finished else {}
    analyses = analyze(run, choices) if finished else Analyses()
    unfinished = None if finished else f"the run in {run} is not finished"
    evaluation = analyses.arrays.get("evaluation")
    versions = {"abft of the run": record.get("abft_version", "?")} if finished else {}
    context = {
        "title": f"{config.task_name or Path(str(config.data)).stem} · {Path(config.model).name}",
        "run": run.resolve().name,
        "objective": objective_title(config),
        "finished": finished,
        "headline": _headline(evaluation),
        "scores": _scores(evaluation, read_before(run)),
        "cost": _cost(record),
        "settings": {
            name: value for name, value in asdict(config).items() if value not in (None, {})
        },
        "versions": {**_versions(), **versions},
        "sections": _sections(analyses, _training_charts(folders, configs), unfinished),
        "quantities": QUANTITIES,
    }
    write_text(path, _rendered(context, analyses))
    return path


def _check_output(path: Path) -> None:
    """Raise AbftError where the page cannot be written, before minutes of work."""
    try:
        reason = "is a folder" if path.is_dir() else "is in no folder"
        if path.is_dir() or not path.parent.is_dir():
            raise AbftError(f"{path} {reason}; give another --output")
    except OSError as error:
        raise AbftError(f"{path} cannot be written: {error.strerror or error}") from None


def _training_charts(
    folders: Mapping[str, Path], configs: Mapping[str, ResolvedConfig]
) -> list[Chart]:
    """Draw the training of all runs, with the captions of their objectives."""
    first = next(iter(configs.values()))
    comparable = [
        name
        for name, config in configs.items()
        if (config.objective, config.cross_entropy) == (first.objective, first.cross_entropy)
    ]
    captions: dict[str, Caption] = {}
    for config in configs.values():
        captions = {**training_captions(config), **captions}
    logs = {name: read_log(folder) for name, folder in folders.items()}
    sizes = {name: config.nb for name, config in configs.items()}
    return training(logs, sizes, comparable, captions)


def _name(folder: Path, among: Sequence[Path]) -> str:
    """A run's folder name, or its path where two have the same name."""
    name = folder.resolve().name
    return name if sum(other.resolve().name == name for other in among) == 1 else str(folder)


def _headline(evaluation: Arrays | None) -> dict[str, float] | None:
    if evaluation is None:
        return None
    before, after = (
        metrics.accuracy(evaluation["probabilities_MNC"][m], evaluation["targets_N"])
        for m in (0, 1)
    )
    return {"before": before, "after": after, "prompts": len(evaluation["targets_N"])}


def _scores(
    evaluation: Arrays | None, vanilla: Mapping[str, float] | None
) -> dict[str, dict[str, float]]:
    """Metrics of every model, from the arrays; of the untouched one alone where a run is not
    finished.
    """
    if evaluation is None:
        return {TITLES["before"]: dict(vanilla)} if vanilla else {}
    targets, found = evaluation["targets_N"], {}
    for m, name in enumerate(map(str, evaluation["models_M"])):
        said = evaluation["probabilities_MNC"][m]
        found[TITLES[name]] = {
            **metrics.scores(said, targets),
            "heads": float(evaluation["induction_rate_MLH"][m].sum()),
        }
    return found


def _cost(record: Mapping[str, Any]) -> dict[str, str]:
    cost = record.get("training")
    if cost is None:
        return {}
    return {
        "training": f"{cost['seconds']:.0f} s, {cost['steps']} steps, {cost['prompts']} prompts",
        "trainable parameters": f"{cost['trainable_parameters']:,}",
        "peak memory": f"{cost['peak_memory_bytes'] / 2**30:.1f} GiB",
        "processes": str(cost["processes"]),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("abft", "torch", "transformers", "peft"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _sections(
    analyses: Analyses, training_charts: list[Chart], unfinished: str | None
) -> dict[str, Section]:
    found, missing = analyses.arrays, analyses.missing

    def why(*names: str) -> list[str]:
        return [unfinished] if unfinished else [missing[name] for name in names if name in missing]

    result = Section(
        "result",
        "Result",
        "What the training did to predictions on test prompts that it never saw.",
    )
    heads = Section(
        "heads",
        "Heads",
        "Which heads look at the labels of the demonstrations. Click a cell for its numbers.",
    )
    layers = Section("layers", "Layers", "Where in the network labels are looked at.")
    prompts = Section(
        "prompts",
        "Prompts",
        "What the chosen heads look at when they predict the label of a test prompt.",
    )
    weights = Section("weights", "Weights", "How far W_Q and W_K moved, layer by layer.")
    space = Section(
        "basin", "Basin", "Accuracy between the untouched and the trained weights, and beyond them."
    )
    cause = Section(
        "causality",
        "Causality",
        "Do the heads that look at labels carry the answer? Accuracy when they are switched off.",
    )
    curves = Section(
        "training",
        "Training",
        "Every optimizer step: loss, induction heads, where they look, and factor A.",
    )
    curves.charts = training_charts
    if not curves.charts:
        curves.missing = ["no step was logged"]
    if "evaluation" in found:
        evaluation = found["evaluation"]
        result.charts = [
            *(confusion(evaluation, m) for m in range(len(evaluation["models_M"]))),
            reliability(evaluation),
        ]
        heads.charts = head_maps(evaluation)
        seen = (
            "After training more attention should lie on correct labels, in the layers where heads "
            "look at labels at all."
        )
        layers.charts = [layer_lines("layers-seen", "Test prompts", evaluation, seen)]
    if "unseen" in found:
        caption = (
            "Every demonstration carries another label than the query: there is nothing right "
            "to look at."
        )
        layers.charts.append(layer_lines("layers-unseen", "Unseen label", found["unseen"], caption))
    if "changes" in found:
        weights.charts = weight_lines(found["changes"])
    if "line" in found:
        space.charts = [extrapolation(found["line"])]
    if "plane" in found:
        space.charts.insert(0, basin(found["plane"]))
    if "causality" in found:
        cause.charts = [
            causality(found["causality"], m) for m in range(len(found["causality"]["models_M"]))
        ]
    for section, needs in (
        (result, ("evaluation",)),
        (heads, ("evaluation",)),
        (layers, ("evaluation", "unseen")),
        (prompts, ("examples",)),
        (weights, ("changes",)),
        (space, ("line", "plane")),
        (cause, ("causality",)),
    ):
        section.missing = why(*needs)
    return {s.name: s for s in (result, curves, heads, layers, prompts, weights, space, cause)}


def _rendered(context: dict[str, Any], analyses: Analyses) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    template = environment.get_template("report.html")
    assets = {
        "plotly": get_plotlyjs(),
        "style": _asset("report.css"),
        "script": _asset("report.js"),
    }
    data = {
        "charts": {
            c.name: c.figure for section in context["sections"].values() for c in section.charts
        },
        "heads": _head_numbers(analyses.arrays.get("evaluation")),
        "prompts": _prompts(analyses),
    }
    page = template.render(**context, data=data, **assets)
    if len(page.encode()) > MAX_BYTES and data["prompts"] is not None:
        context["sections"]["prompts"].missing = [
            f"these prompts would make the file larger than {MAX_BYTES / 1e6:.0f} MB"
        ]
        page = template.render(**context, data={**data, "prompts": None}, **assets)
    return page


def _asset(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _head_numbers(evaluation: Arrays | None) -> dict[str, Any] | None:
    """What a click on a cell shows."""
    if evaluation is None:
        return None
    return {
        "layers": evaluation["layers_L"].tolist(),
        "models": [TITLES[str(name)] for name in evaluation["models_M"]],
        "values": {
            quantity: np.round(quantity_of(evaluation, quantity), 4).tolist()
            for quantity in QUANTITIES
        },
    }


def _prompts(analyses: Analyses) -> dict[str, Any] | None:
    """Texts in pieces, and the attention on each piece in 1/10,000: tokens that share characters
    are one piece.
    """
    if "examples" not in analyses.arrays:
        return None
    found, labels = analyses.arrays["examples"], analyses.arrays["evaluation"]["labels_C"].tolist()
    ends = np.cumsum(found["tokens_P"])
    prompts = []
    for p, text in enumerate(map(str, found["texts_P"])):
        begin = int(ends[p] - found["tokens_P"][p])
        pieces, piece_of_token = _pieces(text, found["spans_T2"][begin : ends[p]])
        attention = np.zeros((*found["attention_MJT"].shape[:2], len(pieces)))
        for token, piece in enumerate(piece_of_token):
            attention[..., piece] += found["attention_MJT"][..., begin + token]
        target = int(found["targets_P"][p])
        starts = np.cumsum([0, *(len(piece) for piece in pieces)])
        prompts.append(
            {
                "pieces": pieces,
                "labels": {
                    int(np.searchsorted(starts, int(end) - 1, side="right") - 1): bool(
                        label == target
                    )
                    for (_, end), label in zip(
                        found["label_spans_PK2"][p], found["label_classes_PK"][p], strict=True
                    )
                },
                "right": labels[target],
                "predicted": [labels[int(c)] for c in found["predicted_MP"][:, p]],
                "correct": [bool(c == target) for c in found["predicted_MP"][:, p]],
                "number": int(found["prompts_P"][p]),
                "attention": np.round(attention * 10_000).astype(int).tolist(),
            }
        )
    return {
        "models": [TITLES[str(name)] for name in found["models_M"]],
        "heads": [f"L{layer} H{head}" for layer, head in found["heads_J2"].tolist()],
        "prompts": prompts,
    }


def _pieces(text: str, spans_T2: np.ndarray) -> tuple[list[str], list[int]]:
    """The text cut where tokens begin, and the piece of every token; the pieces together are the
    text.
    """
    pieces, piece_of_token, done = [""], [], 0
    for start, end in spans_T2.tolist():
        if end > done:
            if pieces[-1] or start > done:
                pieces.append("")
            pieces[-1] += text[done:end]
            done = end
        piece_of_token.append(len(pieces) - 1)
    pieces[-1] += text[done:]
    return pieces, piece_of_token
