from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from editkit import recipe
from editkit.app import contest, entrants
from editkit.app import evaluate as command
from editkit.app.artefacts import Weights
from editkit.app.loaded import Loaded
from editkit.app.markdown import insert
from editkit.app.options import EvaluateOptions
from editkit.app.questions import base, faces
from editkit.app.questions.base import pictures
from editkit.app.questions.face_judges import FIGURES
from editkit.app.questions.faces import Faces, make_cases, source_of
from editkit.app.tables import markdown_table
from editkit.app.trial import summary
from editkit.data.toyworld.faces import held_out
from editkit.data.toyworld.world import EDITS, face_at, find_edit
from editkit.engine.cache import InversionCache
from editkit.engine.stream import one_thread
from editkit.errors import UsageError, UserError
from editkit.metrics.images import PSNR_CAP
from editkit.training.editor import Editor
from editkit.types import EditResult
from tests.app import trials
from tests.tiny import write_clip, write_pixel

STANDARD = ("smiling", "angry", "old", "with glasses")


# Cases


@pytest.mark.parametrize("name", STANDARD)
def test_every_face_of_the_split_takes_part_and_none_shows_the_target_yet(name):
    edit = find_edit(name)
    cases = make_cases(edit, "validation", 24)
    assert len(cases) == 24 and all(edit.eligible(face) for face in cases.sources)
    assert all(edit.done({**vars(face), "shown_hair": face.shown_hair}) for face in cases.answers)
    assert 0 < sum(cases.changed) < 24
    for i, (face, anew) in enumerate(zip(cases.sources, cases.changed, strict=True)):
        assert (face == face_at("validation", i)) is not anew
        different = {key for key, value in vars(face).items() if value != getattr(face_at("validation", i), key)}
        assert different <= set(edit.changes), "only what is in the way may be drawn anew"


def test_a_source_depends_on_its_index_alone():
    few, many = make_cases(find_edit("angry"), "test", 8), make_cases(find_edit("angry"), "test", 16)
    assert few.sources == many.sources[:8] and few.keys == many.keys[:8]


def test_changed_sources_have_their_own_keys():
    smiling, angry = (make_cases(find_edit(name), "test", 12) for name in ("smiling", "angry"))
    for cases in (smiling, angry):
        assert len(set(cases.keys)) == 12
    shared = set(smiling.keys) & set(angry.keys)
    same = {key: (smiling.images[smiling.keys.index(key)], angry.images[angry.keys.index(key)]) for key in shared}
    assert same and all(torch.equal(a, b) for a, b in same.values())


def test_every_edit_finds_sources():
    for edit in EDITS.values():
        for index in range(4):
            face = source_of(edit, face_at("test", index), index)
            assert edit.eligible(face) and not held_out(face)


def test_the_region_is_where_source_and_truth_differ():
    cases = make_cases(find_edit("with glasses"), "validation", 3)
    outside = cases.region.expand_as(cases.images) == 0
    assert torch.equal(cases.images[outside], cases.truth[outside])
    assert 0.01 < cases.region.mean() < 0.2


def test_an_input_that_toy_faces_lack_is_named():
    cases = make_cases(find_edit("smiling"), "validation", 2)
    with pytest.raises(UsageError, match="no instruction"):
        cases.requests(("image", "instruction"))
    masked = cases.requests(("image", "mask"))
    assert all((request.mask >= region).all() for request, region in zip(masked, cases.region, strict=True))


# Running and judging


def test_the_truth_has_full_marks_and_what_is_undefined_is_counted():
    held, _ = trials.trial(wrong=0)
    found = held.scores["told"]["raw"].figures
    assert all((found[name] == 1).all() for name in ("success", "preservation", "score"))
    assert all((found[name] == PSNR_CAP).all() for name in ("psnr", "psnr_inside", "psnr_outside"))
    assert found["ssim"].tolist() == pytest.approx([1.0] * 6) and (found["perceptual"] == 0).all()
    untouched = summary([held])["edits"]["smiling"]["methods"]["no-edit"]["variants"]["raw"]["figures"]
    assert untouched["clip_direction"] == {"mean": None, "count": 0, "excluded": 6}
    assert untouched["success"]["mean"] == 0 and untouched["preservation"]["mean"] == 1
    assert untouched["psnr_outside"]["mean"] == PSNR_CAP and untouched["psnr_inside"]["mean"] < 30


