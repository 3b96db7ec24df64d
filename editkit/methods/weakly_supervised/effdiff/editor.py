"""Editing with a fine-tuned network: noise in closed form, a few steps down."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from editkit.backbones.base import Backbone
from editkit.backbones.inversion import Inversion
from editkit.engine.cache import InversionCache
from editkit.engine.mixture import Mixture
from editkit.engine.rng import batch_noise
from editkit.engine.sample import sample
from editkit.engine.schedule import Schedule
from editkit.errors import UsageError, suggestion
from editkit.training.editor import Editor, by_steps, draws_of, images_of
from editkit.types import EditRequest, EditResult, Levels

ENCODERS = ("q_sample", "ddim")


def grid(schedule: Schedule, n: int, t0: int) -> Levels:
    """Return the n levels from 0 to t0; one level is t0 itself, from which the step down lands on the estimate."""
    return schedule.levels_at([t0], entry=1) if n == 1 else schedule.levels(n, start=t0)


class Encoder:
    """From images to the states at t0 that training and editing start from.

    Args:
        backbone: the original network.
        t0: time of the states.
        kind: "q_sample" adds noise in closed form, x = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise at t0 itself, without a
            network call; "ddim" inverts, as DiffusionCLIP does: more faithful, n_inv - 1 calls.
        n_inv: levels of the inversion.

    Raises:
        UsageError: another kind.
    """

    def __init__(self, backbone: Backbone, t0: int, kind: str = "q_sample", n_inv: int = 40) -> None:
        if kind not in ENCODERS:
            raise UsageError(f"method.encoder={kind} is unknown.{suggestion(kind, ENCODERS)} Choose from {', '.join(ENCODERS)}")
        self.backbone, self.t0, self.kind, self.n_inv = backbone, t0, kind, n_inv
        self.inversion = Inversion(backbone)

    @property
    def calls(self) -> int:
        """Return the network calls for an image."""
        return self.n_inv - 1 if self.kind == "ddim" else 0

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,
        keys: Sequence[str],
        *,
        seed: int | Sequence[int],
        sample: int | Sequence[int] = 0,
        cache: InversionCache | None = None,
    ) -> Tensor:
        """Return the states of images (B, 3, H, W); the noise depends on seed, key and sample number alone."""
        x0 = self.backbone.encode(images)
        if self.kind == "ddim":
            return self.inversion(x0, self.backbone.schedule.levels(self.n_inv, start=self.t0), cache).x
        noise = batch_noise(x0.shape[1:], keys, seed=seed, sample=sample, purpose="effdiff/encode", device=x0.device)
        return self.backbone.schedule.add_noise(x0, self.t0, noise)


class EffDiffEditor(Editor):
    """Noises images up to t0 and brings them back with the fine-tuned network, in few deterministic steps.

    A request's strength leads from the original network, 0, to the fine-tuned one, 1: DiffusionCLIP's degree of change, not in
    this paper.

    Args:
        encode: from images to states.
        tuned: the fine-tuned network.
        n_test: levels of the way back; a request's `steps` replaces it.
        strength: factor on every strength that a request asks for.
        cache: keeps inversions, for the encoder that makes some.
    """

    name = "effdiff"
    needs = ("image",)

    def __init__(
        self, encode: Encoder, tuned: Backbone, *, n_test: int = 6, strength: float = 1.0, cache: InversionCache | None = None
    ) -> None:
        self.encode, self.tuned, self.n_test, self.strength, self.cache = encode, tuned, n_test, strength, cache
        self.backbone = encode.backbone

    @torch.no_grad()
    def prepare(self, requests: Sequence[EditRequest]) -> Tensor:
        """Return the states that edits of any strength start from, (B, C, H, W)."""
        images = images_of(requests).to(self.backbone.device)
        return self.encode(images, **draws_of(requests), cache=self.cache)

    @torch.no_grad()
    def edit(self, requests: Sequence[EditRequest], state: Tensor | None = None) -> EditResult:
        """Return the edited images; `state` is what `prepare` returned for these requests (None: prepare now)."""
        state = self.prepare(requests) if state is None else state
        x, calls = torch.empty_like(state), [0.0] * len(requests)
        for steps, rows in by_steps(requests, self.n_test):
            levels = grid(self.backbone.schedule, steps, self.encode.t0)
            mixture = self._mixture([requests[row] for row in rows])
            x[rows] = sample(mixture, state[rows], levels)
            for row, more in zip(rows, mixture.calls(levels), strict=True):
                calls[row] = self.encode.calls + more
        return EditResult(self.backbone.decode(x), scores={"network_calls": calls})

    def _mixture(self, requests: Sequence[EditRequest]) -> Mixture:
        """Return the original and the fine-tuned network as one denoiser, shared by the strength of each request."""
        strengths = [self.strength * (1.0 if request.strength is None else request.strength) for request in requests]
        shares = torch.tensor([[1 - strength, strength] for strength in strengths])
        return Mixture(self.backbone, [self.tuned], lambda t: shares)
