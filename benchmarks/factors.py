"""The picture of the scenario `factors`: accuracy over A0 and B0, with and without PID control.

    abft bench --config results/grids/factors.yaml --output results/bench
    python benchmarks/factors.py     # docs/factors.svg, needs matplotlib

Compare Fig. 6 of arXiv 2505.14233.
"""

import json

import numpy as np

from abft.bench.scenarios import SCENARIOS
from pictures import save, svg_pyplot
from record import ROOT

CELLS = ROOT / "results" / "bench" / "cells"
CELL = "SmolLM2-135M-Instruct__SST2__abft__factors-A0={}-B0={}-pid={}__seed0.json"
PICTURE = ROOT / "docs" / "factors.svg"
VARIANTS = SCENARIOS["factors"].variants
PUNISHMENTS, REWARDS = (sorted({each[name] for each in VARIANTS}) for name in ("A0", "B0"))


def accuracies(controller):
    """Accuracy in %, (A0, B0); NaN without either: there is no loss."""
    grid = np.full((len(PUNISHMENTS), len(REWARDS)), np.nan)
    for each in VARIANTS:
        if each["pid"] == controller:
            path = CELLS / CELL.format(each["A0"], each["B0"], controller)
            record = json.loads(path.read_text(encoding="utf-8"))
            place = PUNISHMENTS.index(each["A0"]), REWARDS.index(each["B0"])
            grid[place] = 100 * record["metrics"]["accuracy"]
    return grid


def main():
    """Draw both grids with one scale of colours."""
    pyplot = svg_pyplot()
    grids = [accuracies(controller) for controller in (True, False)]
    lowest, highest = np.nanmin(grids), np.nanmax(grids)
    figure, panels = pyplot.subplots(1, 2, figsize=(7.2, 3.2), sharey=True)

    for panel, grid, title in zip(panels, grids, ("with PID control", "without"), strict=True):
        panel.imshow(grid, cmap="viridis", vmin=lowest, vmax=highest, origin="lower")
        for (i, j), value in np.ndenumerate(grid):
            if not np.isnan(value):
                dark = value < (lowest + highest) / 2
                colour = "white" if dark else "black"
                panel.text(j, i, f"{value:.0f}", ha="center", va="center", color=colour)
        panel.set_xticks(range(len(REWARDS)), [f"{b:g}" for b in REWARDS])
        panel.set_yticks(range(len(PUNISHMENTS)), [f"{a:g}" for a in PUNISHMENTS])
        panel.set_xlabel("reward, B0")
        panel.set_title(title)
    panels[0].set_ylabel("punishment, A0")
    save(figure, PICTURE)


if __name__ == "__main__":
    main()
