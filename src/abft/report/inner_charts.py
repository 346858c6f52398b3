"""Figures of what changed inside: heads, layers, weights, the basin, heads switched off."""

import numpy as np
import plotly.graph_objects as go

from abft.report.charts import COLOURS, SYMBOLS, TITLES, Arrays, Chart, chart

QUANTITIES = {
    "mass": "attention on label tokens",
    "correct_mass": "attention on correct labels",
    "induction_rate": "share of prompts over the threshold",
}


def head_maps(evaluation: Arrays) -> list[Chart]:
    """Draw every quantity by layer and head: before, after, and their difference."""
    charts = []
    layers = [str(layer) for layer in evaluation["layers_L"]]
    heads = [str(h) for h in range(evaluation["correct_mass_MLH"].shape[2])]

    for quantity, title in QUANTITIES.items():
        before_LH, after_LH = quantity_of(evaluation, quantity)[:2]
        panels = {"before": before_LH, "after": after_LH, "difference": after_LH - before_LH}

        # Before and after share one scale. No scale is empty, even if all values are 0.
        largest = float(max(before_LH.max(), after_LH.max(), 1e-9))
        largest_change = float(max(np.abs(panels["difference"]).max(), 1e-9))

        for panel, values_LH in panels.items():
            signed = panel == "difference"
            figure = go.Figure(
                go.Heatmap(
                    z=np.round(values_LH, 4),
                    x=heads,
                    y=layers,
                    colorscale="PuOr" if signed else "Cividis",
                    reversescale=signed,
                    zmin=-largest_change if signed else 0,
                    zmax=largest_change if signed else largest,
                    colorbar=dict(thickness=10, title="share"),
                    hovertemplate="layer %{y}, head %{x}<br>%{z:.3f}<extra></extra>",
                )
            )
            figure.update_xaxes(title="head", type="category")
            figure.update_yaxes(title="layer", type="category")

            if signed:
                heading, caption = "after − before", "Purple: less than before; orange: more."
            else:
                heading, caption = TITLES[panel], "Bright cells look at labels."
            layer, head = np.unravel_index(np.abs(values_LH).argmax(), values_LH.shape)
            alt = (
                f"Layer by head map, {title}, {panel}: largest in layer {layers[layer]}, "
                f"head {head} ({values_LH[layer, head]:.2f})."
            )
            charts.append(chart(f"heads-{quantity}-{panel}", heading, caption, alt, figure))
    return charts


def quantity_of(evaluation: Arrays, quantity: str) -> np.ndarray:
    """Return a quantity of the head maps, (M, L, H); with unseen labels, none is correct."""
    if quantity == "mass":
        return evaluation["incorrect_mass_MLH"] + evaluation.get("correct_mass_MLH", 0)
    return evaluation[f"{quantity}_MLH"]


def layer_lines(name: str, title: str, evaluation: Arrays, caption: str) -> Chart:
    """Draw attention on labels, mean over the heads of a layer."""
    layers_L = evaluation["layers_L"]
    # Where labels are unseen, there is no attention on correct ones.
    lines = {"all labels": ("mass", "solid")}
    if "correct_mass_MLH" in evaluation:
        lines["correct labels"] = ("correct_mass", "dash")

    figure, descriptions = go.Figure(), []
    for m, model in enumerate(map(str, evaluation["models_M"])):
        for kind, (quantity, dash) in lines.items():
            mass_L = quantity_of(evaluation, quantity)[m].mean(1)
            figure.add_scatter(
                x=layers_L,
                y=mass_L,
                name=f"{TITLES[model]}, {kind}",
                mode="lines+markers",
                line=dict(color=COLOURS[model], dash=dash),
                marker=dict(symbol=SYMBOLS[model], size=5),
            )
            descriptions.append(
                f"{TITLES[model]}, {kind}: most in layer {layers_L[mass_L.argmax()]} "
                f"({mass_L.max():.2f})"
            )

    _layer_axis(figure, layers_L)
    figure.update_yaxes(title="attention (share, mean over heads)", rangemode="tozero")
    return chart(name, title, caption, f"{title}. {'; '.join(descriptions)}.", figure)


