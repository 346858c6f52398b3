"""Silence the libraries' progress bars and messages, unless `abft -v` asks for them."""

verbose = False  # set by the command line


def quiet() -> None:
    """Silence the warnings and bars of the libraries that a command uses; not with -v."""
    if verbose:
        return
    import logging
    import warnings

    import transformers

    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # The last two say what they would need on another machine.
    for name in ("accelerate", "bitsandbytes", "kernels"):
        logging.getLogger(name).setLevel(logging.ERROR)
