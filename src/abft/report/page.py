"""Write the report of a run folder: one HTML file that loads nothing from elsewhere."""

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
    deletion,
    extrapolation,
    head_maps,
    layer_lines,
    quantity_of,
    weight_lines,
)
from abft.runs.config import ResolvedConfig
from abft.runs.run_folder import (
    METRICS,
    REPORT,
    read_before,
    read_config,
    read_log,
    read_metrics,
)
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
    """Write the report of a run, RUN_DIR/report.html by default, and return its path.

    Analyses that are missing are computed first.

    Args:
        run: a run folder; of an unfinished run its settings and training are shown.
        output: the HTML file.
        choices: what to compute, and an end-to-end run to compare with.
        compare: other runs, whose training is drawn next to this one's.

    Raises:
        AbftError: no run folder, a path that cannot be written, an E2E run of another base model.
    """
    run = Path(run)
    path = run / REPORT if output is None else Path(output)
    _check_output(path)

    # This run, and those to draw next to it.
    config = read_config(run)
    others = [*([] if choices.e2e is None else [choices.e2e]), *compare]
    folders = {"this run": run, **{_name(folder, others): folder for folder in others}}
    configs = {name: read_config(folder) for name, folder in folders.items()}
    if choices.e2e is not None:
        check_e2e_run(run, choices.e2e)

    # Of an unfinished run only settings, training and the untouched model are known.
    finished = (run / METRICS).is_file()
    record = read_metrics(run) if finished else {}
    analyses = analyze(run, choices) if finished else Analyses()
    unfinished = None if finished else f"the run in {run} is not finished"
    evaluation = analyses.arrays.get("evaluation")

    settings = {name: value for name, value in asdict(config).items() if value not in (None, {})}
    run_versions = {"abft of the run": record.get("abft_version", "?")} if finished else {}
    context = {
        "title": f"{config.task_name or Path(str(config.data)).stem} · {Path(config.model).name}",
        "run": run.resolve().name,
        "objective": objective_title(config),
        "finished": finished,
        "headline": _headline(evaluation),
        "scores": _scores(evaluation, read_before(run)),
        "cost": _cost(record),
        "settings": settings,
        "versions": {**_versions(), **run_versions},
        "sections": _sections(analyses, _training_charts(folders, configs), unfinished),
        "quantities": QUANTITIES,
    }
    write_text(path, _rendered(context, analyses))
    return path


def _check_output(path: Path) -> None:
    """Raise AbftError if the page cannot be written, before minutes of work."""
    try:
        if path.is_dir():
            raise AbftError(f"{path} is a folder; give another --output")
        if not path.parent.is_dir():
            raise AbftError(f"--output {path}: the folder {path.parent} does not exist")
    except OSError as error:
        raise AbftError(f"{path} cannot be written: {error.strerror or error}") from None


def _training_charts(
    folders: Mapping[str, Path], configs: Mapping[str, ResolvedConfig]
) -> list[Chart]:
    """Draw the training of all runs, with the captions of their objectives."""
    # The loss of another objective is another quantity.
    first = next(iter(configs.values()))
    of_the_loss = ("objective", "cross_entropy", "kl")
    comparable = [
        name
        for name, config in configs.items()
        if all(getattr(config, name) == getattr(first, name) for name in of_the_loss)
    ]

    # Where objectives share a quantity, the caption is that of the first run.
    captions: dict[str, Caption] = {}
    for config in configs.values():
        captions = {**training_captions(config), **captions}

    logs = {name: read_log(folder) for name, folder in folders.items()}
    sizes = {name: config.nb for name, config in configs.items()}
    return training(logs, sizes, comparable, captions)


def _name(folder: Path, among: Sequence[Path]) -> str:
    """Return a run's folder name, or its path where two have the same name."""
    name = folder.resolve().name
    return name if sum(other.resolve().name == name for other in among) == 1 else str(folder)


