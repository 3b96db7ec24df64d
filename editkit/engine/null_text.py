"""Null-text inversion: unconditional embeddings, fitted level by level, that keep guided sampling on the pivots."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from editkit.engine.denoiser import Denoiser
from editkit.engine.guidance import ClassifierFree
from editkit.engine.lanes import select, stack
from editkit.engine.ode import DDIM
from editkit.engine.pivotal import settings_of as guidance_of
from editkit.engine.pivotal import unguided
from editkit.engine.sample import Noise
from editkit.engine.steps import ddim
from editkit.engine.trajectory import Trajectory, settings_of
from editkit.types import Condition, Levels, Prediction


@dataclass(frozen=True)
class NullText:
    """Null-text optimisation (arXiv 2211.09794, algorithm 1) of `Guided(denoiser, ClassifierFree(scale, uncond))`.

    At sampling step k the unconditional tokens start from those of the step before and take up to `iterations` steps of
    Adam towards the pivot below. Every image stops by itself, once its squared error is below `tolerance` + k `growth`;
    so its result does not depend on the batch. The prediction of the source prompt is made once a level.

    Attributes:
        iterations: most steps of Adam per level.
        rate: learning rate of Adam at the first level; it falls by a hundredth of that per level.
        tolerance: mean squared error to the pivot at which an image stops at the first level.
        growth: what is added to it per level.
        pivots: keep the pivots, not only the noisiest.

    `report` gives per sample "iterations" (steps of Adam, all levels together) and "pivot_error" (the largest mean squared
    error to a pivot).
    """

    name: ClassVar[str] = "null-text"
    iterations: int = 10
    rate: float = 1e-2
    tolerance: float = 1e-5
    growth: float = 2e-5
    pivots: bool = False

    def invert(
        self, denoiser: Denoiser, x0: Tensor, levels: Levels, cond: Condition | None = None, *, noise: Noise | None = None
    ) -> Trajectory:
        """Find the embeddings of x0 (B, C, H, W), at the entry level; gradients are switched on inside.

        Raises:
            UsageError: a denoiser without classifier-free guidance, or without text.
            RuntimeError: under torch.inference_mode.
        """
        inner, guidance, cond = unguided(self.name, denoiser, cond)
        if torch.is_inference_mode_enabled():
            raise RuntimeError("null-text inversion needs gradients: call it under torch.no_grad(), not torch.inference_mode()")
        with torch.no_grad():
            path = DDIM("target", pivots=True).invert(inner, x0, levels, cond)
        uncond = _own_rows(guidance.uncond, len(x0))
        x, calls, conds = path.x, path.calls, {}
        steps, worst = torch.zeros(len(x0), dtype=torch.float64), torch.zeros(len(x0), dtype=torch.float64)
        for k, i in enumerate(range(path.start, levels.entry, -1)):
            level = _Level(inner, guidance, levels, i, x, cond, path.states[i - 1])
            if level.is_guided(uncond):
                uncond, taken = self._fit(level, uncond, k)
                steps += taken
            with torch.no_grad():
                x = level.land(uncond)
            worst = worst.maximum(_squared(x, level.pivot).double().cpu())
            conds[i], calls = uncond, calls + level.calls
        kept = path.states if self.pivots else {path.start: path.x}
        settings = settings_of(self) | guidance_of(guidance)
        report = {"iterations": steps.tolist(), "pivot_error": worst.tolist()}
        return Trajectory(levels, path.start, kept, {}, self.name, settings, calls, report, conds)

    def _fit(self, level: _Level, uncond: Condition, k: int) -> tuple[Condition, Tensor]:
        """Return the fitted condition and the steps of Adam that each image took."""
        assert uncond.tokens is not None
        tokens = uncond.tokens.clone().requires_grad_()
        best, steps = uncond.tokens.clone(), torch.zeros(len(tokens), dtype=torch.float64)
        adam = torch.optim.Adam([tokens], lr=self.rate * max(1 - k / 100, 0.01))
        rows = torch.arange(len(tokens))
        for _ in range(self.iterations):
            with torch.enable_grad():
                error = level.error(replace(uncond, tokens=tokens), rows)
                tokens.grad = torch.autograd.grad(error.sum(), tokens)[0]
            adam.step()
            place = rows.to(tokens.device)
            best[place] = tokens.detach()[place]  # images that are done keep theirs, whatever Adam's momentum does
            steps[rows] += 1
            rows = rows[(error.detach() >= self.tolerance + k * self.growth).cpu()]
            if not len(rows):
                break
        return replace(uncond, tokens=best), steps


class _Level:
    """One guided step of a batch, with the prediction of the source prompt made once."""

    def __init__(
        self,
        denoiser: Denoiser,
        guidance: ClassifierFree,
        levels: Levels,
        i: int,
        x: Tensor,
        cond: Condition,
        pivot: Tensor,
    ) -> None:
        self.denoiser, self.guidance, self.levels, self.i = denoiser, guidance, levels, i
        self.x, self.cond, self.pivot, self.calls = x, cond, pivot, 1
        with torch.no_grad():
            self.pred = denoiser(x, levels.times[i], cond)

    def is_guided(self, uncond: Condition) -> bool:
        """Return whether the unconditional branch has a say at this level."""
        return any(branch is uncond for branch in self._guidance(uncond).branches(self.cond, self.levels.times[self.i]))

    def error(self, uncond: Condition, rows: Tensor) -> Tensor:
        """Return the mean squared error of some images to their pivots, (len(rows),)."""
        return _squared(self.land(uncond, rows), self.pivot[rows.to(self.x.device)])

    def land(self, uncond: Condition, rows: Tensor | None = None) -> Tensor:
        """Return where the guided step takes the images, or some of them."""
        rows = torch.arange(len(self.x)) if rows is None else rows
        place, t = rows.to(self.x.device), self.levels.times[self.i]
        x, cond, own = self.x[place], select(self.cond, rows), select(uncond, rows)
        known = Prediction(self.pred.x0[place], self.pred.eps[place])
        guidance = self._guidance(own)
        preds = [known if branch is cond else self._ask(x, branch) for branch in guidance.branches(cond, t)]
        return ddim(self.levels, self.i, self.i - 1, x, guidance.combine(x, t, preds, self.denoiser.schedule), (), None)

    def _ask(self, x: Tensor, cond: Condition | None) -> Prediction:
        self.calls += 1
        return self.denoiser(x, self.levels.times[self.i], cond)

    def _guidance(self, uncond: Condition | None) -> ClassifierFree:
        return replace(self.guidance, uncond=uncond)


def _own_rows(uncond: object, batch: int) -> Condition:
    """Return the condition with a row for every image, its tokens in float32 at least: Adam fails in half precision."""
    assert isinstance(uncond, Condition) and uncond.tokens is not None
    rows = stack([uncond], [batch])
    assert rows is not None and rows.tokens is not None
    tokens = rows.tokens.detach()
    return replace(rows, tokens=tokens.to(torch.promote_types(tokens.dtype, torch.float32)))


def _squared(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).square().flatten(1).mean(1)
