"""The command line. Commands import heavy modules when they run: `abft --help` is instant."""

import codecs
import errno
import io
import os
import sys
from typing import Annotated

import typer

from abft.cli import quiet
from abft.cli.analyses import analyze, report
from abft.cli.benchmark import bench
from abft.cli.measuring import evaluate, heads
from abft.cli.predicting import predict
from abft.cli.prompting import prompt
from abft.cli.ranking import rank
from abft.cli.training import merge, train
from abft.errors import AbftError

app = typer.Typer(
    name="abft",
    help="Attention Behavior Fine-Tuning: teach a language model's attention heads where to look "
    "in few-shot prompts.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(f"abft {version('abft')}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", help="Show warnings and progress bars of the libraries too."
        ),
    ] = False,
) -> None:
    quiet.verbose = verbose


for name, command in {
    "train": train,
    "eval": evaluate,
    "heads": heads,
    "predict": predict,
    "prompt": prompt,
    "rank": rank,
    "analyze": analyze,
    "report": report,
    "bench": bench,
    "merge": merge,
}.items():
    app.command(name)(command)


def _show_every_character() -> None:
    """Let stdout take every text: as UTF-8 in a file, with escapes as in JSON on a terminal."""

    def escaped(error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
        pairs = (units[i : i + 4] for i in range(0, len(units), 4))
        return "".join(f"\\u{unit}" for unit in pairs), error.end

    codecs.register_error("abft.escape", escaped)
    if isinstance(sys.stdout, io.TextIOWrapper):
        own = sys.stdout.isatty() or "PYTHONIOENCODING" in os.environ
        encoding = sys.stdout.encoding if own else "utf-8"
        sys.stdout.reconfigure(encoding=encoding, errors="abft.escape")


# Users' errors: a full disk, a place that may not be written, a text in place of a file's name.
_OF_USERS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
)


def main() -> None:
    """Entry point: users' mistakes end in one line on stderr, not in a traceback."""
    # PyTorch on Linux: activations in huge pages (PERFORMANCE.md)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    _show_every_character()
    try:
        app()
    except AbftError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in _OF_USERS:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
