"""Composing, freezing and building: what a user types wrongly is one line, what is right survives the round trip."""

from __future__ import annotations

import textwrap

import pytest
import yaml
from omegaconf import OmegaConf

from editkit import recipe
from editkit.errors import UserError
from editkit.recipe import RecipeError
from editkit.recipe_checks import check_arguments, check_override, check_targets, locate

SPECIAL = [
    "a man, old",
    "it's {odd} [text]",
    "${seed}",
    "a \\${b}",
    "key=value",
    "null",
    "π 猫",
    '"quoted"',
    "a: b # c",
    "\\ ${a} \\",
    "\\\\${a",
    "a\\b",
]


@pytest.fixture
def own(tmp_path):
    """A folder of the user's own with two recipes, laid out like conf/."""
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text(
        textwrap.dedent("""\
        # @package _global_
        card: {title: Mine, family: weak, needs: [image], summary: a | b}
        method:
          _target_: editkit.app.options.EditOptions
          steps: 10
          image: ${run_dir}
          prompt: null
        trainer:
          steps: 7
        """)
    )
    (tmp_path / "recipe" / "more.yaml").write_text("# @package _global_\ndefaults: [/recipe/mine, _self_]\ntrainer: {steps: 9}\n")
    return tmp_path


def test_a_recipe_says_only_what_differs(own):
    cfg = recipe.compose(["recipe=mine", "trainer.batch_size=3"], conf_dirs=[own])
    assert (cfg.trainer.steps, cfg.trainer.batch_size, cfg.trainer.keep, cfg.recipe) == (7, 3, 2, "mine")
    assert cfg.card.title == "Mine" and cfg.method.steps == 10
    assert recipe.compose(["recipe=more"], conf_dirs=[own]).trainer.steps == 9


def test_a_recipe_may_be_a_file(own, tmp_path):
    file = tmp_path / "elsewhere" / "third.yaml"
    file.parent.mkdir()
    file.write_text("# @package _global_\ndefaults: [/recipe/mine, _self_]\ntrainer: {steps: 11}\n")
    cfg = recipe.compose([f"recipe={file}"], conf_dirs=[own])
    assert (cfg.trainer.steps, cfg.recipe, cfg.method.steps) == (11, "third", 10)
    with pytest.raises(RecipeError, match="no recipe file"):
        recipe.compose([f"recipe={tmp_path}/none.yaml"])


def test_an_entry_that_refers_to_another_takes_what_that_one_takes(own):
    """Not the text that a reference is written as."""
    mine = own / "recipe" / "mine.yaml"
    mine.write_text(
        mine.read_text() + "\nextra: {total: '${trainer.steps}', round: '${extra.round}', gone: '${nowhere.at.all}'}\n"
    )
    cfg = recipe.compose(["recipe=mine", "extra.total=30", "extra.round=3", "extra.gone=4"], conf_dirs=[own])
    assert (cfg.extra.total, cfg.extra.round, cfg.extra.gone) == (30, 3, 4)
    with pytest.raises(RecipeError, match="extra.total must be a whole number"):
        recipe.compose(["recipe=mine", "extra.total=many"], conf_dirs=[own])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("recipe=mien", r"no recipe 'mien'. Did you mean 'mine'\?"),
        ("backbone=toy_face", r"no backbone 'toy_face'. Did you mean 'toy_faces'\?"),
        ("backbon=toy_faces", "Did you mean 'backbone'"),
        ("trainr.steps=3", "Did you mean 'trainer.steps'"),
        ("trainer.step=3", "Did you mean 'trainer.steps'"),
        ("method.setps=3", "Did you mean 'method.steps'"),
        ("steps=3", "no key 'steps'"),
        ("trainer.steps.more=3", "no key 'trainer.steps.more'"),
        ("trainer.steps=many", "trainer.steps must be a whole number, not 'many'"),
        ("trainer.batch_size=1.5", "must be a whole number, not 1.5"),
        ("trainer.batch_size=true", "must be a whole number, not True"),
        ("trainer.ema=high", "trainer.ema must be a number"),
        ("trainer.precision=16", "must be 32 or bf16"),
        ("engine.compile=1", "must be true or false"),
        ("trainer.save_every_s=low", "trainer.save_every_s must be a number"),
        ("trainer=5", "no trainer '5'"),
        ("trainer={steps: 5}", "no trainer"),
        ("method=5", "method is a section; set one of its keys, such as method.steps"),
        ("seed=1,2", "reads as several values"),
        ("method.prompt=a man, old", "a text with a comma \"method.prompt='...'\""),
        ("method.prompt=it's", "quote it"),
        ("mine", "not of the form key=value"),
        ("+method.hook._target_=os.system", "os.system is not allowed"),
        ("method._target_=subprocess.run", "subprocess.run is not allowed"),
        ("method._target_=torch.load", "torch.load is not allowed"),
        ("method._target_=editkitx.run", "editkitx.run is not allowed"),
        ("method._target_=5", "method._target_ must be text"),
    ],
)
def test_mistakes_are_one_line_that_helps(own, override, expected):
    overrides = [override] if override.startswith("recipe=") else ["recipe=mine", override]
    with pytest.raises(RecipeError, match=expected) as caught:
        recipe.compose(overrides, conf_dirs=[own])
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize(
    "override",
    [
        "trainer.images=null",
        "trainer.ema=0.99",
        "trainer.precision=bf16",
        "trainer.steps=null",
        "+method.new=1",
        "method.steps=2.5",
    ],
)
def test_what_may_be_set(own, override):
    recipe.compose(["recipe=mine", override], conf_dirs=[own])


