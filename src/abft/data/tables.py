"""Read tables as people have them: any encoding and separator, compressed, Excel, JSON, Parquet.

A file's kind, encoding and columns are detected before anything heavy is imported; rows come in
chunks, so that a file may be larger than the memory.
"""

import bz2
import codecs
import csv
import gzip
import io
import itertools
import json
import lzma
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from abft.errors import AbftError

if TYPE_CHECKING:
    import pandas

READERS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "json lines",
    ".json": "json",
    ".parquet": "parquet",
    ".xlsx": "excel",
    ".txt": "lines",
}
TABLES = tuple(suffix for suffix, kind in READERS.items() if kind != "lines")
COMPRESSED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
CHUNK_ROWS = 4096

_SEPARATORS = {",": "','", ";": "';'", "\t": "tabs", "|": "'|'"}
_LINES = "text"  # the column of a file of plain lines

# Encodings that files in the wild have, Windows' Western one first; others would be guessed for a
# handful of accents.
_ENCODINGS = (
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "koi8_r"),
    *("cp932", "euc_jp", "gb18030", "big5", "cp949"),
)
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins like UTF-16's
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_BLOCK = 2**20
_LONE_SURROGATES = re.compile("[\ud800-\udfff]")  # half a character, which only JSON can write
_QUOTED = re.compile(r'"(?:[^"]|"")*"')  # a quoted cell, with quotation marks inside it doubled
_INDEX = re.compile(r"__index_level_\d+__")  # a Parquet column for a table's unnamed index
_SAMPLE = 2**16  # bytes of lines beyond ASCII, from which an encoding is guessed
_MOSTLY = 0.9  # if this share of these lines is valid UTF-8, the others are damaged UTF-8


