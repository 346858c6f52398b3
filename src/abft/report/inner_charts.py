"""Figures of what changed inside the model: heads, layers, weights, the basin, heads switched
off.
"""

import numpy as np
import plotly.graph_objects as go

from abft.report.charts import COLOURS, SYMBOLS, TITLES, Arrays, Chart, chart

QUANTITIES = {
    "mass": "attention on label tokens",
    "correct_mass": "attention on correct labels",
    "induction_rate": "share of prompts over the threshold",
}


def head_maps(evaluation: Arrays) -> list[Chart]:
    """Layer x head: every quantity before, after, and their difference."""
    charts = []
    layers, heads = (
        [str(layer) for layer in evaluation["layers_L"]],
        [str(h) for h in range(evaluation["correct_mass_MLH"].shape[2])],
    )
    for quantity, title in QUANTITIES.items():
        before, after = quantity_of(evaluation, quantity)[:2]
        top = float(max(before.max(), after.max(), 1e-9))
        far = float(max(np.abs(after - before).max(), 1e-9))
        for panel, values in (("before", before), ("after", after), ("difference", after - before)):
            signed = panel == "difference"
            figure = go.Figure(
                go.Heatmap(
                    z=np.round(values, 4),
                    x=heads,
                    y=layers,
                    colorscale="PuOr" if signed else "Cividis",
                    reversescale=signed,
                    zmin=-far if signed else 0,
                    zmax=far if signed else top,
                    colorbar=dict(thickness=10, title="share"),
                    hovertemplate="layer %{y}, head %{x}<br>%{z:.3f}<extra></extra>",
                )
            )
            figure.update_xaxes(title="head", type="category")
            figure.update_yaxes(title="layer", type="category")
            at = np.unravel_index(np.abs(values).argmax(), values.shape)
            charts.append(
                chart(
                    f"heads-{quantity}-{panel}",
                    "after − before" if signed else TITLES[panel],
                    "Purple: less than before; orange: more."
                    if signed
                    else "Bright cells look at labels.",
                    f"Layer by head map, {title}, {panel}: largest in layer {layers[at[0]]}, "
                    f"head {at[1]} ({values[at]:.2f}).",
                    figure,
                )
            )
    return charts


def quantity_of(evaluation: Arrays, quantity: str) -> np.ndarray:
    """A quantity of the head maps, (M, L, H); where labels are unseen none is right."""
    if quantity == "mass":
        return evaluation["incorrect_mass_MLH"] + evaluation.get("correct_mass_MLH", 0)
    return evaluation[f"{quantity}_MLH"]


def layer_lines(name: str, title: str, found: Arrays, caption: str) -> Chart:
    """Attention on labels, mean over the heads of a layer."""
    figure, said = go.Figure(), []
    layers = found["layers_L"]
    kinds = (
        {"all labels": "solid", "correct labels": "dash"}
        if "correct_mass_MLH" in found
        else {"all labels": "solid"}
    )
    for m, model in enumerate(map(str, found["models_M"])):
        for kind, dash in kinds.items():
            mass = quantity_of(found, "correct_mass" if kind == "correct labels" else "mass")
            values = mass[m].mean(1)
            figure.add_scatter(
                x=layers,
                y=values,
                name=f"{TITLES[model]}, {kind}",
                mode="lines+markers",
                line=dict(color=COLOURS[model], dash=dash),
                marker=dict(symbol=SYMBOLS[model], size=5),
            )
            said.append(
                f"{TITLES[model]}, {kind}: most in layer {layers[values.argmax()]} "
                f"({values.max():.2f})"
            )
    _layer_axis(figure, layers)
    figure.update_yaxes(title="attention (share, mean over heads)", rangemode="tozero")
    return chart(name, title, caption, f"{title}. {'; '.join(said)}.", figure)


