import contextlib
import io

import numpy as np
import pytest
import torch

from abft.data.builtin import load_task
from abft.data.encoding import EncodedPrompt, encode, label_tokens
from abft.data.prompts import Prompt, evaluation_prompts, training_prompts, write_prompt
from abft.data.tasks import Example, Task, Template
from abft.errors import AbftError
from abft.runs.predictor import Predictor
from abft.scoring.evaluate import evaluate
from abft.scoring.metrics import accuracy, macro_f1
from abft.scoring.perplexity import perplexity
from abft.scoring.scorer import LabelScorer, common_prefix, label_probabilities
from tiny import FAMILIES, LEGACY, tiny_model


@pytest.fixture(scope="module")
def prompts(bpe, review_data):
    return encode(bpe, training_prompts(review_data, 10, 3, seed=0))


def full_model_probabilities(model, prompts, words):
    """One prompt at a time, all logits, then the label words' softmax."""
    rows = []
    for prompt in prompts:
        with torch.no_grad():
            logits = model(torch.tensor([prompt.input_ids])).logits[0, -1, words]
        rows.append(torch.softmax(logits.double(), -1).numpy())
    return np.stack(rows)


def count_tokens(model):
    """A list that gets the number of token ids of every later call of the decoder."""
    counts = []
    model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: counts.append(
            (args[0] if args else kwargs["input_ids"]).numel()
        ),
        with_kwargs=True,
    )
    return counts


@pytest.mark.parametrize("family", [*FAMILIES, "cohere", "granite", *LEGACY])
def test_probabilities_equal_the_full_model_one_prompt_at_a_time(family, prompts, bpe, review_data):
    extra = {}
    if family in ("cohere", "granite"):
        extra = {
            **FAMILIES["llama"],
            **({"logit_scale": 0.3} if family == "cohere" else {"logits_scaling": 3.0}),
        }
    model = tiny_model(family, **extra)
    words = label_tokens(bpe, review_data.task)
    expected = full_model_probabilities(model, prompts, words)
    measured, _ = evaluate(model, prompts, words, batch_size=4)
    np.testing.assert_allclose(measured, expected, atol=2e-5)
    np.testing.assert_allclose(
        label_probabilities(model, prompts, words, batch_size=4), expected, atol=2e-5
    )
    assert np.ptp(expected[:, 0]) > 1e-3  # not all the same


def chain_rule(model, prompts, labels):
    """One prompt and label at a time: the product of the tokens' probabilities, from all logits;
    then shares of the sum.
    """
    rows = []
    for prompt in prompts:
        products = []
        for label in labels:
            label = label if isinstance(label, tuple) else (label,)
            product = 1.0
            for i, token in enumerate(label):
                with torch.no_grad():
                    logits = model(torch.tensor([prompt.input_ids + label[:i]])).logits[0, -1]
                product *= logits.double().softmax(-1)[token].item()
            products.append(product)
        rows.append(np.array(products) / sum(products))
    return np.stack(rows)


