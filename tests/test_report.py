"""The report, opened in a real browser: Debian's Chromium, driven by Playwright; skipped where
there is none.

Screenshots are kept in the folder that ABFT_SCREENSHOTS names.
"""

import base64
import csv
import json
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from playwright import sync_api

from abft.report.inner_charts import basin, deletion
from abft.report.page import _pieces, _prompts
from command_line import arguments, invoke, refused
from tiny import tiny_model

SECTIONS = ("Result", "Training", "Heads", "Layers", "Prompts", "Weights", "Basin", "Causality")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser():
    """A fresh Chromium; CI sets ABFT_BROWSER_TESTS, so that they are not skipped there
    unnoticed.
    """
    if CHROMIUM is None:
        assert not os.environ.get("ABFT_BROWSER_TESTS"), (
            "ABFT_BROWSER_TESTS is set, but there is no chromium"
        )
        pytest.skip(
            "no chromium found; install it (Debian: apt-get install chromium) to run the "
            "browser tests"
        )
    with sync_api.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@contextmanager
def opened(browser, path, **settings):
    """The page when its charts are drawn; it asks for nothing but itself and says nothing on the
    console.
    """
    page = browser.new_page(
        **{"viewport": {"width": 1200, "height": 900}, "color_scheme": "light", **settings}
    )
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"file://{path}")
    page.wait_for_selector("html[data-ready]", timeout=60_000)
    yield page
    page.wait_for_timeout(100)
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [f"file://{path}"]
    page.close()


def keep(page, name):
    if folder := os.environ.get("ABFT_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.wait_for_timeout(800)
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory):
    return shutil.copytree(finished, tmp_path_factory.mktemp("runs") / "reported")


@pytest.fixture(scope="module")
def page_file(run, e2e):
    result = invoke("report", run, "--e2e", e2e, "--compare", run, "--points", 4)
    assert result.exit_code == 0, result.output
    assert "wrote" in result.stdout
    return run / "report.html"


@pytest.fixture(scope="module")
def page(browser, page_file):
    with opened(browser, page_file) as shared:
        yield shared


def test_every_section_is_there(page):
    assert page.locator("h2").all_inner_texts() == list(SECTIONS)
    assert page.locator(".missing:visible").count() == 0
    drawn = page.locator("[data-chart]:visible .main-svg")
    assert drawn.count() >= 15
    for chart in page.locator("[data-chart]").all():
        assert len(chart.get_attribute("aria-label")) > 30
    assert all(
        len(caption) > 20 for caption in page.locator("figcaption:visible").all_inner_texts()
    )
    keep(page, "wide")


def test_numbers_are_the_runs_own(page, run, e2e):
    own = json.loads((run / "metrics.json").read_text())
    other = json.loads((e2e / "metrics.json").read_text())["after"]
    cells = page.locator("#result tbody tr").first.locator("td").all_inner_texts()
    assert cells == [f"{scores['accuracy']:.3f}" for scores in (own["before"], own["after"], other)]
    assert f"{100 * own['after']['accuracy']:.1f}" in page.locator(".headline").inner_text()
    settings = dict(
        zip(
            *(page.locator(f"#result {tag}").all_text_contents() for tag in ("dt", "dd")),
            strict=True,
        )
    )
    assert (settings["seed"], settings["pid"]) == ("0", "True")
    assert page.locator("#figure-training-loss .legendtext").all_text_contents() == [
        "this run",
        run.name,
    ]
    legend = page.locator("#figure-training-heads .legendtext").all_text_contents()
    assert legend == ["this run", e2e.name, run.name]


def test_choosing_a_prompt_and_heads_changes_what_is_shown(page):
    texts = page.locator("#prompt-texts figure")
    assert texts.count() == 3
    first = texts.first.inner_text()
    assert page.locator("#prompt-texts .text").first.locator(".right, .wrong").count() == 4
    page.locator("#prompt-choice").select_option(index=1)
    assert texts.first.inner_text() != first
    styles = [span.get_attribute("style") for span in texts.first.locator(".piece").all()]
    page.locator("#prompt-heads").select_option(index=1)
    assert [span.get_attribute("style") for span in texts.first.locator(".piece").all()] != styles


