"""Training of several stages, one after another, each a run of its own in the folder of the whole.

A recipe lists them in order under `stages`, each with the key that takes what the stage exports:

    stages:
      autoencoder: backbone.path
      classifier: method.classifier

Stage S of recipe=NAME is recipe=NAME/S. It is given the exports of the stages before it at those of their keys that it has.
What edits is the recipe itself, with all exports in place; it is kept in FOLDER/edit, so that `--from FOLDER/edit` uses it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from editkit import recipe
from editkit.app import show
from editkit.app.options import TrainOptions
from editkit.errors import UsageError, suggestion
from editkit.training.rundir import RunDir

if TYPE_CHECKING:
    from omegaconf import DictConfig

Train = TypeVar("Train", bound=TrainOptions)


def composed(options: TrainOptions) -> DictConfig:
    """Return the configuration that was typed, or that is frozen in the folder to continue."""
    if options.source:
        return recipe.thaw(options.source)
    return recipe.compose(options.recipe_overrides(), prompts=options.texts(), conf_dirs=options.conf)


def resolved(options: TrainOptions) -> str:
    """Return the configurations that a training command would use, one document for each stage."""
    cfg = composed(options)
    if not (options.stage or stages_of(cfg)):
        return show.resolved(options)
    return "---\n".join(show.resolved(stage_options(options, cfg, name)) for name in missing_stages(options, cfg))


def alone(options: Train) -> Train:
    """Return the options of the one stage that was named; of a recipe without stages the options themselves.

    Raises:
        UsageError: a recipe with stages, of which none was named.
    """
    cfg = composed(options)
    if options.stage:
        return stage_options(options, cfg, missing_stages(options, cfg)[0])
    if stages := stages_of(cfg):
        raise UsageError(f"recipe {cfg.recipe} has stages, each a job of its own: add --stage {' or --stage '.join(stages)}")
    return options


def stages_of(cfg: DictConfig) -> dict[str, str]:
    """Return {stage: key of its export} of a recipe, in their order; nothing for one without stages."""
    return dict(cfg.get("stages") or {})


def missing_stages(options: TrainOptions, cfg: DictConfig) -> list[str]:
    """Return the stages to train: the one that was named, or all that have no export yet; of a fresh start all.

    Raises:
        UsageError: the recipe has no such stage, or several are to be trained by several processes, which a command cannot.
    """
    stages = stages_of(cfg)
    if options.stage is None:
        left = [name for name in stages if options.fresh or not _export(cfg, name).is_dir()]
        if len(left) > 1 and (cfg.trainer.devices > 1 or cfg.trainer.num_nodes > 1) and not options.dry_run:
            raise UsageError(f"several devices train one stage a command: add --stage {left[0]}, then {', '.join(left[1:])}")
        return left
    if options.stage not in stages:
        known = f"It has {', '.join(stages)}" if stages else "It has none: leave out --stage"
        raise UsageError(f"recipe {cfg.recipe} has no stage {options.stage!r}.{suggestion(options.stage, stages)} {known}")
    return [options.stage]


def stage_options(options: Train, cfg: DictConfig, stage: str) -> Train:
    """Return what would be typed to train one stage alone, after those before it."""
    names = list(stages_of(cfg))
    alone = replace(options, method=f"{options.method}/{stage}", stage=None, run_dir=Path(cfg.run_dir) / stage)
    own = recipe.compose(alone.recipe_overrides(), conf_dirs=options.conf)
    given = {text.partition("=")[0] for text in options.overrides}
    exports = _exports(cfg, names[: names.index(stage)])
    added = [text for key, text in exports.items() if _has(own, key) and key not in given]
    return replace(alone, overrides=[*alone.overrides, *added])


def freeze_whole(options: TrainOptions, cfg: DictConfig) -> Path | None:
    """Keep the recipe with the exports of its stages, once all of them are there, and return its folder; else None."""
    names = list(stages_of(cfg))
    if not all(_export(cfg, name).is_dir() for name in names):
        return None
    place = Path(cfg.run_dir) / "edit"
    overrides = [f"recipe={options.method}", *_exports(cfg, names).values()]
    recipe.freeze(recipe.compose(overrides, prompts={"run_dir": str(place)}, conf_dirs=options.conf), place, accept=True)
    return place


def _exports(cfg: DictConfig, names: list[str]) -> dict[str, str]:
    """Return the override that each stage's export makes, by its key."""
    return {key: f"{key}={_quoted(_export(cfg, name))}" for name, key in stages_of(cfg).items() if name in names}


def _export(cfg: DictConfig, stage: str) -> Path:
    return RunDir(Path(cfg.run_dir) / stage).export


def _quoted(path: Path) -> str:
    text = str(path).replace("'", "\\'")
    return f"'{text}'"


def _has(cfg: DictConfig, key: str) -> bool:
    from omegaconf import OmegaConf

    section, _, last = key.rpartition(".")
    node = OmegaConf.select(cfg, section) if section else cfg
    return node is not None and last in node