def test_an_edit_that_changes_something_else_is_charged_for_it():
    held, seeing = trials.trial(wrong=0)
    cases = held.cases
    others = [trials.faces.edited(face, shirt="teal" if face.shirt != "teal" else "red") for face in cases.answers]
    seeing.oracle.show(others)
    found = Faces().score(seeing, cases, pictures(trials.faces.render, others))
    assert (found.figures["success"] == 1).all() and (found.kept["shirt"] == 0).all()
    assert (found.figures["preservation"] < 1).all() and (found.kept["skin"] == 1).all()
    assert "expression" not in found.kept
    assert (found.figures["psnr_outside"] < held.scores["told"]["raw"].figures["psnr_outside"]).all()


def test_batches_cover_all_cases_in_order_and_calls_are_the_methods_own():
    cases = make_cases(find_edit("smiling"), "validation", 6)
    editor, ticks = trials.Told(cases), []
    outcome = contest.run(editor, cases, batch_size=4, tick=lambda: ticks.append(1))
    assert torch.equal(outcome.variants["raw"], cases.truth)
    assert editor.batches == [4, 2] and len(ticks) == 2
    assert outcome.calls == 79 and outcome.seconds > 0 and "pasted" not in outcome.variants


def test_a_mask_gives_a_pasted_variant():
    cases = make_cases(find_edit("smiling"), "validation", 2)
    nowhere = {key: torch.zeros(1, 64, 64) for key in cases.keys}
    outcome = contest.run(trials.Told(cases, masks=nowhere), cases, batch_size=4)
    assert torch.equal(outcome.variants["pasted"], cases.images) and torch.equal(outcome.variants["raw"], cases.truth)


def test_the_first_batch_is_timed_without_the_cache_and_the_others_use_it(tmp_path):
    cases = make_cases(find_edit("smiling"), "validation", 6)
    editor = trials.Told(cases)
    editor.cache, editor.measure, seen = None, True, []
    plain = editor.edit
    editor.edit = lambda requests, state: (seen.append((editor.cache, editor.measure)), plain(requests, state))[1]
    cache = InversionCache(tmp_path)
    contest.run(editor, cases, batch_size=2, cache=cache)
    assert seen == [(None, False), (cache, False), (cache, False)]


def test_values_that_are_not_finite_stop_the_evaluation():
    class Broken(Editor):
        name = "broken"

        def edit(self, requests, state):
            return EditResult(torch.full((len(requests), 3, 64, 64), math.nan))

    with pytest.raises(UserError, match="broken returned values that are not finite"):
        contest.run(Broken(), make_cases(find_edit("smiling"), "validation", 2), batch_size=2)


def test_the_bootstrap_decides_what_is_above():
    held, _ = trials.trial(wrong=1)
    difference = summary([held])["edits"]["smiling"]["differences"]["told"]["no-edit"]
    assert difference["score"]["above"] and difference["score"]["mean"] == pytest.approx(5 / 6)
    none, _ = trials.trial(wrong=6)
    assert not summary([none])["edits"]["smiling"]["differences"]["told"]["no-edit"]["score"]["above"]


def test_the_frechet_distance_is_to_other_faces():
    held, _ = trials.trial(wrong=0)
    entry = summary([held])["edits"]["smiling"]
    far = {name: method["variants"]["raw"]["frechet"] for name, method in entry["methods"].items()}
    assert far["told"] == pytest.approx(entry["frechet_real"]) and entry["frechet_real"] > 0


# The command


@pytest.fixture
def stand_ins(monkeypatch):
    """Let `evaluate` find a method that looks up answers, without any weights on disk."""
    seeing = trials.judges()

    def load(cfg, name, *, prompt, **where):
        cases = make_cases(find_edit(prompt), "validation", 6)
        seeing.oracle.show([*cases.sources, *cases.answers])
        wrong = cases.keys[:1] if name == "told" else cases.keys
        return Loaded(name, trials.Told(cases, wrong=wrong), (64, 64), 4, provenance=trials.CARD)

    cfg = SimpleNamespace(method={"_target_": "a.b.told.Told"}, backbone=None, engine=None, evaluate="faces")
    monkeypatch.setattr(entrants, "compose_for", lambda options, verb: cfg)
    monkeypatch.setattr(entrants, "compose", lambda overrides, conf_dirs: SimpleNamespace())
    monkeypatch.setattr(entrants, "load_editor", load)
    monkeypatch.setattr(faces, "load_judges", lambda device: seeing)


