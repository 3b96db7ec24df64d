"""The table of methods: for the terminal and for the README."""

from __future__ import annotations

import pytest

from editkit.app import catalogue
from editkit.errors import UserError
from editkit.recipe import Card

CARDS = [
    Card(
        "full", title="Full", family="full", summary="a | b", needs=("image", "reference_mask"), takes=("mask",), paper="P 2024"
    ),
    Card("weak", family="weak", needs=("image",)),
    Card("paper/weak", family="weak"),
    Card("toy/model", family="foundation"),
]


@pytest.fixture(autouse=True)
def cards(monkeypatch):
    monkeypatch.setattr(catalogue, "cards", lambda conf=(): CARDS)


def test_the_plain_table():
    lines = catalogue.plain_table().splitlines()
    assert [line.split()[0] for line in lines] == ["recipe", "weak", "full"]
    assert "--image --reference-mask [--mask]" in lines[2] and "fully supervised" in lines[2]


def test_the_markdown_table():
    lines = catalogue.markdown_table().splitlines()
    assert (lines[0], lines[-1]) == (catalogue.START, catalogue.END)
    assert "`weak`, `paper/weak`" in lines[3] and "a \\| b" in lines[4]
    assert len({line.replace("\\|", "").count("|") for line in lines[1:-1]}) == 1


def test_only_what_is_between_the_markers_is_replaced(tmp_path):
    file = tmp_path / "README.md"
    file.write_text(f"before\n{catalogue.START}\nold\n{catalogue.END}\nafter\n")
    catalogue.update_file(file)
    assert file.read_text() == f"before\n{catalogue.markdown_table()}\nafter\n"
    catalogue.update_file(file)
    assert file.read_text().count(catalogue.START) == 1


def test_a_file_without_markers_stays_as_it_is(tmp_path):
    file = tmp_path / "README.md"
    file.write_text("nothing")
    with pytest.raises(UserError, match="has no lines"):
        catalogue.update_file(file)
    assert file.read_text() == "nothing"
    with pytest.raises(UserError, match="cannot read"):
        catalogue.update_file(tmp_path / "none")
