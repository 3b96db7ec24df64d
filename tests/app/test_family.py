from __future__ import annotations

import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from editkit.app import entrants, family, family_files
from editkit.app.catalogue import of_family
from editkit.app.loaded import Loaded
from editkit.app.options import EvaluateOptions
from editkit.app.questions import QUESTIONS, faces
from editkit.app.questions.animals import EDITS, Animals
from editkit.app.questions.faces import make_cases
from editkit.app.show import resolved
from editkit.app.standings import markdown_table, standing
from editkit.data.toyworld import animals
from editkit.data.toyworld.world import find_edit
from editkit.errors import UsageError, UserError
from editkit.types import EditResult
from tests.app import trials
from tests.app.questions.perfect import Perfect
from tests.app.test_report import Page

TASK = {"told": "faces", "turned": "animals"}


class Stage:
    """A family of two methods that look answers up: `told` for faces, `turned` for animals; a baseline does too.

    Attributes:
        failures: pictures that each gets wrong.
        lacking: methods without weights.
        cards: what each ran with.
        edited: who edited how many pictures, in order.
    """

    def __init__(self):
        self.failures, self.lacking, self.edited = {"reconstruction": 8}, set(), []
        self.cards = {name: {"method": name, "weights": {}, "versions": {"torch": "1"}} for name in (*TASK, "reconstruction")}
        self.faces = make_cases(find_edit("smiling"), "test", 8)
        self.animals = Animals().cases(EDITS["cat to dog"], "test", 8, size=64)

    def judges(self):
        seeing = trials.judges()
        seeing.oracle.show([*self.faces.sources, *self.faces.answers])
        return seeing

    def oracle(self):
        answers = [animals.translated(animal, "dog") for animal in self.animals.sources]
        return Perfect(animals, [*self.animals.sources, *answers], torch.cat([self.animals.images, self.animals.truth]))

    def load(self, cfg, name, *, weights=(), prompt=None, **where):
        if name in self.lacking and not weights:
            raise UserError(f"{name} has no trained weights")
        cases = self.faces if prompt else self.animals
        editor = trials.Told(cases, wrong=cases.keys[: self.failures.get(name, 0)])
        plain = editor.edit
        editor.edit = lambda requests, state: (self.edited.append((name, len(requests))), plain(requests, state))[1]
        return Loaded(name, editor, (64, 64), 8, provenance=self.cards[name])

    def made(self):
        """Return which methods edited since this was asked last."""
        names = [name for name, _ in self.edited if name in TASK]
        self.edited.clear()
        return names


@pytest.fixture
def stage(monkeypatch):
    found = Stage()
    configured = {"method": {}, "backbone": None, "engine": None}
    monkeypatch.setattr(family, "of_family", lambda name, conf: list(TASK))
    monkeypatch.setattr(
        entrants, "compose_for", lambda options, verb: SimpleNamespace(**configured, evaluate=TASK[options.method])
    )
    monkeypatch.setattr(entrants, "compose", lambda overrides, conf_dirs: SimpleNamespace())
    monkeypatch.setattr(entrants, "load_editor", found.load)
    monkeypatch.setattr(faces, "load_judges", lambda device: found.judges())
    monkeypatch.setattr(Animals, "load_judges", lambda self, device: found.oracle())
    return found


def run(folder, **changes):
    asked = {"images": 6, "device": "cpu", "baselines": ["no-edit"], "output": folder} | changes
    return family.evaluate_family(EvaluateOptions(family="weakly_supervised", **asked))


def held(folder, **changes):
    """Return whether the results of each method that lie in a folder are those that the command would give."""
    asked = {"images": 6, "device": "cpu", "baselines": ["no-edit"]} | changes
    members = family.members_of(EvaluateOptions(family="weakly_supervised", **asked), folder)
    return [family.kept(member) is not None for member in members]


def table(folder):
    return json.loads((folder / "metrics.json").read_text())


# One table


