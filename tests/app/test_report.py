from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from editkit.app.questions.face_judges import FIGURES
from editkit.app.report import report
from editkit.app.tables import number, rows
from editkit.app.trial import summary
from editkit.app.verdict import examples
from tests.app import trials


class Page(HTMLParser):
    """Collects tags with their attributes, and the cells of every table."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.tables, self.open, self.cell = [], [], [], None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in {"meta", "img", "input", "link", "br", "line", "rect", "circle"}:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.cell = ""

    def handle_endtag(self, tag):
        if tag in {"line", "rect", "circle"}:
            return
        assert self.open.pop() == tag, f"</{tag}> closes something else"
        if tag in ("td", "th"):
            self.tables[-1][-1].append(self.cell.strip())
            self.cell = None

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data


@pytest.fixture(scope="module")
def made():
    oracle = trials.Remembering()
    held = [trials.trial(edit, oracle=oracle)[0] for edit in ("smiling", "with glasses")]
    results = summary(held, seed=3, device="cpu")
    text = report(results, {one.cases.edit.name: examples(one) for one in held})
    return results, text, Page(text)


@pytest.fixture(scope="module")
def several():
    """The report of three methods, the last of which never succeeds."""
    held, _ = trials.trial(rivals={"second": 3, "third": 6})
    results = summary([held], seed=3, device="cpu")
    text = report(results, {"smiling": examples(held)})
    return results, text, Page(text)


def test_the_page_needs_nothing_else(made):
    _, text, page = made
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", text))
    links = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href", "srcset")]
    assert links and all(link.startswith("data:image/png;base64,") for link in links)
    assert not page.open, "a tag is left open"


def test_the_numbers_are_those_of_the_metrics(made):
    results, _, page = made
    summary_table = page.tables[0]
    assert summary_table[1:] == [cells for cells, _ in rows(results)]
    for edit, entry in results["edits"].items():
        for method, found in entry["methods"].items():
            figures = found["variants"]["raw"]["figures"]
            expected = [number(FIGURES[name], figures[name]["mean"]) for name in FIGURES]
            lines = [line for table in page.tables for line in table if line[0] == method and len(line) == len(FIGURES) + 2]
            shown = [[cell.split()[0] for cell in line[1:-1]] for line in lines]
            assert expected in shown, (edit, method)


def test_every_face_has_a_slider_and_its_pictures(made):
    results, _, page = made
    faces = sum(6 for _ in results["edits"])
    sliders = [attributes for tag, attributes in page.tags if tag == "input"]
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(sliders) == faces and all(slider["aria-label"] for slider in sliders)
    assert len(pictures) == 3 * faces and all(picture["alt"] for picture in pictures)


def test_bars_are_as_high_as_their_scores(made):
    results, _, page = made
    bars = [float(attributes["height"]) for tag, attributes in page.tags if tag == "rect"]
    scores = [
        found["variants"]["raw"]["score_interval"]["mean"]
        for entry in results["edits"].values()
        for found in entry["methods"].values()
    ]
    assert len(bars) == len(scores)
    highest = max(bars) / max(scores)
    assert bars == pytest.approx([score * highest for score in scores], abs=0.1)


def test_both_colour_schemes_are_styled(made):
    _, text, _ = made
    assert "prefers-color-scheme: dark" in text and "color-scheme: light dark" in text


def test_texts_are_escaped():
    held, _ = trials.trial()
    held.settings = {"told": {"note": "<script>alert(1)</script>"}}
    results = summary([held], seed=0, device="<b>cpu</b>")
    text = report(results, {"smiling": examples(held)})
    assert "<script>alert" not in text and "<b>cpu" not in text


def test_several_methods_have_a_slider_each_under_every_face(several):
    _, text, page = several
    methods = ["told", "second", "third"]
    sliders = [attributes["aria-label"] for tag, attributes in page.tags if tag == "input"]
    assert [label.split()[1] for label in sliders] == methods * 6, "from told to before, ..."
    pictures = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert pictures == ["before", "told", "before", "second", "before", "third", "truth"] * 6
    said = re.findall(r'<p class="said">(\w+): <span class="(good|bad)">', text)
    wrong = {"told": 1, "second": 3, "third": 6}
    assert said == [(name, "bad" if i < wrong[name] else "good") for i in range(6) for name in methods]


def test_several_methods_are_each_held_against_the_baselines(several):
    results, _, page = several
    for method, score in (("told", 5 / 6), ("second", 1 / 2), ("third", 0)):
        (table,) = [table for table in page.tables if table[0][0] == f"{method} minus"]
        assert [line[0] for line in table[1:]] == ["no-edit"]
        assert table[1][1].startswith(f"{score:.3f} [") and results["edits"]["smiling"]["differences"][method]


def test_no_two_of_many_share_a_colour(several):
    _, text, _ = several
    legend = re.findall(r"--own: var\((--c\d)\)\">([\w-]+)<", text)[:4]
    assert [name for _, name in legend] == ["told", "second", "third", "no-edit"]
    assert len({colour for colour, _ in legend}) == 4


def test_the_points_of_methods_are_labelled_and_those_of_baselines_are_not(several):
    assert several[1].count('text-anchor="end">smiling</text>') == 3


def test_every_colour_of_the_plots_is_defined_in_both_schemes(several):
    _, text, _ = several
    for place in range(8):
        assert text.count(f"--c{place}: #") == 2
