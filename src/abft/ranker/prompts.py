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

# Which tokens look at the documents: the last of the prompt, or all from the query on.
Looking = Literal["last", "query"]


@dataclass(frozen=True)
class RankingPrompts:
    """Encodes documents and queries; what belongs together is concatenated later.

    Args:
        tokenizer: any that transformers loads.
        looking: which tokens look.
        max_document_tokens, max_query_tokens: longer ones are cut; of the text alone.
        instruction: says what all queries look for; documents and queries see it.
    """

    tokenizer: "PreTrainedTokenizerBase"
    looking: Looking = "query"
    max_document_tokens: int = 128
    max_query_tokens: int = 128
    instruction: str = ""

    @property
    def beginning(self) -> tuple[int, ...]:
        """Return the tokens before all documents, with those that every text begins with."""
        said = " ".join(self.instruction.split())
        ids = self.tokenizer(f"{said}\n{BEGINNING}" if said else BEGINNING)["input_ids"]
        end = self.tokenizer.eos_token_id
        return tuple(ids[:-1] if len(ids) > 1 and ids[-1] == end else ids)

    def documents(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the tokens of each document."""
        ids, most = self._begun(BEFORE_DOCUMENT, texts, self.max_document_tokens)
        return self._ended(ids, most, AFTER_DOCUMENT)

    def too_long(self, texts: Sequence[str]) -> int:
        """Return how many documents are cut."""
        ids, most = self._begun(BEFORE_DOCUMENT, texts, self.max_document_tokens)
        return sum(len(each) > most for each in ids)

    def queries(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the tokens of each query, to the end of the prompt."""
        ids, most = self._begun(BEFORE_QUERY, texts, self.max_query_tokens)
        return self._ended(ids, most, AFTER_QUERY)

    def _begun(self, before: str, texts: Sequence[str], most: int) -> tuple[list[list[int]], int]:
        """Return the tokens of texts with what comes before them, and how many are kept."""
        own = [before + " ".join(text.split()) for text in texts]
        begins, *ids = self.tokenizer([before, *own], add_special_tokens=False)["input_ids"]
        return ids, len(begins) + most

    def _ended(self, ids: list[list[int]], most: int, after: str) -> list[tuple[int, ...]]:
        ends = self.tokenizer(after, add_special_tokens=False)["input_ids"]
        return [(*each[:most], *ends) for each in ids]

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
