"""Write documents and queries as prompts in which the query looks at the documents.

    Documents:
    - first document
    - second document
    Query: what is asked
    The document that matches:

An instruction may come before the first line. Every document is tokenised alone and sees the
instruction, the first line and itself only (BlockRank, arXiv 2510.05396), so that its keys and
values do not depend on the other documents or on the query.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from abft.data.encoding import EncodedPrompt, attention_target

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BEGINNING = "Documents:\n"
BEFORE_DOCUMENT, AFTER_DOCUMENT = "- ", "\n"
BEFORE_QUERY, AFTER_QUERY = "Query: ", "\nThe document that matches:"

EMPTY_QUERY = "N/A"  # without content; its attention is subtracted: ICR's calibration

# Which tokens look at the documents: the last of the prompt, or all from the query on.
Looking = Literal["last", "query"]


@dataclass(frozen=True)
class RankingPrompts:
    """Encodes documents and queries separately; they are concatenated later.

    Args:
        tokenizer: any that transformers loads.
        looking: which tokens look at the documents.
        max_document_tokens, max_query_tokens: longer texts are cut; counts the text's tokens alone.
        instruction: says what all queries look for; documents and queries see it.
    """

    tokenizer: "PreTrainedTokenizerBase"
    looking: Looking = "query"
    max_document_tokens: int = 128
    max_query_tokens: int = 128
    instruction: str = ""

    @property
    def beginning(self) -> tuple[int, ...]:
        """Return the tokens before all documents, with any special tokens that begin a text."""
        said = " ".join(self.instruction.split())
        ids = self.tokenizer(f"{said}\n{BEGINNING}" if said else BEGINNING)["input_ids"]
        end = self.tokenizer.eos_token_id
        return tuple(ids[:-1] if len(ids) > 1 and ids[-1] == end else ids)

    def documents(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the tokens of each document."""
        return self.cut_documents(texts)[0]

    def cut_documents(self, texts: Sequence[str]) -> tuple[list[tuple[int, ...]], int]:
        """Return the tokens of each document, and how many documents were cut."""
        return self._around(BEFORE_DOCUMENT, texts, AFTER_DOCUMENT, self.max_document_tokens)

    def queries(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the tokens of each query and of what follows it, to the end of the prompt."""
        return self.cut_queries(texts)[0]

    def cut_queries(self, texts: Sequence[str]) -> tuple[list[tuple[int, ...]], int]:
        """Return the same, and how many queries were cut."""
        return self._around(BEFORE_QUERY, texts, AFTER_QUERY, self.max_query_tokens)

    def _around(
        self, before: str, texts: Sequence[str], after: str, most: int
    ) -> tuple[list[tuple[int, ...]], int]:
        own = [before + " ".join(text.split()) for text in texts]
        begins, ends, *ids = self.tokenizer([before, after, *own], add_special_tokens=False)[
            "input_ids"
        ]
        # The limit is for the text, without what comes before it.
        most += len(begins)
        return [(*each[:most], *ends) for each in ids], sum(len(each) > most for each in ids)

    def prompt(
        self,
        documents: Sequence[Sequence[int]],
        query: Sequence[int],
        relevant: Sequence[bool],
        answer: int = -1,
    ) -> EncodedPrompt:
        """Return a prompt of encoded documents and an encoded query.

        Args:
            relevant: for each document whether the query should look at it.
        """
        ids = list(self.beginning)
        spans = []
        for document in documents:
            spans.append((len(ids), len(ids) + len(document)))
            ids += document
        ids += query
        looking = len(query) if self.looking == "query" else 1
        return attention_target(ids, spans, relevant, answer, looking=looking, blocks=True)