@dataclass(frozen=True)
class TableFile:
    """A file of rows, opened far enough to know its columns.

    Attributes:
        path: the file.
        kind: a value of `READERS`.
        encoding: of a text file.
        damaged: whether a text file in UTF-8 has some invalid bytes; they are replaced.
        separator: of a CSV file.
        quoted: whether quotation marks around a cell of a CSV file are left out of the cell.
        columns: their names, in order.
        objects: the rows of a JSON file, which has to be read whole to be understood.
    """

    path: Path
    kind: str
    encoding: str = "utf-8"
    damaged: bool = False
    separator: str = ","
    quoted: bool = True
    columns: tuple[str, ...] = field(default=(), compare=False)
    objects: Sequence[dict[str, Any]] = field(default=(), compare=False, repr=False)

    @property
    def assumed(self) -> str | None:
        """Say what was detected rather than given: encoding and separator; None = nothing."""
        usual = "\t" if suffixes(self.path)[0] == ".tsv" else ","
        parts = []
        if self.encoding not in ("utf-8", "utf-8-sig"):
            parts.append(f"encoding {self.encoding}")
        if self.damaged:
            parts.append("UTF-8, with bytes that are not; these are replaced")
        if self.kind == "csv" and self.separator != usual:
            parts.append(f"columns separated by {_SEPARATORS[self.separator]}")
        if not self.quoted:
            parts.append("quotation marks are part of the cells")
        return f"{self.path}: {', '.join(parts)} (detected)" if parts else None

    @property
    def rows(self) -> int | None:
        """Return how many rows there are, if the file says so without being read."""
        if self.kind != "parquet":
            return None
        from pyarrow import parquet

        return parquet.read_metadata(self.path).num_rows

    def read(self) -> "pandas.DataFrame":
        """Return all rows. Raises AbftError if there are none, or the file is broken."""
        import pandas

        frames = list(self.chunks())
        if not frames:
            raise AbftError(f"{self.path}: no rows")
        return pandas.concat(frames, ignore_index=True)

    def chunks(self, rows: int = CHUNK_ROWS) -> "Iterator[pandas.DataFrame]":
        """Yield the rows in order, `rows` at a time; the last chunk may have fewer.

        Cells of text files stay text, as they are written; those of other files keep their types.
        """
        readers = {
            "csv": self._csv,
            "json": self._json,
            "json lines": self._json_lines,
            "parquet": self._parquet,
            "excel": self._excel,
            "lines": self._lines,
        }
        try:
            for frame in readers[self.kind](rows):
                if len(frame):
                    yield frame.reset_index(drop=True)
        except AbftError:
            raise
        except Exception as error:
            raise _unreadable(self.path, self.kind, error) from None

    def _csv(self, rows: int) -> "Iterator[pandas.DataFrame]":
        import pandas

        # Cells as they are written: 007 is no number, and NA is a text.
        with self._text() as file:
            # Blank lines before the header; later ones are rows where there is one column only.
            start = 0
            while (line := file.readline()) and not line.strip():
                start = file.tell()
            file.seek(start)
            reader = pandas.read_csv(
                file,
                sep=self.separator,
                quoting=csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE,
                dtype=str,
                keep_default_na=False,
                skip_blank_lines=len(self.columns) > 1,
                chunksize=rows,
            )
            checked = False
            for frame in reader:
                # pandas makes an index of the first cells where rows are longer than the header.
                if not isinstance(frame.index, pandas.RangeIndex):
                    raise AbftError(f"{self.path}: rows have more cells than the header")
                if self.separator == "\t" and not checked and _may_hold_rows(frame):
                    self._check_quotes()
                    checked = True
                yield frame

    def _check_quotes(self) -> None:
        """Raise AbftError for a cell that is not quoted as cells have to be; pandas guesses."""
        with self._text() as file:
            reader = csv.reader(file, delimiter=self.separator, strict=True)
            limit = csv.field_size_limit(2**31 - 1)
            try:
                for _ in reader:
                    pass
            except csv.Error:
                raise AbftError(
                    f"{self.path}: the row that ends in line {reader.line_num} has a cell that "
                    'begins with " and is not closed, or goes on after that: remove the mark, or '
                    'write the cell as "..." with marks inside doubled'
                ) from None
            finally:
                csv.field_size_limit(limit)

    def _lines(self, rows: int) -> "Iterator[pandas.DataFrame]":
        import pandas

        with self._text() as file:
            lines = (line.rstrip("\r\n") for line in file)
            for chunk in batches(lines, rows):
                yield pandas.DataFrame({_LINES: chunk}, dtype=object)

    def _json_lines(self, rows: int) -> "Iterator[pandas.DataFrame]":
        with self._text() as file:
            for chunk in batches(_json_rows(file), rows):
                yield self._frame(chunk)

    def _json(self, rows: int) -> "Iterator[pandas.DataFrame]":
        for chunk in batches(iter(self.objects), rows):
            yield self._frame(chunk)

    def _frame(self, rows: list[dict[str, Any]]) -> "pandas.DataFrame":
        import pandas

        # With dtype object: pandas would turn whole numbers with gaps into floats.
        columns = {name: [writable(row.get(name)) for row in rows] for name in self.columns}
        return pandas.DataFrame(columns, dtype=object)

    def _parquet(self, rows: int) -> "Iterator[pandas.DataFrame]":
        import pandas
        from pyarrow import parquet

        with parquet.ParquetFile(self.path) as file:
            names = class_names(file.schema_arrow)
            for batch in file.iter_batches(batch_size=rows):
                # An index is a column like any other.
                frame = batch.to_pandas(types_mapper=pandas.ArrowDtype, ignore_metadata=True)
                frame = frame[list(self.columns)]
                for column, classes in names.items():
                    cells = [_name_of(cell, classes) for cell in frame[column]]
                    frame[column] = pandas.Series(cells, dtype=object)
                yield frame

    def _excel(self, rows: int) -> "Iterator[pandas.DataFrame]":
        import pandas

        frame = pandas.read_excel(self.path, dtype=object, keep_default_na=False)
        frame.columns = [str(name) for name in frame.columns]  # a year is a number
        for start in range(0, len(frame), rows):
            yield frame.iloc[start : start + rows].reset_index(drop=True)

    def _text(self) -> IO[str]:
        # Bytes that the encoding lacks become the replacement character.
        file = _open(self.path)
        return io.TextIOWrapper(file, encoding=self.encoding, errors="replace", newline="")