LONG_LABELS = [
    (300, 20, 7),
    (40, 9),
    (300, 21),
    (55, 20),
]  # token ids; the first and the third begin alike


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "cohere"])
def test_labels_of_several_tokens_follow_the_chain_rule(family, prompts, bpe, review_data):
    model = tiny_model(
        family, **({**FAMILIES["llama"], "logit_scale": 0.3} if family == "cohere" else {})
    )
    expected = chain_rule(model, prompts, LONG_LABELS)
    assert (np.ptp(expected, axis=0) > 0.01 * expected.mean(0)).all()
    measured, report = evaluate(model, prompts, LONG_LABELS, batch_size=4)
    np.testing.assert_allclose(measured, expected, rtol=1e-3)
    np.testing.assert_allclose(
        label_probabilities(model, prompts, LONG_LABELS, batch_size=4), expected, rtol=1e-3
    )
    _, plain = evaluate(model, prompts, label_tokens(bpe, review_data.task))
    np.testing.assert_allclose(
        report.correct_mass_LH, plain.correct_mass_LH, atol=1e-6
    )  # heads see the prompt alone
    np.testing.assert_allclose(report.induction_rate_LH, plain.induction_rate_LH)
    written = [
        write_prompt(review_data.task, review_data.train[:4], query, "consistent")
        for query in review_data.test[:9]
    ]
    encoded = encode(bpe, written)
    score = LabelScorer(model, LONG_LABELS)
    for some in (encoded, encoded[:1]):
        measured = score(some, shared=encoded[0].label_positions[-1] + 1, batch_size=4)
        np.testing.assert_allclose(measured, chain_rule(model, some, LONG_LABELS), rtol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_shared_demonstrations_give_the_same(family, bpe, review_data):
    model = tiny_model(family)
    words = label_tokens(bpe, review_data.task)
    written = [
        write_prompt(review_data.task, review_data.train[:4], query, "consistent")
        for query in review_data.test[:9]
    ]
    encoded = encode(bpe, written)
    assert common_prefix(encoded) > 40
    expected = full_model_probabilities(model, encoded, words)
    calls = count_tokens(model)
    measured = label_probabilities(model, encoded, words, batch_size=4)
    everything = sum(len(prompt.input_ids) for prompt in encoded)
    assert (sum(calls) < everything / 2) == (
        family != "mistral"
    )  # a sliding window's cache is not shared
    np.testing.assert_allclose(measured, expected, atol=2e-5)


def test_unknown_logit_arithmetic_is_refused(prompts, bpe):
    model = tiny_model("llama")
    model.lm_head.register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(AbftError, match="logits"):
        label_probabilities(model, prompts, [3, 4])
    with pytest.raises(AbftError, match="logits"):
        evaluate(model, prompts, [3, 4])
    with pytest.raises(AbftError, match="logits"):
        perplexity(model, bpe, ["a film to remember"])


def test_head_report_counts(prompts, bpe, review_data):
    model = tiny_model("llama")
    _, report = evaluate(model, prompts, label_tokens(bpe, review_data.task), fixed_threshold=0.0)
    assert report.induction_rate_LH.shape == (2, 4)
    assert report.heads == 8  # every head has some mass
    _, none = evaluate(model, prompts, label_tokens(bpe, review_data.task), fixed_threshold=0.999)
    assert none.heads == 0
    assert (report.correct_mass_LH + report.incorrect_mass_LH <= 1).all()


def heads_by_hand(model, prompts, fixed_threshold):
    """Prompt by prompt from eager attention: passes, attention on correct and incorrect labels."""
    model.set_attn_implementation("eager")
    sums = np.zeros((3, 2, 4))
    for prompt in prompts:
        with torch.no_grad():
            output = model(torch.tensor([prompt.input_ids]), output_attentions=True)
        k, n = len(prompt.label_positions), len(prompt.input_ids)
        T = k / (k + np.log(n)) if fixed_threshold is None else fixed_threshold
        labels = list(zip(prompt.label_positions, prompt.label_classes, strict=True))
        for layer, matrices in enumerate(output.attentions):
            for head in range(4):
                row = matrices[0, head, -1].double().numpy()
                correct = sum(row[at] for at, label in labels if label == prompt.target)
                incorrect = sum(row[at] for at, label in labels if label != prompt.target)
                sums[:, layer, head] += correct + incorrect > T, correct, incorrect
    return sums / len(prompts)


@pytest.mark.parametrize("fixed_threshold", [None, 0.05])
@pytest.mark.parametrize("labels", [[3, 4], LONG_LABELS])
def test_head_statistics_are_means_over_prompts_not_over_batches(
    bpe, review_data, labels, fixed_threshold
):
    """Batches of 4, 4 and 2 prompts with one or three demonstrations, so that means of batches'
    means, and rows of other prompts or after beginnings of labels, are off.
    """
    written = training_prompts(review_data, 5, 3, seed=0) + training_prompts(review_data, 5, 1, 1)
    mixed = encode(bpe, [written[i] for i in (0, 5, 1, 6, 7, 2, 8, 9, 3, 4)])
    model = tiny_model("llama")
    _, report = evaluate(model, mixed, labels, batch_size=4, fixed_threshold=fixed_threshold)
    passes, correct, incorrect = heads_by_hand(model, mixed, fixed_threshold)
    assert np.abs(correct - incorrect).max() > 0.005
    np.testing.assert_allclose(report.correct_mass_LH, correct, atol=1e-6)
    np.testing.assert_allclose(report.incorrect_mass_LH, incorrect, atol=1e-6)
    np.testing.assert_allclose(report.induction_rate_LH, passes, atol=1e-12)
    assert report.heads == pytest.approx(passes.sum())
    if fixed_threshold is not None:
        assert ((passes > 0) & (passes < 1)).sum() >= 4


def test_beginnings_of_labels_do_not_repeat_the_prompt(prompts):
    model = tiny_model("llama")
    evaluate(model, prompts, LONG_LABELS)  # with the probes of a new model
    counts = count_tokens(model)
    evaluate(model, prompts, LONG_LABELS, batch_size=len(prompts))
    longest = max(len(prompt.input_ids) for prompt in prompts)
    assert counts == [len(prompts) * (longest + 4)]


def test_dropout_is_off(prompts, bpe):
    model = tiny_model("gpt2")
    assert model.config.resid_pdrop > 0
    expected, _ = evaluate(model, prompts, [3, 4])
    measured, _ = evaluate(model.train(), prompts, [3, 4])
    np.testing.assert_allclose(measured, expected, atol=2e-5)
    texts = ["a film to remember"]
    assert perplexity(model.train(), bpe, texts) == perplexity(model.eval(), bpe, texts)


def test_order_is_kept_and_progress_adds_up(prompts, bpe, review_data):
    model = tiny_model("llama")
    words = label_tokens(bpe, review_data.task)
    done = []
    straight = label_probabilities(model, prompts, words, batch_size=3, progress=done.append)
    backwards = label_probabilities(model, prompts[::-1], words, batch_size=3)
    np.testing.assert_allclose(straight, backwards[::-1], atol=2e-5)
    assert sum(done) == len(prompts)


def test_equals_staicc_benchmark_object(bpe):
    """StaICC's own experimentor, fed with our predictor, reports our accuracy and macro-F1."""
    with contextlib.redirect_stdout(io.StringIO()):
        from StaICC.util import experimentor, hgf_dataset_loader
    model = tiny_model("llama")
    data = load_task("SST2", "staicc")
    words = label_tokens(bpe, data.task, "staicc")
    encoded = encode(bpe, evaluation_prompts(data, 1024, 4, "staicc"), "staicc")
    ours, _ = evaluate(model, encoded, words, batch_size=64)
    targets = [prompt.target for prompt in encoded]

    def forward(prompt, label_space):
        assert tuple(label_space) == data.task.label_words
        texts = encode(bpe, [Prompt(text, (), (), 0) for text in prompt], "staicc")
        return label_probabilities(model, texts, words, batch_size=64).tolist()

    benchmark = experimentor.single_experimentor(
        original_dataset=hgf_dataset_loader.glue_sst2(), k=4
    )
    with contextlib.redirect_stdout(io.StringIO()):
        result, _ = benchmark(forward, batched_inference=True)
    assert 0.3 < result["accuracy"] < 0.7
    assert accuracy(ours, targets) == pytest.approx(result["accuracy"], abs=1e-9)
    assert macro_f1(ours, targets) == pytest.approx(result["macro_F1"], abs=1e-9)


def test_predictor_returns_labels_and_probabilities(bpe, review_data):
    task = review_data.task.with_words({"negative": "bad"})
    predictor = Predictor(tiny_model("llama"), bpe, task, review_data.demonstrations[:4])
    results = predictor.predict(["good and great", "bad"])
    for label, probabilities in results:
        assert set(probabilities) == {
            "negative",
            "positive",
        }  # labels of the data, not words of the prompt
        assert label == max(probabilities, key=probabilities.get)
        assert sum(probabilities.values()) == pytest.approx(1)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("implementation", [None, "eager"])
def test_kept_demonstrations_change_no_probability(bpe, review_data, family, implementation):
    model = tiny_model(family)
    if implementation:
        model.set_attn_implementation(implementation)
    task, demonstrations = review_data.task, review_data.demonstrations[:4]
    predictor = Predictor(model, bpe, task, demonstrations)
    words = label_tokens(bpe, task)
    tokens = count_tokens(model)
    for texts in (["good and great"], ["good", "good and bad", "good"], ["x"]):
        tokens.clear()
        results = predictor.predict(texts)
        prompts = encode(
            bpe,
            [write_prompt(task, demonstrations, Example(text, 0), "consistent") for text in texts],
        )
        ran = sum(tokens)
        measured = [[probabilities[label] for label in task.labels] for _, probabilities in results]
        np.testing.assert_allclose(
            measured, full_model_probabilities(model, prompts, words), atol=1e-5
        )
    assert (ran < 16) == (family != "gemma2")  # the third call ran the query's tokens only
    assert predictor.predict([]) == []


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_calibration_divides_by_what_the_model_says_of_nothing(bpe, review_data, family):
    """Against one forward pass for each prompt, with the arithmetic written out."""
    model, task = tiny_model(family), review_data.task
    shown = review_data.demonstrations[:4]
    texts = ["good and great", "bad", "x"]
    written = [
        write_prompt(task, shown, Example(text, 0)) for text in (*texts, "N/A", "[MASK]", "")
    ]
    every = full_model_probabilities(model, encode(bpe, written), label_tokens(bpe, task))
    ratios = every[:3] / every[3:].mean(0)
    expected = ratios / ratios.sum(1, keepdims=True)

    predictor = Predictor(model, bpe, task, shown, calibrate="content_free")
    np.testing.assert_allclose(predictor.probabilities(texts), expected, atol=1e-5)
    assert np.abs(expected - every[:3]).max() > 1e-3
    assert predictor.probabilities([]).shape == (0, 2)

    # By their own mean too, in which texts without content count as four.
    ratios = every[:3] / ((every[:3].sum(0) + 4 * every[3:].mean(0)) / 7)
    in_batch = Predictor(model, bpe, task, shown, calibrate="batch").probabilities(texts)
    np.testing.assert_allclose(in_batch, ratios / ratios.sum(1, keepdims=True), atol=1e-5)
    assert np.abs(in_batch - expected).max() > 1e-4

    # A text is classified in the same way alone, and its explanation says the same.
    (alone,) = predictor.explain(texts[:1])
    np.testing.assert_allclose(list(alone.probabilities.values()), expected[0], atol=1e-5)


def test_demonstrations_are_run_again_after_the_weights_changed(bpe, review_data):
    model = tiny_model("gpt2")  # has dropout, too
    task, demonstrations = review_data.task, review_data.demonstrations[:4]
    predictor = Predictor(model, bpe, task, demonstrations)
    before = predictor.predict(["good and great"])
    with torch.no_grad():
        model.transformer.h[0].attn.c_attn.weight.mul_(0.5)
    model.train()
    after = predictor.predict(["good and great"])
    assert after == Predictor(model, bpe, task, demonstrations).predict(["good and great"])
    assert after != before


@pytest.mark.parametrize("tokens", [1, 30])
def test_long_rests_are_packed_in_parts(bpe, review_data, monkeypatch, tokens):
    monkeypatch.setattr("abft.scoring.scorer.PACK_TOKENS", tokens)
    model = tiny_model("llama")
    words = label_tokens(bpe, review_data.task)
    queries = [Example("good " * n, 0) for n in (1, 9, 3)]
    encoded = encode(
        bpe,
        [write_prompt(review_data.task, review_data.train[:4], q, "consistent") for q in queries],
    )
    counts = count_tokens(model)
    measured = label_probabilities(model, encoded, words)
    assert len(counts) > 5  # two probes, the demonstrations, at least two packs
    np.testing.assert_allclose(measured, full_model_probabilities(model, encoded, words), atol=1e-5)
    assert label_probabilities(model, [], words).shape == (0, 2)


def test_positions_that_depend_on_length_are_read_whole(bpe, review_data):
    model = _rotated_by_length(
        "longrope", max_position_embeddings=200, original_max_position_embeddings=40
    )
    words = label_tokens(bpe, review_data.task)
    (prompt,) = encode(
        bpe,
        [write_prompt(review_data.task, review_data.train[:4], review_data.test[0], "consistent")],
    )
    assert len(prompt.input_ids) > 40
    expected = full_model_probabilities(model, [prompt], words)
    np.testing.assert_allclose(LabelScorer(model, words)([prompt], shared=35), expected, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_perplexity_is_exp_of_transformers_own_loss(bpe, family):
    model = tiny_model(family)
    texts = ["a film to remember", "sentence: two hours of my life sentiment: negative", "x"]
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([bpe(text)["input_ids"]])
        if ids.shape[1] > 1:
            total += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
    expected = np.exp(total / count)
    assert perplexity(model, bpe, texts, batch_size=2) == pytest.approx(expected, rel=1e-4)
    assert perplexity(model, bpe, texts, batch_size=1) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(AbftError, match="2 tokens"):
        perplexity(model, bpe, ["x"])


@pytest.mark.parametrize("room", [0, -1], ids=["fits", "one too few"])
def test_labels_of_several_tokens_need_room_in_the_context(room, bpe):
    """Scored labels follow a prompt: at the limit, GPT-2's positions ended in an IndexError."""
    words = ("quite wonderful indeed", "bad")
    task = Task("reviews", Template("text: {text} label: {label}\n"), words, words)
    demonstrations = [Example("a film to remember", 0), Example("two hours i want back", 1)]
    tokens = label_tokens(bpe, task)
    longest = max(len(label) for label in tokens if isinstance(label, tuple))
    assert longest > 2
    (prompt,) = encode(bpe, [write_prompt(task, demonstrations, Example("fine", 0), "consistent")])

    # A label's last token is predicted only.
    positions = len(prompt.input_ids) + longest - 1 + room
    predictor = Predictor(tiny_model("gpt2", n_positions=positions), bpe, task, demonstrations)
    limit = {"max_length": positions, "scored": tokens}
    query = write_prompt(task, demonstrations, Example("fine", 0), "consistent")
    if room == 0:
        assert encode(bpe, [query], **limit) == [prompt]
    else:
        with pytest.raises(
            AbftError, match=rf"tokens and {longest - 1} of a label, .* at most {positions}\."
        ):
            encode(bpe, [query], **limit)

    # A predictor cuts the text instead.
    (cut,) = predictor.fit(["fine and even longer than that"])
    assert cut
    assert "fine and even longer than that".startswith(cut)
    assert predictor.probabilities(["fine and even longer than that"]).sum() == pytest.approx(1)


def test_a_predictor_without_room_for_a_text_is_refused(bpe):
    task = Task(
        "reviews", Template("text: {text} label: {label}\n"), ("good", "bad"), ("good", "bad")
    )
    demonstrations = [Example("a film to remember", 0), Example("two hours i want back", 1)]
    with pytest.raises(AbftError, match="no room for a text"):
        Predictor(tiny_model("gpt2", n_positions=20), bpe, task, demonstrations)


def _rotated_by_length(kind, family="llama", **changes):
    """A tiny model whose rotary frequencies depend on a prompt's length."""
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [1.0, 3.0, 6.0, 9.0]}
    return tiny_model(family, rope_parameters=rope, **changes)


def _of_lengths(*lengths):
    generator = torch.Generator().manual_seed(0)
    return [
        EncodedPrompt(
            tuple(torch.randint(3, 600, (n,), generator=generator).tolist()), (3, 5), (0, 1), 0
        )
        for n in lengths
    ]


@pytest.mark.parametrize("labels", [[5, 6], [(5, 7), (6, 8, 9)]], ids=["one", "several"])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_heads_that_are_switched_off_answer_nothing(family, labels):
    """With labels of several tokens too, whether the family packs or not."""
    model, prompts = tiny_model(family), _of_lengths(12, 17, 30)
    off = {layer: torch.zeros(4) for layer in range(2)}
    gated, _ = evaluate(model, prompts, labels, head_gates=off)
    plain, _ = evaluate(model, prompts, labels)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    expected, _ = evaluate(model, prompts, labels)
    np.testing.assert_allclose(gated, expected, atol=1e-5)
    assert np.abs(gated - plain).max() > 1e-3


@pytest.mark.parametrize("labels", [[5, 6], [(5, 7), (6, 8, 9)]], ids=["one", "several"])
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_probabilities_do_not_depend_on_the_batch_where_rotation_depends_on_length(family, labels):
    """A longer prompt, or label, in the batch changed the rotation of all: 0.067 in probability."""
    model = _rotated_by_length(
        "longrope", family, max_position_embeddings=80, original_max_position_embeddings=20
    )
    prompts = _of_lengths(12, 30, 18, 25, 20, 21)
    alone = np.concatenate([chain_rule(model, [prompt], labels) for prompt in prompts])
    for batch_size in (1, 6):
        scored = LabelScorer(model, labels)(prompts, batch_size=batch_size)
        np.testing.assert_allclose(scored, alone, atol=1e-6)
        measured, heads = evaluate(model, prompts, labels, batch_size=batch_size)
        np.testing.assert_allclose(measured, alone, atol=1e-6)
        each = [evaluate(model, [prompt], labels)[1].correct_mass_LH for prompt in prompts]
        np.testing.assert_allclose(heads.correct_mass_LH, np.mean(each, axis=0), atol=1e-6)


def test_dynamic_rotation_beyond_the_context_is_refused():
    """There it depends on whatever ran before; below it, batches change nothing."""
    model = _rotated_by_length("dynamic", max_position_embeddings=20)
    prompts = _of_lengths(12, 20, 18)
    together = LabelScorer(model, [5, 6])(prompts)
    one_by_one = [LabelScorer(model, [5, 6])([prompt])[0] for prompt in prompts]
    np.testing.assert_allclose(together, one_by_one, atol=1e-6)
    for score in (LabelScorer(model, [5, 6]), lambda prompts: evaluate(model, prompts, [5, 6])):
        with pytest.raises(AbftError, match=r"has 21 tokens; beyond 20, .* ran before"):
            score(_of_lengths(12, 21))


def test_perplexity_of_short_and_long_texts(bpe):
    """Two tokens predict one; of long texts the first 512 tokens count, or `max_length`."""
    model = tiny_model("llama")
    letters = [token for token in "abcdefghij" if len(bpe(token)["input_ids"]) == 1]
    short, long = "".join(letters[:2]), " ".join(letters * 70)
    assert len(bpe(short)["input_ids"]) == 2
    assert len(bpe(long)["input_ids"]) > 520

    def expected(text, length):
        ids = torch.tensor([bpe(text)["input_ids"][:length]])
        return model(ids, labels=ids).loss.exp().item()

    assert perplexity(model, bpe, [short]) == pytest.approx(expected(short, 2), rel=1e-4)
    assert perplexity(model, bpe, [long]) == pytest.approx(expected(long, 512), rel=1e-4)
    for length in (2, 7):
        measured = perplexity(model, bpe, [long], max_length=length)
        assert measured == pytest.approx(expected(long, length), rel=1e-4)