def test_the_length_that_was_typed_counts(own):
    (own / "recipe" / "short.yaml").write_text("# @package _global_\ntrainer: {images: 64}\n")
    assert recipe.compose(["recipe=short"], conf_dirs=[own]).trainer.images == 64
    assert recipe.compose(["recipe=short", "trainer.steps=5"], conf_dirs=[own]).trainer.images is None
    both = recipe.compose(["recipe=short", "trainer.steps=5", "trainer.images=8"], conf_dirs=[own])
    assert both.trainer.images == 8


def test_a_broken_recipe_file_is_named(own):
    (own / "recipe" / "broken.yaml").write_text("a: [1\nb: 2\n")
    with pytest.raises(RecipeError, match="broken") as caught:
        recipe.compose(["recipe=broken"], conf_dirs=[own])
    assert "\n" not in str(caught.value)


def test_conf_must_be_a_folder(tmp_path):
    with pytest.raises(RecipeError, match="not a folder"):
        recipe.compose([], conf_dirs=[tmp_path / "none"])


@pytest.mark.parametrize("text", SPECIAL)
def test_prompts_survive_composing_freezing_and_thawing(own, tmp_path, text):
    cfg = recipe.compose(["recipe=mine"], prompts={"prompt": text}, conf_dirs=[own])
    assert recipe.frozen(cfg)["method"]["prompt"] == text
    recipe.freeze(cfg, tmp_path / "run")
    assert recipe.frozen(recipe.thaw(tmp_path / "run")) == recipe.frozen(cfg)


def test_a_prompt_that_nobody_reads_is_refused(own):
    with pytest.raises(RecipeError, match="takes no --source-prompt"):
        recipe.compose(["recipe=mine"], prompts={"source_prompt": "a face"}, conf_dirs=[own])


def test_the_run_directory_is_the_same_for_the_same_command(own):
    def run_dir(*overrides, **prompts):
        return recipe.compose(["recipe=mine", *overrides], prompts=prompts, conf_dirs=[own]).run_dir

    assert run_dir() == "runs/mine"
    assert run_dir(prompt="A smiling face!") == "runs/mine-a-smiling-face"
    assert run_dir("seed=1") == run_dir("seed=1") != run_dir("seed=2")
    assert run_dir("seed=1", "trainer.keep=3") == run_dir("trainer.keep=3", "seed=1")
    assert recipe.compose([], prompts={"run_dir": "/a b/c"}).logger.save_dir == "/a b/c"


def test_a_run_directory_holds_one_configuration(own, tmp_path):
    def freeze(*overrides):
        recipe.freeze(recipe.compose(["recipe=mine", *overrides], conf_dirs=[own]), tmp_path / "run")

    freeze()
    freeze("trainer.steps=20", "trainer.devices=2", "evaluate=domains")  # longer, elsewhere, measured otherwise: the same run
    assert recipe.thaw(tmp_path / "run").trainer.steps == 20
    with pytest.raises(RecipeError, match="trainer.batch_size=8, now it is 4"):
        freeze("trainer.batch_size=4")
    assert recipe.thaw(tmp_path / "run").trainer.batch_size == 8
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]
    (tmp_path / "run").rename(tmp_path / "moved")  # what only follows from the folder's name is no difference
    recipe.freeze(recipe.compose(["recipe=mine", f"run_dir={tmp_path}/moved"], conf_dirs=[own]), tmp_path / "moved")


