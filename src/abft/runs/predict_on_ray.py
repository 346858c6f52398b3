"""Predict a large table with Ray Data: one worker for each GPU or for every few CPU cores.

The source is split into chunks, which are kept in the folder of the output's parts; all nodes have
to share this folder. A part that exists is not computed again, whichever worker wrote it.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from abft.data.tables import TableFile
from abft.errors import AbftError
from abft.runs.predict_settings import PredictSettings
from abft.runs.prediction_files import Parts, write_parquet
from abft.runs.ray_cluster import connected
from abft.runs.task_data import Shown

CHUNKS = "chunks"  # in the folder of the parts


class _Worker:
    """Predicts chunks with a model of its own."""

    def __init__(
        self,
        run: str,
        output: str,
        job: dict[str, object],
        chunk_rows: int,
        column: str,
        settings: PredictSettings,
        shown: Shown | None,
    ) -> None:
        import torch

        from abft.runs.predict_frames import FramePredictor, open_predictor

        torch.set_num_threads(settings.cpus_per_worker)
        predictor = open_predictor(run, settings, shown)
        self.frames = FramePredictor(predictor, column, "the data", settings)
        self.parts = Parts(Path(output), job, chunk_rows)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list]:
        """Predict the chunks with the given numbers, write their parts, and return their counts."""
        import pandas

        rows, empty, cut = [], [], []
        for number in batch["chunk"].tolist():
            frame = pandas.read_parquet(chunk_path(self.parts, number), dtype_backend="pyarrow")
            self.frames.empty, self.frames.cut = [], 0
            self.frames.write(self.parts, number, frame, number * self.parts.chunk_rows)
            rows.append(len(frame))
            empty.append(",".join(map(str, self.frames.empty)))
            cut.append(self.frames.cut)
        return {"rows": rows, "empty": empty, "cut": cut}


def chunk_path(parts: Parts, number: int) -> Path:
    """Return the file of a chunk of the source."""
    return parts.folder / CHUNKS / f"{number:06d}.parquet"


def predict_on_ray(
    run: str | Path,
    table: TableFile,
    parts: Parts,
    column: str,
    settings: PredictSettings,
    shown: Shown | None,
    progress: Callable[[int], object],
) -> tuple[int, list[int], int]:
    """Predict every chunk that has no part yet; the parts are not joined.

    Args:
        parts: where predictions go; its folder has to be the same on all nodes.
        column: name of the column with the texts.
        settings: without GPUs, a worker has `cpus_per_worker` cores; otherwise it has one GPU.
        shown: what `load_shown` returned.
        progress: called with the number of rows of each chunk that is done.

    Returns:
        How many rows the source has, which rows have no text, and how many texts were cut; the last
        two only for the chunks that this call predicted.

    Raises:
        AbftError: no Ray, no answer, too few cores; with `strict` an empty text.
    """
    cpus_per_worker = settings.cpus_per_worker
    with connected(settings.ray_address, cpus_per_worker) as totals:
        import ray

        parts.start()
        rows = _split(table, parts)
        count = -(-rows // parts.chunk_rows)
        done = set(parts.done)
        todo = [number for number in range(count) if number not in done]
        progress(rows - sum(_rows_of(number, rows, parts.chunk_rows) for number in todo))

        # One worker for each GPU, or for every `cpus_per_worker` cores.
        gpus = 0 if settings.device == "cpu" else int(totals.get("GPU", 0))
        if settings.device == "cuda" and not gpus:
            raise AbftError("device = 'cuda': Ray sees no GPU in this cluster")
        most = gpus or max(int(totals.get("CPU", 1)) // cpus_per_worker, 1)
        resources: dict[str, Any] = {"num_gpus": 1} if gpus else {"num_cpus": cpus_per_worker}
        ray.data.DataContext.get_current().enable_progress_bars = False
        arguments = {
            "run": str(Path(run).resolve()),
            "output": str(parts.output.resolve()),
            "job": parts.job,
            "chunk_rows": parts.chunk_rows,
            "column": column,
            "settings": replace(settings, device="cuda" if gpus else "cpu"),
            "shown": shown,
        }
        empty: list[int] = []
        cut = 0
        if todo:
            items = [{"chunk": number} for number in todo]
            data = ray.data.from_items(items, override_num_blocks=len(todo)).map_batches(
                _Worker,
                batch_size=1,
                # All workers start at once and take one chunk at a time: if one took several,
                # another might have no work.
                compute=ray.data.ActorPoolStrategy(
                    size=min(most, len(todo)), max_tasks_in_flight_per_actor=1
                ),
                fn_constructor_kwargs=arguments,
                **resources,
            )
            try:
                for row in data.iter_rows():
                    empty += [int(number) for number in row["empty"].split(",") if number]
                    cut += int(row["cut"])
                    progress(int(row["rows"]))
            except ray.exceptions.RayError as error:
                lines = [line.strip() for line in str(error).splitlines() if line.strip()]
                raise AbftError(f"a Ray worker failed: {lines[-1][:300]}") from None
        return rows, sorted(empty), cut


def _rows_of(number: int, rows: int, chunk_rows: int) -> int:
    return min(chunk_rows, rows - number * chunk_rows)


def _split(table: TableFile, parts: Parts) -> int:
    """Write the chunks of the source that do not exist yet; return the source's number of rows."""
    (parts.folder / CHUNKS).mkdir(exist_ok=True)
    rows = 0
    for number, frame in enumerate(table.chunks(parts.chunk_rows)):
        path = chunk_path(parts, number)
        if not path.is_file():
            write_parquet(path, frame)
        rows += len(frame)
    return rows