def options(folder, **changes):
    return EvaluateOptions(
        **{"methods": ["told"], "edits": ["smiling", "old"], "split": "validation", "images": 6, "output": folder} | changes
    )


def test_the_command_writes_figures_rows_pictures_and_a_report(stand_ins, tmp_path, capsys):
    assert command.evaluate(options(tmp_path / "out")) == 0
    results = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(results["edits"]) == ["smiling", "old"] and results["images"] == 6
    methods = results["edits"]["smiling"]["methods"]
    assert list(methods) == ["told", "no-edit", "reconstruction", "clip-guided"], "no text is read, so SDEdit does not apply"
    with open(tmp_path / "out" / "images.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 4 * 6 and set(FIGURES) <= set(lines[0])
    mine = [float(line["score"]) for line in lines if line["edit"] == "smiling" and line["method"] == "told"]
    assert sum(mine) / 6 == pytest.approx(methods["told"]["variants"]["raw"]["figures"]["score"]["mean"], abs=1e-5)
    assert Image.open(tmp_path / "out" / "sheet-smiling.png").width > 6 * 64
    printed = capsys.readouterr().out
    assert "report.html" in printed and "told" in printed
    assert (tmp_path / "out" / "table.md").read_text().count("**told**") == 2


def test_baselines_can_be_chosen_or_left_out(stand_ins, tmp_path):
    command.evaluate(options(tmp_path, edits=["smiling"], baselines=["none"]))
    assert list(json.loads((tmp_path / "metrics.json").read_text())["edits"]["smiling"]["methods"]) == ["told"]
    with pytest.raises(UsageError, match=r"Did you mean 'reconstruction'"):
        command.evaluate(options(tmp_path, baselines=["reconstructon"]))


def test_wrong_edits_and_numbers_are_named(stand_ins, tmp_path):
    with pytest.raises(UsageError, match=r"'smilling'.*Did you mean 'smiling'"):
        command.evaluate(options(tmp_path, edits=["smilling"]))
    with pytest.raises(UsageError, match="at least 2"):
        command.evaluate(options(tmp_path, images=1))


def test_a_real_recipe_runs_beside_its_baselines_on_its_own_backbone(monkeypatch, tmp_path):
    seeing = trials.judges()
    monkeypatch.setattr(faces, "load_judges", lambda device: seeing)
    backbone, clip = write_pixel(tmp_path / "ddpm"), write_clip(tmp_path / "clip")
    overrides = [f"backbone.path={backbone}", f"method.clip.path={clip}", "method.steps=4", "engine.batch_size=2"]
    asked = {"methods": ["clip-guided"], "overrides": overrides, "edits": ["old"], "images": 3, "output": tmp_path / "out"}
    assert command.evaluate(EvaluateOptions(**asked, split="validation", baselines=["no-edit", "reconstruction", "sdedit"])) == 0
    entry = json.loads((tmp_path / "out" / "metrics.json").read_text())["edits"]["old"]
    calls = {name: found["calls"] for name, found in entry["methods"].items()}
    assert calls == {"clip-guided": 7, "no-edit": 0, "reconstruction": 79, "sdedit": 20}
    assert entry["methods"]["reconstruction"]["seconds"] > 0
    assert entry["settings"]["clip-guided"]["backbone"] == str(backbone)


@pytest.mark.parametrize("told_by_code", [True, False])
def test_baselines_of_a_model_that_is_told_a_code_take_the_plain_one(monkeypatch, told_by_code):
    taken = {}

    def load(cfg, name, **where):
        taken[name] = cfg.backbone.get("path")
        return Loaded(name, SimpleNamespace(backbone=SimpleNamespace(condition=lambda request: None)), (64, 64), 4)

    monkeypatch.setattr(entrants, "load_editor", load)
    cfg = recipe.compose(["recipe=diffae" if told_by_code else "recipe=asyrp", "backbone.path=mine"])
    backbone = SimpleNamespace(semantic_code=None) if told_by_code else SimpleNamespace()
    methods = {"it": Loaded("it", SimpleNamespace(backbone=backbone), (64, 64), 4)}
    found = entrants.load_baselines(EvaluateOptions(), Faces(), cfg, methods, find_edit("smiling"))
    assert list(found) == ["no-edit", "reconstruction", "clip-guided"], "SDEdit is not told what is wanted"
    assert set(taken.values()) == {"editkit:faces-ddpm" if told_by_code else "mine"}


def test_a_file_without_marks_is_refused_before_any_edit(stand_ins, tmp_path):
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(UserError, match="has no lines <!-- results -->"):
        command.evaluate(options(tmp_path / "out", update=tmp_path / "README.md"))
    assert not (tmp_path / "out").exists()


# Several methods


def test_several_methods_share_one_table_methods_first(stand_ins, tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results -->\n<!-- /results -->\n")
    assert command.evaluate(options(tmp_path / "out", methods=["second", "told"], update=readme)) == 0
    results = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert results["methods"] == ["second", "told"]
    expected = ["second", "told", "no-edit", "reconstruction", "clip-guided"]
    for entry in results["edits"].values():
        assert list(entry["methods"]) == expected
        assert {name: list(found) for name, found in entry["differences"].items()} == dict.fromkeys(expected[:2], expected[2:])
        assert entry["differences"]["told"]["no-edit"]["score"]["above"]
        assert not entry["differences"]["second"]["no-edit"]["score"]["above"]
        assert list(entry["settings"]) == ["second", "told"]
    lines = [line.split(" | ")[:2] for line in readme.read_text().splitlines() if line.startswith(("| smiling", "| old"))]
    names = ["second", "**told**", *expected[2:]]
    assert lines == [[f"| {edit}", name] for edit in ("smiling", "old") for name in names]
    assert "second, told on 6 validation faces" in capsys.readouterr().out


def test_a_sheet_has_a_row_for_each_method(stand_ins, tmp_path):
    for methods in (["told"], ["told", "second"]):
        command.evaluate(options(tmp_path, methods=methods, edits=["smiling"]))
        rows = len(methods) + 3
        assert Image.open(tmp_path / "sheet-smiling.png").height == rows * (96 + 4) + 4, "source, reconstruction and truth too"


def test_a_method_that_is_evaluated_is_no_baseline(stand_ins, tmp_path):
    command.evaluate(options(tmp_path, methods=["told", "reconstruction"], edits=["smiling"]))
    entry = json.loads((tmp_path / "metrics.json").read_text())["edits"]["smiling"]
    assert list(entry["methods"]) == ["told", "reconstruction", "no-edit", "clip-guided"]
    loaded = {name: Loaded(name, Editor(), (64, 64)) for name in ("told", "reconstruction", "sdedit")}
    assert entrants.baselines(EvaluateOptions(), Faces(), loaded) == ["no-edit", "clip-guided"]
    asked = EvaluateOptions(baselines=["sdedit", "no-edit", "reconstruction", "no-edit"])
    assert entrants.baselines(asked, Faces(), loaded) == ["no-edit"]


def test_the_edits_are_those_that_any_of_the_methods_would_choose(monkeypatch):
    known = {"one": ["a face with glasses", "a bald face"], "two": ["an angry face", "a face with glasses"], "none": []}
    parts = {folder: [Weights(Path("x"), {"target": text}) for text in texts] for folder, texts in known.items()}
    monkeypatch.setattr(base, "bundled", parts.get)

    def chosen(*folders, edits=()):
        recipes = {name: OmegaConf.create({"method": {"_target_": name}}) for name in folders}
        return [edit.name for edit in entrants.chosen_edits(EvaluateOptions(edits=list(edits)), Faces(), recipes)]

    assert chosen("one") == ["with glasses", "bald"]
    assert chosen("one", "two") == ["angry", "with glasses", "bald"] == chosen("two", "one")
    assert chosen("two", "none") == list(STANDARD)
    assert chosen("one", edits=["old", "an old face", "smiling"]) == ["old", "smiling"]


def test_weights_that_are_missing_stop_it_before_any_edit(stand_ins, monkeypatch, tmp_path):
    load, started = entrants.load_editor, []

    def lacking(cfg, name, *, prompt, **where):
        if (name, prompt) == ("second", "an old face"):
            raise UsageError("there are no weights for the prompt 'an old face'")
        return load(cfg, name, prompt=prompt, **where)

    monkeypatch.setattr(entrants, "load_editor", lacking)
    monkeypatch.setattr(contest, "run", lambda *inputs, **knobs: started.append(inputs))
    with pytest.raises(UsageError, match="second for the edit 'old': there are no weights for the prompt"):
        command.evaluate(options(tmp_path, methods=["told", "second"]))
    assert not started and not list(tmp_path.iterdir())


def test_methods_of_one_name_or_of_different_sizes_are_refused(stand_ins, monkeypatch, tmp_path):
    with pytest.raises(UsageError, match="two methods of one name, told paper/told"):
        command.evaluate(options(tmp_path, methods=["told", "paper/told"]))
    load = entrants.load_editor
    monkeypatch.setattr(
        entrants, "load_editor", lambda cfg, name, **where: replace(load(cfg, name, **where), size=(8 * len(name), 32))
    )
    with pytest.raises(UsageError, match=r"different sizes \(told 32 x 32, second 48 x 32\)"):
        command.evaluate(options(tmp_path, methods=["told", "second"]))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"overrides": ["engine.batch_size=2", "method.steps=3"]}, "method.steps=3 with several methods"),
        ({"overrides": ["++method.steps=3"]}, "method.steps=3 with several methods"),
    ],
)
def test_what_can_be_of_one_method_only(changes, expected):
    assert EvaluateOptions(methods=["told"], **changes)
    with pytest.raises(UsageError, match=expected.replace("+", r"\+")):
        EvaluateOptions(methods=["told", "second"], **changes)