def test_clicking_a_cell_and_choosing_a_quantity_changes_what_is_shown(page):
    cell = page.locator("#cell")
    seen = set()
    for layer in ("0", "1"):
        page.locator("#cell-layer").select_option(layer)
        seen.add(cell.inner_text())
    area = page.locator("#figure-heads-mass-before .nsewdrag")
    size = area.bounding_box()
    for x, y, name in ((0.1, 0.9, "layer 0, head 0"), (0.9, 0.1, "layer 1, head 3")):
        at = {"x": x * size["width"], "y": y * size["height"]}
        area.hover(position=at)
        page.wait_for_timeout(300)  # Plotly looks for the cell under the pointer at intervals
        area.click(position=at)
        sync_api.expect(cell.locator("th").first).to_have_text(name)
        seen.add(cell.inner_text())
    assert len(seen) == 3
    assert page.locator("#figure-heads-correct_mass-after").is_hidden()
    page.locator("#heads-quantity").select_option("correct_mass")
    assert page.locator("#figure-heads-correct_mass-after .main-svg").first.is_visible()
    assert page.locator("#figure-heads-mass-after").is_hidden()


def background(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def axis_colour(page):
    return page.locator("#figure-reliability .xtitle").evaluate("e => getComputedStyle(e).fill")


def test_dark_light_and_print(browser, page_file, page):
    with opened(browser, page_file, color_scheme="dark") as dark:
        paper, ink = background(page), axis_colour(page)
        assert background(dark) != paper
        assert axis_colour(dark) != ink
        keep(dark, "dark")
        dark.locator("#theme").click()
        assert background(dark) == paper
        sync_api.expect(dark.locator("#figure-reliability .xtitle")).to_have_css("fill", ink)
        assert len(dark.pdf()) > 50_000


def test_a_phone_needs_no_scrolling_sideways(browser, page_file):
    with opened(browser, page_file, viewport={"width": 390, "height": 800}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        for chart in page.locator("figure:visible").all():
            box = chart.bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 390
        keep(page, "phone")


HOSTILE = (
    "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>",
    "</script><script>window.pwned = 1</script><!-- ",
    "\"double\" 'single' `back` & &amp; &lt;b&gt; {{ 7 * 7 }} {% raw %} \\u003c $x^2$",
    "smile 😀 family 👩‍👩‍👧 flag 🇫🇷 e\u0301 ünïcode",
    "עברית שלום \u202eright to left\u202c العربية",
    "long " * 2000,
)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, bpe):
    """A run whose texts, labels and names try to be more than text."""
    folder = tmp_path_factory.mktemp("hostile")
    tiny_model("llama", max_position_embeddings=65536).save_pretrained(folder / "model")
    bpe.save_pretrained(folder / "model")
    labels = ("<script>bad</script>", "<i>good</i>")
    for name, texts in (("<b>data & co.csv", HOSTILE[:-1] * 6), ("test.csv", HOSTILE)):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"])
            rows.writerows(
                [f"{text} {i} {name[:1]}", labels[i % 2]] for i, text in enumerate(texts)
            )
    settings = {
        "model": folder / "model",
        "data": folder / "<b>data & co.csv",
        "test-data": folder / "test.csv",
        "k": 2,
        "nd": 4,
        "nb": 2,
        "steps": 1,
        "lr": 0.01,
        "threshold": 0.001,
        "test-prompts": 6,
        "save-steps": 1,
        "batch-size": 2,
        "eval-batch-size": 2,
        "device": "cpu",
        "template": "review: {text} sentiment: {label}\\n",
    }
    words = ("--label-words", "<i>good</i>=good", "--label-words", "<script>bad</script>=bad")
    result = invoke("train", *arguments(settings), *words, "--output", folder / "<img src=x>")
    assert result.exit_code == 0, result.output
    result = invoke(
        "report", folder / "<img src=x>", "--points", 2, "--output", folder / "page.html"
    )
    assert result.exit_code == 0, result.output
    return folder / "page.html"


def test_texts_are_shown_as_text(browser, hostile):
    assert hostile.stat().st_size < 15_000_000
    with opened(browser, hostile) as page:
        assert page.evaluate("window.pwned") is None
        assert page.locator("img").count() == 0
        assert "<b>data & co" in page.locator("h1").inner_text()
        shown = []
        for index in range(page.locator("#prompt-choice option").count()):
            page.locator("#prompt-choice").select_option(index=index)
            shown.append(page.locator("#prompt-texts .text").first.evaluate("e => e.textContent"))
        for text in HOSTILE:
            assert any(text.strip() in prompt for prompt in shown), text
        ticks = page.locator("#figure-confusion-before .ytick text").all_text_contents()
        assert {*ticks} == {"<i>good</i>", "<script>bad</script>"}
        assert page.evaluate("window.pwned") is None
        keep(page, "hostile")


def test_an_unfinished_run_shows_what_there_is(browser, finished, tmp_path):
    folder = shutil.copytree(
        finished,
        tmp_path / "stopped",
        ignore=shutil.ignore_patterns("metrics.json", "qk_weights*", "analysis"),
    )
    with (folder / "log.jsonl").open("a") as file:
        file.write('7\n{"step": 5, "lo')
    result = invoke("report", folder)
    assert result.exit_code == 0, result.output
    with opened(browser, folder / "report.html") as page:
        assert page.locator("#training .main-svg").count() > 0
        for section in ("result", "heads", "prompts", "weights", "basin", "causality"):
            assert "is not finished" in page.locator(f"#{section} .missing").inner_text()
        keep(page, "unfinished")


def test_without_an_end_to_end_run_the_plane_is_named_as_missing(browser, run, tmp_path):
    result = invoke("report", run, "--points", 4, "--output", tmp_path / "alone.html")
    assert result.exit_code == 0, result.output
    with opened(browser, tmp_path / "alone.html") as page:
        assert "needs an end-to-end run" in page.locator("#basin .missing").inner_text()
        assert page.locator("#figure-extrapolation .main-svg").first.is_visible()


def test_removed_demonstrations_are_drawn_and_summed_up():
    """By hand: two draws; after training a demonstration matters less."""
    arrays = {
        "models_M": np.array(["before", "after"]),
        "removed_R": np.array([0, 1, 3]),
        "attention_probability_MR": np.array([[0.9, 0.5, 0.4], [0.9, 0.8, 0.7]]),
        "random_probability_MRD": np.array(
            [[[0.9, 0.9], [0.6, 0.8], [0.4, 0.5]], [[0.9, 0.9], [0.8, 0.9], [0.7, 0.6]]]
        ),
        "attention_changed_MR": np.array([[0, 0.25, 0.5], [0, 0.05, 0.1]]),
        "random_changed_MRD": np.array(
            [[[0, 0], [0.1, 0.2], [0.3, 0.3]], [[0, 0], [0.0, 0.06], [0.1, 0.1]]]
        ),
        "prompts": np.array(20),
    }
    first, second = deletion(arrays, 0), deletion(arrays, 1)
    assert "1 demonstration removed" in first.alt
    assert "25% change, in random order 15%" in first.alt
    assert "5% change, in random order 3%" in second.alt
    by_attention, at_random = first.figure["data"]
    assert values(by_attention["y"]) == pytest.approx([0.9, 0.5, 0.4])
    assert values(at_random["y"]) == pytest.approx([0.9, 0.7, 0.45])
    assert values(at_random["error_y"]["array"]) == pytest.approx([0, 0.1, 0.05])


def test_points_without_predictions_are_left_out_of_the_description():
    accuracy_EA = np.array([[0.5, np.nan], [0.25, 0.75]])
    plane = {"e_E": np.array([0.0, 1.0]), "a_A": np.array([0.0, 2.0]), "accuracy_EA": accuracy_EA}
    assert "highest (0.75) at a = 2, e = 1; lowest 0.25" in basin({**plane, "prompts": 8}).alt


def values(encoded):
    """Numbers of a figure, which plotly may write as base64."""
    if isinstance(encoded, dict):
        return np.frombuffer(base64.b64decode(encoded["bdata"]), encoded["dtype"]).tolist()
    return list(encoded)


def test_pieces_are_the_text():
    text = "ab😀c d"
    spans = [
        (0, 2),
        (2, 3),
        (2, 3),
        (2, 3),
        (3, 4),
        (5, 6),
    ]  # an emoji of three tokens, a space that no token covers
    pieces, of_token = _pieces(text, np.array(spans))
    assert "".join(pieces) == text
    assert pieces == ["ab", "😀", "c", " d"]
    assert of_token == [0, 1, 1, 1, 2, 3]

    # What heads pay to the token that begins every prompt is not the first word's.
    pieces, of_token = _pieces(text, np.array([(0, 0), *spans, (6, 6)]))
    assert pieces == ["", "ab", "😀", "c", " d"]
    assert of_token == [0, 1, 2, 2, 2, 3, 4, 4]


def test_the_token_that_heads_look_at_is_marked():
    """Not the last one of a label that has several."""
    text = "fine unbelievable end"
    spans = np.array([(0, 4), (4, 7), (7, 10), (10, 17), (17, 21)])
    examples = {
        "texts_P": np.array([text]),
        "tokens_P": np.array([5]),
        "spans_T2": spans,
        "attention_MJT": np.zeros((1, 1, 5)),
        "label_positions_PK": np.array([[1]]),
        "label_classes_PK": np.array([[0]]),
        "targets_P": np.array([0]),
        "predicted_MP": np.array([[0]]),
        "prompts_P": np.array([3]),
        "models_M": np.array(["before"]),
        "heads_J2": np.array([[0, 0]]),
    }
    arrays = {"examples": examples, "evaluation": {"labels_C": np.array(["unbelievable"])}}
    (prompt,) = _prompts(SimpleNamespace(arrays=arrays))["prompts"]
    assert [prompt["pieces"][i] for i in prompt["labels"]] == [" un"]
    assert prompt["labels"] == {1: True}


def test_charts_name_their_axes(page_file):
    data = page_file.read_text().split('id="data">')[1].split("</script>")[0]
    for name, figure in json.loads(data)["charts"].items():
        for axis in ("xaxis", "yaxis"):
            assert figure["layout"][axis]["title"]["text"], f"{name}: {axis}"


def test_bad_input(run, tmp_path, monkeypatch):
    assert "is no run folder" in refused("report", tmp_path)
    assert "cannot be written" in refused("report", run, "--output", tmp_path / ("x" * 300))
    damaged = shutil.copytree(run, tmp_path / "damaged")
    (damaged / "metrics.json").write_text('{"abft')
    assert "is missing or damaged" in refused("report", damaged)
    assert "is a folder" in refused("report", run, "--output", tmp_path)
    assert "does not exist" in refused("report", run, "--output", tmp_path / "none" / "page.html")
    assert "is no run folder" in refused("report", run, "--compare", tmp_path)
    assert "is no end-to-end run" in refused("report", run, "--e2e", run)
    monkeypatch.setitem(sys.modules, "plotly", None)
    for name in [name for name in sys.modules if name.startswith(("plotly.", "abft.report"))]:
        monkeypatch.delitem(sys.modules, name)
    assert "pip install 'abft[report]'" in refused("report", run)
