"""The one exception that stands for a user's mistake rather than a bug of this package."""


class AbftError(ValueError):
    """Bad input. The message says what was got, what was expected and what to do, in one or two lines.

    The command line prints it without a traceback and exits with status 2.
    """
