"""Editing with fine-tuned networks: invert with the original one, come back with a mixture that strength and time decide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from editkit.backbones.base import Backbone
from editkit.engine.cache import InversionCache
from editkit.engine.rng import level_noise
from editkit.engine.sample import sample
from editkit.engine.steps import ddim
from editkit.errors import UsageError
from editkit.training.artefact import Artefact
from editkit.training.editor import by_steps, draws_of
from editkit.training.finetuned import tuned_by
from editkit.training.inverting import Inverted, InvertingEditor
from editkit.training.mix import Checkpoint, Mix, mixed
from editkit.types import EditRequest, EditResult


class TunedEditor(InvertingEditor):
    """Inverts images by DDIM and generates them again with fine-tuned networks; a subclass has a name.

    A request's strength is the degree of change: eps = strength * fine-tuned + (1 - strength) * original.

    Args:
        backbone: the original network.
        checkpoints: fine-tuned copies.
        start: time of the noisiest level; None = the largest t0 of the checkpoints.
        mix: {threshold: weights}, see `Mix`; None = equal weights.
        n_inv, n_test, cache, measure: see `InvertingEditor`.
        eta: noise that the steps of the generation add, 0 = none (DDIM).

    Raises:
        UsageError: no checkpoint, or a mix that does not fit them.
    """

    def __init__(
        self,
        backbone: Backbone,
        checkpoints: Sequence[Checkpoint],
        *,
        start: float | None = None,
        mix: Mapping[float, Sequence[float]] | None = None,
        n_inv: int = 40,
        n_test: int = 40,
        eta: float = 0.0,
        cache: InversionCache | None = None,
        measure: bool = True,
    ) -> None:
        if not checkpoints:
            raise UsageError(f"{self.name} needs a fine-tuned network: give --weights FILE")
        start = max(one.t0 for one in checkpoints) if start is None else start
        super().__init__(backbone, start, n_inv=n_inv, n_test=n_test, cache=cache, measure=measure)
        self.checkpoints, self.mix, self.eta = list(checkpoints), Mix.read(mix, len(checkpoints)), eta

    @torch.no_grad()
    def edit(self, requests: Sequence[EditRequest], state: Inverted | None = None) -> EditResult:
        """Return the edited images; `state` is what `prepare` returned for these requests (None: prepare now)."""
        state = state or self.prepare(requests)
        x, calls = torch.empty_like(state.x), [float(n) for n in state.calls]
        for steps, rows in by_steps(requests, self.n_test):
            some, levels = [requests[row] for row in rows], self.levels(steps)
            strengths = torch.tensor([1.0 if r.strength is None else r.strength for r in some], dtype=torch.float64)
            mixture = mixed(self.backbone, self.checkpoints, self.mix, strengths)
            x[rows] = sample(
                mixture, state.x[rows], levels, step=partial(ddim, eta=self.eta), noise=self._noise(some) if self.eta else None
            )
            for row, more in zip(rows, mixture.calls(levels), strict=True):
                calls[row] += more
        scores = {"network_calls": calls}
        if state.reconstruction_psnr:
            scores["reconstruction_psnr"] = list(state.reconstruction_psnr)
        return EditResult(self.backbone.decode(x), scores=scores)

    def _noise(self, requests: Sequence[EditRequest]) -> Callable[[int], Tensor]:
        return level_noise(
            self.backbone.sample_shape,
            **draws_of(requests),
            purpose=f"{self.name}/step",
            device=self.backbone.device,
        )


def checkpoint_of(artefact: Artefact, backbone: Backbone) -> Checkpoint:
    """Return the fine-tuned network of a file; for its errors see `tuned_by`."""
    network = tuned_by(artefact, backbone)
    return Checkpoint(artefact.name, network, int(artefact.card["t0"]), artefact.strength)
