"""Direct inversion: the source is sampled beside its edits and put back on the inverted path after every step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from editkit.engine.denoiser import Denoiser, Wrapper
from editkit.engine.guidance import Guidance
from editkit.engine.lanes import evaluate, select
from editkit.engine.ode import DDIM
from editkit.engine.sample import Noise
from editkit.engine.trajectory import Trajectory, settings_of
from editkit.types import Condition, Levels, Prediction


@dataclass(frozen=True)
class Direct:
    """Direct inversion (PnP inversion, arXiv 2310.01506, algorithm 1): the pivots of `DDIM("target")`, kept.

    On the way back the first rows of the batch, the sources, are put onto the pivots after every step. That is the paper's
    rectification, x_src += pivot - x_src, without its rounding and without a pass of its own for the offsets. To edit, give
    `sample` more rows and a condition for each, through `Beside` if they are guided:

        back = replay(trajectory)
        sample(Beside(denoiser, guidance), cond=stack([source, target], sizes), **back | {"x": back["x"].repeat(2, 1, 1, 1)})

    The edits differ from plain sampling by what their rows take from the sources' in between (attention).
    """

    name: ClassVar[str] = "direct"

    def invert(
        self, denoiser: Denoiser, x0: Tensor, levels: Levels, cond: Condition | None = None, *, noise: Noise | None = None
    ) -> Trajectory:
        """Walk x0 (B, C, H, W), at the entry level, up to the noisiest level."""
        path = DDIM("target", pivots=True).invert(denoiser, x0, levels, cond)
        return replace(path, inverter=self.name, settings=settings_of(self))


def way_back(trajectory: Trajectory) -> dict[str, Any]:
    """Return the on_step of `sample` that puts the sources onto their pivots, as far down as there are any."""
    pivots = trajectory.states

    def rectify(i: int, j: int, x: Tensor, pred: Prediction) -> Tensor | None:
        return torch.cat([pivots[j], x[len(pivots[j]) :]]) if j in pivots else None

    return {"on_step": rectify}


@dataclass(frozen=True)
class Beside(Wrapper):
    """A denoiser for a batch of sources followed by one edit of each: guidance for the edits alone, all in one call.

    The sources need no unconditional branch, for their states are known; so a guided pair costs three lanes, not four.
    """

    denoiser: Denoiser
    guidance: Guidance

    def __call__(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> Prediction:
        """Predict for x (2B, C, H, W), under a condition of 2B rows."""
        sources, edits = torch.arange(len(x)).chunk(2)
        known, x_edit, cond_edit = x[: len(sources)], x[len(sources) :], select(cond, edits)
        lanes = [(x_edit, t, branch) for branch in self.guidance.branches(cond_edit, t)]
        source, *preds = evaluate(self.denoiser, [(known, t, select(cond, sources)), *lanes])
        edit = self.guidance.combine(x_edit, t, preds, self.schedule)
        return Prediction(torch.cat([source.x0, edit.x0]), torch.cat([source.eps, edit.eps]))
