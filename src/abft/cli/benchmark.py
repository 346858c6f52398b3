"""`abft bench`."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from abft.cli.options import Json
from abft.cli.quiet import quiet
from abft.errors import AbftError, RunInterrupted

if TYPE_CHECKING:
    from abft.bench.grid import Grid
    from abft.bench.store import Store


def bench(
    config: Annotated[Path, typer.Option(help="The grid file (YAML).")],
    output: Annotated[Path, typer.Option(help="Folder of results and tables; rerun to continue.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the cells and what is left to compute.")
    ] = False,
    engine: Annotated[
        str, typer.Option(help="serial: one cell after another; ray: jobs on Ray workers.")
    ] = "serial",
    ray_address: Annotated[
        str | None, typer.Option(help="A running Ray cluster, e.g. host:6379 or auto.")
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run Python code of the models' repositories."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Run models x tasks x methods x scenarios x seeds; write tables to OUTPUT/tables/GRID.

    Existing results are reused, so a stopped grid continues, and an extended grid computes only
    what is new.

    **Examples**

    `abft bench --config grid.yaml --output results --dry-run`

    `abft bench --config grid.yaml --output results`

    `abft bench --config grid.yaml --output results --engine ray --ray-address auto`
    """
    if engine not in ("serial", "ray"):
        raise AbftError(f"engine {engine!r}: expected serial or ray")
    if ray_address is not None and engine != "ray":
        raise AbftError("--ray-address goes with --engine ray")
    quiet()
    from abft.bench.grid_file import read_grid
    from abft.bench.store import Store

    grid, store = read_grid(config, trust_remote_code=trust_remote_code), Store(output)
    if dry_run:
        _print_plan(grid, store, as_json)
        return

    from abft.bench.engine import failures, run_grid
    from abft.bench.report import write_tables
    from abft.bench.results import Results

    store.prepare(config)
    folder = store.tables(config)
    try:
        failed = run_grid(grid, store, engine, ray_address)
    except RunInterrupted:
        write_tables(Results(grid, store), folder)  # of the finished cells
        raise
    tables = write_tables(Results(grid, store), folder)
    if as_json:
        print((folder / "tables.json").read_text(encoding="utf-8"), end="")
    else:
        print("\n".join(table.markdown() for table in tables))
        print(f"tables: {folder}")
    if failed:
        for name, error in failures(grid, store):
            print(f"failed: {name}: {error}", file=sys.stderr)
        raise AbftError(
            f"{failed} of {len(grid.cells())} cells failed; run the same command to try them again"
        )


def _print_plan(grid: "Grid", store: "Store", as_json: bool) -> None:
    """List the cells of a grid, each with the prompts left to score and to train on."""
    from abft.bench.plan import plan

    plans = plan(grid.cells(), store)
    if as_json:
        values = [
            {
                "cell": p.cell.name,
                "scored_prompts": p.scored_prompts,
                "training_prompts": p.training_prompts,
                "done": p.done,
                "problem": p.problem,
            }
            for p in plans
        ]
        print(json.dumps(values))
        return
    for p in plans:
        print(f"{p.status:>32}  {p.cell.name}")
    done = sum(p.done for p in plans)
    scored, trained = sum(p.scored_prompts for p in plans), sum(p.training_prompts for p in plans)
    print(
        f"{len(plans)} cells, {done} done, {len(plans) - done} left: {scored:,} prompts to score, "
        f"{trained:,} to train on"
    )
