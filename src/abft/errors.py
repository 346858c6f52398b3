"""Exceptions for user mistakes and interruptions, not for bugs in this package."""


class AbftError(ValueError):
    """Bad input: the message says what was given, what was expected and what to do.

    The command line prints it without a traceback.
    """

    exit_code = 2


class CannotResume(AbftError):
    """What an earlier command left cannot be continued."""


class DamagedWeights(AbftError):
    """Saved weights that cannot be read, or are not those that were written."""


class RunInterrupted(AbftError):
    """Ctrl-C: the message says how to go on."""

    exit_code = 130
