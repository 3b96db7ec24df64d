"""Training of several stages, one after another, each a run of its own in the folder of the whole.

A recipe lists them in order under `stages`, each with the key that takes what the stage exports:

    stages:
      autoencoder: backbone.path
      classifier: method.classifier

Stage S of recipe=NAME is recipe=NAME/S. It is given the exports of the stages before it at those of their keys that it has.
What edits is the recipe itself, with all exports in place; it is kept in FOLDER/edit, so that `--from FOLDER/edit` uses it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from editkit import recipe
from editkit.app import show
from editkit.app.options import TrainOptions
from editkit.errors import UsageError, suggestion
from editkit.training.rundir import RunDir

Train = TypeVar("Train", bound=TrainOptions)


def stages_of(options: TrainOptions) -> dict[str, str]:
    """Return {stage: key of its export} of the recipe that was typed, in their order; nothing for one without stages."""
    name = options.method
    if options.source or name is None:
        return {}
    file = Path(name) if name.endswith((".yaml", ".yml")) else recipe.recipe_file(name, options.conf)
    entries = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return dict((entries or {}).get("stages") or {})


def to_train(options: Train) -> list[Train]:
    """Return what would be typed to train each missing stage, or the one that was named; of a fresh start all.

    Raises:
        UserError: the recipe has no such stage, an override that is none of every stage, several stages for several devices,
            which a command cannot train one after another.
    """
    stages, folder = stages_of(options), _folder(options)
    if options.stage is None:
        names = [name for name in stages if options.fresh or not RunDir(folder / name).export.is_dir()]
    elif options.stage in stages:
        names = [options.stage]
    else:
        known = f"It has {', '.join(stages)}" if stages else "It has none: leave out --stage"
        raise UsageError(f"recipe {options.method} has no stage {options.stage!r}.{suggestion(options.stage, stages)} {known}")
    found = [_alone(options, stages, folder, name) for name in names]
    if len(found) > 1 and any(_on_several_devices(one) for one in found):
        raise UsageError(f"several devices train one stage a command: add --stage {names[0]}, then {', '.join(names[1:])}")
    return found


def resolved(options: TrainOptions) -> str:
    """Return the configurations that a training command would use, one document for each stage."""
    staged = options.stage or stages_of(options)
    return "---\n".join(show.resolved(one) for one in (to_train(options) if staged else [options]))


def alone(options: Train) -> Train:
    """Return the options of the one stage that was named; of a recipe without stages the options themselves.

    Raises:
        UsageError: a recipe with stages, of which none was named.
    """
    if options.stage:
        return to_train(options)[0]
    if stages := stages_of(options):
        raise UsageError(f"recipe {options.method} has stages, each a job of its own: add --stage {' or --stage '.join(stages)}")
    return options


def freeze_whole(options: TrainOptions) -> Path | None:
    """Keep the recipe with the exports of its stages, once all of them are there, and return its folder; else None."""
    stages, folder = stages_of(options), _folder(options)
    if not all(RunDir(folder / name).export.is_dir() for name in stages):
        return None
    place = folder / "edit"
    own = recipe.keys(_plain(replace(options, stage=None, overrides=())))
    overrides = [f"recipe={options.method}", *(text for key, text in _exports(stages, folder, stages).items() if key in own)]
    recipe.freeze(recipe.compose(overrides, prompts={"run_dir": str(place)}, conf_dirs=options.conf), place, accept=True)
    return place


def _folder(options: TrainOptions) -> Path:
    """Return the folder of the whole: that which was typed, or the recipe's, whatever the overrides of its stages."""
    typed = [text for text in options.overrides if text.startswith("run_dir=")]
    cfg = recipe.compose([f"recipe={options.method}", *typed], prompts=options.texts(), conf_dirs=options.conf)
    return Path(cfg.run_dir)


def _alone(options: Train, stages: dict[str, str], folder: Path, name: str) -> Train:
    """Return the options of a stage, with the exports of those before it where it has a key for them."""
    one = replace(options, method=f"{options.method}/{name}", stage=None, run_dir=folder / name)
    own = recipe.keys(_plain(one))
    given = {text.partition("=")[0] for text in options.overrides}
    before = list(stages)[: list(stages).index(name)]
    added = [text for key, text in _exports(stages, folder, before).items() if key in own and key not in given]
    return replace(one, overrides=[*one.overrides, *added])


def _exports(stages: dict[str, str], folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the override that each stage's export makes, by its key."""
    paths = {stages[name]: str(RunDir(folder / name).export) for name in names}
    return {key: "{}='{}'".format(key, path.replace("'", "\\'")) for key, path in paths.items()}


def _on_several_devices(options: TrainOptions) -> bool:
    trainer = _plain(options)["trainer"]
    return trainer["devices"] > 1 or trainer["num_nodes"] > 1


def _plain(options: TrainOptions) -> dict[str, Any]:
    from omegaconf import OmegaConf

    cfg = recipe.compose(options.recipe_overrides(), prompts=options.texts(), conf_dirs=options.conf)
    return dict(OmegaConf.to_container(cfg))  # type: ignore[arg-type]
