"""What is asked of scenes and how it is scored, with a judge that reads perfectly: only the questions are under test."""

from __future__ import annotations

import pickle

import pytest
import torch

from editkit.app import contest
from editkit.app.questions import QUESTIONS, questions_named, scenes
from editkit.app.questions.base import MARGIN
from editkit.app.questions.domains import DomainJudges, Domains
from editkit.app.questions.exemplars import ExemplarJudges, Exemplars
from editkit.app.questions.instructions import Instructions
from editkit.app.questions.scenes import SceneJudges
from editkit.app.trial import Trial, summary
from editkit.data.pasted import bare
from editkit.data.toyworld.scenes.edits import KINDS
from editkit.engine.blend import paste
from editkit.errors import UsageError
from editkit.methods.baselines.copy_paste import CopyPasteEditor
from editkit.metrics.images import PSNR_CAP
from editkit.metrics.scene_edits import judged
from editkit.types import EditResult
from tests.app.trials import Colours, Told
from tests.metrics.perfect import reading

COUNT = 3


class Dino:
    """Keys that are the mean colours of 8 x 8 patches."""

    def keys(self, images):
        return torch.nn.functional.avg_pool2d(images, 8).flatten(2).mT + 1.5


def judges(kind):
    """Return judges that need no training; what they read is patched in by `perfect`."""
    known = {"oracle": None, "clip": Colours()}
    return {
        "instructions": lambda: SceneJudges(**known),
        "exemplars": lambda: ExemplarJudges(**known, harmony=lambda images, masks: (images * masks).mean((1, 2, 3))),
        "domains": lambda: DomainJudges(**known, dino=Dino()),
    }[kind]()


@pytest.fixture
def perfect(monkeypatch):
    """Let the oracle recognise sources and answers to the pixel; return the function that shows it more."""
    known = []

    def show(cases):
        sides = [(cases.images, [edit.source for edit in cases.edits]), (cases.truth, [edit.target for edit in cases.edits])]
        known.extend(pair for pictures, shown in sides for pair in zip(pictures, shown, strict=True))

    def read(oracle, images, expectations):
        found = [next(scene for picture, scene in known if torch.equal(picture, image)) for image in images]
        return [reading(*pair) for pair in zip(found, expectations, strict=True)]

    monkeypatch.setattr(scenes, "read", read)
    return show


def asked(kind, name, count=COUNT):
    questions = QUESTIONS[kind]
    return questions, questions.cases(questions.find(name), "validation", count, size=64)


CASES = [("instructions", "recolour"), ("instructions", "add"), ("exemplars", "exemplar"), ("domains", "day to night")]


@pytest.mark.parametrize(("kind", "name"), [*CASES, ("instructions", "remove"), ("domains", "winter-to-summer")])
def test_the_truth_has_full_marks_and_no_edit_preserves_everything(kind, name, perfect):
    questions, cases = asked(kind, name)
    perfect(cases)
    right, untouched = (questions.score(judges(kind), cases, pictures) for pictures in (cases.truth, cases.images))
    for figure, value in (("success", 1), ("preservation", 1), ("score", 1), ("psnr", PSNR_CAP)):
        assert (right.figures[figure] == value).all(), figure
    assert (untouched.figures["success"] == 0).all() and (untouched.figures["preservation"] == 1).all()
    assert untouched.figures["clip_direction"].isnan().all() and (untouched.figures["psnr_inside"] < PSNR_CAP).all()
    assert all(((flags == 1) | flags.isnan()).all() for flags in untouched.kept.values())
    assert set(right.figures) >= set(questions.figures) - {"cycle"}


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_cases_are_the_same_for_any_count_and_have_keys_of_their_own(kind, name):
    _, few = asked(kind, name, 2)
    _, many = asked(kind, name, 4)
    assert few.keys == many.keys[:2] and len(set(many.keys)) == 4 and torch.equal(few.images, many.images[:2])
    outside = (many.region == 0).expand_as(many.images)
    assert torch.equal(many.images[outside], many.truth[outside])


