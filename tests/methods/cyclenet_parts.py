"""A tiny CycleNet, and what its networks are asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from editkit.backbones.latent import LatentBackbone
from editkit.methods.weakly_supervised.cyclenet import CycleNet
from editkit.methods.weakly_supervised.cyclenet.terms import Batch, Weights, terms
from tests.backbones import tiny_latent as tiny

TEXTS = {"S": "by day", "G": "at night"}


def backbone(prediction: str = "epsilon") -> LatentBackbone:
    """Return a tiny text-to-image model whose UNet half precision holds exactly."""
    made = tiny.parts()
    config = tiny.scheduler(prediction_type=prediction).config
    unet = made["unet"].half().float()
    return LatentBackbone(unet, made["vae"], config, made["text_encoder"], made["tokenizer"])


def method(prediction: str = "epsilon", *, stir: bool = True, **changes: Any) -> CycleNet:
    """Return the method, its ControlNet's zero convolutions not zero unless `stir` is false."""
    torch.manual_seed(0)
    settings = {"steps": 10, "strength": 0.5, "scale": 3.0, "optimizer": partial(torch.optim.AdamW, lr=1e-3)} | changes
    made = CycleNet(backbone=backbone(prediction), **settings)
    if stir:
        stirred(made)
    made.freeze_rest()
    return made


def stirred(made: CycleNet) -> None:
    net = made.controlnet
    with torch.no_grad():
        for layer in (*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out):
            layer.weight.normal_(std=0.3)
        for parameter in (*net.parameters(), *made.trainable()["cyclenet"]):
            parameter.copy_(parameter.half())  # what an export keeps


def batch(made: CycleNet, count: int = 2) -> Batch:
    """Return a batch of smooth images with fixed noise."""
    images = tiny.images(count)
    noise = torch.Generator().manual_seed(7)
    with torch.no_grad():
        z = made.backbone.encode(images)
        source, target = (made.backbone.tokens([text] * count) for text in TEXTS.values())
    drawn = [torch.randn(z.shape, generator=noise) for _ in range(2)]
    return Batch(z, images / 2 + 0.5, source, target, torch.tensor([150, 400][:count]), *drawn)


def gradients(made: CycleNet, given: Batch, weights: Weights) -> dict[str, float]:
    """Return the largest gradient of the ControlNet, of the UNet's decoder and of all else that terms leave behind."""
    made.zero_grad(set_to_none=True)
    sum(term.mean() for term in terms(made.network(), given, weights).values()).backward()
    return {name: largest(part) for name, part in parts(made).items()}


def parts(made: CycleNet) -> dict[str, list[torch.nn.Parameter]]:
    net = list(made.controlnet.parameters())
    unet = made.backbone.unet
    decoder = [p for part in (unet.up_blocks, unet.conv_norm_out, unet.conv_out) for p in part.parameters()]
    known = {id(p) for p in (*net, *decoder)}
    return {"net": net, "decoder": decoder, "rest": [p for p in made.parameters() if id(p) not in known]}


def largest(parameters: list[torch.nn.Parameter]) -> float:
    return max((float(p.grad.abs().max()) for p in parameters if p.grad is not None), default=0.0)


@contextmanager
def routes(made: CycleNet, given: Batch) -> Iterator[dict[str, list[Any]]]:
    """Note which text each network reads, sample by sample, which hint the ControlNet sees and at which time."""
    seen: dict[str, list[Any]] = {"net": [], "unet": [], "hints": [], "times": []}

    def text(tokens: torch.Tensor) -> str:
        return "".join("S" if torch.equal(row, given.source[0]) else "G" for row in tokens)

    def net(module, args, kwargs):
        seen["net"].append(text(kwargs["encoder_hidden_states"]))
        seen["hints"].append(kwargs["controlnet_cond"].detach().clone())
        seen["times"].extend(args[1].tolist())

    def unet(module, args, kwargs):
        seen["unet"].append(text(args[2]))
        seen["times"].extend(args[1].tolist())

    hooks = [
        made.controlnet.register_forward_pre_hook(net, with_kwargs=True),
        made.backbone.unet.register_forward_pre_hook(unet, with_kwargs=True),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