def _headline(evaluation: Arrays | None) -> dict[str, float] | None:
    """Return the accuracy before and after, and the number of test prompts."""
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
    """Return the metrics of every model, from the arrays.

    Of a run that is not finished they are those of the untouched model alone.
    """
    if evaluation is None:
        return {TITLES["before"]: dict(vanilla)} if vanilla else {}

    scores = {}
    for m, name in enumerate(map(str, evaluation["models_M"])):
        probabilities_NC = evaluation["probabilities_MNC"][m]
        scores[TITLES[name]] = {
            **metrics.scores(probabilities_NC, evaluation["targets_N"]),
            "heads": float(evaluation["induction_rate_MLH"][m].sum()),
        }
    return scores


def _cost(record: Mapping[str, Any]) -> dict[str, str]:
    """Return what training took, as text; empty where nothing is recorded."""
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
    """Return the versions of Python and of the packages that are installed."""
    versions = {"python": platform.python_version()}
    for package in ("abft", "torch", "transformers", "peft"):
        # Not every installation has them all.
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _sections(
    analyses: Analyses, training_charts: list[Chart], unfinished: str | None
) -> dict[str, Section]:
    """Return all sections in the order of the page, by name.

    Args:
        analyses: their arrays are drawn; where one is missing, the section says why.
        training_charts: charts of what training logged.
        unfinished: the reason that is shown for all analyses of a run that is not finished.
    """
    arrays, missing = analyses.arrays, analyses.missing

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
        "Do the heads that look at labels carry the answer, and does it depend on what they look "
        "at? Without these heads, and without demonstrations.",
    )
    curves = Section(
        "training",
        "Training",
        "What training logged at every optimizer step.",
    )

    # An analysis that is missing leaves its charts out.
    curves.charts = training_charts
    if not curves.charts:
        curves.missing = ["no step was logged"]
    if "evaluation" in arrays:
        evaluation = arrays["evaluation"]
        result.charts = [
            *(confusion(evaluation, m) for m in range(len(evaluation["models_M"]))),
            reliability(evaluation),
        ]
        heads.charts = head_maps(evaluation)
        caption = (
            "After training more attention should lie on correct labels, in the layers where heads "
            "look at labels at all."
        )
        layers.charts = [layer_lines("layers-seen", "Test prompts", evaluation, caption)]
    if "unseen" in arrays:
        caption = (
            "Every demonstration has another label than the query: there is no correct label to "
            "look at."
        )
        chart = layer_lines("layers-unseen", "Unseen label", arrays["unseen"], caption)
        layers.charts.append(chart)
    if "changes" in arrays:
        weights.charts = weight_lines(arrays["changes"])
    if "line" in arrays:
        space.charts = [extrapolation(arrays["line"])]
    if "plane" in arrays:
        space.charts.insert(0, basin(arrays["plane"]))
    if "causality" in arrays:
        models = range(len(arrays["causality"]["models_M"]))
        cause.charts = [causality(arrays["causality"], m) for m in models]
    if "deletion" in arrays:
        models = range(len(arrays["deletion"]["models_M"]))
        cause.charts += [deletion(arrays["deletion"], m) for m in models]

    # Each section names the analyses that it would show.
    for section, needs in (
        (result, ("evaluation",)),
        (heads, ("evaluation",)),
        (layers, ("evaluation", "unseen")),
        (prompts, ("examples",)),
        (weights, ("changes",)),
        (space, ("line", "plane")),
        (cause, ("causality", "deletion")),
    ):
        reasons = [missing[name] for name in needs if name in missing]
        section.missing = [unfinished] if unfinished else reasons

    # The order of the page: from the result to its causes.
    return {s.name: s for s in (result, curves, heads, layers, prompts, weights, space, cause)}


