"""Editing with trained shifts: invert once, then any strength, strip or grid of strengths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from editkit.backbones.base import Backbone
from editkit.engine.cache import InversionCache
from editkit.errors import UserError
from editkit.methods.weakly_supervised.asyrp.process import Attribute, MeanShift, Phases, gated, generate
from editkit.networks.delta import DELTAS
from editkit.training.artefact import Artefact
from editkit.training.editor import by_steps
from editkit.training.inverting import Inverted, InvertingEditor
from editkit.types import EditRequest, EditResult, Levels


class AsyrpEditor(InvertingEditor):
    """Inverts images by DDIM and generates them again with a shifted bottleneck.

    A request's strength multiplies that of every attribute (1 if it asks for none).

    Args:
        backbone: the frozen model that the attributes were trained on.
        attributes: what to edit; several act together, each weighted by 1 / sqrt(their number).
        t_start, n_inv, n_test, cache, measure: see `InvertingEditor`, whose `start` is t_start.
        gating: see `process.gated`.
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
        super().__init__(backbone, t_start, n_inv=n_inv, n_test=n_test, cache=cache, measure=measure)
        self.attributes = gated(attributes, gating)

    @torch.no_grad()
    def edit(self, requests: Sequence[EditRequest], state: Inverted | None = None) -> EditResult:
        """Return the edited images; `state` is what `prepare` returned for these requests (None: prepare now)."""
        state = state or self.prepare(requests)
        images, calls, decoders = torch.empty_like(state.x), list(state.calls), [0.0] * len(requests)
        for steps, rows in by_steps(requests, self.n_test):
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

    def _generate(self, requests: Sequence[EditRequest], x: Tensor, strengths: Tensor, levels: Levels) -> Tensor:
        return generate(self.backbone, self.attributes, strengths, x, levels, requests)


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
        block.requires_grad_(False).eval().to(backbone.device)
        delta = lambda h, temb, t: block(h, temb)  # noqa: E731
    else:
        delta = MeanShift(artefact.tensors["values"], card["times"]).to(backbone.device)
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