def weight_lines(changes: Arrays) -> list[Chart]:
    """Draw norm and effective rank of the changes of W_Q and W_K by layer."""
    layers_L = changes["layers_L"]
    texts = {
        "norm": (
            "Size of the change",
            "Frobenius norm of the change",
            "Where the weights moved; in the paper, most in the middle layers.",
        ),
        "effective_rank": (
            "Directions of the change",
            "effective rank (directions)",
            "How many directions a change spreads over; a LoRA of this rank could hold it.",
        ),
    }

    charts = []
    for key, (title, axis, caption) in texts.items():
        figure, descriptions = go.Figure(), []
        for r, model in enumerate(map(str, changes["models_R"])):
            for part, (weight, dash) in enumerate({"W_Q": "solid", "W_K": "dash"}.items()):
                values_L = changes[f"{key}_RLP"][r, :, part]
                figure.add_scatter(
                    x=layers_L,
                    y=values_L,
                    name=f"{weight}, {TITLES[model]}",
                    mode="lines+markers",
                    line=dict(color=COLOURS[model], dash=dash),
                    marker=dict(symbol=SYMBOLS[model], size=5),
                )
                descriptions.append(
                    f"{weight} {TITLES[model]}: largest in layer {layers_L[values_L.argmax()]} "
                    f"({values_L.max():.2g})"
                )

        _layer_axis(figure, layers_L)
        figure.update_yaxes(title=axis, rangemode="tozero")
        alt = f"{title} by layer. {'; '.join(descriptions)}."
        charts.append(chart(f"weights-{key}", title, caption, alt, figure))
    return charts


def _layer_axis(figure: go.Figure, layers_L: np.ndarray) -> None:
    """Label the layers of a figure; of many layers every fifth."""
    figure.update_xaxes(title="layer", tick0=0, dtick=5 if len(layers_L) > 10 else 1)


def extrapolation(line: Arrays) -> Chart:
    """Draw accuracy against the factor of the run's change."""
    a_A, accuracy_A = line["a_A"], line["accuracy_A"]
    figure = go.Figure(
        go.Scatter(
            x=a_A,
            y=accuracy_A,
            mode="lines+markers",
            line=dict(color=COLOURS["after"]),
            marker=dict(symbol="square"),
            name="a",
        )
    )
    figure.add_vline(x=1, line=dict(color="#8a8f98", dash="dot"))
    figure.update_xaxes(title="factor a of the change (0: before, 1: after)")
    figure.update_yaxes(title="accuracy (share)")
    figure.update_layout(showlegend=False)

    # Factor 1 is the trained model.
    trained = np.argmin(np.abs(a_A - 1))
    best = np.nanargmax(accuracy_A)  # far from both models predictions may not be finite
    return chart(
        "extrapolation",
        "Between and beyond",
        "Right of the dotted line the change is taken further than training took it, for free "
        "(abft merge --factor).",
        f"Accuracy along the change of weights, on {int(line['prompts'])} prompts: "
        f"{accuracy_A[0]:.2f} at 0, {accuracy_A[trained]:.2f} at 1, "
        f"highest ({accuracy_A[best]:.2f}) at {a_A[best]:g}.",
        figure,
    )


def basin(plane: Arrays) -> Chart:
    """Draw accuracy on the plane of two changes."""
    e_E, a_A, accuracy_EA = plane["e_E"], plane["a_A"], plane["accuracy_EA"]
    figure = go.Figure(
        go.Heatmap(
            z=accuracy_EA,
            x=a_A,
            y=e_E,
            colorscale="Cividis",
            colorbar=dict(thickness=10, title="accuracy"),
            zmin=0,
            zmax=1,
            hovertemplate="a = %{x:g}, e = %{y:g}<br>accuracy %{z:.3f}<extra></extra>",
        )
    )
    # The models themselves are corners of the unit square.
    for x, y, label in ((0, 0, "before"), (1, 0, "after"), (0, 1, "E2E")):
        figure.add_annotation(
            x=x,
            y=y,
            text=label,
            showarrow=False,
            bgcolor="#ffffff",
            font=dict(color="#000000"),
            borderpad=2,
        )
    figure.update_xaxes(title="factor a of the run's change")
    figure.update_yaxes(title="factor e of E2E's change")

    # Far from both models weights may overflow in half precision.
    finite_EA = np.isfinite(accuracy_EA)
    e, a = np.unravel_index(np.where(finite_EA, accuracy_EA, -1).argmax(), accuracy_EA.shape)
    lowest = np.where(finite_EA, accuracy_EA, np.inf).min()
    return chart(
        "basin",
        "One basin",
        "Where it stays bright between the three marks, both trainings end in one basin.",
        f"Accuracy on the plane of both changes, {len(e_E)} by {len(a_A)} points, "
        f"{int(plane['prompts'])} prompts each: highest ({accuracy_EA[e, a]:.2f}) at "
        f"a = {a_A[a]:g}, e = {e_E[e]:g}; lowest {lowest:.2f}.",
        figure,
    )


