"""The command line, called from tests."""

from typer.testing import CliRunner

from abft.cli.app import app
from abft.errors import AbftError


def arguments(options, **changes):
    merged = {**options, **{name.replace("_", "-"): value for name, value in changes.items()}}
    return [
        part
        for name, value in merged.items()
        if value is not None
        for part in (f"--{name}", str(value))
    ]


def invoke(*args):
    """Run the command line in this process; AbftError is what `main` prints in one line."""
    return CliRunner().invoke(app, [str(a) for a in args])


def refused(*args):
    result = invoke(*args)
    assert isinstance(result.exception, AbftError), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)
