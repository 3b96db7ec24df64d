"""Recipes with stages: which are trained, with what, and how the whole is used."""

from __future__ import annotations

import json

import pytest

from editkit import recipe
from editkit.app import staged, train
from editkit.app.loaded import check_stages, load_editor
from editkit.app.options import TrainOptions
from editkit.app.stage_weights import stage_seconds, with_stages
from editkit.app.submit import train_job
from editkit.app.submit_options import SubmitTrain
from editkit.errors import UsageError, UserError

STAGES = ["encoder", "autoencoder", "latent", "classifier"]


def options(folder, **given):
    return TrainOptions(method="diffae", run_dir=folder / "run", **given)


def exported(folder, *stages):
    for name in stages:
        (folder / "run" / name / "export").mkdir(parents=True)


def missing(given):
    return [one.method.partition("/")[2] for one in staged.to_train(given)]


def test_the_stages_without_an_export_are_missing(tmp_path):
    assert missing(options(tmp_path)) == STAGES
    exported(tmp_path, "encoder", "autoencoder")
    assert missing(options(tmp_path)) == STAGES[2:]
    assert missing(options(tmp_path, fresh=True)) == STAGES
    assert missing(options(tmp_path, stage="autoencoder")) == ["autoencoder"]


def test_a_stage_is_given_what_those_before_it_export(tmp_path):
    one = staged.alone(options(tmp_path, stage="classifier", overrides=["trainer.batch_size=4", "method.flipped=0.5"]))
    cfg = recipe.compose(one.recipe_overrides(), prompts=one.texts())
    run = tmp_path / "run"
    assert cfg.recipe == "diffae/classifier" and cfg.run_dir == str(run / "classifier") and cfg.trainer.batch_size == 4
    assert cfg.backbone.path == str(run / "autoencoder" / "export") and cfg.method.latent == str(run / "latent" / "export")
    assert cfg.backbone.path and "encoder_from" not in cfg.method, "it has no key for what the encoder's stage exports"
    first = recipe.compose(staged.alone(options(tmp_path, stage="autoencoder")).recipe_overrides())
    assert first.method.encoder_from == str(run / "encoder" / "export")
    assert staged.alone(options(tmp_path, stage="encoder")).overrides == [], "it has none before it"
    own = staged.alone(options(tmp_path, stage="latent", overrides=["backbone.path=mine"]))
    assert own.overrides == ["backbone.path=mine"]


def test_what_only_training_goes_on_with_is_not_for_an_edit(tmp_path):
    run = tmp_path / "run"
    given = TrainOptions(method="hdad", run_dir=run, stage="joint")
    cfg = recipe.compose(staged.alone(given).recipe_overrides())
    assert cfg.method.init_from == str(run / "autoencoder" / "export") and "encoder_from" not in cfg.method
    stage_folders(run, {"encoder": 3, "autoencoder": 10, "joint": 4})
    used = with_stages(recipe.compose(["recipe=hdad"]), "hdad", [str(run)])
    assert used.backbone.path == str(run / "joint" / "export") and "init_from" not in used.method


def test_the_folder_does_not_depend_on_what_a_stage_changes():
    one = staged.alone(TrainOptions(method="diffae", stage="latent", overrides=["method.codes=2"]))
    assert str(one.run_dir) == "runs/diffae/latent"
    with pytest.raises(UsageError, match="method.codes"):
        staged.to_train(TrainOptions(method="diffae", overrides=["method.codes=2"]))  # before anything is trained


def test_all_are_trained_in_order_and_the_whole_is_kept(tmp_path, monkeypatch, capsys):
    trained, whole = [], train.train

    def pretended(given):
        trained.append(given.method)
        exported(tmp_path, given.method.partition("/")[2])
        return 0

    monkeypatch.setattr(train, "train", pretended)
    assert whole(options(tmp_path)) == 0
    assert trained == [f"diffae/{name}" for name in STAGES]
    assert str(tmp_path / "run" / "edit") in capsys.readouterr().out
    cfg = recipe.thaw(tmp_path / "run" / "edit")
    paths = [tmp_path / "run" / name / "export" for name in STAGES[1:]]
    assert [cfg.backbone.path, cfg.method.latent, cfg.method.classifier] == list(map(str, paths))
    assert whole(options(tmp_path)) == 0 and len(trained) == 4, "nothing is left"