def causality(arrays: Arrays, m: int) -> Chart:
    """Draw accuracy of one model against the number of heads that are switched off."""
    name = str(arrays["models_M"][m])

    # The last size is the model's own number of induction heads, which can lie between the others.
    passing = arrays["heads_off_MS"][m][-1]
    order = np.argsort(arrays["heads_off_MS"][m], kind="stable")
    sizes = arrays["heads_off_MS"][m][order]
    induction_accuracy = arrays["induction_accuracy_MS"][m][order]
    random_accuracy = arrays["random_accuracy_MSD"][m][order]

    figure = _against_draws(
        sizes,
        ("induction heads off", induction_accuracy),
        ("as many random heads off", random_accuracy),
    )
    figure.add_vline(x=int(passing), line=dict(color="#8a8f98", dash="dot"))
    figure.update_xaxes(title="heads switched off")
    figure.update_yaxes(title="accuracy (share)", rangemode="tozero")
    return chart(
        f"causality-{name}",
        f"Heads switched off, {TITLES[name]}",
        "If the induction heads carry the answer, their line falls below that of random heads "
        "(bars: lowest and highest draw). Dotted: as many as pass the filter in at least half of "
        "the prompts.",
        f"Accuracy {TITLES[name]} with heads off, {int(arrays['prompts'])} prompts: "
        f"{induction_accuracy[0]:.2f} with all heads; without the {sizes[-1]} heads that pass the "
        f"filter most often {induction_accuracy[-1]:.2f}, without as many random heads "
        f"{random_accuracy[-1].mean():.2f}.",
        figure,
    )


def _against_draws(
    x_S: np.ndarray, ours: tuple[str, np.ndarray], random: tuple[str, np.ndarray]
) -> go.Figure:
    """Draw a line, (S,), next to the mean of random draws, (S, D); each with its name.

    Bars reach from the lowest to the highest draw.
    """
    (name, values_S), (random_name, draws_SD) = ours, random
    mean_S = draws_SD.mean(1)
    figure = go.Figure()
    figure.add_scatter(
        x=x_S,
        y=values_S,
        name=name,
        mode="lines+markers",
        line=dict(color="#e0712c"),
        marker=dict(symbol="square"),
    )
    figure.add_scatter(
        x=x_S,
        y=mean_S,
        name=random_name,
        mode="lines+markers",
        line=dict(color="#8a8f98", dash="dash"),
        error_y=dict(
            type="data",
            symmetric=False,
            array=draws_SD.max(1) - mean_S,
            arrayminus=mean_S - draws_SD.min(1),
        ),
    )
    return figure


def deletion(arrays: Arrays, m: int) -> Chart:
    """Draw how probable one model's predictions stay while demonstrations are removed."""
    name = str(arrays["models_M"][m])
    removed = arrays["removed_R"]

    figure = _against_draws(
        removed,
        ("most looked-at first", arrays["attention_probability_MR"][m]),
        ("random order", arrays["random_probability_MRD"][m]),
    )
    figure.update_xaxes(title="demonstrations removed", tickvals=removed)
    figure.update_yaxes(title="probability of the first prediction", rangemode="tozero")
    changed = arrays["attention_changed_MR"][m][1]
    random_changed = arrays["random_changed_MRD"][m][1].mean()
    return chart(
        f"deletion-{name}",
        f"Demonstrations removed, {TITLES[name]}",
        "If predictions depend on what the heads look at, the line of the most looked-at "
        "demonstrations falls below that of a random order (bars: lowest and highest draw).",
        f"Predictions {TITLES[name]}, {int(arrays['prompts'])} prompts: with {removed[1]} "
        f"demonstration{'s' if removed[1] > 1 else ''} removed, the most looked-at first, "
        f"{changed:.0%} change, in random order {random_changed:.0%}.",
        figure,
    )
