"""Measure whether predictions depend on the demonstrations that the heads look at.

Demonstrations are removed from the prompt, those that the heads look at most first, and in random
order: the deletion curve of feature attribution (arXiv 1806.07421).
"""

import random

import numpy as np

from abft.analysis.study import Study
from abft.data.prompts import Prompt
from abft.data.tasks import Template
from abft.runs.explain import look
from abft.runs.session import progress_bar
from abft.scoring.inspect import attention_rows

DELETION = {
    "models_M": "before, after (the run), and e2e where one was given",
    "removed_R": "how many demonstrations are removed; one at least stays",
    "attention_probability_MR": "probability of the class that is predicted from the whole prompt, "
    "without the demonstrations at whose labels the heads look most; mean over prompts",
    "random_probability_MRD": "the same without as many random demonstrations, draw by draw",
    "attention_changed_MR": "share of prompts with another prediction than from the whole prompt, "
    "without the demonstrations at whose labels the heads look most",
    "random_changed_MRD": "the same without as many random demonstrations, draw by draw",
    "prompts": "test prompts behind every number",
}

DRAWS = 3
MOST_SIZES = 4  # numbers of removed demonstrations, besides 0


def deletion(study: Study, evaluation: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Return what the first `count` test prompts predict without some of their demonstrations.

    They need at least two.
    """
    written, prompts = study.session.written[:count], study.prompts[:count]
    K = min(len(prompt.label_spans) for prompt in written)
    sizes = np.unique(np.linspace(1, K - 1, MOST_SIZES).round().astype(int))
    template = study.session.data.task.template
    M, N, R = len(study.models), len(written), len(sizes)

    # Entry 0 of R: as long as no demonstration is removed, nothing changes.
    probability_MRON = np.zeros((M, R + 1, 1 + DRAWS, N))
    changed_MRON = np.zeros((M, R + 1, 1 + DRAWS, N))
    with progress_bar("demonstrations removed", M * N * (1 + R * (1 + DRAWS))) as bar:
        for m, factors in enumerate(study.models.values()):
            whole_NC = evaluation["probabilities_MNC"][m, :count]
            predicted_N = whole_NC.argmax(1)
            probability_MRON[m, 0] = whole_NC.max(1)
            model = study.space.move(factors)
            orders_NO = []
            for i, prompt in enumerate(prompts):
                rows_LHS = attention_rows(model, [prompt.input_ids])[:, 0]
                shares_K = look(prompt, rows_LHS, None, study.session.config.threshold)[0]
                generator = random.Random(f"removed {i}")
                everything = range(len(shares_K))
                draws = [generator.sample(everything, len(shares_K)) for _ in range(DRAWS)]
                orders_NO.append([np.argsort(-shares_K, kind="stable").tolist(), *draws])
                bar.update(1)

            for r, size in enumerate(sizes, start=1):
                for o in range(1 + DRAWS):
                    shorter = [
                        without(prompt, template, orders_O[o][:size])
                        for prompt, orders_O in zip(written, orders_NO, strict=True)
                    ]
                    found_NC, _ = study.evaluate(factors, study.session.encode(shorter), bar)
                    probability_MRON[m, r, o] = found_NC[np.arange(N), predicted_N]
                    changed_MRON[m, r, o] = found_NC.argmax(1) != predicted_N

    probability_MRO, changed_MRO = probability_MRON.mean(-1), changed_MRON.mean(-1)
    return {
        "models_M": np.array(list(study.models)),
        "removed_R": np.array([0, *sizes]),
        "attention_probability_MR": probability_MRO[:, :, 0],
        "random_probability_MRD": probability_MRO[:, :, 1:],
        "attention_changed_MR": changed_MRO[:, :, 0],
        "random_changed_MRD": changed_MRO[:, :, 1:],
        "prompts": np.array(N),
    }


def without(prompt: Prompt, template: Template, removed: list[int]) -> Prompt:
    """Return the prompt without some of its demonstrations, by number."""
    ends = [end + len(template.after_label) for _, end in prompt.label_spans]
    starts = [len(template.instruction), *ends]
    text, spans, classes = prompt.text[: starts[0]], [], []
    for i, (label_start, label_end) in enumerate(prompt.label_spans):
        if i in removed:
            continue
        moved = len(text) - starts[i]
        spans.append((label_start + moved, label_end + moved))
        classes.append(prompt.label_classes[i])
        text += prompt.text[starts[i] : ends[i]]
    return Prompt(text + prompt.text[starts[-1] :], tuple(spans), tuple(classes), prompt.target)
