"""The figures of the network that tells pasted objects from rendered ones: what its card says."""

from __future__ import annotations

from typing import Any

import torch

from editkit.data.items import image_tensor
from editkit.data.pasted import COMPOSITIONS, composed
from editkit.data.scenes import mask_tensor
from editkit.data.toyworld.scenes.drawing import render
from editkit.data.toyworld.scenes.world import exemplar_at
from editkit.metrics.harmony import HarmonyNet, outranked

BATCH = 64


@torch.no_grad()
def harmony_figures(net: HarmonyNet, *, images: int = 512, size: int = 64) -> dict[str, Any]:
    """Return how well test pictures are told apart: the area under the ROC curve of each way of pasting, and chances."""
    pairs = [exemplar_at("test", k) for k in range(images)]
    masks = torch.stack([mask_tensor(pair.mask(size)[None]) for pair in pairs])
    shown = {"rendered": [image_tensor(render(pair.target, size)) for pair in pairs]}
    shown["another object"] = [image_tensor(render(pair.source, size)) for pair in pairs]
    shown |= {name: [composed(pair, name, size, over=pair.source) for pair in pairs] for name in COMPOSITIONS}
    logits = {name: _logits(net, torch.stack(pictures), masks) for name, pictures in shown.items()}
    areas = {f"AUC {name}": outranked(own, logits["rendered"]).mean() for name, own in logits.items() if name != "rendered"}
    chances = {f"chance {name}": own.sigmoid().mean() for name, own in logits.items()}
    return {name: round(value.item(), 4) for name, value in (areas | chances).items()}


def _logits(net: HarmonyNet, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    return torch.cat([net(*chunk) for chunk in zip(images.split(BATCH), masks.split(BATCH), strict=True)])