def test_each_of_several_methods_gets_its_own_weights(stand_ins, monkeypatch, tmp_path):
    load, given = entrants.load_editor, {}

    def noted(cfg, name, *, weights=(), **where):
        given[name] = list(weights)
        return load(cfg, name, **where)

    monkeypatch.setattr(entrants, "load_editor", noted)
    both = ["second=runs/b:0.5", "told=a.safetensors", "told=c=d"]
    command.evaluate(options(tmp_path, methods=["told", "second"], edits=["smiling"], weights=both))
    assert (given["told"], given["second"]) == (["a.safetensors", "c=d"], ["runs/b:0.5"])
    command.evaluate(options(tmp_path, methods=["told"], edits=["smiling"], weights=["name=a.safetensors"]))
    assert given["told"] == ["name=a.safetensors"], "a single method's weights may have names of their own"


@pytest.mark.parametrize("text", ["a.safetensors", "other=a.safetensors"])
def test_weights_of_none_of_several_methods_are_refused(text, stand_ins, tmp_path):
    with pytest.raises(UsageError, match=f"--weights {text}: write METHOD=PATH, with one of told, second"):
        command.evaluate(options(tmp_path, methods=["told", "second"], weights=[text]))


def test_overrides_are_for_every_method():
    asked = EvaluateOptions(methods=["a", "b"], overrides=["backbone=x", "engine.batch_size=2"])
    assert [one.recipe_overrides() for one in asked.recipes()] == [
        [f"recipe={name}", "backbone=x", "engine.batch_size=2"] for name in ("a", "b")
    ]
    assert [one.method for one in EvaluateOptions(overrides=["recipe=a"]).recipes()] == ["a"]


