"""Methods that train a whole copy of their backbone, and the files that they leave: what the training changed."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from editkit.backbones.base import Backbone
from editkit.backbones.clip import ClipEncoder
from editkit.errors import UserError
from editkit.losses.clip_direction import DirectionalClip
from editkit.losses.identity import Identity
from editkit.losses.text_edit import TextEdit
from editkit.training.artefact import Artefact
from editkit.training.method import Method, OptimizerFactory, SchedulerFactory
from editkit.training.share import Rows
from editkit.types import EditRequest

KINDS = ("difference", "weights")


class TunedCopy(Method):
    """Trains a copy of a frozen backbone and leaves one file: what changed.

    Args:
        backbone: it stays as it is.
        title: names the trained file.

    Attributes:
        tuned: the copy, once `network` was asked for it.
        kept: what was computed of the training images before training.
        preview: the images of the sample grid.
    """

    def __init__(
        self,
        backbone: Backbone,
        title: str,
        *,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        self.backbone, self.title = backbone, title
        self.tuned: Backbone | None = None
        self.kept: Rows = {}
        self.preview: list[EditRequest] = []

    def network(self) -> Backbone:
        """Return the copy that is trained, made when it is first asked for: editing needs none."""
        if self.tuned is None:
            self.tuned = copy.deepcopy(self.backbone)
        return self.tuned

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        """Return all parameters of the copy."""
        return {"unet": self.network().parameters()}

    def shardable(self) -> Sequence[nn.Module]:
        """Return the copy's UNet."""
        return (self.network().unet,)  # type: ignore[return-value]

    def artefacts(self) -> list[Artefact]:
        """Return the change of the network's weights."""
        return [Artefact(self.title, difference(self.network(), self.backbone), card=self.card())]

    def card(self) -> dict[str, Any]:
        """Return what the exported file says: the kind of file, the backbone that it changes."""
        return {**super().card(), "kind": "difference"}

    def dummy_batch(self) -> dict[str, Any]:
        """Return two random images."""
        shape = (2, 3, *self.backbone.sample_shape[1:])
        return {"image": torch.rand(shape, device=self.device) * 2 - 1, "key": ["dummy/0", "dummy/1"]}


class FineTuning(TunedCopy):
    """Trains the copy by the losses of `TextEdit`, towards a text that names the trained file.

    Args:
        backbone: it stays as it is.
        clip: makes the CLIP whose direction guides the training.
        identity: makes the network of the identity term, if it has a weight.
        source_prompt: what the images show.
        prompt: what edited images should show.
        weights: clip_weight, l1_weight and identity_weight.
    """

    def __init__(
        self,
        backbone: Backbone,
        clip: Callable[[], ClipEncoder],
        identity: Callable[[], nn.Module] | None,
        source_prompt: str,
        prompt: str,
        weights: Mapping[str, float],
        *,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__(backbone, prompt, optimizer=optimizer, scheduler=scheduler)
        self.make_clip, self.make_identity = clip, identity
        self.source_prompt, self.prompt, self.weights = source_prompt, prompt, dict(weights)

    def prepare_training(self) -> None:
        """Load the networks of the losses."""
        self.criterion = self.criterions()(self.source_prompt, self.prompt)

    def criterions(self) -> Callable[[str, str], TextEdit]:
        """Load the networks of the losses and return (source text, target text) -> the losses."""
        device = self.backbone.device
        clip = self.make_clip().to(device)
        identity = Identity(self.make_identity()) if self.make_identity and self.weights["identity_weight"] else None
        return functools.cache(
            lambda source, target: TextEdit(DirectionalClip(clip, source, target), identity, **self.weights).to(device)
        )

    def card(self) -> dict[str, Any]:
        """Return what the exported file says, with the texts."""
        return {**super().card(), "prompt": self.prompt, "source_prompt": self.source_prompt}


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