@pytest.mark.parametrize(("kind", "name"), CASES[1:])
def test_questions_and_cases_travel_between_processes(kind, name):
    questions, cases = asked(kind, name, 2)
    again, theirs = pickle.loads(pickle.dumps((questions, cases)))
    assert again.name == questions.name and theirs.edit == cases.edit and theirs.edits == cases.edits
    assert torch.equal(theirs.truth, cases.truth)


def test_instructions_come_by_kind_with_both_captions_and_a_mask_if_needed():
    assert list(Instructions().edits()) == list(KINDS)
    _, cases = asked("instructions", "recolour")
    plain, masked = cases.requests(("image", "instruction")), cases.requests(("image", "mask"))
    for request, edit, texts in zip(plain, cases.edits, cases.texts, strict=True):
        assert edit.kind == "recolour" and request.instruction == edit.instruction and request.mask is None
        assert (request.source_prompt, request.prompt) == texts and request.prompt != request.source_prompt
    assert all((one.mask >= region).all() for one, region in zip(masked, cases.region, strict=True)) and MARGIN > 0
    with pytest.raises(UsageError, match="toy scenes have no references"):
        cases.requests(("image", "references"))


def test_a_scene_without_such_an_edit_gives_its_place_to_another_which_its_key_says():
    _, cases = asked("instructions", "remove", 8)
    _, others = asked("instructions", "recolour", 8)
    same = [k for k, key in enumerate(cases.keys) if key == others.keys[k]]
    assert 0 < len(same) < 8 and all(key.endswith("-remove") for k, key in enumerate(cases.keys) if k not in same)
    assert all(torch.equal(cases.images[k], others.images[k]) for k in same)


def test_the_similarity_to_the_source_falls_with_the_change(perfect):
    questions, cases = asked("instructions", "place")
    perfect(cases)
    right, untouched = (questions.score(judges("instructions"), cases, pictures) for pictures in (cases.truth, cases.images))
    assert untouched.figures["clip_similarity"].tolist() == pytest.approx([1.0] * COUNT)
    assert (right.figures["clip_similarity"] < 1).all()


# Exemplars


def test_exemplars_come_with_a_reference_and_the_exact_mask():
    _, cases = asked("exemplars", "exemplar")
    requests = cases.requests(("image", "mask", "references"))
    for request, pair, region in zip(requests, cases.pairs, cases.region, strict=True):
        assert torch.equal(request.mask, region) and len(request.references) == len(request.reference_masks) == 1
        assert pair.thing.shape in request.prompt and pair.thing.colour.split()[0] in request.prompt


def test_another_object_in_the_mask_is_read_aspect_by_aspect(perfect):
    questions, cases = asked("exemplars", "exemplar", 8)
    perfect(cases)
    found = questions.score(judges("exemplars"), cases, cases.images).figures
    before = [edit.before for edit in cases.edits]
    for name in ("shape", "colour", "texture"):
        expected = [float(getattr(old, name) == getattr(pair.thing, name)) for old, pair in zip(before, cases.pairs, strict=True)]
        assert found[name].tolist() == expected
    assert (found["success"] == 0).all() and 0 < found["texture"].mean() < 1, "texture decides nothing"


def test_nothing_in_the_mask_is_no_success():
    _, cases = asked("exemplars", "exemplar", 4)
    for pair, what in zip(cases.pairs, cases.expectations, strict=True):
        (claim,) = what.asked
        assert 0.05 < what.least[claim.region] < 0.5
        assert judged(what, reading(pair.target, what))[0] == 1 and judged(what, reading(bare(pair), what))[0] == 0


def test_pixels_outside_the_mask_must_be_the_same_to_the_bit():
    questions, cases = asked("exemplars", "exemplar")
    one_off = cases.images.clone()
    for picture, region in zip(one_off, cases.region, strict=True):
        y, x = (region[0] == 0).nonzero()[0].tolist()
        picture[0, y, x] += 2 / 255 if picture[0, y, x] < 0 else -2 / 255
    assert (outside(questions, cases, cases.images) == 1).all() and (outside(questions, cases, one_off) == 0).all()
    assert (outside(questions, cases, paste(cases.images, one_off, cases.region)) == 1).all()


