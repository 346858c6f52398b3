"""Label texts, or explain their labels: into a file part by part, or on the terminal."""

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from abft.cli.predictions import (
    json_line,
    prediction_line,
    print_explanation,
    write_explanations,
)
from abft.data.tables import TableFile, batches
from abft.errors import AbftError, RunInterrupted
from abft.files import stamp_of_file
from abft.runs.predict_settings import ANSWERS, PredictSettings
from abft.runs.prediction_files import Parts, Prediction

if TYPE_CHECKING:
    import pandas

    from abft.runs.explain import Explanation
    from abft.runs.predict_frames import FramePredictor
    from abft.runs.task_data import Shown

CHUNK_ROWS = 1024  # what an interrupted command loses at most


@dataclass(frozen=True)
class Source:
    """Where texts come from: a file, or the command line or stdin."""

    column: str
    table: TableFile | None = None
    texts: Sequence[str] = ()

    @property
    def name(self) -> str:
        """Return how messages call it."""
        return str(self.table.path if self.table else "the texts")

    @property
    def rows(self) -> int | None:
        """Return the number of rows; None if it is not known."""
        return self.table.rows if self.table else len(self.texts)

    def frames(self) -> "Iterator[pandas.DataFrame]":
        """Yield the rows, in chunks."""
        if self.table:
            yield from self.table.chunks(CHUNK_ROWS)
            return

        import pandas

        for chunk in batches(iter(self.texts), CHUNK_ROWS):
            yield pandas.DataFrame({self.column: chunk}, dtype=object)

    def identity(self) -> dict[str, object]:
        """Return values that distinguish one source from another."""
        if self.table is None:
            content = "\n".join(self.texts).encode("utf-8", errors="replace")
            return {"texts": hashlib.sha256(content).hexdigest()}
        return {"data": str(self.table.path.resolve()), **stamp_of_file(self.table.path)}