def open_table(path: Path, kinds: tuple[str, ...] = TABLES) -> TableFile:
    """Detect what a file is and read its header.

    Args:
        kinds: the endings that are allowed here, not counting that of a compression.

    Raises:
        AbftError: a missing, empty or unreadable file, or one of another kind.
    """
    if path.is_dir():
        raise AbftError(f"{path} is a folder; give a file")
    if not path.is_file():
        raise AbftError(f"no such file: {path}")
    kind_suffix, compression = suffixes(path)
    if kind_suffix not in kinds:
        raise AbftError(
            f"{path}: expected a file ending in {', '.join(kinds)} (text files may end in "
            f"{', '.join(COMPRESSED)} after it), got {path.suffix or 'no ending'!r}"
        )
    kind = READERS[kind_suffix]
    if compression and kind in ("parquet", "excel"):
        raise AbftError(f"{path}: a {kind_suffix} file is compressed in itself; unpack it first")
    if path.stat().st_size == 0:
        raise AbftError(f"{path} is empty")
    if kind == "excel" and find_spec("openpyxl") is None:
        raise AbftError("Excel files need openpyxl: pip install 'abft[excel]'")

    try:
        return _opened(path, kind, kind_suffix)
    except AbftError:
        raise
    except Exception as error:
        raise _unreadable(path, kind, error) from None


def suffixes(path: Path) -> tuple[str, str]:
    """Return a file's ending and that of its compression: "a.csv.gz" -> (".csv", ".gz")."""
    suffix = path.suffix.lower()
    if suffix in COMPRESSED:
        return path.with_suffix("").suffix.lower(), suffix
    return suffix, ""


def is_table(path: Path) -> bool:
    """Return whether a path has the ending of a table."""
    return suffixes(path)[0] in TABLES


def _opened(path: Path, kind: str, suffix: str) -> TableFile:
    """Return the file with its encoding, separator and columns."""
    if kind == "parquet":
        from pyarrow import parquet

        names = (name for name in parquet.read_schema(path).names if not _INDEX.fullmatch(name))
        return TableFile(path, kind, columns=tuple(names))
    if kind == "excel":
        import openpyxl

        book = openpyxl.load_workbook(path, read_only=True)
        header = next(book.worksheets[0].iter_rows(values_only=True), ())
        book.close()
        return TableFile(path, kind, columns=tuple(str(name) for name in header))

    encoding, damaged = detect_encoding(path)
    file = TableFile(path, kind, encoding, damaged)
    if kind == "lines":
        return replace(file, columns=(_LINES,))
    with file._text() as text:
        if kind == "json":
            objects = _json_objects(text.read())
            return replace(file, columns=_names_of(objects), objects=objects)
        if kind == "json lines":
            return replace(file, columns=_names_of(_json_rows(text)))
        # The first line that is not blank, as pandas takes it; a cell may hold line ends.
        lines = itertools.dropwhile(lambda line: not line.strip(), text)
        start = list(itertools.islice(lines, 64))

    usual = "\t" if suffix == ".tsv" else ","
    separator = _separator(start[0] if start else "", usual)
    header = next(csv.reader(start, delimiter=separator), [])
    file = replace(file, separator=separator, columns=tuple(header))
    return replace(file, quoted=separator != "\t" or not _has_plain_quotes(file))


def _separator(header: str, usual: str) -> str:
    """Return the separator that splits a header into most columns; `usual` if several do."""
    counts = {mark: len(next(csv.reader([header], delimiter=mark), [])) for mark in _SEPARATORS}
    most = max(counts.values())
    return usual if counts[usual] == most else max(counts, key=lambda mark: counts[mark])