def outside(questions, cases, pictures):
    """Return the figure alone: what is read in the pictures does not matter to it."""
    readings = [reading(edit.source, what) for edit, what in zip(cases.edits, cases.expectations, strict=True)]
    return questions.measured(judges("exemplars"), cases, slice(0, len(cases)), pictures, readings)["outside"]


def test_copy_paste_changes_nothing_outside_raw_or_pasted():
    questions, cases = asked("exemplars", "exemplar")
    outcome = contest.run(CopyPasteEditor(), cases, batch_size=2)
    assert list(outcome.variants) == ["raw", "pasted"]
    for pictures in outcome.variants.values():
        assert (outside(questions, cases, pictures) == 1).all()


def test_true_renderings_cannot_be_told_from_themselves(perfect):
    questions, cases = asked("exemplars", "exemplar", 6)
    perfect(cases)
    assert questions.score(judges("exemplars"), cases, cases.truth).figures["harmony_auc"].mean() == pytest.approx(0.5)


# Domains


class Turning(Told):
    """An editor that knows the answers, and on the way back either returns the sources or what it is given."""

    def __init__(self, cases, *, returns):
        super().__init__(cases)
        self.sources, self.returns = dict(zip(cases.keys, cases.images, strict=True)), returns
        self.asked = []

    def edit(self, requests, state):
        self.asked += requests
        if not requests[0].key.endswith("-back"):
            return super().edit(requests, state)
        known = self.sources if self.returns else {}
        pictures = [known.get(request.key.removesuffix("-back"), request.image) for request in requests]
        return EditResult(torch.stack(pictures), scores={"network_calls": [1.0] * len(requests)})


def test_every_scene_starts_in_the_domain_of_its_direction():
    for name, (factor, start) in {"day to night": ("time", "day"), "winter to summer": ("season", "winter")}.items():
        _, cases = asked("domains", name, 6)
        assert {getattr(edit.source, factor) for edit in cases.edits} == {start}
        assert all(start in key for key in cases.keys)


@pytest.mark.parametrize("returns", [True, False])
def test_the_cycle_is_closed_by_what_comes_back(returns, perfect):
    questions, cases = asked("domains", "day to night", 4)
    perfect(cases)
    editor = Turning(cases, returns=returns)
    trial = Trial(questions, ("told",), "validation", cases, settings={})
    trial.enter("told", contest.run(editor, cases, batch_size=4), judges("domains"))
    trial.enter("no-edit", contest.no_edit(cases), judges("domains"))
    trial.training = dict.fromkeys(trial.scores)
    there, back = editor.asked[:4], editor.asked[4:]
    assert [(one.prompt, one.source_prompt) for one in back] == [(one.source_prompt, one.prompt) for one in there]
    assert all(torch.equal(one.image, truth) for one, truth in zip(back, cases.truth, strict=True))
    entry = summary([trial])["edits"]["day to night"]
    cycle = {name: found["variants"]["raw"]["figures"]["cycle"]["mean"] for name, found in entry["methods"].items()}
    assert cycle["no-edit"] == PSNR_CAP and (cycle["told"] == PSNR_CAP) == returns
    assert entry["methods"]["told"]["calls"] == 79 and "frechet_real" not in entry
    structure = {name: found["variants"]["raw"]["figures"]["structure"]["mean"] for name, found in entry["methods"].items()}
    assert structure["no-edit"] == 0 < structure["told"]


# Names


def test_unknown_questions_and_edits_are_named():
    with pytest.raises(UsageError, match="evaluate=face is unknown.*Did you mean 'faces'"):
        questions_named("face")
    with pytest.raises(UsageError, match="no edit of the domains is called 'day-to-nigth'.*Did you mean 'day to night'"):
        Domains().find("day-to-nigth")
    assert Exemplars().usual({})[0].name == "exemplar" and Domains().find("Day_to_night").name == "day to night"


@pytest.mark.parametrize("kind", QUESTIONS)
def test_what_a_table_shows_is_measured(kind):
    questions = QUESTIONS[kind]
    pairs = {name for pair in questions.tradeoffs for name in pair}
    assert {*questions.shown, *questions.compared, *pairs, "success", "preservation", "score"} <= set(questions.figures)
    assert len({one.mark for one in QUESTIONS.values()}) == len(QUESTIONS)