def weight_lines(changes: Arrays) -> list[Chart]:
    """Norm and effective rank of the changes of W_Q and W_K."""
    wanted = {
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
    for key, (title, axis, caption) in wanted.items():
        figure, said = go.Figure(), []
        for r, model in enumerate(map(str, changes["models_R"])):
            for part, (weight, dash) in enumerate({"W_Q": "solid", "W_K": "dash"}.items()):
                values = changes[f"{key}_RLP"][r, :, part]
                figure.add_scatter(
                    x=changes["layers_L"],
                    y=values,
                    name=f"{weight}, {TITLES[model]}",
                    mode="lines+markers",
                    line=dict(color=COLOURS[model], dash=dash),
                    marker=dict(symbol=SYMBOLS[model], size=5),
                )
                layer = changes["layers_L"][values.argmax()]
                said.append(
                    f"{weight} {TITLES[model]}: largest in layer {layer} ({values.max():.2g})"
                )
        _layer_axis(figure, changes["layers_L"])
        figure.update_yaxes(title=axis, rangemode="tozero")
        charts.append(
            chart(f"weights-{key}", title, caption, f"{title} by layer. {'; '.join(said)}.", figure)
        )
    return charts


def _layer_axis(figure: go.Figure, layers_L: np.ndarray) -> None:
    figure.update_xaxes(title="layer", tick0=0, dtick=5 if len(layers_L) > 10 else 1)


def extrapolation(line: Arrays) -> Chart:
    """Accuracy against the factor of the run's change."""
    a, accuracy = line["a_A"], line["accuracy_A"]
    figure = go.Figure(
        go.Scatter(
            x=a,
            y=accuracy,
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
    best = a[accuracy.argmax()]
    return chart(
        "extrapolation",
        "Between and beyond",
        "Right of the dotted line the change is taken further than training took it, for free "
        "(abft merge --factor).",
        f"Accuracy along the change of weights, on {int(line['prompts'])} prompts: "
        f"{accuracy[0]:.2f} at 0, "
        f"{accuracy[np.argmin(np.abs(a - 1))]:.2f} at 1, highest ({accuracy.max():.2f}) at "
        f"{best:g}.",
        figure,
    )


def basin(plane: Arrays) -> Chart:
    """Accuracy on the plane of two changes."""
    e, a, accuracy = plane["e_E"], plane["a_A"], plane["accuracy_EA"]
    figure = go.Figure(
        go.Heatmap(
            z=accuracy,
            x=a,
            y=e,
            colorscale="Cividis",
            colorbar=dict(thickness=10, title="accuracy"),
            zmin=0,
            zmax=1,
            hovertemplate="a = %{x:g}, e = %{y:g}<br>accuracy %{z:.3f}<extra></extra>",
        )
    )
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
    at = np.unravel_index(accuracy.argmax(), accuracy.shape)
    return chart(
        "basin",
        "One basin",
        "Where it stays bright between the three marks, both trainings end in one basin.",
        f"Accuracy on the plane of both changes, {len(e)} by {len(a)} points, "
        f"{int(plane['prompts'])} prompts each: highest "
        f"({accuracy.max():.2f}) at a = {a[at[1]]:g}, e = {e[at[0]]:g}; lowest "
        f"{accuracy.min():.2f}.",
        figure,
    )


def causality(found: Arrays, m: int) -> Chart:
    """Accuracy of one model against the number of heads that are off."""
    name = str(found["models_M"][m])
    passing = found["heads_off_MS"][m][-1]
    order = np.argsort(found["heads_off_MS"][m], kind="stable")
    off = found["heads_off_MS"][m][order]
    ours, chance = found["induction_accuracy_MS"][m][order], found["random_accuracy_MSD"][m][order]
    middle = chance.mean(1)
    figure = go.Figure()
    figure.add_scatter(
        x=off,
        y=ours,
        name="induction heads off",
        mode="lines+markers",
        line=dict(color="#e0712c"),
        marker=dict(symbol="square"),
    )
    figure.add_scatter(
        x=off,
        y=middle,
        name="as many random heads off",
        mode="lines+markers",
        line=dict(color="#8a8f98", dash="dash"),
        error_y=dict(
            type="data",
            symmetric=False,
            array=chance.max(1) - middle,
            arrayminus=middle - chance.min(1),
        ),
    )
    figure.add_vline(x=int(passing), line=dict(color="#8a8f98", dash="dot"))
    figure.update_xaxes(title="heads switched off")
    figure.update_yaxes(title="accuracy (share)", rangemode="tozero")
    return chart(
        f"causality-{name}",
        f"Heads switched off, {TITLES[name]}",
        "If the induction heads carry the answer, their line falls below that of random heads "
        "(bars: lowest and highest "
        "draw). Dotted: as many as pass the filter in at least half of the prompts.",
        f"Accuracy {TITLES[name]} with heads off, {int(found['prompts'])} prompts: "
        f"{ours[0]:.2f} with all heads; without the "
        f"{off[-1]} heads that pass the filter most often {ours[-1]:.2f}, without as many "
        f"random heads {middle[-1]:.2f}.",
        figure,
    )