@dataclass(frozen=True)
class Labelling:
    """Labels the texts of a source with a run: into a file, on the terminal, or explained."""

    run: Path
    source: Source
    settings: PredictSettings
    shown: "Shown | None"
    labels: Sequence[str]

    @property
    def in_batch(self) -> bool:
        """Return whether all rows have to be read before the first label is known."""
        return self.settings.calibrate == "batch"

    def write(self, output: Path) -> None:
        """Label into a file, part by part; parts that an earlier command wrote are kept."""
        from abft.runs.batch_calibration import calibrate_parts
        from abft.runs.run_folder import stamp

        job = {
            "run": str(self.run.resolve()),
            "files": stamp(self.run),
            "column": self.source.column,
            **self.source.identity(),
            **_answers(self.settings),
        }
        parts = Parts(output, job, CHUNK_ROWS)
        on_ray = self.settings.engine == "ray"
        rows, empty, cut = self._parts_on_ray(parts) if on_ray else self._parts_here(parts)

        try:
            self._check_rows(rows, empty)
        except AbftError:
            parts.drop()
            raise
        if self.in_batch:
            calibrate_parts(parts, self.source.frames(), self.source.column, self.labels)
        parts.join()
        self._say_cut(cut)

    def _parts_on_ray(self, parts: Parts) -> tuple[int, Sequence[int], int]:
        from abft.runs.predict_on_ray import predict_on_ray
        from abft.runs.session import progress_bar

        table, column = self.source.table, self.source.column
        assert table is not None
        with progress_bar("predict", table.rows, "text") as bar:
            return predict_on_ray(
                self.run, table, parts, column, self.settings, self.shown, bar.update
            )

    def _parts_here(self, parts: Parts) -> tuple[int, Sequence[int], int]:
        # Workers of --engine ray can leave gaps between finished parts.
        done = set(parts.done)
        if done:
            kept = len(done) * CHUNK_ROWS
            print(f"{parts.output}: going on, {kept:,} rows were labelled before", file=sys.stderr)

        predicting = self._open()
        parts.start()

        def write(number: int, frame: "pandas.DataFrame", start: int) -> None:
            if number in done:
                predicting.texts(frame, start)  # counts rows without a text, or refuses them
            else:
                predicting.write(parts, number, frame, start)

        rows = self._each(write, kept=True)
        return rows, predicting.empty, predicting.cut

    def show(self, as_json: bool) -> None:
        """Print a line for every text, as soon as its label is known."""
        predicting = self._open()
        waiting: list[tuple[Iterable, Sequence[Prediction | None]]] = []

        def label(number: int, frame: "pandas.DataFrame", start: int) -> None:
            cells = frame[self.source.column]
            predictions = predicting.predict(frame, start)
            if self.in_batch:
                waiting.append((cells, predictions))
            else:
                _print(cells, predictions, as_json)

        rows = self._each(label, quietly=not self.in_batch)
        self._check_rows(rows, predicting.empty)
        if self.in_batch:
            from abft.runs.batch_calibration import calibrate_predictions

            plain = [predictions for _, predictions in waiting]
            chunks = calibrate_predictions(plain, predicting.content_free, self.labels)
            for (cells, _), predictions in zip(waiting, chunks, strict=True):
                _print(cells, predictions, as_json)
        self._say_cut(predicting.cut)

    def explain(self, output: Path | None, as_json: bool) -> None:
        """Write or print what the heads looked at in every text."""
        predicting = self._open()
        explanations: list[Explanation | None] = []

        def add(number: int, frame: "pandas.DataFrame", start: int) -> None:
            explanations.extend(predicting.explain(frame, start))

        rows = self._each(add, title="explain")
        self._check_rows(rows, predicting.empty)
        if self.in_batch:
            from abft.runs.batch_calibration import calibrate_explanations

            explanations = calibrate_explanations(
                explanations, predicting.content_free, self.labels
            )
        self._say_cut(predicting.cut)

        if output is not None:
            write_explanations(output, explanations)
            return
        for explanation in explanations:
            if explanation is None:
                continue
            if as_json:
                print(json_line(explanation), end="")
            else:
                print_explanation(explanation)

    def _open(self) -> "FramePredictor":
        from abft.runs.predict_frames import FramePredictor, open_predictor

        predictor = open_predictor(self.run, self.settings, self.shown)
        return FramePredictor(predictor, self.source.column, self.source.name, self.settings)

    def _each(
        self,
        handle: "Callable[[int, pandas.DataFrame, int], None]",
        title: str = "predict",
        *,
        kept: bool = False,
        quietly: bool = False,
    ) -> int:
        """Call `handle(number, frame, rows before it)` for every chunk; return the number of rows.

        `kept`: what was handled is there after Ctrl-C.
        """
        from abft.runs.session import progress_bar

        rows = 0
        with progress_bar(title, self.source.rows, "text", disable=quietly) as bar:
            try:
                for number, frame in enumerate(self.source.frames()):
                    handle(number, frame, rows)
                    rows += len(frame)
                    bar.update(len(frame))
            except KeyboardInterrupt:
                said = f"{rows:,} rows are kept; the same command goes on" if kept else "stopped"
                raise RunInterrupted(said) from None
        return rows

    def _check_rows(self, rows: int, empty: Sequence[int]) -> None:
        """Say on stderr which rows were left out. Raises AbftError if there is no text."""
        from abft.data.datasets import check_empty

        if not rows:
            raise AbftError(f"{self.source.name}: no rows")
        check_empty(empty, rows, self.source.name, "text", strict=False)

    def _say_cut(self, cut: int) -> None:
        if cut:
            print(
                f"{self.source.name}: {cut} texts are longer than the run's limit "
                "(--max-text-tokens), or than fits into the model's context; only their beginning "
                "was read",
                file=sys.stderr,
            )


def _print(cells: Iterable, predictions: Sequence[Prediction | None], as_json: bool) -> None:
    for cell, prediction in zip(cells, predictions, strict=True):
        if prediction is not None:
            print(prediction_line(str(cell), prediction, as_json), flush=True)


def _answers(settings: PredictSettings) -> dict[str, object]:
    """Return the settings that distinguish predictions for the same run and texts."""
    answers: dict[str, object] = {name: getattr(settings, name) for name in ANSWERS}
    if settings.calibrate == "batch":
        answers["prior"] = "of all rows"  # earlier versions had one for each part
    if settings.demonstrations is not None:
        answers["shown"] = stamp_of_file(Path(settings.demonstrations))
    return answers