def test_methods_of_different_questions_are_in_one_table(stage, tmp_path, capsys):
    stage.failures["told"] = 1
    readme, out = tmp_path / "README.md", tmp_path / "out"
    readme.write_text("<!-- results family weakly_supervised -->\n<!-- /results family weakly_supervised -->\n")
    assert run(out, update=readme) == 0
    told, turned = table(out)["methods"].values()
    assert (told["evaluate"], told["edit"], turned["evaluate"], turned["edit"]) == ("faces", "smiling", "animals", "cat to dog")
    assert told["figures"]["success"] == pytest.approx(5 / 6) and turned["figures"]["score"] == 1
    assert told["figures"]["identity"] is not None and turned["figures"]["identity"] is None
    assert turned["figures"]["psnr"] == 60 and told["figures"]["psnr"] < 60, "60 dB is the most there is"
    lines = [line for line in (out / "table.md").read_text().splitlines() if line.startswith("| **")]
    assert [line.split(" | ")[1:3] for line in lines] == [["faces: smiling", "0.83"], ["animals: cat to dog", "1.00"]]
    assert all(" no-edit | " in line and line.count("**") == 4 for line in lines) and " | 60.0 | - | " in lines[1]
    assert "6 images of the test split for each, seed 0, cpu." in (out / "table.md").read_text()
    assert (out / "table.md").read_text() in readme.read_text()
    printed = capsys.readouterr()
    assert "faces: smiling" in printed.out and str(out / "sheet.png") in printed.out


def test_each_method_has_the_files_of_its_own_evaluation(stage, tmp_path):
    run(tmp_path)
    for name, kind in TASK.items():
        own = table(tmp_path / name)
        assert own["evaluate"] == kind and own["methods"] == [name] and len(own["edits"]) == 1
        assert (tmp_path / name / "report.html").exists() and (tmp_path / name / "images.csv").exists()


