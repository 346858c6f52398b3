"""Plotly figures of results and training, with a caption and a text for screen readers.

Blue, orange and grey differ for every kind of colour vision; lines differ in marker and dash as
well. Colours of text and background are the page's, which switches between light and dark.
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
    """A figure with its texts."""

    name: str
    title: str
    caption: str  # what to see, one line
    alt: str  # for readers who cannot see it
    figure: dict[str, Any]  # Plotly's data and layout


def chart(name: str, title: str, caption: str, alt: str, figure: go.Figure) -> Chart:
    """Return a chart, with the layout that all figures share. Changes `figure`."""
    figure.update_layout(
        template="none",
        margin=dict(l=56, r=16, t=12, b=48),
        legend=dict(orientation="h", y=1.02, yanchor="bottom", x=0),
    )
    return Chart(name, title, caption, alt, json.loads(figure.to_json()))


def text(value: object) -> str:
    """Return a label escaped for Plotly, so that tags and entities in it are text."""
    return html.escape(str(value), quote=False)


def confusion(evaluation: Arrays, m: int) -> Chart:
    """Draw the counts of (correct class, predicted class) of one model."""
    name = str(evaluation["models_M"][m])
    labels = [text(label) for label in evaluation["labels_C"]]
    predicted_N = evaluation["probabilities_MNC"][m].argmax(-1)

    counts_CC = np.zeros((len(labels), len(labels)), int)
    np.add.at(counts_CC, (evaluation["targets_N"], predicted_N), 1)
    # A class without prompts has shares of 0.
    shares_CC = counts_CC / np.maximum(1, counts_CC.sum(1, keepdims=True))

    figure = go.Figure(
        go.Heatmap(
            z=shares_CC,
            x=labels,
            y=labels,
            text=counts_CC,
            texttemplate="%{text}",
            colorscale="Cividis",
            zmin=0,
            zmax=1,
            colorbar=dict(title="share of row", thickness=10),
            hovertemplate="correct: %{y}<br>predicted: %{x}<br>%{text} prompts (%{z:.0%} of the "
            "row)<extra></extra>",
        )
    )
    figure.update_xaxes(title="predicted class", type="category")
    figure.update_yaxes(title="correct class", type="category", autorange="reversed")

    # The diagonal holds no mistakes, not even where there are none elsewhere.
    mistakes_CC = counts_CC.copy()
    np.fill_diagonal(mistakes_CC, -1)
    worst = np.unravel_index(mistakes_CC.argmax(), mistakes_CC.shape)
    correct_label, predicted_label = (evaluation["labels_C"][c] for c in worst)
    return chart(
        f"confusion-{name}",
        f"Confusion, {TITLES[name]}",
        "Numbers on the diagonal are correct predictions; a bright column is a class that is "
        "predicted too often.",
        f"Confusion matrix {TITLES[name]}: {np.trace(counts_CC)} of {counts_CC.sum()} prompts "
        f"are correct; the most frequent mistake is {correct_label} taken for {predicted_label}, "
        f"{mistakes_CC[worst]} times.",
        figure,
    )


def reliability(evaluation: Arrays) -> Chart:
    """Draw accuracy against confidence, in the bins of ECE."""
    # A calibrated model lies on the diagonal.
    figure = go.Figure(
        go.Scatter(
            x=[0, 1],
            y=[0, 1],
            mode="lines",
            name="calibrated",
            line=dict(color="#8a8f98", dash="dot", width=1),
        )
    )

    descriptions = []
    for m, name in enumerate(map(str, evaluation["models_M"])):
        probabilities_NC = evaluation["probabilities_MNC"][m]
        confidence_N = probabilities_NC.max(-1)
        correct_N = probabilities_NC.argmax(-1) == evaluation["targets_N"]

        # Empty bins have no point.
        bins_N = np.minimum((confidence_N * BINS).astype(int), BINS - 1)
        masks = [bins_N == number for number in np.unique(bins_N)]
        figure.add_scatter(
            x=[float(confidence_N[mask].mean()) for mask in masks],
            y=[float(correct_N[mask].mean()) for mask in masks],
            customdata=[int(mask.sum()) for mask in masks],
            mode="lines+markers",
            name=TITLES[name],
            line=dict(color=COLOURS[name]),
            marker=dict(symbol=SYMBOLS[name], size=7),
            hovertemplate="confidence %{x:.2f}<br>accuracy %{y:.2f}<br>%{customdata} prompts",
        )
        descriptions.append(
            f"{TITLES[name]}: mean confidence {confidence_N.mean():.2f}, "
            f"accuracy {correct_N.mean():.2f}"
        )

    figure.update_xaxes(title="confidence (probability)", range=[0, 1.02])
    figure.update_yaxes(title="accuracy (share)", range=[0, 1.02])
    return chart(
        "reliability",
        "Reliability",
        "On the dotted line confidence and accuracy agree; below it the model is too sure.",
        f"Reliability diagram. {'; '.join(descriptions)}.",
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
        figure, descriptions = go.Figure(), []

        for r, (run, steps) in enumerate(logs.items()):
            if key == "loss" and run not in comparable:
                continue

            # A run has one colour. Of attention on labels it has two lines, of the rest one.
            colour = COLOURS["after"] if r == 0 else OTHER_RUNS[(r - 1) % len(OTHER_RUNS)]
            dashes = {key: DASHES[r % len(DASHES)]}
            if key == "mass":
                dashes = {"correct_mass": "solid", "incorrect_mass": "dash"}

            for field, dash in dashes.items():
                logged = [step for step in steps if field in step]
                if not logged:
                    continue
                label = run + (f", {field.removesuffix('_mass')} labels" if key == "mass" else "")
                figure.add_scatter(
                    x=[step["step"] * prompts_per_step[run] for step in logged],
                    y=[step[field] for step in logged],
                    name=text(label),
                    mode="lines+markers",
                    showlegend=True,
                    line=dict(color=colour, dash=dash),
                    marker=dict(size=4),
                )
                first, last = logged[0][field], logged[-1][field]
                descriptions.append(f"{label} goes from {first:.2f} to {last:.2f}")

        if not descriptions:
            continue
        figure.update_xaxes(title="prompts seen", rangemode="tozero")
        figure.update_yaxes(title=caption.axis)
        alt = f"{caption.title} against prompts seen: {'; '.join(descriptions)}."
        charts.append(chart(f"training-{key}", caption.title, caption.caption, alt, figure))
    return charts