@pytest.mark.parametrize(
    "overrides", [[], ["recipe=mine", "+method.new=1"], ["recipe=mine", "method.steps=2.5"], ["data=folder"]]
)
def test_what_cannot_run_is_not_frozen(own, tmp_path, overrides):
    with pytest.raises(RecipeError):
        recipe.freeze(recipe.compose(overrides, conf_dirs=[own]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_freezing_where_nothing_can_be_written(own, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        recipe.freeze(recipe.compose(["recipe=mine"], conf_dirs=[own]), tmp_path / "file" / "run")


def test_thaw_trusts_no_file(tmp_path):
    (tmp_path / "config.yaml").write_text("method: {_target_: os.system, command: echo}\n")
    with pytest.raises(RecipeError, match="not allowed"):
        recipe.thaw(tmp_path)
    (tmp_path / "config.yaml").write_text("a: [1\n")
    with pytest.raises(RecipeError, match="cannot read"):
        recipe.thaw(tmp_path)
    with pytest.raises(RecipeError, match="not a run directory"):
        recipe.thaw(tmp_path / "none")


def test_what_must_be_given_is_named():
    cfg = recipe.compose(["data=folder"])
    with pytest.raises(RecipeError, match="data.root must be given"):
        recipe.frozen(cfg)
    assert recipe.frozen(recipe.compose(["data=folder", "data.root=photos"]))["data"]["root"] == "photos"


def test_build_makes_the_object():
    cfg = OmegaConf.create({"method": {"_target_": "editkit.engine.schedule.Schedule.linear", "steps": 10}})
    schedule = recipe.build(cfg, "method", end=0.5)
    assert len(schedule.table) == 10
    partial = OmegaConf.create({"optimizer": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5}})
    assert recipe.build(partial, "optimizer").keywords == {"lr": 0.5}
    with pytest.raises(RecipeError, match="choose a recipe"):
        recipe.build(recipe.compose([]), "method")


def test_build_hides_no_error_of_the_part_itself(tmp_path):
    cfg = OmegaConf.create({"data": {"_target_": "editkit.recipe.thaw", "run_dir": str(tmp_path)}})
    with pytest.raises(RecipeError, match="not a run directory"):
        recipe.build(cfg, "data")


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (
            {"_target_": "editkit.errors.suggestion", "name": "a", "knwon": []},
            "argument of editkit.errors.suggestion. Did you mean 'known'",
        ),
        ({"_target_": "editkit.errors.suggestion", "known": []}, "method.name must be given"),
        ({"_target_": "editkit.errors.suggestion", "name": 5, "known": []}, "method.name must be text, not 5"),
        ({"_target_": "editkit.errors.sugestion"}, "no 'sugestion'. Did you mean 'suggestion'"),
        ({"_target_": "editkit.nowhere.thing"}, "has no 'nowhere'"),
        ({"inner": [{"_target_": "editkit.errors.suggestion", "x": 1}]}, "method.inner.0.x is no argument"),
    ],
)
def test_arguments_are_held_against_the_signature(section, expected):
    with pytest.raises(RecipeError, match=expected):
        check_arguments(section, "method")


def test_a_partial_may_lack_arguments():
    check_arguments({"_target_": "editkit.errors.suggestion", "_partial_": True, "name": "a"}, "method")


@pytest.mark.parametrize(
    "name",
    [
        "editkit.recipe.os.system",
        "editkit.recipe_checks.importlib.import_module",
        "torch.optim.torch.load",
        "editkit.recipe.CONFIG_FILE",
    ],
)
def test_no_way_through_an_allowed_module_to_another(name):
    with pytest.raises(RecipeError, match="not a class or function|has no 'torch'"):
        locate(name, "method")


def test_targets_hide_nowhere():
    with pytest.raises(RecipeError, match=r"a\.1\.b\._target_"):
        check_targets({"a": [1, {"b": {"_target_": "os.system"}}]})


def test_lists_are_reached_by_number():
    check_override("a.1", 5, {"a": [1, 2]}, [])
    with pytest.raises(RecipeError, match="no key 'a.2'"):
        check_override("a.2", 5, {"a": [1, 2]}, [])


def test_cards_are_read_without_composing(own):
    cards = {card.recipe: card for card in recipe.cards([own])}
    assert cards["mine"].needs == ("image",) and cards["mine"].family == "weak"
    assert cards["more"].title == ""


def test_the_configuration_is_plain_yaml(own, tmp_path):
    path = recipe.freeze(recipe.compose(["recipe=mine"], conf_dirs=[own]), tmp_path / "run")
    assert yaml.safe_load(path.read_text())["trainer"]["steps"] == 7


def test_a_sweep_is_every_combination_of_several_values():
    found = recipe.sweep(["seed=1,2", "trainer.steps=7", "method.x=range(0,2)", "method.text='a, b'"])
    assert [(one["seed"], one["method.x"]) for one in found] == [
        ("seed=1", "method.x=0"),
        ("seed=1", "method.x=1"),
        ("seed=2", "method.x=0"),
        ("seed=2", "method.x=1"),
    ]
    assert {(one["trainer.steps"], one["method.text"]) for one in found} == {("trainer.steps=7", "method.text='a, b'")}
    for nothing in ([], ["seed=1"], ["seed=[1,2]"]):
        with pytest.raises(recipe.RecipeError, match="several values"):
            recipe.sweep(nothing)