def test_mistakes_take_a_line(tmp_path):
    with pytest.raises(UsageError, match="no stage 'classifyer'.*'classifier'"):
        missing(options(tmp_path, stage="classifyer"))
    with pytest.raises(UsageError, match="recipe asyrp has no stage 'latent'.*leave out --stage"):
        missing(TrainOptions(method="asyrp", stage="latent"))
    with pytest.raises(UsageError, match="add --stage encoder, then autoencoder, latent, classifier"):
        missing(options(tmp_path, overrides=["trainer.devices=2"]))
    with pytest.raises(UsageError, match="each a job of its own"):
        train_job(SubmitTrain(method="diffae", run_dir=tmp_path / "run"))
    job = train_job(SubmitTrain(method="diffae", run_dir=tmp_path / "run", stage="latent"))
    assert job.folder == tmp_path / "run" / "latent"


def test_a_dry_run_shows_every_missing_stage(tmp_path):
    exported(tmp_path, "encoder", "autoencoder")
    text = staged.resolved(options(tmp_path))
    assert text.count("\n---\n") == 1 and "recipe: diffae/latent" in text and "recipe: diffae/classifier" in text


def test_an_edit_without_the_weights_of_a_stage_says_what_trains_them():
    cfg = recipe.compose(["recipe=hdad", "backbone.path=editkit:not-there"])
    with pytest.raises(UserError, match="`editkit train recipe=hdad`, then give --from runs/hdad/edit"):
        load_editor(cfg, "hdad")


def test_an_edit_may_lack_what_only_other_stages_make():
    """A backbone of one's own is enough to mix by references, whatever is bundled of the rest."""
    check_stages(recipe.compose(["recipe=diffae", "backbone.path=mine", "method.latent=editkit:not-there"]), "diffae")


# The folder of a training as weights


def stage_folders(folder, seconds):
    for name, taken in seconds.items():
        export = folder / name / "export"
        export.mkdir(parents=True)
        (export / "card.json").write_text(json.dumps({} if taken is None else {"training_seconds": taken}))
    return folder


def test_the_folder_of_a_training_is_weights(tmp_path):
    folder = stage_folders(tmp_path / "run", {"encoder": 3, "autoencoder": 10, "classifier": 5})
    cfg = recipe.compose(["recipe=diffae"])
    given = with_stages(cfg, "diffae", [str(folder)])
    assert given.backbone.path == str(folder / "autoencoder" / "export")
    assert given.method.classifier == str(folder / "classifier" / "export")
    assert given.method.latent is None and "encoder_from" not in given.method, "what is not there, or not for an edit, is left"
    assert cfg.backbone.path == "editkit:toy-diffae", "the configuration itself too"
    assert stage_seconds(given) == 15
    (folder / "autoencoder" / "export" / "card.json").write_text('{"training_seconds": 10, "earlier_seconds": 3}')
    assert stage_seconds(given) == 18, "with what it began with"
    (folder / "classifier" / "export" / "card.json").write_text("{}")
    assert stage_seconds(given) is None, "nobody knows"


def test_a_folder_that_is_none_takes_a_line(tmp_path):
    cfg = recipe.compose(["recipe=diffae"])
    with pytest.raises(UserError, match=r"holds no trained stage of diffae \(encoder, autoencoder, latent, classifier\)"):
        load_editor(cfg, "diffae", weights=[str(tmp_path)])
    with pytest.raises(UsageError, match="takes the folder of one training.*leave out the others"):
        load_editor(cfg, "diffae", weights=["a", "b"])


def test_bundled_stages_say_how_long_they_took():
    assert stage_seconds(recipe.compose(["recipe=diffae"])) > 3000
    assert stage_seconds(recipe.compose(["recipe=asyrp"])) is None
