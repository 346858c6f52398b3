"""What few heads say: the read-out `attention` of predictions, evaluations and runs."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from abft.data.datasets import MOST_SHOWN, load_demonstrations
from abft.data.encoding import encode, label_tokens
from abft.data.prompts import evaluation_prompts, write_prompt
from abft.data.tasks import Example
from abft.errors import AbftError
from abft.method.head_finder import best_heads, head_scores
from abft.model.loading import load_model
from abft.model.weight_files import HEADS_FILE
from abft.runs.predictor import Predictor
from abft.runs.run_folder import read_heads
from abft.scoring.evaluate import evaluate
from abft.scoring.votes import head_mask, vote
from command_line import arguments, invoke, refused
from tiny import tiny_model

CHOSEN = [(0, 1), (1, 0), (1, 3)]


def brute_force(model, prompt, heads, classes):
    """The same from transformers' own attention matrices, head by head and label by label."""
    twin = AutoModelForCausalLM.from_config(model.config, attn_implementation="eager").eval()
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        matrices = twin(torch.tensor([prompt.input_ids]), output_attentions=True).attentions
    votes = np.zeros(classes)
    for layer, head in heads:
        for place, label in zip(prompt.label_positions, prompt.label_classes, strict=True):
            votes[label] += float(matrices[layer][0, head, -1, place])
    return votes / votes.sum()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("heads", [CHOSEN, None])