# Several processes


def test_what_is_done_stays_where_a_later_edit_fails(stand_ins, monkeypatch, tmp_path):
    run = contest.run

    def fails(editor, cases, **knobs):
        if cases.edit.name == "old":
            raise UserError("out of memory")
        return run(editor, cases, **knobs)

    monkeypatch.setattr(contest, "run", fails)
    with pytest.raises(UserError, match="out of memory"):
        command.evaluate(options(tmp_path, edits=["smiling", "old"], baselines=["none"]))
    assert list(json.loads((tmp_path / "metrics.json").read_text())["edits"]) == ["smiling"]
    assert {"table.md", "report.html", "images.csv", "sheet-smiling.png"} <= {path.name for path in tmp_path.iterdir()}


def test_processes_share_the_edits_out_and_the_order_stays(stand_ins, monkeypatch, tmp_path):
    seen = []

    def here(work, shares, tick):
        seen.extend(shares)
        found = []
        for share in shares:
            found.append(list(work(*share)))
            for _ in found[-1]:
                tick()
        return found

    monkeypatch.setattr(command, "spread", here)
    command.evaluate(options(tmp_path, edits=["smiling", "old", "angry"], jobs=2, baselines=["none"]))
    results = json.loads((tmp_path / "metrics.json").read_text())
    assert list(results["edits"]) == ["smiling", "old", "angry"] and results["jobs"] == 2
    assert [[edit.name for edit in edits] for edits, _ in seen] == [["smiling", "angry"], ["old"]]
    assert len({folder for _, folder in seen}) == 2, "inversions of their own"
    assert not any(Path(folder).parent.exists() for _, folder in seen), "and they are gone at the end"


