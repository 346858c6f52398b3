"""Load models, measure what they support, read their attention, and train W_Q and W_K alone."""

import logging


def _matters(record: logging.LogRecord) -> bool:
    # bitsandbytes, which PEFT imports, asks everybody for a package that speeds up 4-bit models on
    # CPUs.
    return "gemm_4bit" not in record.getMessage()


logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_matters)
