"""Editing with fine-tuned networks: invert with the original one, come back with a mixture that strength and time decide."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from editkit.backbones.base import Backbone
from editkit.engine.cache import InversionCache
from editkit.engine.invert import DDIM
from editkit.engine.rng import level_noise
from editkit.engine.sample import sample
from editkit.engine.steps import ddim
from editkit.errors import UsageError, UserError
from editkit.methods.weakly_supervised.diffusionclip.process import Checkpoint, Mix, Mixture
from editkit.metrics.images import psnr
from editkit.training.artefact import Artefact
from editkit.training.editor import Editor
from editkit.types import EditRequest, EditResult, Levels

INVERTER = DDIM(query="source")
KINDS = ("difference", "weights")


@dataclass
class Inverted:
    """Images at the noisiest level: what an edit at any strength, by any checkpoint of this t0, starts from.

    Attributes:
        x: (B, C, H, W), in the order of the requests.
        calls: network calls of the inversion, per image.
        reconstruction_psnr: of the plain way back in dB, per image; empty if it was not measured.
    """

    x: Tensor
    calls: list[int]
    reconstruction_psnr: list[float]


class DiffusionClipEditor(Editor):
    """Inverts images by DDIM up to t0 and generates them again with fine-tuned networks.

    A request's strength is the degree of change: eps = strength * fine-tuned + (1 - strength) * original.

    Args:
        backbone: the original network.
        checkpoints: fine-tuned copies; of different t0 the largest counts.
        mix: {threshold: weights}, see `Mix`; None = equal weights.
        n_inv: levels of the inversion.
        n_test: levels of the generation; a request's `steps` replaces both numbers.
        eta: noise that the steps of the generation add, 0 = none (DDIM).
        cache: keeps inversions for later calls.
        measure: reconstruct each image as well and report the PSNR, which costs as many calls as a plain generation.

    Raises:
        UsageError: no checkpoint, or a mix that does not fit them.
    """

    name = "diffusionclip"
    needs = ("image",)

    def __init__(
        self,
        backbone: Backbone,
        checkpoints: Sequence[Checkpoint],
        *,
        mix: Mapping[float, Sequence[float]] | None = None,
        n_inv: int = 40,
        n_test: int = 40,
        eta: float = 0.0,
        cache: InversionCache | None = None,
        measure: bool = True,
    ) -> None:
        if not checkpoints:
            raise UsageError(f"{self.name} needs a fine-tuned network: give --weights FILE")
        self.backbone, self.checkpoints, self.mix = backbone, list(checkpoints), Mix.read(mix, len(checkpoints))
        self.t0 = max(one.t0 for one in checkpoints)
        self.n_inv, self.n_test, self.eta = n_inv, n_test, eta
        self.cache, self.measure = cache, measure
        self.digest = functools.cache(backbone.digest)

    def levels(self, n: int) -> Levels:
        """Return the n levels from 0 to t0."""
        return self.backbone.schedule.levels(n, start=self.t0)

    @torch.no_grad()
    def prepare(self, requests: Sequence[EditRequest]) -> Inverted:
        """Invert the images of the requests with the original network; the result serves every strength."""
        images = torch.stack([request.image for request in requests]).to(device_of(self.backbone))
        start = self.backbone.encode(images)
        x, calls, quality = torch.empty_like(start), [0] * len(requests), [math.nan] * len(requests)
        for steps, rows in _by_steps(requests, self.n_inv):
            x[rows] = invert(self.backbone, start[rows], self.levels(steps), self.cache, self.digest)
            for row in rows:
                calls[row] = steps - 1
        if self.measure:
            for steps, rows in _by_steps(requests, self.n_test):
                again = self.backbone.decode(sample(self.backbone, x[rows], self.levels(steps)))
                for row, figure in zip(rows, psnr(again, images[rows]).tolist(), strict=True):
                    quality[row] = figure
        return Inverted(x, calls, quality if self.measure else [])

    @torch.no_grad()
    def edit(self, requests: Sequence[EditRequest], state: Inverted | None = None) -> EditResult:
        """Return the edited images; `state` is what `prepare` returned for these requests (None: prepare now)."""
        state = state or self.prepare(requests)
        x, calls = torch.empty_like(state.x), [float(n) for n in state.calls]
        for steps, rows in _by_steps(requests, self.n_test):
            some, levels = [requests[row] for row in rows], self.levels(steps)
            strengths = torch.tensor([1.0 if r.strength is None else r.strength for r in some], dtype=torch.float64)
            mixture = Mixture(self.backbone, self.checkpoints, self.mix, strengths)
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
            [request.key for request in requests],
            seed=[request.seed for request in requests],
            sample=[request.sample for request in requests],
            purpose="diffusionclip/step",
            device=device_of(self.backbone),
        )


def invert(backbone: Backbone, x0: Tensor, levels: Levels, cache: InversionCache | None, digest: Callable[[], str]) -> Tensor:
    """Return the states of x0 (B, C, H, W) at the noisiest level, from the cache where it has them; n - 1 calls of n levels."""
    if cache is None:
        return INVERTER.invert(backbone, x0, levels).x
    dtype = next(backbone.parameters()).dtype
    return cache.invert(INVERTER, backbone, x0, levels, weights=digest(), dtype=dtype).x


def difference(tuned: Backbone, original: Backbone) -> dict[str, Tensor]:
    """Return tuned - original in half precision: rounded whole weights would swallow changes of a thousandth."""
    base = original.state_dict()
    return {name: (tensor - base[name]).half() for name, tensor in tuned.state_dict().items()}


def checkpoint_of(artefact: Artefact, backbone: Backbone) -> Checkpoint:
    """Return the fine-tuned network of a file: a `difference` to its backbone, or whole `weights` (its card's `kind`).

    EffDiff's files are such networks too. The copy computes in float32 whatever the backbone does: bf16 would round most of
    the change away.

    Raises:
        UserError: not a file of a fine-tuned network, or one of another backbone.
    """
    card, base = artefact.card, backbone.state_dict()
    if card.get("kind") not in KINDS or "t0" not in card:
        maker = card.get("method", "something unknown")
        raise UserError(f"the weights {artefact.name!r} are not a fine-tuned network (made by {maker})")
    theirs = {name: tuple(tensor.shape) for name, tensor in artefact.tensors.items()}
    ours = {name: tuple(tensor.shape) for name, tensor in base.items()}
    if theirs != ours:
        odd = min(name for name, _ in theirs.items() ^ ours.items())
        seen, here = theirs.get(odd, "missing"), ours.get(odd, "unknown")
        raise UserError(f"the weights {artefact.name!r} belong to another backbone: their {odd} is {seen}, here it is {here}")
    # of a backbone that was cast the digest is another; the application compares it before it casts
    if "backbone_digest" in card and next(iter(base.values())).dtype == torch.float32:
        digest = backbone.digest()
        if card["backbone_digest"] != digest:
            raise UserError(f"the weights {artefact.name!r} belong to another backbone: {card['backbone_digest']}, not {digest}")
    network = copy.deepcopy(backbone).float().requires_grad_(False).eval()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            given = artefact.tensors[name].to(tensor)
            tensor.copy_(tensor + given if card["kind"] == "difference" else given)
    return Checkpoint(artefact.name, network, int(card["t0"]), artefact.strength)


def device_of(backbone: Backbone) -> torch.device:
    """Return where a backbone's weights are."""
    return next(backbone.parameters()).device


def _by_steps(requests: Sequence[EditRequest], default: int) -> list[tuple[int, list[int]]]:
    """Group the rows of a batch by their number of levels."""
    groups: dict[int, list[int]] = {}
    for row, request in enumerate(requests):
        groups.setdefault(request.steps or default, []).append(row)
    return list(groups.items())
