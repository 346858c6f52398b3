"""Properties that have to hold for any text, any prompts and any settings (hypothesis)."""

import json
import random
from dataclasses import asdict
from html.parser import HTMLParser

import pandas
import pytest
import torch
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from jinja2 import Environment

from abft.data.batches import Batch, collate
from abft.data.datasets import read_table, texts_of
from abft.data.encoding import EncodedPrompt, encode, label_tokens
from abft.data.packing import pack
from abft.data.prompts import write_prompt
from abft.data.tasks import Example, Task, Template
from abft.errors import AbftError
from abft.model.attention import decoder, read_rows, row_attention
from abft.report.charts import text as escaped
from abft.runs.config import RunConfig, config_values, current_values
from abft.runs.prediction_files import Parts, prediction_rows
from abft.scoring.evaluate import evaluate
from abft.scoring.scorer import LabelScorer
from tiny import tiny_model, tokenizer

settings.register_profile(
    "abft",
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("abft")

# What a file can hold: no lone surrogates, which no encoding can write.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
KNOWN_WORD = st.text("abcdefg", min_size=1, max_size=6)  # of letters that all tokenizers have
WORD = st.text(st.characters(categories=["Ll", "Lu", "Nd"], max_codepoint=0x2FF), min_size=1)
KINDS = ("bpe", "sentencepiece", "wordpiece")
TOKENIZERS = {kind: tokenizer(kind) for kind in KINDS}


# --- prompts ------------------------------------------------------------------------------------


def overlapping(offsets, span):
    return [i for i, (start, end) in enumerate(offsets) if start < span[1] and end > span[0]]


@pytest.mark.parametrize("style", ["consistent", "staicc"])
@pytest.mark.parametrize("kind", KINDS)
@given(
    texts=st.lists(TEXT, min_size=3, max_size=4),
    words=st.lists(WORD, min_size=2, max_size=3, unique=True),
    between=TEXT,
    draw=st.randoms(use_true_random=False),
)
def test_label_positions_are_tokens_of_the_label_words(kind, style, texts, words, between, draw):
    """For any text and template: heads look at a token that shares characters with the label word.

    In the consistent style it is the word's first token, in StaICC's its last. A word that has no
    token of its own is refused.
    """
    assume("{" not in between and "}" not in between and between.strip())
    fast = TOKENIZERS[kind]
    task = Task("t", Template(f"{{text}} {between} {{label}}\n"), tuple(words), tuple(words))
    examples = [Example(text, draw.randrange(len(words))) for text in texts]
    prompt = write_prompt(task, examples[:-1], examples[-1], style)
    whole = fast(prompt.text, return_offsets_mapping=True)
    if not all(overlapping(whole["offset_mapping"], span) for span in prompt.label_spans):
        with pytest.raises(AbftError, match="has no token of its own"):
            encode(fast, [prompt], style)
        return

    (encoded,) = encode(fast, [prompt], style)
    assert list(encoded.input_ids) == whole["input_ids"][: len(encoded.input_ids)]
    for position, span, label in zip(
        encoded.label_positions, prompt.label_spans, prompt.label_classes, strict=True
    ):
        assert prompt.text[slice(*span)] == words[label]
        tokens = overlapping(whole["offset_mapping"], span)
        assert position == tokens[0 if style == "consistent" else -1]


@pytest.mark.parametrize("kind", KINDS)
@given(
    words=st.lists(st.text("abcdefg", min_size=1, max_size=6), min_size=2, max_size=4, unique=True)
)
def test_label_tokens_are_those_of_the_demonstrations(kind, words):
    """The tokens that are scored are those of the label in a demonstration.

    Words of which the tokenizer makes the same tokens, such as unknown ones, are refused.
    """
    fast = TOKENIZERS[kind]
    task = Task("t", Template("text: {text} label: {label}\n"), tuple(words), tuple(words))
    ids = [tuple(fast(f" {word}", add_special_tokens=False)["input_ids"]) for word in words]
    if len(set(ids)) < len(ids):
        with pytest.raises(AbftError, match="have the same tokens"):
            label_tokens(fast, task)
        return
    scored = label_tokens(fast, task)
    for label, tokens in enumerate(scored):
        tokens = tokens if isinstance(tokens, tuple) else (tokens,)
        prompt = write_prompt(task, [Example("good", label)], Example("bad", label), "consistent")
        (encoded,) = encode(fast, [prompt])
        start = encoded.label_positions[0]
        demonstration = encoded.input_ids[start - 1 :]
        # A space of its own before the label is scored with it.
        assert tokens in (demonstration[1 : 1 + len(tokens)], demonstration[: len(tokens)])
    assert len({str(tokens) for tokens in scored}) == len(words)


# --- packs --------------------------------------------------------------------------------------

PROMPTS = st.lists(
    st.lists(st.integers(3, 6), min_size=2, max_size=9).map(tuple), min_size=2, max_size=6
)


def encoded_prompts(ids_of_prompts):
    """Prompts of these tokens; the first two positions of each are labels."""
    return [EncodedPrompt(ids, (0, 1), (0, 1), p % 2) for p, ids in enumerate(ids_of_prompts)]


@given(PROMPTS)
def test_packs_round_trip(ids_of_prompts):
    packed = pack(encoded_prompts(ids_of_prompts))
    beginnings = {ids[:end] for ids in ids_of_prompts for end in range(1, len(ids) + 1)}
    assert len(packed.input_ids) == len(beginnings)

    # Which tokens each token continues: those of the prompts that hold it.
    ancestors = {place: set() for place in range(len(packed.input_ids))}
    for ids, places in zip(ids_of_prompts, packed.places, strict=True):
        assert tuple(packed.input_ids[place] for place in places) == ids
        assert [packed.position_ids[place] for place in places] == list(range(len(ids)))
        for depth, place in enumerate(places):
            ancestors[place] |= {*places[: depth + 1]}
    for i in ancestors:
        attends_to = {j for j in ancestors if j <= i < packed.branch_ends[j]}
        assert attends_to == ancestors[i]


@given(PROMPTS, st.booleans())
def test_batches_round_trip(ids_of_prompts, packed):
    prompts = encoded_prompts(ids_of_prompts)
    batch = Batch(**collate(prompts, len(prompts) if packed else 1))
    assert batch.lengths.tolist() == [len(prompt.input_ids) for prompt in prompts]
    places = pack(prompts).places if packed else [range(len(p.input_ids)) for p in prompts]
    for p, prompt in enumerate(prompts):
        row = batch.input_ids[0 if packed else p]
        assert row[list(places[p])].tolist() == list(prompt.input_ids)
        assert batch.query_positions[p] == places[p][-1]
        assert batch.label_positions[p].tolist() == [places[p][0], places[p][1]]
        assert batch.correct[p].tolist() == [prompt.target == 0, prompt.target == 1]
        assert batch.incorrect[p].tolist() == [prompt.target == 1, prompt.target == 0]


@settings(max_examples=20)
@given(PROMPTS)
def test_packed_prompts_are_read_like_plain_ones(ids_of_prompts):
    """Also equal prompts, and prompts that begin others."""
    model = tiny_model("llama")
    prompts = encoded_prompts(ids_of_prompts)
    results = []
    with row_attention(model), torch.no_grad():
        for queries in (1, len(prompts)):
            batch = Batch(**collate(prompts, queries))
            inputs = batch.model_inputs()
            rows, hidden = read_rows(
                decoder(model), batch.input_ids, batch.query_positions, **inputs
            )
            places = pack(prompts).places if queries > 1 else None
            of_prompts = []
            for p, prompt in enumerate(prompts):
                where = list(range(len(prompt.input_ids)) if places is None else places[p])
                state = hidden[0 if places else p, where[-1]]
                of_prompts.append([state, *(layer[p][:, where] for layer in rows)])
            results.append(of_prompts)
    for plain, packed in zip(*results, strict=True):
        for one, other in zip(plain, packed, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)

    labels = [7, (8, 9), (8, 10)]
    alone = [LabelScorer(model, labels)([prompt])[0] for prompt in prompts]
    together = LabelScorer(model, labels)(prompts)
    measured, _ = evaluate(model, prompts, labels)
    for values in (together, measured):
        torch.testing.assert_close(
            torch.tensor(values), torch.tensor(alone), atol=1e-5, rtol=1e-4, check_dtype=False
        )


# --- files --------------------------------------------------------------------------------------

HARD = ["NA", "1e5", "007", "null", " x ", '"', "a,b;c\td", "two\nlines", "two\r\nlines", "cr\rcr"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@settings(max_examples=15)
@given(texts=st.lists(TEXT.filter(str.strip), min_size=1, max_size=4))
def test_texts_survive_a_file(suffix, texts, tmp_path):
    """What `abft predict` writes, it reads as the same texts."""
    # NUL is no character of a CSV file.
    assume(suffix not in (".csv", ".tsv") or not any("\0" in text for text in texts))
    texts = [*texts, *HARD]
    path = tmp_path / f"{random.getrandbits(64)}{suffix}"
    frame = pandas.DataFrame({"text": texts}, dtype=object)
    predictions = [("good", {"good": 0.75, "bad": 0.25})] * len(texts)
    parts = Parts(path, {}, 1000)
    parts.start()
    parts.write(0, prediction_rows(frame, "text", predictions, ["good", "bad"]))
    parts.join()
    assert texts_of(read_table(path), "text", "file") == texts


# --- the report ---------------------------------------------------------------------------------


class Page(HTMLParser):
    """Elements with their attributes, and the text of scripts and of everything else."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.elements, self.inside, self.data = [], [], {}
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.inside.append(tag)

    def handle_endtag(self, tag):
        self.inside.remove(tag)

    def handle_data(self, data):
        place = self.inside[-1] if self.inside else ""
        self.data[place] = self.data.get(place, "") + data


HOSTILE = st.sampled_from(
    ["</script><img src=x onerror=alert(1)>", '" onclick="alert(1)', "{{7*7}}", "&lt;b&gt;", "<!--"]
)


@given(st.lists(TEXT | HOSTILE, min_size=1, max_size=5).map("".join))
def test_no_text_becomes_an_element_of_the_report(text):
    """The report escapes texts in three places: jinja2's, JSON in a script, and Plotly's labels."""
    assume("\0" not in text)
    template = (
        '<p title="{{ t }}">{{ t }}</p><script type="application/json">{{ t|tojson }}</script>'
    )
    source = Environment(autoescape=True).from_string(template).render(t=text)
    page = Page(source)
    assert [tag for tag, _ in page.elements] == ["p", "script"]
    assert set(page.elements[0][1]) == {"title"}
    assert json.loads(page.data["script"]) == text
    assert "</" not in page.data["script"]

    # Plotly reads tags and entities in labels: none are left.
    label = Page(f"<b>{escaped(text)}</b>")
    assert [tag for tag, _ in label.elements] == ["b"]
    shown = label.data.get("b", "").replace("\r\n", "\n").replace("\r", "\n")
    assert shown == text.replace("\r\n", "\n").replace("\r", "\n")


# --- settings -----------------------------------------------------------------------------------

PRINTED = st.text(
    st.characters(categories=["L", "M", "N", "P", "S", "Zs"], exclude_characters="{}"), min_size=1
)
CONFIGS = st.fixed_dictionaries(
    {
        "k": st.integers(1, 64),
        "seed": st.integers(0, 2**32 - 1),
        "lr": st.none() | st.floats(0, 1, allow_nan=False),
        "steps": st.none() | st.integers(1, 10**6),
        "threshold": st.none() | st.floats(0, 0.99),
        "layers": st.none() | st.sampled_from(["0", "3-5,9"]),
        "data": st.just("x.csv"),
        "template": PRINTED.map(lambda t: f"{{text}} {t} {{label}}\n"),
        "text_column": PRINTED,
        "label_words": st.dictionaries(PRINTED, PRINTED, max_size=3),
    }
)


@given(CONFIGS)
def test_settings_survive_config_yaml(values):
    config = RunConfig(**values)
    written = yaml.safe_dump(config_values(config), sort_keys=False, allow_unicode=True)
    read = RunConfig.from_dict(current_values(yaml.safe_load(written), "file"), "file")
    assert asdict(read) == asdict(config)