def test_the_page_needs_nothing_else_and_shows_every_method(stage, tmp_path):
    run(tmp_path, images=8)
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert not re.search(r"https?:|@import|url\(", re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", text))
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert all(picture["src"].startswith("data:image/png;base64,") for picture in pictures)
    assert [picture["alt"] for picture in pictures] == ["before", "told", "truth"] * 6 + ["before", "turned", "truth"] * 6
    assert [line[:2] for line in page.tables[0][1:]] == [["told", "faces: smiling"], ["turned", "animals: cat to dog"]]


def test_the_sheet_has_three_rows_of_six_pictures_for_each_method(stage, tmp_path):
    run(tmp_path, images=8)
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.height == 2 * 3 * (96 + 4) + 4 and 6 * 100 < sheet.width < 7 * 100
    shown = family_files.read_pictures(tmp_path / "turned")
    assert shown.shape == (3, 6, 3, 64, 64)
    assert torch.allclose(shown[0], stage.animals.images[:6], atol=1e-6)
    assert torch.allclose(shown[1], shown[2]) and torch.allclose(shown[2], stage.animals.truth[:6], atol=1e-6)


def test_bold_is_above_all_baselines_and_the_note_says_who_is_not(stage, tmp_path):
    stage.failures |= {"told": 1, "turned": 1, "reconstruction": 1}
    run(tmp_path, baselines=["no-edit", "reconstruction"])
    methods = table(tmp_path)["methods"]
    assert not methods["told"]["above"] and methods["told"]["not_above"] == ["reconstruction"], "no-edit alone is not enough"
    assert methods["told"]["best_baseline"]["name"] == "reconstruction"
    text = (tmp_path / "table.md").read_text()
    assert "**" not in text and "Not above every baseline: told (reconstruction); turned (reconstruction)." in text
    stage.failures["reconstruction"] = 8
    run(tmp_path / "again", baselines=["no-edit", "reconstruction"])
    text = (tmp_path / "again" / "table.md").read_text()
    assert "| **told** |" in text and "| **turned** |" in text and "Not above" not in text


def test_methods_that_are_asked_the_same_share_their_baselines(stage, tmp_path, monkeypatch):
    monkeypatch.setitem(TASK, "turned", "faces")
    asked = {"baselines": ["no-edit", "reconstruction"]}
    run(tmp_path / "both", **asked)
    assert [name for name, _ in stage.edited] == ["told", "reconstruction", "turned"]
    shared = table(tmp_path / "both")["methods"]
    assert shared["told"]["best_baseline"] == shared["turned"]["best_baseline"]
    stage.edited.clear()
    stage.cards["reconstruction"]["steps"] = 9
    run(tmp_path / "both", seed=1, **asked)
    assert [name for name, _ in stage.edited] == ["told", "reconstruction", "turned"], "of other settings they are made anew"


def test_without_baselines_nothing_is_bold(stage, tmp_path):
    run(tmp_path, baselines=["none"])
    assert table(tmp_path)["methods"]["told"]["best_baseline"] is None
    assert "**" not in (tmp_path / "table.md").read_text() and "Not above" not in (tmp_path / "table.md").read_text()


def test_a_standing_is_that_of_the_raw_pictures():
    raw = {"figures": {name: {"mean": 0.5} for name in ("success", "preservation", "score", "psnr")}}
    pasted = {"figures": {name: {"mean": 0.9} for name in raw["figures"]}}
    cost = {"seconds": 1.0, "calls": 2.0, "training_seconds": None}
    entries = {"pbe": {"variants": {"raw": raw, "pasted": pasted}, **cost}, "no-edit": {"variants": {"raw": raw}, **cost}}
    differences = {"pbe": {"no-edit": {"score": {"above": False}}}}
    found = {"methods": ["pbe"], "evaluate": "exemplars", "device": "cpu"}
    one = standing({**found, "edits": {"exemplar": {"methods": entries, "differences": differences}}})
    assert one["figures"]["score"] == 0.5 and one["best_baseline"] == {"name": "no-edit", "score": 0.5}
    head = {"images": 2, "split": "test", "seed": 0, "missing": {}}
    line = markdown_table({**head, "methods": {"pbe": one}}).splitlines()[2]
    assert line == "| pbe | exemplars: exemplar | 0.50 | 0.500 | 0.500 | 0.500 no-edit | 0.5 | - | - | 2 | 1 |"


# What is there already


def test_a_second_run_makes_nothing_anew_and_gives_the_same(stage, tmp_path):
    run(tmp_path)
    assert set(stage.made()) == set(TASK)
    files = {name: (tmp_path / name).read_bytes() for name in ("metrics.json", "table.md", "report.html", "sheet.png")}
    run(tmp_path)
    assert stage.made() == []
    assert {name: (tmp_path / name).read_bytes() for name in files} == files


def test_other_conditions_are_made_anew(stage, tmp_path):
    run(tmp_path)
    for changes in ({"images": 5}, {"seed": 1}, {"steps": 3}, {"dtype": "bf16"}, {"baselines": ["none"]}):
        assert held(tmp_path, **changes) == [False, False], changes
    assert held(tmp_path) == [True, True]
    stage.made()
    run(tmp_path, images=5)
    assert set(stage.made()) == set(TASK) and table(tmp_path)["images"] == 5


def test_other_weights_are_made_anew_and_another_version_of_a_program_is_not(stage, tmp_path):
    run(tmp_path)
    stage.cards["told"] = stage.cards["told"] | {"versions": {"torch": "2"}}
    stage.cards["turned"] = stage.cards["turned"] | {"weights": {"turned.safetensors": ["4567", 1.0]}}
    assert held(tmp_path) == [True, False]


def test_what_was_stopped_half_way_or_is_no_result_is_made_anew(stage, tmp_path):
    run(tmp_path)
    (tmp_path / "told" / "pictures.png").unlink()
    assert held(tmp_path) == [False, True]
    for text in ("{", "[]", '{"edits": {}}', '{"edits": {"cat to dog": {"settings": null}}}'):
        (tmp_path / "turned" / "metrics.json").write_text(text)
        assert held(tmp_path) == [False, False], text
    stage.made()
    assert run(tmp_path) == 0 and set(stage.made()) == set(TASK)


# What is missing


def test_methods_without_weights_are_named_and_the_others_are_there(stage, tmp_path, capsys):
    stage.lacking.add("told")
    assert run(tmp_path) == 1
    assert "told is not in the table: told has no trained weights" in capsys.readouterr().err.splitlines()[-1]
    found = table(tmp_path)
    assert list(found["methods"]) == ["turned"] and list(found["missing"]) == ["told"]
    text = (tmp_path / "table.md").read_text()
    assert "Not evaluated: told." in text and "| told" not in text
    assert "told has no trained weights" in (tmp_path / "report.html").read_text()
    stage.made()
    assert run(tmp_path, weights=["told=some.safetensors"]) == 0
    assert set(stage.made()) == {"told"} and list(table(tmp_path)["methods"]) == ["told", "turned"]


def test_what_fails_while_it_is_evaluated_stops_no_other_method(stage, monkeypatch, tmp_path):
    load = stage.load

    def broken(cfg, name, **where):
        loaded = load(cfg, name, **where)
        if name == "told":
            loaded.editor.edit = lambda requests, state: EditResult(torch.full((len(requests), 3, 64, 64), math.nan))
        return loaded

    monkeypatch.setattr(entrants, "load_editor", broken)
    assert run(tmp_path) == 1
    assert "values that are not finite" in table(tmp_path)["missing"]["told"] and "turned" in table(tmp_path)["methods"]


def test_with_no_method_at_all_no_table_is_written(stage, tmp_path):
    stage.lacking |= set(TASK)
    assert run(tmp_path) == 1 and not (tmp_path / "metrics.json").exists()


# What is refused


def test_a_wrong_name_is_answered_by_the_right_one(tmp_path):
    with pytest.raises(UsageError, match=r"no family 'weakly-supervised'. Did you mean 'weakly_supervised'"):
        family.evaluate_family(EvaluateOptions(family="weakly-supervised", output=tmp_path))
    with pytest.raises(UsageError, match="Choose from weakly_supervised, self_supervised, fully_supervised"):
        of_family("baseline")


def test_a_family_is_the_recipes_whose_cards_say_so(tmp_path):
    own = tmp_path / "recipe" / "mine.yaml"
    own.parent.mkdir()
    own.write_text("# @package _global_\ncard: {family: weak}\n")
    found = of_family("weakly_supervised")
    assert {"asyrp", "egsde", "cyclenet"} <= set(found) and not {"sdedit", "ilvr", "pbe", "paper/asyrp"} & set(found)
    assert set(of_family("weakly_supervised", [tmp_path])) == {*found, "mine"}


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"methods": ["asyrp"]}, "--method"),
        ({"edits": ["old"]}, "--edit"),
        ({"backbone": "toy_latent"}, "--backbone"),
        ({"sweep": True}, "--sweep"),
        ({"jobs": 2}, "--jobs"),
        ({"overrides": ["method.steps=3"]}, "method.steps=3 with several methods"),
    ],
)
def test_what_a_family_cannot_have(changes, flag):
    with pytest.raises(UsageError, match=flag):
        EvaluateOptions(family="weakly_supervised", **changes)


def test_mistakes_are_refused_before_any_edit(stage, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results -->\n<!-- /results -->\n")
    mistakes = {
        "results family weakly_supervised": {"update": readme},
        "write METHOD=PATH, with one of told, turned": {"weights": ["other=x"]},
        "no baseline 'ilvr' for faces": {"baselines": ["ilvr"]},
    }
    for expected, changes in mistakes.items():
        with pytest.raises(UserError, match=expected):
            run(tmp_path / "out", **changes)
    assert not stage.edited and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", QUESTIONS)
def test_what_is_typical_of_questions_is_one_of_their_edits(name):
    questions = QUESTIONS[name]
    assert questions.find(questions.typical).name == questions.typical
    assert {"success", "preservation", "score", "psnr"} <= set(questions.figures)


def test_a_dry_run_shows_every_recipe(monkeypatch):
    monkeypatch.setattr("editkit.app.show.of_family", lambda name, conf: ["reconstruction", "sdedit"])
    shown = resolved(EvaluateOptions(family="weakly_supervised")).split("---\n")
    assert ["reconstruction" in one or "sdedit" in one for one in shown] == [True, True]