def test_there_are_no_more_processes_than_edits(stand_ins, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "spread", None)
    command.evaluate(options(tmp_path, edits=["smiling"], jobs=5, baselines=["none"]))
    assert json.loads((tmp_path / "metrics.json").read_text())["jobs"] == 1
    with pytest.raises(UsageError, match="--jobs 0"):
        options(tmp_path, jobs=0)


def test_several_edits_at_once_are_not_for_a_gpu(stand_ins, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "device_of", lambda name: torch.device("cuda"))
    with pytest.raises(UsageError, match="--jobs 2 on cuda: a GPU makes one edit at a time"):
        command.evaluate(options(tmp_path, jobs=2))
    assert not list(tmp_path.iterdir())


def test_a_process_that_cannot_go_on_leaves_nothing(stand_ins, monkeypatch, tmp_path):
    def fails(work, shares, tick):
        tick()
        raise UserError("try --dtype fp32")

    monkeypatch.setattr(command, "spread", fails)
    with pytest.raises(UserError, match="fp32"):
        command.evaluate(options(tmp_path, jobs=2))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_real_methods_give_the_same_in_one_process_and_in_two(tmp_path):
    overrides = [f"backbone.path={write_pixel(tmp_path / 'ddpm')}", "engine.batch_size=2"]
    asked = {"methods": ["clip-guided", "reconstruction"], "overrides": overrides, "edits": ["old", "smiling"], "images": 3}
    found = []
    for jobs in (1, 2):
        folder = tmp_path / str(jobs)
        knobs = {"steps": 3, "device": "cpu", "split": "validation", "baselines": ["no-edit"]}
        with one_thread():  # as each of two processes has: sums over several threads round differently
            command.evaluate(EvaluateOptions(**asked, **knobs, output=folder, jobs=jobs))
        found.append(re.sub(r'"(seconds|jobs)": [\d.e-]+', "", (folder / "metrics.json").read_text()))
    assert found[0] == found[1] and '"clip-guided"' in found[0]
    assert (tmp_path / "1" / "images.csv").read_bytes() == (tmp_path / "2" / "images.csv").read_bytes()
    assert (tmp_path / "1" / "sheet-old.png").read_bytes() == (tmp_path / "2" / "sheet-old.png").read_bytes()


# Tables


def test_the_markdown_table_has_the_figures_of_the_results():
    held, _ = trials.trial()
    results = summary([held], seed=0, device="cpu")
    table = markdown_table(results).splitlines()
    assert len({line.count("|") for line in table[:4]}) == 1
    assert "| 0.83 |" in table[2] and table[2].endswith("| 79 | 12 |")


def test_a_table_replaces_what_stands_between_its_marks(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter\n")
    insert(readme, "results", "new\n")
    insert(readme, "results", "newer\n")
    assert readme.read_text() == "before\n<!-- results -->\nnewer\n<!-- /results -->\nafter\n"
    with pytest.raises(UserError, match="<!-- other -->"):
        insert(readme, "other", "x")
