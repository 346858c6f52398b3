"""Files and commands as people type them: what happens, and after how many seconds.

    python benchmarks/inputs.py --only refused --output results/inputs.json

Each in a process of its own. `tests/test_inputs.py` checks the same cases, without the clock: what
is refused without a model is refused before torch is imported, and nothing ends in a traceback.
"""

import argparse
import bz2
import gzip
import io
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

READ, REFUSED = "read", "refused"


def rows(count=60, text="{word} and {other}, number {i}"):
    """Separable reviews with their stars."""
    words = {"good": ("great", "joy"), "bad": ("poor", "sad")}
    labels = ["good", "bad"] * (count // 2)
    return [
        (text.format(word=words[label][0], other=words[label][1], i=i), label)
        for i, label in enumerate(labels)
    ]


def table(pairs, separator=",", header=("text", "label"), end="\n"):
    lines = [separator.join(header)]
    lines += [f'"{text}"{separator}{label}' for text, label in pairs]
    return end.join(lines) + end


def parquet(pairs):
    import pandas

    file = io.BytesIO()
    pandas.DataFrame(pairs, columns=["text", "label"]).to_parquet(file)
    return file.getvalue()


def excel(pairs):
    import pandas

    file = io.BytesIO()
    pandas.DataFrame(pairs, columns=["text", "label"]).to_excel(file, index=False)
    return file.getvalue()


def json_lines(pairs):
    return "".join(json.dumps({"text": t, "label": label}) + "\n" for t, label in pairs)


ROWS = rows()
ACCENTS = rows(text="{word} café, {other} mañana, número {i}")
GAPS = [("", "good"), *ROWS[1:20], (ROWS[20][0], ""), *ROWS[21:]]
LONG = [
    ("endless " * 3000, label) if i in (3, 30) else (t, label) for i, (t, label) in enumerate(ROWS)
]
NUMBERS = [(text, "1" if label == "good" else "0") for text, label in ROWS]


@dataclass(frozen=True)
class Case:
    """A file, or none, a command, and what has to happen.

    Attributes:
        name: what people would call it.
        file: its name; None = no file.
        content: of the file.
        outcome: READ or REFUSED.
        message: what is said, in part.
        options: of `abft train --data FILE`; "train" etc. first: the whole command.
    """

    name: str
    file: str | None
    content: str | bytes
    outcome: str
    message: str
    options: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        if self.file is not None:
            content = self.content
            data = content.encode() if isinstance(content, str) else content
            (folder / self.file).write_bytes(data)

    @property
    def command(self) -> list[str]:
        """The arguments of abft; it runs in the file's folder."""
        if self.options and not self.options[0].startswith("-"):
            return list(self.options)
        return ["train", "--data", str(self.file), *self.options]


# What a case that is read trains and measures: as little as possible.
SMALL = ("--steps", "1", "--nd", "4", "--nb", "4", "--test-prompts", "4", "--output", "run")

CASES = [
    Case("CSV, UTF-8", "a.csv", table(ROWS), READ, "rows              60"),
    Case("CSV with a byte order mark", "a.csv", table(ROWS).encode("utf-8-sig"), READ, "rows"),
    Case("Latin-1", "a.csv", table(ACCENTS).encode("latin-1"), READ, "encoding cp1252"),
    Case(
        "Windows-1252 with curly quotes",
        "a.csv",
        table(rows(text="“{word}” {other} – {i}")).encode("cp1252"),
        READ,
        "cp1252",
    ),
    Case(
        "UTF-16, as Excel's Unicode text",
        "a.csv",
        table(ACCENTS, "\t").encode("utf-16"),
        READ,
        "utf-16",
    ),
    Case("semicolons", "a.csv", table(ROWS, ";"), READ, "separated by ';'"),
    Case(
        "semicolons, Latin-1, Windows line ends",
        "a.csv",
        table(ACCENTS, ";", end="\r\n").encode("latin-1"),
        READ,
        "separated by ';'",
    ),
    Case("tabs in a .csv", "a.csv", table(ROWS, "\t"), READ, "separated by tabs"),
    Case("bars", "a.csv", table(ROWS, "|"), READ, "separated by '|'"),
    Case("TSV", "a.tsv", table(ROWS, "\t"), READ, "rows"),
    Case("gzip", "a.csv.gz", gzip.compress(table(ROWS).encode()), READ, "rows"),
    Case(
        "bzip2 of JSON lines", "a.jsonl.bz2", bz2.compress(json_lines(ROWS).encode()), READ, "rows"
    ),
    Case("JSON lines", "a.jsonl", json_lines(ROWS), READ, "rows"),
    Case(
        "JSON lines with a byte order mark",
        "a.jsonl",
        json_lines(ROWS).encode("utf-8-sig"),
        READ,
        "rows",
    ),
    Case(
        "JSON list",
        "a.json",
        json.dumps([{"text": t, "label": label} for t, label in ROWS]),
        READ,
        "rows",
    ),
    Case(
        "JSON columns",
        "a.json",
        json.dumps({"text": [t for t, _ in ROWS], "label": [label for _, label in ROWS]}),
        READ,
        "rows",
    ),
    Case("Parquet", "a.parquet", parquet(ROWS), READ, "rows"),
    Case("Excel", "a.xlsx", excel(ROWS), READ, "rows"),
    Case("labels that are numbers", "a.csv", table(NUMBERS), READ, "0: 30, 1: 30"),
    Case(
        "rows with an empty text or label",
        "a.csv",
        table(GAPS),
        READ,
        "2 of 60 rows have an empty text or label (row 1, 21); skipped",
    ),
    Case(
        "blank lines between rows",
        "a.csv",
        table(ROWS).replace("\n", "\n\n"),
        READ,
        "rows              60",
    ),
    Case(
        "texts of 24,000 characters",
        "a.csv",
        table(LONG),
        READ,
        "only their beginning is read",
        ("--max-text-tokens", "64"),
    ),
    Case(
        "texts that occur twice", "a.csv", table([*ROWS, *ROWS[:10]]), READ, "10 duplicates dropped"
    ),
    Case(
        "other column names",
        "a.csv",
        table(ROWS, header=("review", "stars")),
        READ,
        "rows",
        ("--text-column", "review", "--label-column", "stars"),
    ),
    Case("empty rows with --strict", "a.csv", table(GAPS), REFUSED, "2 of 60 rows", ("--strict",)),
    Case(
        "a missing file",
        None,
        "",
        REFUSED,
        "no such file: none.csv",
        ("train", "--data", "none.csv"),
    ),
    Case("an empty file", "a.csv", "", REFUSED, "is empty"),
    Case("a header alone", "a.csv", "text,label\n", REFUSED, "no rows"),
    Case(
        "a wrong column",
        "a.csv",
        table(ROWS, header=("body", "label")),
        REFUSED,
        "its columns are body, label",
    ),
    Case("one class", "a.csv", table([(t, "good") for t, _ in ROWS]), REFUSED, "one label only"),
    Case("six rows", "a.csv", table(ROWS[:6]), REFUSED, "need"),
    Case(
        "a quote that never ends",
        "a.csv",
        'text,label\n"never,good\n',
        REFUSED,
        "could not be read as csv",
    ),
    Case("a Word document", "a.docx", b"PK\x03\x04", REFUSED, "expected a file ending in"),
    Case(
        "a picture named .csv",
        "a.csv",
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(range(256)),
        REFUSED,
        "no column 'text'",
    ),
    Case("broken JSON lines", "a.jsonl", json_lines(ROWS[:3]) + "{text: no}\n", REFUSED, "line 4"),
    Case("broken Parquet", "a.parquet", b"no parquet", REFUSED, "could not be read as parquet"),
    Case(
        "a wrong option value",
        "a.csv",
        table(ROWS),
        REFUSED,
        "expected one of",
        ("--objective", "votes"),
    ),
    Case(
        "an option of another objective",
        "a.csv",
        table(ROWS),
        REFUSED,
        "A0 goes with objective 'abft'",
        ("--A0", "0.3"),
    ),
    Case(
        "an unknown built-in task",
        None,
        "",
        REFUSED,
        "did you mean SST2",
        ("train", "--task", "SST22"),
    ),
    Case(
        "an occupied output folder",
        "a.csv",
        table(ROWS),
        REFUSED,
        "holds files that are no abft run",
        ("--output", "."),
    ),
    Case("an unknown run of report", None, "", REFUSED, "no such folder", ("report", "nowhere")),
    Case("an unknown run of analyze", None, "", REFUSED, "no such folder", ("analyze", "nowhere")),
    Case(
        "an unknown run of eval",
        None,
        "",
        REFUSED,
        "no such folder",
        ("eval", "--run", "nowhere"),
    ),
    Case(
        "an unknown run of merge",
        None,
        "",
        REFUSED,
        "no such folder",
        ("merge", "nowhere", "out"),
    ),
    Case(
        "predict without a run",
        None,
        "",
        REFUSED,
        "no finished run in runs/",
        ("predict", "--text", "x"),
    ),
]


def main():
    from record import write

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only", choices=(READ, REFUSED), help="read: half a minute each")
    options = parser.parse_args()

    abft = str(Path(sys.executable).with_name("abft"))
    results = []
    for case in CASES:
        if options.only not in (None, case.outcome):
            continue
        with tempfile.TemporaryDirectory() as folder:
            case.write(Path(folder))
            small = SMALL if case.outcome == READ else ()
            started = time.perf_counter()
            done = subprocess.run(
                [abft, *case.command, *small], cwd=folder, capture_output=True, text=True
            )
            seconds = time.perf_counter() - started
        lines = [line for line in done.stderr.splitlines() if case.message in line]
        outcome = READ if done.returncode == 0 else REFUSED
        assert outcome == case.outcome, done.stderr
        assert lines, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        said = lines[0].strip().removeprefix("error: ").replace(f"{folder}/", "")
        results.append(
            {"input": case.name, "outcome": outcome, "said": said, "seconds": round(seconds, 2)}
        )
        print(f"{case.name:42}{outcome:9}{seconds:6.2f} s  {said[:90]}", flush=True)
    if options.output:
        write(options.output, {"cases": results})


if __name__ == "__main__":
    main()