def _rendered(context: dict[str, Any], analyses: Analyses) -> str:
    """Return the page, without prompts where these would make it larger than `MAX_BYTES`."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined
    )
    # Without spaces between its many numbers the page is smaller.
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    template = environment.get_template("report.html")

    assets = {
        "plotly": get_plotlyjs(),
        "style": _asset("report.css"),
        "script": _asset("report.js"),
    }
    sections = context["sections"]
    charts = [chart for section in sections.values() for chart in section.charts]
    data = {
        "charts": {chart.name: chart.figure for chart in charts},
        "heads": _head_numbers(analyses.arrays.get("evaluation")),
        "prompts": _prompts(analyses),
    }

    page = template.render(**context, data=data, **assets)
    # Only prompts grow with the texts of the data.
    if len(page.encode()) > MAX_BYTES and data["prompts"] is not None:
        sections["prompts"].missing = [
            f"these prompts would make the file larger than {MAX_BYTES / 1e6:.0f} MB"
        ]
        page = template.render(**context, data={**data, "prompts": None}, **assets)
    return page


def _asset(name: str) -> str:
    """Return the text of a file next to the template."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _head_numbers(evaluation: Arrays | None) -> dict[str, Any] | None:
    """Return what a click on a cell of the head maps shows."""
    if evaluation is None:
        return None
    values = {
        quantity: np.round(quantity_of(evaluation, quantity), 4).tolist() for quantity in QUANTITIES
    }
    return {
        "layers": evaluation["layers_L"].tolist(),
        "models": [TITLES[str(name)] for name in evaluation["models_M"]],
        "values": values,
    }


def _prompts(analyses: Analyses) -> dict[str, Any] | None:
    """Return texts in pieces, and the attention on each piece in 1/10,000.

    Tokens that share characters are one piece.
    """
    if "examples" not in analyses.arrays:
        return None
    examples = analyses.arrays["examples"]
    names = analyses.arrays["evaluation"]["labels_C"].tolist()

    # Tokens of all prompts follow each other in the arrays.
    prompts = []
    end = 0
    for p, text in enumerate(map(str, examples["texts_P"])):
        begin, end = end, end + int(examples["tokens_P"][p])
        pieces, piece_of_token = _pieces(text, examples["spans_T2"][begin:end])
        attention = np.zeros((*examples["attention_MJT"].shape[:2], len(pieces)))
        for token, piece in enumerate(piece_of_token):
            attention[..., piece] += examples["attention_MJT"][..., begin + token]

        # The token that heads are trained to look at, of a label that has several.
        target = int(examples["targets_P"][p])
        label_pieces = [piece_of_token[token] for token in examples["label_positions_PK"][p]]
        is_correct = examples["label_classes_PK"][p] == target

        predicted_M = examples["predicted_MP"][:, p]
        prompts.append(
            {
                "pieces": pieces,
                "labels": dict(zip(label_pieces, is_correct.tolist(), strict=True)),
                "right": names[target],
                "predicted": [names[c] for c in predicted_M],
                "correct": (predicted_M == target).tolist(),
                "number": int(examples["prompts_P"][p]),
                "attention": np.round(attention * 10_000).astype(int).tolist(),
            }
        )

    return {
        "models": [TITLES[str(name)] for name in examples["models_M"]],
        "heads": [f"L{layer} H{head}" for layer, head in examples["heads_J2"].tolist()],
        "prompts": prompts,
    }


def _pieces(text: str, spans_T2: np.ndarray) -> tuple[list[str], list[int]]:
    """Return the text cut where tokens begin, and the piece of every token.

    The pieces together are the text. A special token that begins every prompt has an empty piece.
    """
    pieces: list[str] = []
    piece_of_token, position = [], 0
    for _, end in spans_T2.tolist():
        # A token that ends no later than the last one shares its characters, and its piece.
        if end > position or not pieces:
            pieces.append(text[position:end])
            position = end
        piece_of_token.append(len(pieces) - 1)
    pieces[-1] += text[position:]
    return pieces, piece_of_token