def test_predictions_are_shares_of_the_heads_attention(family, heads, bpe, review_data):
    model, task = tiny_model(family), review_data.task
    shown = review_data.demonstrations[:4]
    texts = ["good and great", "bad", "x"]
    predictor = Predictor(model, bpe, task, shown, readout="attention", heads=heads)
    written = [write_prompt(task, shown, Example(text, 0), "consistent") for text in texts]
    prompts = encode(bpe, written)
    counted = heads or [(layer, head) for layer in range(2) for head in range(4)]
    expected = [brute_force(model, prompt, counted, 2) for prompt in prompts]
    np.testing.assert_allclose(predictor.probabilities(texts), expected, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 1e-3

    measured, report = evaluate(
        model,
        prompts,
        label_tokens(bpe, task),
        batch_size=2,
        readout="attention",
        heads_LH=None if heads is None else head_mask(model, heads),
    )
    np.testing.assert_allclose(measured, expected, atol=1e-5)
    _, plain = evaluate(model, prompts, label_tokens(bpe, task), batch_size=2)
    np.testing.assert_array_equal(report.induction_rate_LH, plain.induction_rate_LH)


def test_labels_of_several_tokens_are_read_once(bpe, review_data):
    """The beginnings of labels, packed after a prompt, have no vote."""
    model = tiny_model("llama")
    prompts = encode(bpe, evaluation_prompts(review_data, 3, 4))
    heads_LH = head_mask(model, CHOSEN)
    for labels in ([(300, 20, 7), (40, 9)], label_tokens(bpe, review_data.task)):
        measured, _ = evaluate(model, prompts, labels, readout="attention", heads_LH=heads_LH)
        expected = [brute_force(model, prompt, CHOSEN, 2) for prompt in prompts]
        np.testing.assert_allclose(measured, expected, atol=1e-5)


def test_an_explanation_shows_the_heads_that_are_read(bpe, review_data):
    model, shown = tiny_model("llama"), review_data.demonstrations[:4]
    predictor = Predictor(model, bpe, review_data.task, shown, readout="attention", heads=CHOSEN)
    for explanation in predictor.explain(["good and great", "bad"]):
        assert explanation.heads == len(CHOSEN)
        for label, probability in explanation.probabilities.items():
            shares = [
                share
                for share, (_, said) in zip(
                    explanation.shares, explanation.demonstrations, strict=True
                )
                if said == label
            ]
            assert sum(shares) == pytest.approx(probability, abs=1e-6)


def test_classes_share_equally_where_nothing_is_looked_at():
    nothing = torch.zeros(2, 4, 3)
    np.testing.assert_allclose(vote(nothing, [0, 1, 1], 4), [0.25] * 4)
    np.testing.assert_allclose(vote(nothing[:, :, :0], [], 2), [0.5, 0.5])


def test_layers_have_their_number_in_the_model():
    hybrid = tiny_model("lfm2")  # its second layer is the only one with attention
    assert head_mask(hybrid, [(1, 2)]).tolist() == [[False, False, True, False]]
    assert head_mask(hybrid, None).tolist() == [[True] * 4]
    for head in ((0, 2), (1, 4), (1, -1)):
        with pytest.raises(AbftError, match="is not in this model"):
            head_mask(hybrid, [head])


def trained(folder, options, **changes):
    given = {"objective": "contrastive", "heads": 3, "threshold": None, **changes}
    result = invoke("train", *arguments(options, **given), "--output", folder)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def contrastive(options, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs") / "contrastive", options, cross_entropy=0)


@pytest.mark.parametrize("changes", [{}, {"kl": 1, "cross_entropy": 0}, {"lora_r": 2}])
def test_all_forms_of_the_objective_keep_the_same_heads(contrastive, options, tmp_path, changes):
    """With cross-entropy, as it is by default, with the divergence, and with LoRA."""
    assert read_heads(trained(tmp_path / "run", options, **changes)) == read_heads(contrastive)


def test_a_run_of_a_hybrid_model_numbers_layers_as_the_model_does(options, bpe, tmp_path):
    tiny_model("lfm2").save_pretrained(tmp_path / "hybrid")  # attention in layer 1 only
    bpe.save_pretrained(tmp_path / "hybrid")
    run = trained(tmp_path / "run", options, model=tmp_path / "hybrid", cross_entropy=0)
    assert {layer for layer, _ in read_heads(run)} == {1}
    said = invoke("eval", run, "--readout", "attention", "--json")
    assert "of the 3 heads that training chose" in said.stderr


def test_a_run_that_replaces_another_does_not_keep_its_heads(options, tmp_path):
    run = trained(tmp_path / "run", options)
    result = invoke("train", *arguments(options, objective="vote"), "--output", run, "--overwrite")
    assert result.exit_code == 0, result.output
    assert read_heads(run) is None
    said = invoke("eval", run, "--readout", "attention", "--json")
    assert "of all heads" in said.stderr


def test_a_run_keeps_the_heads_that_it_chose(contrastive, options, finished, tmp_path):
    heads = read_heads(contrastive)
    assert len(heads) == 3
    assert read_heads(finished) is None  # the paper's filter chooses anew for every prompt

    merged = tmp_path / "merged"
    assert invoke("merge", contrastive, merged).exit_code == 0
    assert read_heads(merged) == heads
    texts = ["good and great", "bad"]
    ours, theirs = (
        Predictor.from_run(folder, device="cpu", readout="attention").probabilities(texts)
        for folder in (contrastive, merged)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-5)

    # Runs before there were such files, and objectives that choose none, read all heads.
    every = Predictor.from_run(finished, device="cpu", readout="attention")
    assert every.heads_LH.all()

    # They are those that the untouched model prefers.
    model, tokenizer = load_model(str(options["model"]), device="cpu")
    from abft.data.datasets import load_data
    from abft.data.prompts import training_prompts

    data = load_data(
        options["data"], "review", "stars", template="review: {text} sentiment: {label}\n"
    )
    prompts = encode(tokenizer, training_prompts(data, 32, 4, seed=0))
    expected = best_heads(head_scores(model, prompts, "abft_rows"), 3)
    assert sorted(heads) == [tuple(pair) for pair in expected.nonzero().tolist()]


def test_eval_and_predict_read_them(contrastive, options, tmp_path):
    from abft.runs.run_folder import read_config
    from abft.runs.session import open_session

    session = open_session(read_config(contrastive), contrastive)
    expected = [
        brute_force(session.model, prompt, read_heads(contrastive), 2).argmax() == prompt.target
        for prompt in session.prompts
    ]
    said = invoke("eval", contrastive, "--readout", "attention", "--json", "--device", "cpu")
    record = json.loads(said.stdout)
    assert record["readout"] == "attention"
    assert record["accuracy"] == pytest.approx(np.mean(expected))
    assert "of the 3 heads that training chose" in said.stderr
    by_words = json.loads(invoke("eval", contrastive, "--json", "--device", "cpu").stdout)
    assert by_words["ece"] != record["ece"]

    command = ("predict", contrastive, "--text", "good and great", "--json", "--device", "cpu")
    by_words, by_heads = (
        json.loads(invoke(*command, "--readout", readout).stdout)["probabilities"]
        for readout in ("label_words", "attention")
    )
    assert by_words != by_heads
    predictor = Predictor.from_run(contrastive, device="cpu", readout="attention")
    (row,) = predictor.probabilities(["good and great"])
    assert list(by_heads.values()) == pytest.approx(row.tolist(), abs=1e-4)

    assert "readout" in refused("eval", contrastive, "--readout", "head")
    assert "calibrate" in refused("eval", contrastive, "--calibrate", "twice")
    damaged = tmp_path / "damaged"
    shutil.copytree(contrastive, damaged)
    read_out = ("--readout", "attention")
    (damaged / HEADS_FILE).write_text('{"heads": [[7, 0]]}')
    assert "head 0 of layer 7 is not in this model" in refused("eval", damaged, *read_out)
    (damaged / HEADS_FILE).write_text('{"heads": []}')
    assert "no heads to read" in refused("eval", damaged, *read_out)
    (damaged / HEADS_FILE).write_text('{"heads": [7]}')
    assert "heads.json is damaged" in refused("predict", damaged, "--text", "x", *read_out)


@pytest.fixture
def colours(tmp_path):
    """Labelled texts of another task; one twice."""
    path = tmp_path / "colours.csv"
    rows = ["text,label", "sky,blue", "sea,blue", "sky,blue", "grass,green", "fire,red", "sun,red"]
    path.write_text("\n".join(rows) + "\n")
    return path


def test_demonstrations_of_another_task(finished, colours, tmp_path, capsys):
    task, shown = load_demonstrations(colours)
    assert task.labels == ("blue", "green", "red")
    # Classes in turn, texts once.
    assert [(e.text, e.label) for e in shown] == [
        ("sky", 0),
        ("grass", 1),
        ("fire", 2),
        ("sea", 0),
        ("sun", 2),
    ]
    assert load_demonstrations(colours, k=3)[1] == shown[:3]
    assert "3 of 5 texts are shown" in capsys.readouterr().err

    # Nothing of the run's own data holds for them, such as its column of texts, `review`.
    command = ("predict", finished, "--demonstrations", colours)
    said = invoke(*command, "--k", 4, "--label-words", "red=rose", "--text", "good", "--json")
    record = json.loads(said.stdout)
    twin = Predictor.from_run(
        finished, shown=(task.with_words({"red": "rose"}), shown[:4]), device="cpu"
    )
    (expected,) = twin.probabilities(["good"])
    assert list(record["probabilities"]) == ["blue", "green", "red"]
    assert list(record["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-4)

    said = invoke(
        *command,
        "--calibrate",
        "content_free",
        "--readout",
        "attention",
        "--text",
        "good",
        "--json",
    )
    twin = Predictor.from_run(
        finished, shown=(task, shown), device="cpu", readout="attention", calibrate="content_free"
    )
    (expected,) = twin.probabilities(["good"])
    probabilities = json.loads(said.stdout)["probabilities"]
    assert list(probabilities.values()) == pytest.approx(expected.tolist(), abs=1e-4)

    # A file's columns are those of the other labels.
    texts, out = tmp_path / "new.csv", tmp_path / "out.csv"
    texts.write_text("text\ngood\n")
    assert invoke(*command, "--data", texts, "--output", out).exit_code == 0
    assert "probability_green" in out.read_text()


def test_a_stopped_job_goes_on_with_the_same_demonstrations_only(
    finished, colours, tmp_path, monkeypatch
):
    texts, out = tmp_path / "new.csv", tmp_path / "out.csv"
    texts.write_text("text\ngood\n")
    command = ("predict", finished, "--demonstrations", colours, "--data", texts, "--output", out)
    with monkeypatch.context() as patch:
        patch.setattr("abft.runs.prediction_files.Parts.join", lambda parts: 1 / 0)
        assert isinstance(invoke(*command).exception, ZeroDivisionError)

    assert "parts of another job" in refused(*command, "--readout", "attention")
    assert "parts of another job" in refused(*command, "--calibrate", "batch")
    before = colours.read_text()
    colours.write_text(before + "rose,red\n")
    assert "parts of another job" in refused(*command)
    colours.write_text(before.replace("sky", "sea"))
    assert "parts of another job" in refused(*command)


def test_many_texts_are_shown_in_part(tmp_path, capsys):
    path = tmp_path / "many.csv"
    path.write_text("text,label\n" + "\n".join(f"text {i},{'ab'[i % 2]}" for i in range(100)))
    _, shown = load_demonstrations(path)
    assert len(shown) == MOST_SHOWN
    assert "32 of 100 texts are shown" in capsys.readouterr().err

    # Every class is shown, unless k says otherwise.
    path.write_text("text,label\n" + "\n".join(f"text {i},class {i}" for i in range(40)))
    assert len(load_demonstrations(path)[1]) == 40
    load_demonstrations(path, k=38)
    assert "no text of 'class 8', 'class 9' is shown" in capsys.readouterr().err


def test_bad_demonstrations_are_refused_before_the_model_is_loaded(
    finished, colours, tmp_path, monkeypatch
):
    monkeypatch.setattr("abft.runs.predict_frames.open_predictor", None)
    command = ("predict", finished, "--text", "good")
    assert "given without demonstrations" in refused(*command, "--k", 4)
    mine = (*command, "--demonstrations")
    assert "no such file" in refused(*mine, tmp_path / "missing.csv")
    assert "5 different texts" in refused(*mine, colours, "--k", 6)
    assert "no column 'label'" in refused(*mine, _file(tmp_path, "text,class\na,b\n"))
    assert "one label only" in refused(*mine, _file(tmp_path, "text,label\na,b\n"))
    assert "unknown labels" in refused(*mine, colours, "--label-words", "pink=rose")


def _file(folder, text):
    path = folder / "bad.csv"
    path.write_text(text)
    return path


def test_a_class_that_is_not_shown_cannot_be_read(bpe, review_data):
    model, task = tiny_model("llama"), review_data.task
    with pytest.raises(AbftError, match="no demonstration is of 'negative', 'positive'"):
        Predictor(model, bpe, task, [], readout="attention")
    with pytest.raises(AbftError, match="no demonstration is of 'positive'"):
        Predictor(model, bpe, task, [Example("bad", 0)], readout="attention")
    with pytest.raises(AbftError, match="heads goes with readout"):
        Predictor(model, bpe, task, review_data.demonstrations[:4], heads=CHOSEN)


def test_label_words_need_no_known_layout_of_attention(bpe, review_data, monkeypatch):
    """Models whose Q and K cannot be told apart are scored as before."""
    monkeypatch.setattr("abft.scoring.votes.softmax_layers", None)
    shown = review_data.demonstrations[:4]
    assert Predictor(tiny_model("falcon"), bpe, review_data.task, shown).predict(["good"])


def test_long_demonstrations_are_cut_as_the_runs_own_are(options, colours, tmp_path):
    run = tmp_path / "run"
    result = invoke("train", *arguments(options, max_text_tokens=22, steps=1), "--output", run)
    assert result.exit_code == 0, result.output
    task, (first, *others) = load_demonstrations(colours)
    long = Example("good " * 50, first.label)
    predictor = Predictor.from_run(run, shown=(task, [long, *others]), device="cpu")
    assert len(predictor.demonstrations[0].text) < len(long.text)
    assert predictor.demonstrations[1:] == others
