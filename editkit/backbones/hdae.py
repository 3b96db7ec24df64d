"""Hierarchical diffusion autoencoders (HDAE, Lu et al., WACV 2024, arXiv 2304.11829): a code for every level of a UNet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from editkit.backbones.assets import resolve
from editkit.backbones.diffae import DiffAEBackbone, DiffusionAutoencoder, StartedEncoder, begun, last_layer
from editkit.backbones.unet import dtype_of
from editkit.errors import UsageError
from editkit.networks.level_encoder import VARIANTS, LevelEncoder
from editkit.networks.two_conditions import TwoConditions
from editkit.types import Condition


class StartedLevels(StartedEncoder):
    """A `LevelEncoder` by itself, which a hierarchical autoencoder can start with.

    Args:
        levels: how many codes.
        variant: see `LevelEncoder`.
        network: further arguments of `StartedEncoder`.
    """

    kind = "level-encoder"

    def __init__(self, *, levels: int, variant: str = "U", **network: Any) -> None:
        super().__init__(**network)
        own = self.config
        sizes = {"size": own["sample_size"], "blocks": own["blocks"], "attended": own["attended"], "groups": own["groups"]}
        self.encoder = LevelEncoder(own["encoder_channels"], own["code"], levels=levels, variant=variant, **sizes)
        self.config = {**own, "levels": levels, "variant": variant}

    @property
    def width(self) -> int:
        """Return how many numbers an image becomes, all codes together."""
        return int(self.config["code"] * self.config["levels"])

    def heads(self) -> list[nn.Conv2d]:
        """Return the last layers, which each put out a level's code."""
        return [last_layer(self.encoder.out), *map(last_layer, self.encoder.heads)]


class HierarchicalAutoencoder(DiffusionAutoencoder):
    """A diffusion autoencoder whose encoder gives a code per level of the UNet, each read by the blocks of that level alone.

    Args:
        variant: of the encoder, see `LevelEncoder`.
        gated: each level reads the most abstract code plus a gate times its own; gates start at 0, so that weights of
            Diffusion Autoencoders compute what they did.
        network: arguments of `DiffusionAutoencoder`.

    Raises:
        UsageError: an unknown variant.
    """

    kind = "hdae"
    started = StartedLevels

    def __init__(self, *, variant: str = "U", gated: bool = False, **network: Any) -> None:
        super().__init__(**network)
        if variant not in VARIANTS:
            raise UsageError(f"variant {variant!r} of the encoder is unknown: choose from {', '.join(VARIANTS)}")
        own, levels = self.config, len(self.config["channels"])
        sizes = {"size": own["sample_size"], "blocks": own["blocks"], "attended": own["attended"], "groups": own["groups"]}
        self.encoder = LevelEncoder(own["encoder_channels"], own["code"], levels=levels, variant=variant, warm=gated, **sizes)
        self.config = {**own, "variant": variant, "gated": gated}
        self.gates = nn.Parameter(torch.zeros(levels - 1)) if gated else None
        for level, block in leveled(self.unet):
            condition = block.time_emb_proj
            assert isinstance(condition, TwoConditions)
            condition.place = levels - 1 - level


class HDAEBackbone(DiffAEBackbone):
    """A hierarchical diffusion autoencoder as a Denoiser; its condition is all codes side by side, the most abstract first."""

    def __init__(self, net: HierarchicalAutoencoder) -> None:
        super().__init__(net)
        self.levels_count, self.width = len(net.config["channels"]), int(net.config["code"])
        self.code_width = self.levels_count * self.width
        self.gates = None if net.gates is None else net.gates.requires_grad_(False)

    @property
    def parts(self) -> dict[str, slice]:
        """Return the codes by the side of the pictures that their blocks work at, "8", "16"..."""
        size = self.sample_shape[1] >> (self.levels_count - 1)
        return {f"{size << n}": slice(n * self.width, (n + 1) * self.width) for n in range(self.levels_count)}

    def _embedding(self, t: float | Tensor, cond: Condition | None, batch: int) -> Tensor:
        if cond is not None and cond.vector is not None and self.gates is not None:
            first, *others = cond.vector.split(self.width, 1)
            mixed = [first + gate * other for gate, other in zip(self.gates, others, strict=True)]
            cond = replace(cond, vector=torch.cat([first, *mixed], 1))
        return super()._embedding(t, cond, batch)


def leveled(unet: UNet2DModel) -> Iterator[tuple[int, ResnetBlock2D]]:
    """Yield every residual block with its level, 0 the largest pictures; a block that resizes belongs to where it leads."""
    last = len(unet.down_blocks) - 1
    for level, block in enumerate(unet.down_blocks):
        yield from ((level, resnet) for resnet in block.resnets)
        yield from ((level + 1, layer) for layer in block.downsamplers or () if isinstance(layer, ResnetBlock2D))
    yield from ((last, resnet) for resnet in unet.mid_block.resnets)
    for level, block in zip(range(last, -1, -1), unet.up_blocks, strict=True):
        yield from ((level, resnet) for resnet in block.resnets)
        yield from ((level - 1, layer) for layer in block.upsamplers or () if isinstance(layer, ResnetBlock2D))


def begin_hdae(path: str | Path, **network: Any) -> HierarchicalAutoencoder:
    """Return an HDAE that starts as a pixel model does: of its codes it says nothing yet (see `begin_diffae`)."""
    return begun(HierarchicalAutoencoder, path, **network)


def warm_hdae(path: str | Path, *, variant: str = "U") -> HierarchicalAutoencoder:
    """Return a gated HDAE that starts as a diffusion autoencoder: its first code is that one's, and all that counts so far."""
    start = DiffusionAutoencoder.load(path)
    net = HierarchicalAutoencoder(**start.config, variant=variant, gated=True)
    missing, unknown = net.load_state_dict(start.state_dict(), strict=False)
    assert not unknown and all(name.startswith(("encoder.heads.", "encoder.up.", "gates")) for name in missing)
    return net


def load_hdae(path: str | Path, *, dtype: str = "float32") -> HDAEBackbone:
    """Load a hierarchical diffusion autoencoder that was trained here.

    Args:
        path: its folder, or its name in $EDITKIT_WEIGHTS.
        dtype: precision of the networks, "float32", "bfloat16" or "float16"; everything around them stays in float32.

    Raises:
        UserError: no such weights, something else in the folder, an unknown dtype.
    """
    return HDAEBackbone(HierarchicalAutoencoder.load(resolve(path)).to(dtype_of(dtype)))
