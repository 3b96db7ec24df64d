"""Editing with trained shifts: invert once, then any strength, strip or grid of strengths."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from editkit.backbones.base import Backbone
from editkit.engine.cache import InversionCache
from editkit.engine.invert import DDIM
from editkit.engine.sample import sample
from editkit.errors import UserError
from editkit.methods.weakly_supervised.asyrp.process import Attribute, MeanShift, Phases, gated, generate
from editkit.metrics.images import psnr
from editkit.networks.delta import DELTAS
from editkit.training.artefact import Artefact
from editkit.training.editor import Editor
from editkit.types import EditRequest, EditResult, Levels

INVERTER = DDIM(query="source")


@dataclass
class Inverted:
    """Images at the noisiest level: what an edit at any strength, of any attribute of this backbone, starts from.

    Attributes:
        x: (B, C, H, W), in the order of the requests.
        calls: network calls of the inversion, per image.
        reconstruction_psnr: of the plain way back in dB, per image; empty if it was not measured.
    """

    x: Tensor
    calls: list[int]
    reconstruction_psnr: list[float]


class AsyrpEditor(Editor):
    """Inverts images by DDIM and generates them again with a shifted bottleneck.

    A request's strength multiplies that of every attribute (1 if it asks for none).

    Args:
        backbone: the frozen model that the attributes were trained on.
        attributes: what to edit; several act together, each weighted by 1 / sqrt(their number).
        n_inv: levels of the inversion.
        n_test: levels of the generation; a request's `steps` replaces both numbers.
        t_start: time of the noisiest level of both; None = the last training time.
        gating: see `process.gated`.
        cache: keeps inversions for later calls.
        measure: reconstruct each image as well and report the PSNR, which costs as many calls as a plain generation.
    """

    name = "asyrp"
    needs = ("image",)

    def __init__(
        self,
        backbone: Backbone,
        attributes: Sequence[Attribute],
        *,
        n_inv: int = 40,
        n_test: int = 40,
        t_start: float | None = None,
        gating: str = "own",
        cache: InversionCache | None = None,
        measure: bool = True,
    ) -> None:
        self.backbone = backbone
        self.attributes = gated(attributes, gating)
        self.n_inv, self.n_test = n_inv, n_test
        self.levels = partial(backbone.schedule.levels, start=t_start)
        self.invert, self.measure = inverting(backbone, cache), measure

    @torch.no_grad()
    def prepare(self, requests: Sequence[EditRequest]) -> Inverted:
        """Invert the images of the requests; the result serves every strength and every editor of this backbone."""
        images = torch.stack([request.image for request in requests]).to(device_of(self.backbone))
        x, calls, quality = torch.empty_like(images), [0] * len(requests), [math.nan] * len(requests)
        for steps, rows in _by_steps(requests, self.n_inv):
            levels = self.levels(steps)
            x[rows] = self.invert(images[rows], levels)
            again = self.reconstruct(requests, x, rows) if self.measure else None
            for place, row in enumerate(rows):
                calls[row] = steps - 1
                if again is not None:
                    quality[row] = float(psnr(again[place : place + 1], images[row : row + 1])[0])
        return Inverted(x, calls, quality if self.measure else [])

    @torch.no_grad()
    def edit(self, requests: Sequence[EditRequest], state: Inverted | None = None) -> EditResult:
        """Return the edited images; `state` is what `prepare` returned for these requests (None: prepare now)."""
        state = state or self.prepare(requests)
        images, calls, decoders = torch.empty_like(state.x), list(state.calls), [0.0] * len(requests)
        for steps, rows in _by_steps(requests, self.n_test):
            some = [requests[row] for row in rows]
            strengths = torch.tensor([[1.0 if r.strength is None else r.strength] * len(self.attributes) for r in some])
            levels = self.levels(steps)
            images[rows] = self._generate(some, state.x[rows], strengths, levels)
            shifted = {i for attribute in self.attributes for i in attribute.phases.edited(levels)} if strengths.any() else ()
            for row in rows:
                calls[row] += steps
                decoders[row] = float(calls[row] + len(shifted))
        scores = {"network_calls": [float(n) for n in calls], "decoder_passes": decoders}
        if state.reconstruction_psnr:
            scores["reconstruction_psnr"] = list(state.reconstruction_psnr)
        return EditResult(self.backbone.decode(images), scores=scores)

    @torch.no_grad()
    def sweep(self, requests: Sequence[EditRequest], strengths: Tensor, state: Inverted | None = None) -> Tensor:
        """Return (B, S, 3, H, W): every request at each of S strengths, (S, k), one of each attribute."""
        state = state or self.prepare(requests)
        levels = self.levels(self.n_test)
        rows = [row.float().expand(len(requests), -1) for row in strengths]
        return torch.stack([self.backbone.decode(self._generate(requests, state.x, row, levels)) for row in rows], 1)

    def reconstruct(self, requests: Sequence[EditRequest], x: Tensor, rows: Sequence[int]) -> Tensor:
        """Return the plain deterministic way back of some rows of x."""
        (steps,) = {requests[row].steps or self.n_test for row in rows}
        return self.backbone.decode(sample(self.backbone, x[list(rows)], self.levels(steps)))

    def _generate(self, requests: Sequence[EditRequest], x: Tensor, strengths: Tensor, levels: Levels) -> Tensor:
        return generate(self.backbone, self.attributes, strengths, x, levels, requests)


def inverting(backbone: Backbone, cache: InversionCache | None = None) -> Callable[[Tensor, Levels], Tensor]:
    """Return (images (B, 3, H, W), levels) -> their states at the noisiest level, from the cache where it has them."""
    weights: list[str] = []  # hashed at the first use, once: the backbone is frozen

    def invert(images: Tensor, levels: Levels) -> Tensor:
        x0 = backbone.encode(images)
        if cache is None:
            return INVERTER.invert(backbone, x0, levels).x
        if not weights:
            weights.append(backbone.digest())
        dtype = next(backbone.parameters()).dtype
        return cache.invert(INVERTER, backbone, x0, levels, weights=weights[0], dtype=dtype).x

    return invert


def attribute_of(artefact: Artefact, backbone: Backbone) -> Attribute:
    """Return what an exported file holds, ready to act on a backbone.

    Raises:
        UserError: not a file of this method, or one that was trained on a backbone of another shape.
    """
    card = artefact.card
    if "t_edit" not in card or "bottleneck_shape" not in card:
        raise UserError(f"the weights {artefact.name!r} are not of asyrp (made by {card.get('method', 'something unknown')})")
    theirs, ours = list(card["bottleneck_shape"]), list(backbone.bottleneck_shape)
    if theirs != ours or card["time_width"] != backbone.time_width:
        raise UserError(f"the weights {artefact.name!r} belong to another backbone: its bottleneck is {theirs}, not {ours}")
    if card["kind"] == "network":
        block = DELTAS[card["style"]](ours[0], backbone.time_width if "time.weight" in artefact.tensors else 0)
        block.load_state_dict({name: tensor.float() for name, tensor in artefact.tensors.items()})
        block.requires_grad_(False).eval().to(device_of(backbone))
        delta = lambda h, temb, t: block(h, temb)  # noqa: E731
    else:
        delta = MeanShift(artefact.tensors["values"], card["times"]).to(device_of(backbone))
    phases = Phases(card["t_edit"], card["t_boost"])
    return Attribute(artefact.name, delta, phases, card["n_train"], card["text_cosine"], artefact.strength)


def start_of(artefacts: Sequence[Artefact], default: float | None) -> float | None:
    """Return the noisiest time of the levels that files were trained on, `default` without files.

    Raises:
        UserError: they differ, so that one inversion cannot serve them all.
    """
    starts = {artefact.card.get("t_start") for artefact in artefacts} or {default}
    if len(starts) > 1:
        times = " and ".join(f"{artefact.name!r} from {artefact.card.get('t_start') or 'the end'}" for artefact in artefacts)
        raise UserError(f"these weights were trained to come back from different times ({times}): use them one by one")
    return starts.pop()


def device_of(backbone: Backbone) -> torch.device:
    """Return where a backbone's weights are."""
    return next(backbone.parameters()).device


def _by_steps(requests: Sequence[EditRequest], default: int) -> list[tuple[int, list[int]]]:
    """Group the rows of a batch by their number of levels."""
    groups: dict[int, list[int]] = {}
    for row, request in enumerate(requests):
        groups.setdefault(request.steps or default, []).append(row)
    return list(groups.items())