def _names_of(rows: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    """Return the columns of JSON objects, each of which may lack some."""
    return tuple(dict.fromkeys(name for row in rows for name in row))


def _has_plain_quotes(file: TableFile) -> bool:
    """Return whether quotation marks of a tab-separated file are characters like any other.

    They are if no row needs them, because every line has all cells, and if most cells that begin
    with one do not end as quoted cells do: `"Great" film`.
    """
    quoted = plain = 0
    with file._text() as lines:
        for number, line in enumerate(line for line in lines if line.strip()):
            cells = line.rstrip("\r\n").split(file.separator)
            marked = [cell for cell in cells if cell.startswith('"')]
            if len(cells) != len(file.columns) or (number == 0 and marked):
                return False
            ended = sum(_QUOTED.fullmatch(cell) is not None for cell in marked)
            quoted, plain = quoted + ended, plain + len(marked) - ended
    return plain > quoted


def _may_hold_rows(frame: "pandas.DataFrame") -> bool:
    """Return whether a cell has line ends and tabs, as if a quotation mark was left open."""
    return any(
        (cells.str.contains("\n", regex=False) & cells.str.contains("\t", regex=False)).any()
        for cells in (frame[column].dropna() for column in frame)
    )


def writable(cell: Any) -> Any:
    """Return a cell without halves of characters, which JSON's escapes can write."""
    if isinstance(cell, str) and _LONE_SURROGATES.search(cell):
        return _LONE_SURROGATES.sub("\ufffd", cell)
    return cell


def detect_encoding(path: Path) -> tuple[str, bool]:
    """Return the encoding of a text file: by its byte order mark, UTF-8 if valid, or guessed.

    Reads the whole file if it is UTF-8. The second value says whether only most of its lines are
    valid UTF-8.
    """
    with _open(path) as file:
        start = file.read(4)
        for mark, name in _MARKS.items():
            if start.startswith(mark):
                return name, False

        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            decoder.decode(start)
            while block := file.read(_BLOCK):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            pass
        else:
            return "utf-8", False

    # Only lines beyond ASCII tell encodings apart; they may come late.
    sample = b""
    with _open(path) as file:
        for line in file:
            if not line.isascii():
                sample += line
            if len(sample) > _SAMPLE:
                break
    guess = guess_encoding(sample)
    return guess, guess == "utf-8"


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def guess_encoding(sample: bytes) -> str:
    """Guess the encoding of lines that are not all UTF-8; a tie goes to the first of our list."""
    import charset_normalizer

    lines = sample.splitlines()
    if sum(map(_is_utf8, lines)) >= _MOSTLY * len(lines):
        return "utf-8"

    matches = charset_normalizer.from_bytes(sample, cp_isolation=list(_ENCODINGS))
    guesses = [
        (match.chaos, -match.coherence, _ENCODINGS.index(name))
        for match in matches
        for name in match.could_be_from_charset
        if name in _ENCODINGS
    ]
    return _ENCODINGS[min(guesses)[-1]] if guesses else _ENCODINGS[0]


def decoded(content: bytes) -> str:
    """Return bytes as text, in the encoding that they seem to have."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        sample = b"\n".join(line for line in content.splitlines() if not line.isascii())
        return content.decode(guess_encoding(sample[:_SAMPLE]), errors="replace")


def class_names(schema: Any) -> dict[str, list[str]]:
    """Return the classes of columns that the `datasets` library wrote as class numbers."""
    content = (schema.metadata or {}).get(b"huggingface")
    features = json.loads(content)["info"]["features"] if content else {}
    return {
        column: feature["names"]
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and "names" in feature
    }


def _name_of(cell: Any, names: list[str]) -> str | None:
    """Return the name of a class; class -1, or any other without a name, counts as empty."""
    import pandas

    return names[int(cell)] if not pandas.isna(cell) and 0 <= cell < len(names) else None


def _json_rows(lines: Any) -> Iterator[dict[str, Any]]:
    """Yield the objects of JSON lines; blank lines are left out."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"line {number}: expected an object such as {{'text': ...}}")
        yield row


def _json_objects(text: str) -> list[dict[str, Any]]:
    """Return the rows of a JSON file: a list of objects, columns of values, or lines."""
    try:
        content = json.loads(text)
    except ValueError:
        return list(_json_rows(io.StringIO(text)))

    if isinstance(content, dict) and all(isinstance(cells, list) for cells in content.values()):
        columns = list(content.values())
        if len({len(cells) for cells in columns}) > 1:
            raise ValueError("columns of different length")
        return [dict(zip(content, row, strict=True)) for row in zip(*columns, strict=True)]
    rows = content if isinstance(content, list) else [content]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected a list of objects")
    return rows


def batches(values: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of `size` values; the last may have fewer."""
    while chunk := list(itertools.islice(values, size)):
        yield chunk


def _open(path: Path) -> IO[bytes]:
    opener: Any = COMPRESSED.get(path.suffix.lower(), open)
    return opener(path, "rb")


def _unreadable(path: Path, kind: str, error: Exception) -> AbftError:
    # The cause says what is wrong in the file; the error itself only that reading failed.
    cause = error.__cause__ or error
    reason = (str(cause).splitlines() or [type(cause).__name__])[0][:160]
    return AbftError(f"{path} could not be read as {kind}: {reason}")
