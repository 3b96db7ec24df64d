"""What the stages of a recipe exported, as the weights of the whole."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from editkit.backbones.assets import spent_on
from editkit.errors import UsageError, UserError
from editkit.training.rundir import RunDir

if TYPE_CHECKING:
    from omegaconf import DictConfig


def with_stages(cfg: DictConfig, name: str, weights: Sequence[str]) -> DictConfig:
    """Return the configuration of a recipe with stages, with the exports of a run's stages in their places.

    Args:
        weights: the folder of the run, which holds a folder for each stage.

    Raises:
        UsageError: more than one folder.
        UserError: none of the stages is there.
    """
    if len(weights) > 1:
        raise UsageError(f"{name} takes the folder of one training, as in --weights runs/{name}: leave out the others")
    folder, found = Path(weights[0]), copy.deepcopy(cfg)
    exports = {key: RunDir(folder / stage).export for stage, key in cfg.stages.items()}
    if not any(path.is_dir() for path in exports.values()):
        raise UserError(f"{folder} holds no trained stage of {name} ({', '.join(cfg.stages)}): give the folder of its training")
    for key, path in exports.items():
        parent, _, own = key.rpartition(".")
        if path.is_dir() and own in OmegaConf.select(cfg, parent):
            OmegaConf.update(found, key, str(path))
    return found


def stage_seconds(cfg: DictConfig) -> float | None:
    """Return the seconds that the stages of a recipe took to train, as the cards of what it uses of them say.

    None if one does not say, or nothing is used. What a stage began with counts too.
    """
    used = [OmegaConf.select(cfg, key) for key in (cfg.get("stages") or {}).values()]
    times = [spent_on(str(path)) for path in used if path is not None]
    return None if not times or None in times else float(sum(time for time in times if time is not None))
