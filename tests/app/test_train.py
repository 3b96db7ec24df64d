"""`editkit train` as a function: run directories, repeated commands, refusals."""

from __future__ import annotations

import json
import signal

import pytest

from editkit.app import train as app
from editkit.app.options import TrainOptions
from editkit.errors import UserError
from editkit.training.rundir import RunDir
from tests.tiny import shrink, write_all


@pytest.fixture(scope="module")
def overrides(tmp_path_factory):
    folder = write_all(tmp_path_factory.mktemp("tiny"))
    return [text for text in shrink("toy/perceptual", folder) if not text.startswith("trainer.steps")] + ["trainer.steps=3"]


def options(overrides, run_dir, *more, **given):
    return TrainOptions(overrides=[*overrides, *more], run_dir=run_dir, **given)


def test_a_run_is_frozen_trained_and_exported(overrides, tmp_path, capsys):
    assert app.train(options(overrides, tmp_path / "run")) == 0
    run = RunDir(tmp_path / "run")
    assert run.config.is_file() and run.metrics.is_file() and any(run.checkpoints.iterdir())
    card = json.loads((run.export / "card.json").read_text())
    assert card["recipe"] == "toy/perceptual" and card["steps"] == 3 and card["seed"] == 0
    said = capsys.readouterr().out
    assert "trained 3 steps" in said and f"wrote {run.export / 'model.safetensors'}" in said


def test_the_same_command_again_trains_nothing_and_exports_the_same(overrides, tmp_path, capsys):
    first = app.run(app.configuration(options(overrides, tmp_path / "run")))
    before = [path.read_bytes() for path in first.exported]
    assert app.train(options(overrides, tmp_path / "run")) == 0
    assert "trained 0 steps" in capsys.readouterr().out
    assert [path.read_bytes() for path in first.exported] == before


def test_a_longer_run_continues_and_from_repeats_the_frozen_recipe(overrides, tmp_path):
    short = app.run(app.configuration(options(overrides, tmp_path / "run", "trainer.images=4")))
    longer = app.run(app.configuration(options(overrides, tmp_path / "run", "trainer.images=6")))
    assert short.outcome.images == 4 and longer.outcome.resumed and longer.outcome.images == 6
    again = app.run(app.configuration(TrainOptions(source=tmp_path / "run")))
    assert again.outcome.new_steps == 0 and again.run.path == tmp_path / "run"


def test_another_recipe_in_the_same_folder_is_refused(overrides, tmp_path):
    app.configuration(options(overrides, tmp_path / "run"))
    with pytest.raises(UserError, match=r"\(seed: 0 -> 7\): add --accept-changes .*--fresh .*-o"):
        app.configuration(options(overrides, tmp_path / "run", "seed=7"))


def test_a_dry_run_writes_nothing(overrides, tmp_path, capsys):
    assert app.train(options(overrides, tmp_path / "run", dry_run=True)) == 0
    assert "steps: 3" in capsys.readouterr().out and not (tmp_path / "run").exists()


def test_a_run_folder_that_is_a_file_is_one_line(overrides, tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UserError, match="cannot write") as caught:
        app.train(options(overrides, tmp_path / "run"))
    assert "\n" not in str(caught.value) and (tmp_path / "run").read_text() == "mine"


def test_a_stopped_run_says_how_to_continue_and_exports_nothing(overrides, tmp_path, monkeypatch):
    monkeypatch.setattr("editkit.training.signals.StopFlag.caught", signal.SIGTERM, raising=False)
    monkeypatch.setattr("editkit.training.signals.StopFlag.__init__", lambda self: self.__dict__.update(_before={}))
    with pytest.raises(app.Stopped, match=r"stopped by SIGTERM at step 1, saved in .*run; the same command continues"):
        app.train(options(overrides, tmp_path / "run"))
    assert not RunDir(tmp_path / "run").export.exists()


def test_other_processes_read_the_frozen_recipe(overrides, tmp_path, monkeypatch):
    app.configuration(options(overrides, tmp_path / "run"))
    monkeypatch.setenv("EDITKIT_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("LOCAL_RANK", "1")
    cfg = app.configuration(options(overrides, None, "seed=7"))
    assert cfg.run_dir == str(tmp_path / "run") and cfg.seed == 0


def test_a_method_without_training_is_refused(tmp_path):
    with pytest.raises(UserError, match="reconstruction has nothing to train"):
        folder = write_all(tmp_path / "tiny")
        app.train(TrainOptions(overrides=shrink("reconstruction", folder), run_dir=tmp_path / "run"))
