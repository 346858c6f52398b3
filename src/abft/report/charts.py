"""Plotly figures with a caption that says what to see and a text for who cannot see it; those of
results and training.

Blue, orange and grey differ for every kind of colour vision; lines differ in marker and dash as
well. Colours of text and background are the page's, which knows light from dark.
"""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from abft.method.objectives import Caption

Arrays = Mapping[str, np.ndarray]
TITLES = {"before": "before", "after": "after", "e2e": "E2E"}
COLOURS = {"before": "#8a8f98", "after": "#3b8ede", "e2e": "#e0712c"}
SYMBOLS = {"before": "circle", "after": "square", "e2e": "diamond"}
OTHER_RUNS = ("#e0712c", "#8a8f98", "#009e73", "#cc79a7", "#b8860b")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
BINS = 10


@dataclass(frozen=True)
class Chart:
    """A figure and what is said about it."""

    name: str
    title: str
    caption: str  # what to see, one line
    alt: str  # for who cannot see it
    figure: dict[str, Any]  # Plotly's data and layout


def chart(name: str, title: str, caption: str, alt: str, figure: go.Figure) -> Chart:
    figure.update_layout(
        template="none",
        margin=dict(l=56, r=16, t=12, b=48),
        legend=dict(orientation="h", y=1.02, yanchor="bottom", x=0),
    )
    return Chart(name, title, caption, alt, json.loads(figure.to_json()))


def text(value: object) -> str:
    """A label as Plotly has to get it: tags and entities in it are text."""
    return html.escape(str(value), quote=False)


def confusion(evaluation: Arrays, m: int) -> Chart:
    """Counts of (right class, predicted class) of one model."""
    name, labels = str(evaluation["models_M"][m]), [text(label) for label in evaluation["labels_C"]]
    predicted, targets = evaluation["probabilities_MNC"][m].argmax(-1), evaluation["targets_N"]
    counts = np.zeros((len(labels), len(labels)), int)
    np.add.at(counts, (targets, predicted), 1)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    figure = go.Figure(
        go.Heatmap(
            z=shares,
            x=labels,
            y=labels,
            text=counts,
            texttemplate="%{text}",
            colorscale="Cividis",
            zmin=0,
            zmax=1,
            colorbar=dict(title="share of row", thickness=10),
            hovertemplate="right: %{y}<br>predicted: %{x}<br>%{text} prompts (%{z:.0%} of the "
            "row)<extra></extra>",
        )
    )
    figure.update_xaxes(title="predicted class", type="category")
    figure.update_yaxes(title="right class", type="category", autorange="reversed")
    off = {(i, j): counts[i, j] for i in range(len(labels)) for j in range(len(labels)) if i != j}
    worst = max(off, key=lambda cell: off[cell]) if off else (0, 0)
    return chart(
        f"confusion-{name}",
        f"Confusion, {TITLES[name]}",
        "Numbers on the diagonal are right predictions; a bright column is a class that is said "
        "too often.",
        f"Confusion matrix {TITLES[name]}: {np.trace(counts)} of {counts.sum()} prompts are "
        f"right; the most frequent "
        f"mistake is {evaluation['labels_C'][worst[0]]} taken for "
        f"{evaluation['labels_C'][worst[1]]}, {counts[worst]} times.",
        figure,
    )


def reliability(evaluation: Arrays) -> Chart:
    """Accuracy against confidence, in the bins of ECE."""
    figure = go.Figure(
        go.Scatter(
            x=[0, 1],
            y=[0, 1],
            mode="lines",
            name="calibrated",
            line=dict(color="#8a8f98", dash="dot", width=1),
        )
    )
    said = []
    for m, name in enumerate(map(str, evaluation["models_M"])):
        confidence = evaluation["probabilities_MNC"][m].max(-1)
        right = evaluation["probabilities_MNC"][m].argmax(-1) == evaluation["targets_N"]
        bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
        used = [b for b in range(BINS) if (bins == b).any()]
        x = [float(confidence[bins == b].mean()) for b in used]
        y = [float(right[bins == b].mean()) for b in used]
        counts = [int((bins == b).sum()) for b in used]
        figure.add_scatter(
            x=x,
            y=y,
            customdata=counts,
            mode="lines+markers",
            name=TITLES[name],
            line=dict(color=COLOURS[name]),
            marker=dict(symbol=SYMBOLS[name], size=7),
            hovertemplate="confidence %{x:.2f}<br>accuracy %{y:.2f}<br>%{customdata} prompts",
        )
        said.append(
            f"{TITLES[name]}: mean confidence {confidence.mean():.2f}, accuracy {right.mean():.2f}"
        )
    figure.update_xaxes(title="confidence (probability)", range=[0, 1.02])
    figure.update_yaxes(title="accuracy (share)", range=[0, 1.02])
    return chart(
        "reliability",
        "Reliability",
        "On the dotted line confidence and accuracy agree; below it the model is too sure.",
        f"Reliability diagram. {'; '.join(said)}.",
        figure,
    )


def training(
    logs: Mapping[str, Sequence[Mapping[str, float]]],
    prompts_per_step: Mapping[str, int],
    comparable: Sequence[str],
    captions: Mapping[str, Caption],
) -> list[Chart]:
    """Draw what training logged against prompts seen, a line for each run.

    Args:
        logs: the logged steps of every run; the first is the run that the report is about.
        prompts_per_step: prompts of a pseudo-batch of every run.
        comparable: runs with the same objective; the loss of others is another quantity.
        captions: of the objectives, by quantity; "mass" is attention on labels.
    """
    charts = []
    for key, caption in captions.items():
        figure, described = go.Figure(), []
        for r, (run, steps) in enumerate(logs.items()):
            if key == "loss" and run not in comparable:
                continue
            colour = COLOURS["after"] if r == 0 else OTHER_RUNS[(r - 1) % len(OTHER_RUNS)]
            dashes = {key: DASHES[r % len(DASHES)]}
            if key == "mass":
                dashes = {"correct_mass": "solid", "incorrect_mass": "dash"}
            for field, dash in dashes.items():
                known = [step for step in steps if field in step]
                if not known:
                    continue
                label = run + (f", {field.removesuffix('_mass')} labels" if key == "mass" else "")
                figure.add_scatter(
                    x=[step["step"] * prompts_per_step[run] for step in known],
                    y=[step[field] for step in known],
                    name=text(label),
                    mode="lines+markers",
                    showlegend=True,
                    line=dict(color=colour, dash=dash),
                    marker=dict(size=4),
                )
                first, last = known[0][field], known[-1][field]
                described.append(f"{label} goes from {first:.2f} to {last:.2f}")
        if not described:
            continue
        figure.update_xaxes(title="prompts seen", rangemode="tozero")
        figure.update_yaxes(title=caption.axis)
        alt = f"{caption.title} against prompts seen: {'; '.join(described)}."
        charts.append(chart(f"training-{key}", caption.title, caption.caption, alt, figure))
    return charts
