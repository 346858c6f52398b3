"""The exceptions that stand for a user's mistake or wish rather than a bug of this package."""


class AbftError(ValueError):
    """Bad input. The message says what was got, what was expected and what to do, in one or two
    lines.

    The command line prints it without a traceback.
    """

    exit_code = 2


class RunInterrupted(AbftError):
    """Ctrl-C: the message says how to go on."""

    exit_code = 130
