"""Questions about maps: what is repainted is what the edit changes, and an answer is read where the map has it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from editkit.app.questions import questions_named
from editkit.app.questions.maps import REPAINTED
from editkit.data.toyworld.faces import PARTS, render
from editkit.errors import UsageError
from editkit.metrics.part_oracle import overlap

ASKED = questions_named("maps")


@pytest.mark.parametrize("edit", list(REPAINTED))
def test_a_repainted_map_is_the_answers_own(edit):
    cases = ASKED.cases(ASKED.find(edit), "test", 4, size=64)
    for k, (source, answer) in enumerate(zip(cases.sources, cases.answers, strict=True)):
        inputs = cases.inputs(k)
        own, wanted = (torch.tensor(render(face, 64, labels=True)[1]).long() for face in (source, answer))
        assert (inputs["segmentation"][0] == wanted).all() and not (own == wanted).all()
        parts = [PARTS.index(name) for name in inputs["labels"].split(", ")]
        assert tuple(inputs["labels"].split(", ")) == REPAINTED[edit]
        stays = ~torch.isin(own, torch.tensor(parts)) & ~torch.isin(wanted, torch.tensor(parts))
        hidden = (own != wanted) & stays
        assert hidden.float().mean() < 0.012, "what the named parts do not cover hardly changes"


def test_an_answer_overlaps_with_its_map_and_the_source_does_not():
    cases = ASKED.cases(ASKED.find("with-glasses"), "test", 4, size=64)
    own = torch.stack([torch.tensor(render(face, 64, labels=True)[1]).long() for face in cases.sources])
    glasses = [PARTS.index("glasses")]
    assert (overlap(cases.maps, cases.maps, glasses) == 1).all() and (overlap(own, cases.maps, glasses) == 0).all()


def test_the_overlap_is_judged_beside_the_faces_figures(monkeypatch):
    cases = ASKED.cases(ASKED.find("smiling"), "test", 4, size=64)
    faces = SimpleNamespace(figures={"success": torch.ones(2)}, kept={}, features=None)
    monkeypatch.setattr(type(ASKED).__mro__[1], "judged", lambda *args: faces)
    maps = cases.maps[2:].clone()
    maps[1][maps[1] == PARTS.index("mouth")] = PARTS.index("skin")
    judges = SimpleNamespace(parts=SimpleNamespace(read=lambda images: maps))
    assert ASKED.judged(judges, cases, slice(2, 4), cases.images[2:]).figures["overlap"].tolist() == [1.0, 0.0]


def test_other_edits_of_faces_have_no_map():
    with pytest.raises(UsageError, match="no edit of the maps is called 'old'"):
        ASKED.find("old")
    assert [edit.name for edit in ASKED.usual({})] == list(REPAINTED)
