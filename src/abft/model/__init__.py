import logging


def _matters(record: logging.LogRecord) -> bool:
    # bitsandbytes, which PEFT imports, asks for a package that speeds up 4-bit models on CPUs; it
    # says so to everybody.
    return "gemm_4bit" not in record.getMessage()


logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_matters)
