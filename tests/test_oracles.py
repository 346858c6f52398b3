"""The method on prompts of different length and number of demonstrations, by brute force.

Attention is that of transformers' eager implementation, one prompt at a time; all after it is
plain Python. Heads lie on both sides of the threshold, which the tests assert.
"""

import math
from dataclasses import replace

import pytest
import torch

from abft.data.batches import Batch, PseudoBatchSampler, collate
from abft.data.encoding import EncodedPrompt
from abft.data.packing import pack
from abft.errors import AbftError
from abft.method.head_finder import best_heads, best_layer, head_scores
from abft.method.head_statistics import head_statistics
from abft.method.objectives import OBJECTIVES, check_objective, make_objective
from abft.method.pid import PIDController
from abft.model.attention import decoder, row_attention
from abft.runs.config import RunConfig, resolve
from abft.scoring.evaluate import evaluate
from abft.scoring.scorer import LabelScorer, fingerprint
from tiny import focused_model

A, B = 0.7, 1.1


@pytest.fixture(scope="module")
def model():
    """A model that looks at few tokens: its heads' attention on labels goes from 0 to 1."""
    return focused_model()


@pytest.fixture(scope="module")
def prompts():
    """Prompts of 9 to 40 tokens with 1 to 12 labels: mixed, all correct, all incorrect."""
    generator = torch.Generator().manual_seed(0)

    def prompt(n, k, classes, target):
        ids = torch.randint(3, 600, (n,), generator=generator).tolist()
        positions = sorted(torch.randperm(n - 1, generator=generator)[:k].tolist())
        return EncodedPrompt(tuple(ids), tuple(positions), tuple(classes), target, answer=ids[0])

    return [
        prompt(30, 12, [0, 1, 1, 0, 1, 0, 0, 2, 1, 0, 2, 1], 1),
        prompt(9, 4, [0, 1, 0, 1], 0),
        prompt(40, 8, [2] * 8, 2),  # all correct
        prompt(21, 10, [1] * 10, 0),  # all incorrect
        prompt(16, 1, [1], 1),
        prompt(25, 11, [0, 0, 1] * 3 + [0, 1], 1),
    ]


