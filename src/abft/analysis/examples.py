"""Read attention rows of single test prompts, head by head (Fig. 8, 16, 29-31)."""

import numpy as np

from abft.analysis.evaluation import by_passing
from abft.analysis.study import Study
from abft.runs.session import progress_bar
from abft.scoring.inspect import attention_rows

EXAMPLES = {
    "models_M": "before, after (the run), and e2e where one was given",
    "prompts_P": "which test prompts: the first of each kind of change, correct to correct, "
    "incorrect to correct, ...",
    "texts_P": "the prompts",
    "label_spans_PK2": "characters [start, end) of every demonstration's label word",
    "label_positions_PK": "which of a prompt's tokens heads look at of it",
    "label_classes_PK": "class of every demonstration",
    "targets_P": "class of every query",
    "predicted_MP": "class predicted",
    "heads_J2": "(layer's number in the model, head) of the heads whose rows are kept: those "
    "that pass the filter most often, then those that look at labels most",
    "tokens_P": "tokens of every prompt; tokens of all prompts follow each other in T",
    "spans_T2": "characters [start, end) of every token",
    "attention_MJT": "attention from the query position on every token, float16",
}

PER_CHANGE = 3  # prompts of each kind
HEADS, FEWEST_HEADS = 16, 4

# models x heads x tokens that are kept; beyond that fewer heads, then fewer prompts of each kind
ROW_ENTRIES = 1_000_000


def examples(study: Study, evaluation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return rows of the heads that look at labels most, on prompts of each kind of change."""
    predicted_MN = evaluation["probabilities_MNC"].argmax(-1)
    targets_N = evaluation["targets_N"]

    # Long prompts leave room for fewer heads only, and then for fewer prompts.
    on_labels_MLH = evaluation["correct_mass_MLH"] + evaluation["incorrect_mass_MLH"]
    heads = top_heads(evaluation["induction_rate_MLH"], on_labels_MLH)
    per_change = PER_CHANGE
    chosen = chosen_prompts(predicted_MN, targets_N, per_change)
    while True:
        tokens = sum(len(study.prompts[i].input_ids) for i in chosen)
        if len(study.models) * len(heads) * tokens <= ROW_ENTRIES:
            break
        if len(heads) > FEWEST_HEADS:
            heads = heads[: len(heads) // 2]
        elif per_change > 1:
            per_change -= 1
            chosen = chosen_prompts(predicted_MN, targets_N, per_change)
        else:
            break

    written = [study.session.written[i] for i in chosen]
    encoded = [study.prompts[i] for i in chosen]
    lengths = [len(prompt.input_ids) for prompt in encoded]

    # The rows of all prompts follow each other on the last axis.
    attention = np.zeros((len(study.models), len(heads), sum(lengths)), np.float16)
    with progress_bar("attention on single prompts", len(encoded) * len(study.models)) as bar:
        for m, factors in enumerate(study.models.values()):
            model, begin = study.space.move(factors), 0
            for prompt, length in zip(encoded, lengths, strict=True):
                rows_LHS = attention_rows(model, [prompt.input_ids])[:, 0].cpu().numpy()
                for j, (layer, head) in enumerate(heads):
                    attention[m, j, begin : begin + length] = rows_LHS[layer, head]
                begin += length
                bar.update(1)

    # Encoded prompts can lack the tokenizer's special tokens at the end: their spans are cut off.
    texts = [prompt.text for prompt in written]
    spans: list[tuple[int, int]] = []
    for text, length in zip(texts, lengths, strict=True):
        encoding = study.session.tokenizer(text, return_offsets_mapping=True)
        spans += encoding["offset_mapping"][:length]

    label_spans = np.array([prompt.label_spans for prompt in written])
    label_classes = np.array([prompt.label_classes for prompt in written])
    return {
        "models_M": np.array(list(study.models)),
        "prompts_P": np.array(chosen),
        "texts_P": np.array(texts),
        "label_spans_PK2": label_spans.reshape(len(written), -1, 2),
        "label_positions_PK": np.array([p.label_positions for p in encoded]).reshape(
            len(written), -1
        ),
        "label_classes_PK": label_classes.reshape(len(written), -1),
        "targets_P": np.array([prompt.target for prompt in written]),
        "predicted_MP": predicted_MN[:, chosen],
        "heads_J2": np.array([(study.layers[layer], head) for layer, head in heads]),
        "tokens_P": np.array(lengths),
        "spans_T2": np.array(spans),
        "attention_MJT": attention,
    }


def top_heads(induction_rate_MLH: np.ndarray, on_labels_MLH: np.ndarray) -> list[tuple[int, int]]:
    """Return (layer, head) of the heads that pass the filter most often in any model, best first.

    Layers are counted from 0 over the attention layers.
    """
    order = by_passing(induction_rate_MLH.max(0), on_labels_MLH.max(0))[:HEADS]
    heads = induction_rate_MLH.shape[2]
    return [divmod(int(i), heads) for i in order]


def chosen_prompts(
    predicted_MN: np.ndarray, targets_N: np.ndarray, each: int = PER_CHANGE
) -> list[int]:
    """Return the first prompts of each kind of change, `each` of them.

    The kinds: predictions stay correct, become correct, become incorrect, stay incorrect.
    """
    before, after = predicted_MN[0] == targets_N, predicted_MN[1] == targets_N
    kinds = (before & after, ~before & after, before & ~after, ~before & ~after)
    return [int(i) for kind in kinds for i in np.flatnonzero(kind)[:each]]
