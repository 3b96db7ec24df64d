"""Tiny parts for the UNIT-DDPM tests: a method whose networks read both pictures, pictures, and the paper's walk by hand."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from editkit.engine.rng import batch_noise, level_noise
from editkit.methods.weakly_supervised.unit_ddpm import UnitDDPM
from editkit.types import EditRequest
from tests.methods.asyrp_parts import tiny_backbone

SIDE = 8


def method(seed=4, **changes) -> UnitDDPM:
    """Return a method whose networks have taken some random steps: they differ, and read the other picture too."""
    made = untouched(**changes)
    torch.manual_seed(seed)
    with torch.no_grad():
        for network in made.noise:
            network.unet.conv_in.weight.add_(0.2 * torch.randn_like(network.unet.conv_in.weight))
            network.unet.conv_out.weight.add_(0.2 * torch.randn_like(network.unet.conv_out.weight))
        for translator in made.translators:
            translator.change[-1].weight.normal_(std=0.05)
    return made


def untouched(**changes) -> UnitDDPM:
    torch.manual_seed(4)
    settings = {"domains": ("cat", "dog"), "width": 4, "blocks": 1, "steps": 10}
    optimizer = partial(torch.optim.Adam, lr=2e-3)
    return UnitDDPM(**({"backbone": tiny_backbone(), "optimizer": optimizer} | settings | changes))


def pictures(count=2) -> Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def requests(count=2, **changes) -> list[EditRequest]:
    return [EditRequest(f"{k}.png", **{"image": image} | changes) for k, image in enumerate(pictures(count))]


def edited(made: UnitDDPM, asked=None) -> Tensor:
    return made.editor([]).edit(asked or requests()).images


def batch(count=4) -> dict:
    return {"image": pictures(count), "domain": [0, 1, 1, 0, 1, 0][:count], "key": list("abcdef")[:count]}


def network_eps(network, x: Tensor, other: Tensor, t: Tensor) -> Tensor:
    """Return the eps of a network that predicts v, from its UNet itself."""
    a, s = network.schedule.coefficients(t, x)
    return a * network.unet(torch.cat([x, other], 1), t).sample + s * x


@torch.no_grad()
def by_hand(made: UnitDDPM, steps: int, release: int, mistake: str | None = None) -> Tensor:
    """Walk as the paper's algorithm does, on times counted from 1; a mistake is one of those easily made."""
    target, source = made.noise[1], made.noise[0]
    levels, x0, top = made.backbone.schedule.levels(steps, spacing="linspace"), pictures(), steps
    keys = {"keys": ["0.png", "1.png"], "seed": [0, 0], "sample": [0, 0]}
    step, own, fresh = (level_noise(x0.shape[1:], purpose=f"unit-ddpm/{name}", **keys) for name in ("step", "own", "source"))
    b = batch_noise(x0.shape[1:], purpose="unit-ddpm/start", **keys)
    a, walking = x0, False

    def down(x, network, other, i, noise):
        t = torch.full((len(x),), int(levels.times[i]))
        low, high = levels.alpha_bar[i], levels.alpha_bar[i - 1]
        clean = ((x - (1 - low) ** 0.5 * network_eps(network, x, other, t)) / low**0.5).clamp(-1, 1)
        beta = 1 - low / high
        mean = (high**0.5 * beta * clean + (low / high) ** 0.5 * (1 - high) * x) / (1 - low)
        return mean if i == 1 else mean + (beta * (1 - high) / (1 - low)) ** 0.5 * noise(i)

    for i in range(top, 0, -1):
        if not walking:
            a = levels.signal(i) * x0 + levels.noise(i) * fresh(top if mistake == "one noise for all times" else i)
        walking = levels.times[i] + 1 <= release
        seen = x0 if mistake == "a clean source" else a
        further = down(a, target if mistake == "the target's network for both" else source, b, i, own)
        b = down(b, target, seen, i, step)
        a = further
    return b.clamp(-1, 1)
