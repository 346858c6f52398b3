"""The settings of `abft rank`, from which its options are derived."""

from dataclasses import dataclass

from abft.method.settings import DATA
from abft.runs.config import MODEL, OUTPUT, Device, ModelSettings
from abft.settings import check_settings, default_of, same_as, setting


@dataclass
class RankSettings:
    """How documents are read and shown.

    Raises:
        AbftError: values out of bounds.
    """

    model: str | None = setting(
        None,
        "Hub id, folder or .gguf file.",
        panel=MODEL,
        follows=f"that of --run, or {default_of(ModelSettings, 'model')}",
        path=True,
    )
    text_column: str = setting("text", "Column of the documents.", panel=DATA)
    instruction: str | None = setting(
        None,
        'What all queries look for, such as "Which document has the same sentiment as the query?"; '
        "documents see it too.",
        panel=DATA,
        follows="that of --run, or none",
    )
    max_document_tokens: int | None = setting(
        None,
        "Cut longer documents after this many tokens.",
        panel=DATA,
        follows="that of --run, or 128",
        at_least=1,
    )
    top: int = setting(10, "How many documents to show.", panel=OUTPUT, at_least=1)
    device: Device = same_as(ModelSettings, "device")

    def __post_init__(self) -> None:
        check_settings(self)
