"""`editkit train` where a run lies already: changed settings, a new start, and what is refused."""

from __future__ import annotations

import pytest
import yaml

from editkit import cli, recipe
from editkit.app import train as app
from editkit.app.continuing import FORMER
from editkit.app.options import TrainOptions
from editkit.errors import UsageError, UserError
from editkit.recipe_changes import Change, differences, listed
from editkit.training import checkpoint
from editkit.training.rundir import RunDir
from tests.tiny import shrink, write_all


@pytest.fixture(scope="module")
def overrides(tmp_path_factory):
    folder = write_all(tmp_path_factory.mktemp("tiny"))
    changed = ("trainer.steps", "trainer.images")
    return [text for text in shrink("toy/perceptual", folder) if not text.startswith(changed)] + [
        "trainer.images=4",
        "trainer.steps=9",
    ]


def train(overrides, run, *more, **given):
    return app.train(TrainOptions(overrides=[*overrides, *more], run_dir=run, **given))


def newest(run):
    return checkpoint.newest(RunDir(run).checkpoints).name


def test_changes_are_shown_key_by_key():
    before = {"seed": 0, "method": {"lr": 0.1, "clip": None, "old": 1}, "trainer": {"steps": 10, "batch_size": 4}}
    now = {"seed": 0, "method": {"lr": 0.2, "clip": 1.0, "none": None}, "trainer": {"steps": 99, "batch_size": 4}}
    found = differences(before, now)
    assert listed(found) == ["method.clip: null -> 1.0", "method.lr: 0.1 -> 0.2", "method.old: 1 -> null"]
    many = listed([Change(f"method.k{n}", n, "x" * 500) for n in range(14)])
    assert len(many) == 11 and many[-1] == "and 4 more" and all(len(line) < 100 for line in many)


def test_another_recipe_is_shown_and_continues_only_if_that_is_said(overrides, tmp_path, capsys):
    run = tmp_path / "run"
    train(overrides, run)
    frozen = RunDir(run).config.read_bytes()
    capsys.readouterr()
    changed = ("trainer.clip_norm=0.5", "method.optimizer.lr=0.003", "trainer.images=8", "trainer.log_every=1")
    with pytest.raises(UsageError, match=r"\(method.optimizer.lr: .* and 1 more\): add --accept-changes .*--fresh .*-o"):
        train(overrides, run, *changed)
    said = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0].strip() for line in said[1:]] == ["method.optimizer.lr", "trainer.clip_norm"]
    assert said[2] == "  trainer.clip_norm: null -> 0.5"
    assert RunDir(run).config.read_bytes() == frozen and newest(run) == "step-00000002"
    assert train(overrides, run, *changed, accept_changes=True) == 0
    said = capsys.readouterr()
    assert "continues with changed settings" in said.err and "trained 2 steps" in said.out
    snapshot = checkpoint.load(checkpoint.newest(RunDir(run).checkpoints))
    (optimizer,) = snapshot.state["stepper"]["optimizers"].values()
    assert optimizer["param_groups"][0]["max_lr"] == 0.002 and not (run / FORMER).exists()
    assert train(overrides, run, *changed) == 0, "accepted once, they are the run's own"


def test_what_the_checkpoint_does_not_take_leaves_the_run_as_it_was(overrides, tmp_path):
    run = tmp_path / "run"
    train(overrides, run)
    frozen = RunDir(run).config.read_bytes()
    with pytest.raises(UserError, match="saved with seed=0, now it is 7"):
        train(overrides, run, "seed=7", accept_changes=True)
    assert RunDir(run).config.read_bytes() == frozen and not (run / FORMER).exists()
    assert train(overrides, run, "trainer.images=6") == 0 and newest(run) == "step-00000003"


def test_before_the_first_checkpoint_anything_can_be_changed(overrides, tmp_path):
    app.configuration(TrainOptions(overrides=overrides, run_dir=tmp_path / "run"))
    assert train(overrides, tmp_path / "run", "seed=7", accept_changes=True) == 0


def test_a_schedule_that_follows_the_length_is_a_change(tmp_path, overrides):
    def frozen(*more, **given):
        cfg = recipe.compose([*overrides, *more], prompts={"run_dir": str(tmp_path / "run")})
        return recipe.freeze(cfg, tmp_path / "run", **given)

    frozen()
    frozen("trainer.log_every=3", "trainer.images=8")
    with pytest.raises(recipe.RecipeError, match="method.scheduler.total_steps=9, now it is 5"):
        frozen("trainer.steps=5")
    frozen("trainer.steps=5", accept=True)
    assert yaml.safe_load(RunDir(tmp_path / "run").config.read_text())["trainer"]["steps"] == 5


def test_fresh_keeps_the_earlier_run_beside_the_new_one(overrides, tmp_path, capsys):
    run = tmp_path / "run"
    train(overrides, run)
    (run / "notes.txt").write_text("mine")
    before = {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for turn in (1, 2):
        assert train(overrides, run, "seed=7", fresh=True) == 0
        said = capsys.readouterr()
        aside = tmp_path / f"run.earlier-{turn}"
        assert f"the earlier run is kept in {aside}\n" in said.err and "trained 2 steps" in said.out
        assert not (run / "notes.txt").exists() and newest(run) == "step-00000002"
    assert all((tmp_path / "run.earlier-1" / name).read_bytes() == content for name, content in before.items())
    kept = app.run(app.configuration(TrainOptions(source=tmp_path / "run.earlier-1")))
    assert kept.run.path == tmp_path / "run.earlier-1" and kept.outcome.new_steps == 0 and kept.outcome.resumed


def test_fresh_where_there_is_no_run_is_a_start(overrides, tmp_path):
    assert train(overrides, tmp_path / "run", fresh=True) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_that_a_process_holds_is_neither_moved_nor_changed(overrides, tmp_path):
    run = tmp_path / "run"
    app.configuration(TrainOptions(overrides=overrides, run_dir=run))
    before = RunDir(run).config.read_bytes()
    with RunDir(run).locked():
        for given in ({"fresh": True}, {"accept_changes": True}):
            with pytest.raises(UserError, match="is in use by process"):
                train(overrides, run, "trainer.clip_norm=0.5", **given)
    assert RunDir(run).config.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_cannot_run_moves_nothing_aside(overrides, tmp_path):
    train(overrides, tmp_path / "run")
    with pytest.raises(UserError):
        train(overrides, tmp_path / "run", "+method.nothing=1", fresh=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_job_that_slurm_has_queued_again_does_not_start_anew(overrides, tmp_path, monkeypatch, capsys):
    train(overrides, tmp_path / "run")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert train(overrides, tmp_path / "run", fresh=True) == 0
    assert "trained 0 steps" in capsys.readouterr().out and [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_flags_can_be_typed(overrides, tmp_path, capsys):
    run = tmp_path / "run"
    app.configuration(TrainOptions(overrides=overrides, run_dir=run))
    assert cli.run(["train", *overrides, "-o", str(run), "trainer.clip_norm=0.5"]) == 2
    assert "  trainer.clip_norm: null -> 0.5\n" in capsys.readouterr().err
    assert cli.run(["train", *overrides, "-o", str(run), "trainer.clip_norm=0.5", "--accept-changes", "--fresh"]) == 0
    assert (tmp_path / "run.earlier-1").is_dir()
    assert cli.run(["train", "--from", str(run), "--fresh"]) == 2
    assert "leave out fresh" in capsys.readouterr().err