def eager_rows(model, prompt):
    """Last rows of all heads of all layers, as lists of floats."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(torch.tensor([prompt.input_ids]), output_attentions=True)
    model.set_attn_implementation("sdpa")
    return [head[-1].tolist() for layer in output.attentions for head in layer[0]]


def masses(model, prompt):
    """For every head its attention on correct and on incorrect labels."""
    labels = list(zip(prompt.label_positions, prompt.label_classes, strict=True))
    return [
        (
            sum(row[position] for position, label in labels if label == prompt.target),
            sum(row[position] for position, label in labels if label != prompt.target),
        )
        for row in eager_rows(model, prompt)
    ]


def threshold(prompt):
    k = len(prompt.label_positions)
    return k / (k + math.log(len(prompt.input_ids)))


def passing(model, prompt, T=None):
    T = threshold(prompt) if T is None else T
    return [right + wrong > T for right, wrong in masses(model, prompt)]


def test_heads_are_on_both_sides_of_the_threshold(model, prompts):
    """Otherwise the tests below compare 0 with 0."""
    counts = [sum(passing(model, prompt)) for prompt in prompts]
    assert sum(0 < count < 8 for count in counts) >= 3
    assert min(counts) < max(counts)


def measured(model, prompts, settings):
    """Loss and metrics of the objective that the settings name, on all prompts at once."""
    objective = make_objective(resolve(settings), model, "abft_rows")
    with row_attention(model):
        loss, metrics = objective(decoder(model), Batch(**collate(prompts)))
    return loss.item(), {name: value.item() for name, value in metrics.items()}


@pytest.mark.parametrize("T", [None, 0.3])
@pytest.mark.parametrize("head_filter", [True, False])
def test_eq_1(model, prompts, T, head_filter):
    settings = RunConfig(
        objective="abft", cross_entropy=0, A0=A, B0=B, head_filter=head_filter, threshold=T
    )
    loss, metrics = measured(model, prompts, settings)

    expected = heads = rights = wrongs = 0.0
    for prompt in prompts:
        passed = passing(model, prompt, T)
        heads += sum(passed)
        for (right, wrong), passes in zip(masses(model, prompt), passed, strict=True):
            if passes or not head_filter:
                expected += A * wrong + B * (1 - right)
                rights, wrongs = rights + right, wrongs + wrong
    N = len(prompts)
    assert loss == pytest.approx(expected / N, rel=1e-4)
    assert metrics["heads"] == pytest.approx(heads / N)
    assert metrics["correct_mass"] == pytest.approx(rights / N, rel=1e-4)
    assert metrics["incorrect_mass"] == pytest.approx(wrongs / N, rel=1e-4)


def test_the_vote_of_prompts_that_are_all_correct_or_all_incorrect(model, prompts):
    """They have no vote: loss 0, but they count in the mean."""
    loss, metrics = measured(model, prompts, RunConfig(objective="vote", cross_entropy=0))
    terms = []
    for prompt in prompts:
        right, wrong = (sum(side) for side in zip(*masses(model, prompt), strict=True))
        mixed = (
            0 < sum(c == prompt.target for c in prompt.label_classes) < len(prompt.label_classes)
        )
        terms.append(-math.log(right / (right + wrong)) if mixed else 0.0)
    assert sum(term == 0 for term in terms) == 3
    assert loss == pytest.approx(sum(terms) / len(terms), rel=1e-4)
    assert metrics["heads"] == pytest.approx(
        sum(sum(passing(model, prompt)) for prompt in prompts) / len(prompts)
    )


def scores_of_heads(model, prompt):
    """For every head its attention on each label, and which labels are correct."""
    rights = [label == prompt.target for label in prompt.label_classes]
    return [[row[p] for p in prompt.label_positions] for row in eager_rows(model, prompt)], rights


def head_contrasts(model, prompts):
    """For every head its attention on a correct minus on an incorrect label, mean over prompts."""
    sums, count = None, 0
    for prompt in prompts:
        attention, rights = scores_of_heads(model, prompt)
        if len(set(rights)) == 1:
            continue
        count += 1
        each = []
        for labels in attention:
            good = [a for a, right in zip(labels, rights, strict=True) if right]
            bad = [a for a, right in zip(labels, rights, strict=True) if not right]
            each.append(sum(good) / len(good) - sum(bad) / len(bad))
        sums = each if sums is None else [a + b for a, b in zip(sums, each, strict=True)]
    return [value / count for value in sums]


@pytest.mark.parametrize("heads", ["3", "layer"])
def test_the_contrastive_loss_of_the_heads_that_prefer_correct_labels(model, prompts, heads):
    settings = RunConfig(objective="contrastive", cross_entropy=0, heads=heads, temperature=0.2)
    objective = make_objective(resolve(settings), model, "abft_rows")
    objective.prepare(model, prompts, 1)

    contrasts = head_contrasts(model, prompts)
    H = 4
    if heads == "3":
        chosen = sorted(range(len(contrasts)), key=lambda h: -contrasts[h])[:3]
    else:  # two layers have no middle but the first
        chosen = list(range(H))
    assert objective.chosen_LH.flatten().nonzero().flatten().tolist() == sorted(chosen)

    terms = []
    for prompt in prompts:
        attention, rights = scores_of_heads(model, prompt)
        scores = [sum(attention[h][k] for h in chosen) / len(chosen) for k in range(len(rights))]
        powers = [math.exp(score / 0.2) for score in scores]
        good = sum(power for power, right in zip(powers, rights, strict=True) if right)
        terms.append(-math.log(good / sum(powers)) if len(set(rights)) == 2 else 0.0)
    with row_attention(model):
        loss, metrics = objective(decoder(model), Batch(**collate(prompts)))
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-4)
    rights = sum(masses(model, prompt)[h][0] for prompt in prompts for h in chosen)
    assert metrics["correct_mass"].item() == pytest.approx(rights / len(prompts), rel=1e-4)


def test_scores_of_heads_do_not_depend_on_packing(model):
    generator = torch.Generator().manual_seed(1)
    shared = torch.randint(3, 600, (20,), generator=generator).tolist()
    prompts = [
        EncodedPrompt((*shared, 10 + i, 20 + i), (4, 9, 14), (0, 1, 0), i % 2) for i in range(4)
    ]
    scores_LH = head_scores(model, prompts, "abft_rows", 4)
    for other in (
        head_scores(model, prompts, "abft_rows", 1),
        head_scores(model, prompts, "eager", 1),
        torch.tensor(head_contrasts(model, prompts)).view(scores_LH.shape),
    ):
        torch.testing.assert_close(scores_LH, other, atol=1e-6, rtol=1e-4)
    assert best_heads(scores_LH, 3).sum() == 3
    assert scores_LH[best_heads(scores_LH, 3)].min() >= scores_LH[~best_heads(scores_LH, 3)].max()

    # The middle third of six layers: the third and the fourth.
    layers_LH = torch.tensor([[9.0], [8.0], [1.0], [2.0], [7.0], [6.0]]).expand(6, 2)
    assert best_layer(layers_LH).any(1).tolist() == [False, False, False, True, False, False]


@pytest.mark.parametrize("cross_entropy", [0.0, 0.5])
@pytest.mark.parametrize("T", [None, 0.3])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_counts_the_same_heads(model, prompts, name, T, cross_entropy):
    if name == "e2e" and cross_entropy:
        pytest.skip("e2e is cross-entropy")
    settings = RunConfig(objective=name, cross_entropy=cross_entropy, threshold=T)
    _, metrics = measured(model, prompts, settings)
    counts = [sum(passing(model, prompt, T)) for prompt in prompts]
    assert metrics["heads"] == pytest.approx(sum(counts) / len(prompts))


@pytest.mark.parametrize("cross_entropy", [0.0, 0.5])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_reads_rows_as_it_is_told(model, name, cross_entropy):
    if name == "e2e" and cross_entropy:
        pytest.skip("e2e is cross-entropy")
    settings = resolve(RunConfig(objective=name, cross_entropy=cross_entropy))
    for implementation in ("abft_rows", "eager"):
        assert make_objective(settings, model, implementation).implementation == implementation


def test_padded_prompts_have_the_statistics_of_the_prompt_alone(model, prompts):
    """Prompts with fewer labels than others are padded with position 0, which is no label."""
    batch = Batch(**collate(prompts))
    assert (~batch.candidates).any()
    rows = [torch.tensor([eager_rows(model, prompt)]) for prompt in prompts]
    S = batch.input_ids.shape[1]
    padded = [torch.nn.functional.pad(row, (0, S - row.shape[-1])) for row in rows]
    statistics = head_statistics((torch.cat(padded),), batch)
    for p, prompt in enumerate(prompts):
        rights, wrongs = zip(*masses(model, prompt), strict=True)
        assert statistics.correct[0, p].tolist() == pytest.approx(list(rights), abs=1e-6)
        assert statistics.incorrect[0, p].tolist() == pytest.approx(list(wrongs), abs=1e-6)
        assert statistics.induction[0, p].tolist() == passing(model, prompt)


def test_the_threshold_takes_the_tokens_and_labels_of_each_prompt():
    """Attention between T(n) and T(n - 1), and between T(k) and T(k + 1), tells them apart."""
    for n, k in ((10, 4), (25, 2), (300, 16)):
        T = k / (k + math.log(n))
        for S, passes in ((T + 1e-6, True), (T - 1e-6, False)):
            longest = EncodedPrompt(tuple(range(n + 20)), tuple(range(k + 3)), (0,) * (k + 3), 0)
            prompt = EncodedPrompt(tuple(range(n)), tuple(range(k)), (0,) * k, 0)
            batch = Batch(**collate([prompt, longest]))
            rows_PHS = torch.zeros(2, 1, n + 20, dtype=torch.double)
            rows_PHS[0, 0, :k] = S / k
            assert head_statistics((rows_PHS,), batch).induction[0, 0, 0].item() is passes


def test_the_first_token_of_the_vocabulary_is_an_answer(model, prompts):
    answered = [replace(prompt, answer=0) for prompt in prompts]
    loss, _ = measured(model, answered, RunConfig(objective="e2e"))
    losses = []
    for prompt in answered:
        with torch.no_grad():
            logits = model(torch.tensor([prompt.input_ids])).logits[0, -1]
        losses.append(-logits.log_softmax(-1)[0].item())
    assert loss == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_one_demonstration_has_no_vote():
    vote = RunConfig(objective="vote", cross_entropy=0)
    with pytest.raises(AbftError, match="k = 1 shows one"):
        check_objective(vote, 1)
    check_objective(vote, 2)
    check_objective(replace(vote, cross_entropy=1), 1)
    check_objective(replace(vote, cross_entropy=0.5), 1)


def test_the_controller_keeps_a_at_0_and_lets_it_rise_again():
    """Eq. 3 by hand, beyond the point where A would fall below 0."""
    heads = [20.0, 20.0, 3.0, 3.0, 30.0]
    controller = PIDController(A=0.5, Cp=0.03, Ci=0.005, Cd=0.005)
    A_t, expected = 0.5, []
    for t, m in enumerate(heads):
        if t >= 2:
            last, before = heads[t - 1], heads[t - 2]
            change = 0.03 * (m - last) + 0.005 * (m - heads[0]) + 0.005 * (m - 2 * last + before)
            A_t = max(0.0, A_t + change)
        expected.append(A_t)
    assert expected[2] == 0
    assert expected[4] > 0
    assert [controller.update(m) for m in heads] == pytest.approx(expected)


def test_the_papers_objective_takes_all_of_its_settings(model):
    values = {"A0": 0.3, "B0": 0.9, "Cp": 0.04, "Ci": 0.006, "Cd": 0.007}
    settings = RunConfig(objective="abft", pid=False, head_filter=False, **values)
    objective = make_objective(resolve(settings), model, "abft_rows")
    assert objective.controller == PIDController(A=0.3, Cp=0.04, Ci=0.006, Cd=0.007)
    assert (objective.B, objective.pid, objective.head_filter) == (0.9, False, False)
    by_default = make_objective(resolve(RunConfig(objective="abft")), model, "abft_rows")
    assert (by_default.pid, by_default.head_filter, by_default.B) == (True, True, 1.0)

    for heads in (3.0, 4.0, 5.0):
        by_default.after_step({"heads": heads})
    assert by_default.state()["steps"] == 3
    assert len(by_default.state()["controller"]["history"]) == 3
    for one in ({"A0": 0.0}, {"B0": 0.0}):
        check_objective(RunConfig(objective="abft", **one), 4)
    with pytest.raises(AbftError, match="A0 and B0 are both 0"):
        RunConfig(objective="abft", A0=0.0, B0=0.0)


def test_pseudo_batches_hold_every_prompt_once_sorted_by_length():
    lengths = [5, 3, 9, 1, 7, 2, 8, 4, 6]
    for queries in (1, 2):
        sampler = PseudoBatchSampler(lengths, 3 * queries, seed=0, queries=queries)
        order = list(sampler)
        assert sorted(order) == list(range(9 * queries))
        assert len(sampler) == 9 * queries
        groups = [index // queries for index in order[::queries]]
        for start in (0, 3, 6):
            in_batch = [lengths[group] for group in groups[start : start + 3]]
            assert in_batch == sorted(in_batch)
        assert groups != sorted(groups, key=lambda group: lengths[group])
        sampler.set_epoch(1)
        assert list(sampler) != order
    assert len(list(PseudoBatchSampler(lengths, 9, seed=0))) == 9


def test_a_pack_holds_every_common_beginning_once():
    """Also where prompts that begin alike do not follow each other."""
    prompts = [
        EncodedPrompt(tuple(ids), (), (), 0)
        for ids in ([1, 2, 3, 4], [1, 5, 6], [1, 2, 3, 7], [1, 5, 8], [1, 2], [1, 2, 3, 4])
    ]
    beginnings = {p.input_ids[:end] for p in prompts for end in range(1, len(p.input_ids) + 1)}
    packed = pack(prompts)
    assert len(packed.input_ids) == len(beginnings)
    for prompt, places in zip(prompts, packed.places, strict=True):
        assert tuple(packed.input_ids[place] for place in places) == prompt.input_ids
        assert [packed.position_ids[place] for place in places] == list(range(len(places)))
        for i in range(len(packed.input_ids)):
            ancestor = i <= places[-1] < packed.branch_ends[i]
            assert ancestor == (i in places)


def test_labels_of_two_tokens_with_one_beginning(model, prompts):
    """Their tree has two inner nodes, one more than that of labels of one token."""
    labels = [(5, 7), (5, 8), (5, 9)]
    expected = []
    for prompt in prompts:
        with torch.no_grad():
            after = model(torch.tensor([(*prompt.input_ids, 5)])).logits[0, -1]
        scores = after.double().softmax(-1)[[7, 8, 9]]
        expected.append((scores / scores.sum()).tolist())
    for measured in (
        LabelScorer(model, labels)(prompts),
        evaluate(model, prompts, labels)[0],
    ):
        assert torch.tensor(measured).flatten().tolist() == pytest.approx(
            torch.tensor(expected).flatten().tolist(), abs=1e-5
        )


def test_the_fingerprint_sees_small_writes_in_any_precision():
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.uint8):
        layer = torch.nn.Linear(64, 64)
        with torch.no_grad():
            layer.weight.copy_(torch.full((64, 64), 100.0))
        weight = torch.nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
        layer.weight = weight
        before = fingerprint(layer)
        assert fingerprint(layer) == before
        weight.data[3, 5] = 101
        assert fingerprint(layer) != before
