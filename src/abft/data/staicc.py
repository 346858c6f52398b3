"""Read the tables of StaICC 0.1.1, which its wheel ships as pickles, without running any code.

A pickle can run code when it is read. These are read only if they are the known files, byte for
byte, and with an unpickler that refuses every class. This is done once: the cache keeps the table
as JSON.
"""

import hashlib
import importlib.util
import io
import json
import pickle
from pathlib import Path
from typing import NoReturn

from abft.errors import AbftError
from abft.files import cache_folder, write_text

Rows = list[tuple[str, int]]  # texts with their classes

# SHA-256 of StaICC/cached_dataset/NAME.dataset in version 0.1.1.
_DIGESTS = {
    "agnews": "db7c87509aa2958e55c8b3722034af8094083eaa763154eb9fb216d2e239125b",
    "financial_phrasebank": "0400683c58512ec5cd38c5df10798d903e754051d30082d7fc1b467f09bd0b2a",
    "hate_speech_18": "717e23089caff8d87186ed55c7f3b7de05153c1256f2b70272db88d2079cb93d",
    "rotten_tomatoes": "7211bc8efab9506a09f6e409a9cfee652953937d0fdac82e5cb61453158993e0",
    "sst2": "f0a59696d7e246904c705f5ddacd41f1bc69fcc5a568c8bb5a51f877f6b02fd7",
    "sst5": "bad620ddcceecc755eb02e847c85979c1456409034a61f87491f3f0eeaeb83e5",
    "subjective": "ae2abcfb4bb4088ba2e361d456f27c0072a8cdcd737d487286157776e5aa3310",
    "trec": "368eb2b7862b057f892211dcac3124e7b858c9021a96a32bd9d0666ac904d555",
    "tweet_eval_emotion": "9b559793b1cc445a20ae0ac08b1943e55e27549d8a948bf950f91aab6cabf4f3",
    "tweet_eval_hate": "ecc16e8689335dc225230218e87296ba221937d1a073193314a6369b3854a795",
}


def read_table(name: str) -> Rows:
    """Return the texts of one of StaICC's tables, with their classes.

    Raises:
        AbftError: StaICC is not installed, or its file is not that of version 0.1.1.
    """
    cached = cache_folder() / "staicc" / f"{name}-{_DIGESTS[name][:16]}.json"
    rows = _read_cached(cached)
    if rows is None:
        rows = _unpickle(_staicc_file(name), _DIGESTS[name])
        _write_cached(cached, rows)
    return rows


def _staicc_file(name: str) -> Path:
    # Finding the package does not import it: its modules read all pickles, and print.
    package = importlib.util.find_spec("StaICC")
    if package is None or package.origin is None:
        raise AbftError(
            "built-in tasks need the StaICC data: pip install 'abft[staicc]' (or use your own data "
            "with --data FILE)"
        )
    return Path(package.origin).parent / "cached_dataset" / f"{name}.dataset"


class _NoClasses(pickle.Unpickler):
    """Reads lists, tuples, texts and numbers, and refuses all else."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _unpickle(path: Path, digest: str) -> Rows:
    """Return the rows of a pickle with this SHA-256."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AbftError(f"{path} could not be read: {error.strerror or error}") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise AbftError(
            f"{path} is not that of StaICC 0.1.1; it is a pickle, which could run code, so it is "
            "not read. Install StaICC==0.1.1."
        )

    # A row is ([text], class).
    table = _NoClasses(io.BytesIO(content)).load()
    return [(text, label) for (text,), label in table]


def _read_cached(path: Path) -> Rows | None:
    """Return the rows of the safe copy; None where there is none, or a damaged one."""
    try:
        digest, _, content = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if hashlib.sha256(content).hexdigest().encode() != digest:
        return None

    columns = json.loads(content)
    return list(zip(columns["texts"], columns["labels"], strict=True))


def _write_cached(path: Path, rows: Rows) -> None:
    """Keep the rows, below a line with the SHA-256 of what follows, if the cache can be written."""
    texts, labels = zip(*rows, strict=True)
    content = json.dumps({"texts": texts, "labels": labels}, ensure_ascii=False)
    digest = hashlib.sha256(content.encode()).hexdigest()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, f"{digest}\n{content}")
    except OSError:
        return
