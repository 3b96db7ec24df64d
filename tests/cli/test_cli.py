"""The command line as a user meets it: exit codes, one line for a mistake, options that arrive where they belong."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from editkit.app import edit as app_edit
from editkit.app import evaluate as app_evaluate
from editkit.app.options import EditOptions, EvaluateOptions
from editkit.cli import run
from editkit.cli.complete import complete_override, overrides_like
from editkit.errors import UsageError, UserError
from tests.cli.listing import listing

RECIPE = """\
# @package _global_
# Commands:   editkit train recipe=tiny
card: {title: Tiny, family: weak, needs: [image], takes: [mask], summary: a test}
method:
  _target_: editkit.app.options.TrainOptions
  prompt: null
  source_prompt: null
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "conf" / "recipe").mkdir(parents=True)
    (tmp_path / "conf" / "recipe" / "tiny.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys, *arguments: str) -> tuple[int, str]:
    """Run a command that must fail and return its exit code and its one line on stderr."""
    code = run(list(arguments))
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("editkit: ") and "Traceback" not in err, err
    return code, err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "Did you mean 'train'"),
        (["edit", "--imag", "x.png"], "--image"),
        (["edit", "--seed", "one"], "--seed"),
        (["edit", "--fit", "stretch"], "--fit is mask, crop, resize, not 'stretch'"),
        (["edit", "--dtype", "fp61"], "Did you mean 'fp16'"),
        (["show"], "recipe"),
        (["show", "asyrpp"], "no recipe 'asyrpp'"),
        (["cp", "asyrpp", "x.yaml"], "no recipe 'asyrpp'"),
        (["train", "recipe=nothing-like-it", "--dry-run"], "no recipe 'nothing-like-it'"),
        (["train", "--method", "a", "recipe=b"], "--method a and recipe=b: give one of them"),
        (["train", "recipe=a", "recipe=b"], "recipe=a and recipe=b: give one of them"),
        (["train", "--backbone", "a", "backbone=b"], "--backbone a and backbone=b: give one of them"),
        (["train", "--dry-run", "trainer.stepz=3"], "Did you mean 'trainer.steps'"),
        (["train", "--dry-run", "--conf", "no/such/folder"], "is not a folder"),
        (["train", "--dry-run", "data=folder"], "data.root must be given"),
        (["train", "--dry-run", "--prompt", "a man"], "takes no --prompt"),
        (["train", "--dry-run", "data=folder", "data.root=2024"], "data.root must be text, not 2024"),
        (["train", "--from", "runs/a", "seed=3", "--prompt", "a man"], "leave out overrides, prompt"),
        (["train", "--from", "no-run-here", "--dry-run"], "no-run-here is not a run directory"),
        (["evaluate"], "evaluate needs --method NAME"),
        (["evaluate", "--method", "a", "recipe=b"], "--method a and recipe=b: give one of them"),
        (["evaluate", "--method", "a", "--split", "tset"], "Did you mean 'test'"),
        (["evaluate", "--method", "a", "--jobs", "0"], "--jobs 0: at least 1"),
        (["evaluate", "--method", "a", "--method", "b", "method.x=1"], "method.x=1 with several methods"),
        (["train", "--method", "a", "--method", "b", "--dry-run"], "no recipe 'b'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(capsys, arguments, expected):
    code, err = refused(capsys, *arguments)
    assert code == 2 and expected in err


@pytest.mark.parametrize(
    ("error", "code"), [(UserError("no\nsuch file"), 1), (UsageError("bad"), 2), (KeyboardInterrupt(), 130), (MemoryError(), 1)]
)
def test_errors_become_exit_codes(capsys, monkeypatch, error, code):
    def fail(options):
        raise error

    monkeypatch.setattr(app_edit, "edit_images", fail)
    assert refused(capsys, "edit", "--method", "asyrp")[0] == code


def test_a_bug_keeps_its_traceback(monkeypatch):
    def fail(options):
        raise ZeroDivisionError

    monkeypatch.setattr(app_edit, "edit_images", fail)
    with pytest.raises(ZeroDivisionError):
        run(["edit"])


@pytest.mark.parametrize("code", [0, 1])
def test_what_a_command_returns_is_its_exit_code(monkeypatch, code):
    monkeypatch.setattr(app_edit, "edit_images", lambda options: code)
    assert run(["edit"]) == code


def test_options_arrive_as_typed(monkeypatch):
    seen: list[EditOptions] = []
    monkeypatch.setattr(app_edit, "edit_images", lambda options: seen.append(options) or 0)
    words = "edit --image a.png --reference b.png --reference c.png --strength -1 --strength 0.5 --weights n=d.safetensors:0.5"
    run([*words.split(), "--prompt", "a man, old ${x}", "-o", "out.png", "recipe=asyrp", "method.t_edit=450", "--seed", "3"])
    assert seen == [
        EditOptions(
            method="asyrp",
            overrides=["method.t_edit=450"],
            image=Path("a.png"),
            reference=[Path("b.png"), Path("c.png")],
            strength=[-1.0, 0.5],
            weights=["n=d.safetensors:0.5"],
            prompt="a man, old ${x}",
            output=Path("out.png"),
            seed=3,
        )
    ]
    run(["edit"])
    assert seen[1] == EditOptions()


def test_method_is_an_alias_of_recipe(own, capsys):
    printed = []
    for choice in (["--method", "tiny"], ["recipe=tiny"], ["--method=conf/recipe/tiny.yaml"]):
        assert run(["train", *choice, "--conf", "conf", "--dry-run", "trainer.steps=3", "--prompt", "a man, old"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] == printed[2]
    assert "prompt: a man, old\n" in printed[0] and "steps: 3\n" in printed[0]


def test_evaluate_takes_several_methods(monkeypatch):
    seen: list[EvaluateOptions] = []
    monkeypatch.setattr(app_evaluate, "evaluate", lambda options: seen.append(options) or 0)
    run(["evaluate", "--method", "asyrp", "--method", "b.yaml", "--edit", "smiling", "--edit", "old", "--jobs", "2", "seed=3"])
    assert seen == [EvaluateOptions(methods=["asyrp", "b.yaml"], edits=["smiling", "old"], jobs=2, overrides=["seed=3"])]


def test_a_dry_run_of_several_methods_shows_each_recipe(capsys):
    assert run(["evaluate", "--method", "clip-guided", "--method", "reconstruction", "--dry-run", "engine.batch_size=3"]) == 0
    documents = list(yaml.safe_load_all(capsys.readouterr().out))
    assert [(one["recipe"], one["engine"]["batch_size"]) for one in documents] == [("clip-guided", 3), ("reconstruction", 3)]


def test_a_dry_run_leaves_nothing_behind(own, capsys):
    before = sorted(own.rglob("*"))
    assert run(["train", "recipe=tiny", "--conf", "conf", "--dry-run"]) == 0
    assert sorted(own.rglob("*")) == before


def test_show_prints_the_recipe(own, capsys):
    assert run(["show", "tiny", "--conf", "conf"]) == 0
    assert capsys.readouterr().out == RECIPE


def test_version_and_help(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("editkit ")
    assert run(["edit", "--help"]) == 0
    assert "--reference-mask" in capsys.readouterr().out
    assert run([]) == 2
    out, err = capsys.readouterr()
    assert "Usage" in out + err and "editkit: \n" not in err


def test_the_list_of_options_is_frozen():
    frozen = (Path(__file__).parent / "options.txt").read_text(encoding="utf-8")
    assert listing() == frozen, "if this is meant, see tests/cli/listing.py and say so in CHANGELOG.md"


class Typed:
    """What completion knows of the words before the cursor."""

    def __init__(self, *words: str, method: str | None = None, **more: list[str] | None) -> None:
        self.params = {"overrides": list(words), "method": method, **more}


@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        ([], "backbone.p", ["backbone.path="]),
        ([], "trainer.ste", ["trainer.steps="]),
        ([], "trainer=c", ["trainer=cpu"]),
        (["trainer", "="], "c", ["cpu"]),  # bash ends words at =
        (["seed", "=", "3", "trainer", "="], "g", ["gpu"]),
        (["seed=3"], "trainer.ke", ["trainer.keep="]),
        ([], "nothing.li", []),
        ([], "seed=", []),
        (["recipe=none-of-these"], "trainer.ste", []),
    ],
)
def test_completion(words, incomplete, expected):
    assert complete_override(Typed(*words), incomplete) == expected


def test_completion_right_after_the_equals_sign():
    assert "cpu" in complete_override(Typed("trainer"), "=")


def test_completion_knows_the_method_of_every_verb():
    for typed in (Typed(method="clip-guided"), Typed(methods=["clip-guided", "asyrp"])):
        assert complete_override(typed, "method.sca") == ["method.scale="]
    assert complete_override(Typed(methods=None), "method.sca") == []


def test_completion_offers_the_keys_of_the_recipe():
    assert "data.root=" in overrides_like("data.", ["data=folder"], None)
    assert "data.root=" not in overrides_like("data.", [], None)
