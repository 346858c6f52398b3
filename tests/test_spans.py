"""Candidates that are spans of tokens, and blocks that do not see each other, by brute force."""

import pytest
import torch

from abft.data.batches import Batch
from abft.data.encoding import attention_target
from abft.method.head_statistics import label_attention
from abft.model.attention import decoder, read_batch, row_attention, up_to_layer
from tiny import focused_model

HEAD = 5  # tokens of the instruction
SPANS = [(5, 9), (10, 12), (12, 20)]  # token 9 is between two
TAIL = 20


@pytest.fixture(scope="module")
def model():
    """A model whose heads look at few tokens."""
    return focused_model()


def prompts(blocks, looking=3):
    generator = torch.Generator().manual_seed(0)
    shared = torch.randint(3, 600, (TAIL,), generator=generator).tolist()
    queries = torch.randint(3, 600, (3, 7), generator=generator).tolist()
    return [
        attention_target(
            [*shared, *query],
            SPANS,
            [i == n for i in range(3)],
            looking=max(looking - n, 1),
            blocks=blocks,
        )
        for n, query in enumerate(queries)
    ]


def by_hand(model, prompt):
    """Mean attention of the last tokens on each span, (L, H, K), from eager attention."""
    n = len(prompt.input_ids)
    positions = list(range(n))
    allowed = [[j <= i for j in range(n)] for i in range(n)]
    if prompt.blocks:
        # Token 9 belongs to the block before it; the longest block has 8 tokens.
        blocks = [range(5, 10), range(10, 12), range(12, 20)]
        positions = [*range(HEAD), *range(5, 10), 5, 6, *range(5, 13), *range(13, 13 + n - TAIL)]
        for block in blocks:
            for i in block:
                allowed[i] = [j <= i and (j < HEAD or j in block) for j in range(n)]
    mask = torch.where(torch.tensor(allowed), 0.0, torch.finfo(torch.float32).min)[None, None]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(
            torch.tensor([prompt.input_ids]),
            attention_mask=mask,
            position_ids=torch.tensor([positions]),
            output_attentions=True,
        )
    model.set_attn_implementation("sdpa")
    rows_LHS = torch.stack(output.attentions)[:, 0, :, -prompt.looking :].mean(2)
    return torch.stack([rows_LHS[..., start:end].sum(-1) for start, end in SPANS], -1)


def read(model, batch):
    with torch.no_grad(), row_attention(model):
        rows, _ = read_batch(decoder(model), batch)
        return label_attention(rows, batch)


@pytest.mark.parametrize("looking", [1, 3])
@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("blocks", [False, True])
def test_attention_on_spans(model, blocks, queries, looking):
    asked = prompts(blocks, looking)
    found_LPHK = read(model, Batch.of(asked, queries, "cpu"))
    expected = torch.stack([by_hand(model, prompt) for prompt in asked], 1)
    torch.testing.assert_close(found_LPHK, expected, rtol=1e-4, atol=1e-6)
    assert expected.max() > 0.2


def test_the_order_of_blocks_does_not_matter(model):
    """A model of one sequence that reads documents side by side cannot prefer the last."""
    (first, *_) = prompts(blocks=True)
    ids = first.input_ids
    parts = [ids[5:10], ids[10:12], ids[12:20]]
    swapped = (*ids[:5], *parts[2], *parts[0], *parts[1], *ids[20:])
    spans = [(5, 13), (13, 17), (18, 20)]
    other = attention_target(swapped, spans, [False, True, False], looking=3, blocks=True)
    one, two = (read(model, Batch.of([prompt], 1, "cpu")) for prompt in (first, other))
    torch.testing.assert_close(one[..., [2, 0, 1]], two, rtol=1e-4, atol=1e-6)


def test_one_token_spans_are_labels(model):
    ids = list(range(3, 30))
    spans = attention_target(ids, [(4, 5), (9, 10)], [True, False])
    labels = attention_target(ids, [4, 9], [True, False])
    one, two = (read(model, Batch.of([prompt], 1, "cpu")) for prompt in (spans, labels))
    torch.testing.assert_close(one, two)


def test_a_decoder_that_ends_early_has_the_same_first_layers(model):
    batch = Batch.of(prompts(blocks=True), 3, "cpu")
    whole = read(model, batch)
    with up_to_layer(decoder(model), 0):
        assert len(decoder(model).layers) == 1
        torch.testing.assert_close(read(model, batch), whole[:1])
    torch.testing.assert_close(read(model, batch), whole)


@pytest.mark.parametrize(
    "spans", [[(3, 3)], [(3, 6), (5, 8)], [(6, 8), (2, 4)], [(-1, 2)], [(5, 10)]]
)
def test_spans_that_make_no_sense(spans):
    with pytest.raises(ValueError, match="non-empty ones in order"):
        attention_target(list(range(10)), spans, [True] * len(spans))


def test_a_pack_with_different_blocks_is_refused():
    one, two, _ = prompts(blocks=True)
    other = attention_target(two.input_ids, SPANS[:2], [True, False], looking=3, blocks=True)
    with pytest.raises(ValueError, match="same blocks"):
        Batch.of([one, other], 2, "cpu")
