"""Editing with a fine-tuned network: noise in closed form, a few steps down."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editkit.backbones.base import Backbone
from editkit.engine.cache import InversionCache
from editkit.engine.invert import DDIM
from editkit.engine.rng import batch_noise
from editkit.engine.sample import sample
from editkit.engine.schedule import Schedule
from editkit.errors import UsageError, UserError, suggestion
from editkit.training.artefact import Artefact
from editkit.training.editor import Editor
from editkit.types import Condition, EditRequest, EditResult, Levels, Prediction

INVERTER = DDIM(query="source")
ENCODERS = ("q_sample", "ddim")
KINDS = ("difference", "weights")


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
        self.digest = functools.cache(backbone.digest)

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
            return self._inverted(x0, cache)
        noise = batch_noise(x0.shape[1:], keys, seed=seed, sample=sample, purpose="effdiff/encode", device=x0.device)
        return self.backbone.schedule.add_noise(x0, self.t0, noise)

    def _inverted(self, x0: Tensor, cache: InversionCache | None) -> Tensor:
        levels = self.backbone.schedule.levels(self.n_inv, start=self.t0)
        if cache is None:
            return INVERTER.invert(self.backbone, x0, levels).x
        dtype = next(self.backbone.parameters()).dtype
        return cache.invert(INVERTER, self.backbone, x0, levels, weights=self.digest(), dtype=dtype).x


@dataclass(frozen=True)
class Between:
    """A denoiser between two: eps = strength * tuned + (1 - strength) * original, and x0 alike.

    DiffusionCLIP's degree of change, not in this paper. At strength 1 the original network is not asked, at 0 the tuned one.
    """

    original: Backbone
    tuned: Backbone
    strength: float

    @property
    def schedule(self) -> Schedule:
        """Return the schedule of both."""
        return self.original.schedule

    @property
    def parameterization(self) -> str:
        """Return the parameterization of both."""
        return self.original.parameterization

    @property
    def calls(self) -> int:
        """Return the network calls of a query."""
        return 1 if self.strength in (0, 1) else 2

    def __call__(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> Prediction:
        """Predict from both, or from the only one that counts."""
        if self.strength == 0:
            return self.original(x, t, cond)
        tuned = self.tuned(x, t, cond)
        if self.strength == 1:
            return tuned
        plain, share = self.original(x, t, cond), self.strength
        return Prediction(share * tuned.x0 + (1 - share) * plain.x0, share * tuned.eps + (1 - share) * plain.eps)


class EffDiffEditor(Editor):
    """Noises images up to t0 and brings them back with the fine-tuned network, in few deterministic steps.

    Args:
        encode: from images to states.
        tuned: the fine-tuned network.
        n_test: levels of the way back; a request's `steps` replaces it.
        strength: factor on every strength that a request asks for (see `Between`).
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
        images = torch.stack([request.image for request in requests]).to(device_of(self.backbone))
        keys, seeds = [request.key for request in requests], [request.seed for request in requests]
        return self.encode(images, keys, seed=seeds, sample=[request.sample for request in requests], cache=self.cache)

    @torch.no_grad()
    def edit(self, requests: Sequence[EditRequest], state: Tensor | None = None) -> EditResult:
        """Return the edited images; `state` is what `prepare` returned for these requests (None: prepare now)."""
        state = self.prepare(requests) if state is None else state
        x, calls = torch.empty_like(state), [0.0] * len(requests)
        for (steps, strength), rows in self._groups(requests).items():
            network = Between(self.backbone, self.tuned, strength)
            x[rows] = sample(network, state[rows], grid(self.backbone.schedule, steps, self.encode.t0))
            for row in rows:
                calls[row] = float(self.encode.calls + steps * network.calls)
        return EditResult(self.backbone.decode(x), scores={"network_calls": calls})

    def _groups(self, requests: Sequence[EditRequest]) -> dict[tuple[int, float], list[int]]:
        """Group the rows of a batch by number of levels and strength."""
        groups: dict[tuple[int, float], list[int]] = {}
        for row, request in enumerate(requests):
            strength = self.strength * (1.0 if request.strength is None else request.strength)
            groups.setdefault((request.steps or self.n_test, strength), []).append(row)
        return groups


def difference(tuned: Backbone, original: Backbone) -> dict[str, Tensor]:
    """Return tuned - original in half precision: rounded whole weights would swallow changes of a thousandth."""
    base = original.state_dict()
    return {name: (tensor - base[name]).half() for name, tensor in tuned.state_dict().items()}


def tuned_by(artefact: Artefact, backbone: Backbone) -> Backbone:
    """Return the fine-tuned network of a file: a `difference` to its backbone, or whole `weights` (its card's `kind`).

    The copy computes in float32 whatever the backbone does: bf16 would round most of the change away.

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
    return network


def device_of(backbone: Backbone) -> torch.device:
    """Return where a backbone's weights are."""
    return next(backbone.parameters()).device
