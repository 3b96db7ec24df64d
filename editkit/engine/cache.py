"""Inversions on disk, addressed by everything that decides them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from editkit.engine.denoiser import Denoiser
from editkit.engine.fingerprint import fingerprint
from editkit.engine.guidance import Guided
from editkit.engine.invert import Inverter
from editkit.engine.lanes import select
from editkit.engine.sample import Noise
from editkit.engine.trajectory import Trajectory
from editkit.errors import UserError
from editkit.types import Condition, Levels

log = logging.getLogger(__name__)


class InversionCache:
    """A folder of trajectories, one per image. Entries are written whole; a damaged one is computed again.

    Args:
        root: the folder; made when first needed.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def key(
        self,
        image: Tensor,
        *,
        weights: str,
        levels: Levels,
        inverter: Inverter,
        cond: Condition | None = None,
        dtype: torch.dtype = torch.float32,
        extra: Any = None,
    ) -> str:
        """Return the address of one image's inversion.

        Args:
            image: (C, H, W), exactly what is inverted.
            weights: hash of the network, such as `Backbone.digest()`.
            levels: the levels walked.
            inverter: with its settings.
            cond: the image's condition.
            dtype: what the network computes in.
            extra: what else decides the result: guidance, the seed of a stochastic inverter.
        """
        return fingerprint([image, weights, levels.digest(), inverter.name, inverter, cond, dtype, extra])

    def load(self, key: str) -> Trajectory | None:
        """Return the entry, or None if there is none that is whole."""
        path = self._path(key)
        if not path.exists():
            return None
        try:
            return Trajectory.load(path)
        except UserError:
            log.warning("the cached inversion %s is damaged and will be computed again", path)
            return None

    def store(self, key: str, trajectory: Trajectory) -> None:
        """Write an entry, replacing what was there."""
        trajectory.save(self._path(key))

    def invert(
        self,
        inverter: Inverter,
        denoiser: Denoiser,
        images: Tensor,
        levels: Levels,
        cond: Condition | None = None,
        *,
        weights: str,
        dtype: torch.dtype = torch.float32,
        noise: Noise | None = None,
        noise_keys: Sequence[Any] | None = None,
    ) -> Trajectory:
        """Return the trajectory of a batch; only images that have no entry go through the network, in one batch.

        Args:
            inverter: how to invert.
            denoiser: what to invert through; the guidance of a `Guided` one becomes part of the keys.
            images: (B, C, H, W).
            levels: the levels to walk.
            cond: condition of the batch.
            weights: hash of the network.
            dtype: what the network computes in.
            noise: for stochastic inverters, as in `Inverter.invert`.
            noise_keys: what each image's noise was drawn from (seed, key, sample); needed with `noise`.

        Raises:
            ValueError: noise without noise_keys.
        """
        if noise is not None and noise_keys is None:
            raise ValueError("the cache cannot tell one noise from another: pass noise_keys= with noise=")
        guidance = denoiser.guidance if isinstance(denoiser, Guided) else None
        keys = [
            self.key(
                image,
                weights=weights,
                levels=levels,
                inverter=inverter,
                cond=select(cond, torch.tensor([n])),
                dtype=dtype,
                extra=[guidance, None if noise_keys is None else noise_keys[n]],
            )
            for n, image in enumerate(images)
        ]
        found = {n: hit for n, key in enumerate(keys) if (hit := self.load(key)) is not None}
        missing = [n for n in range(len(keys)) if n not in found]
        if missing:
            rows = torch.tensor(missing)
            part = None if noise is None else _rows_of(noise, rows)
            fresh = inverter.invert(denoiser, images[rows], levels, select(cond, rows), noise=part)
            for n, one in zip(missing, fresh.split(), strict=True):
                self.store(keys[n], one)
                found[n] = one
        return Trajectory.stack([found[n].to(images.device) for n in range(len(keys))])

    def _path(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}.safetensors"


def _rows_of(noise: Noise, rows: Tensor) -> Noise:
    def at(i: int) -> Tensor | None:
        drawn = noise(i)
        return None if drawn is None else drawn[rows.to(drawn.device)]

    return at
