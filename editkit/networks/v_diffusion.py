"""The UNets of v-diffusion (Crowson and Pressman 2021): cc12m_1, conditioned on CLIP embeddings, and wikiart_256.

Levels lie in one another: each halves the picture, works on it, and hands its result, doubled again, to the one around it,
beside what that one had. Names of tensors are those of the published checkpoints.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PLANES = 16  # Fourier features of the time that stand beside the picture
MAPPED = 1024  # width of the vector that modulates the blocks
TIME_WIDTH = 128  # of the time in that vector
LEAST = 1e-5  # of a and s, which keeps the log-SNR finite at both ends; no grid of levels comes near


class Fourier(nn.Module):
    """Cosines and sines of a number at frequencies that are part of the weights: (B,) -> (B, width)."""

    def __init__(self, width: int, std: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(width // 2, 1) * std)

    def forward(self, value: Tensor) -> Tensor:
        angles = (
            2 * math.pi * value.float()[:, None] * self.weight.float().T
        )  # no product of matrices, which autocast would round
        return torch.cat([angles.cos(), angles.sin()], 1)


class Modulation(nn.Module):
    """x (1 + scale) + shift, both linear in a vector (B, width)."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 2 * channels, bias=False)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        scale, shift = self.layer(vector)[..., None, None].chunk(2, 1)
        return x * (1 + scale) + shift


class Chain(nn.Sequential):
    """Layers one after another, those that take the vector beside the picture given it."""

    def forward(self, x: Tensor, vector: Tensor | None = None) -> Tensor:
        for layer in self:
            x = layer(x, vector) if isinstance(layer, (Modulation, Block, Nested, Chain)) else layer(x)
        return x


class Block(nn.Module):
    """Two convolutions, each followed by its activation, beside a way around them.

    Args:
        widths: channels before, between and after.
        modulated: width of the vector; None for blocks without normalisation and modulation.
        last: of the network: nothing follows its second convolution.
    """

    def __init__(self, widths: tuple[int, int, int], modulated: int | None, *, last: bool = False) -> None:
        super().__init__()
        before, between, after = widths
        layers = [nn.Conv2d(before, between, 3, padding=1), *_activation(between, modulated)]
        layers += [nn.Conv2d(between, after, 3, padding=1), *(() if last else _activation(after, modulated))]
        self.main = Chain(*layers)
        self.skip = nn.Identity() if before == after else nn.Conv2d(before, after, 1, bias=False)

    def forward(self, x: Tensor, vector: Tensor | None) -> Tensor:
        return self.main(x, vector) + self.skip(x)


class SelfAttention(nn.Module):
    """Attention between all places, added to what came in.

    Args:
        channels: of the picture.
        heads: of the attention.
        groups: of channels that are normalised together first; None = nothing is.
    """

    def __init__(self, channels: int, heads: int, *, groups: int | None) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.Identity() if groups is None else nn.GroupNorm(groups, channels)
        self.qkv_proj = nn.Conv2d(channels, 3 * channels, 1)
        self.out_proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv_proj(self.norm(x)).flatten(2).unflatten(1, (3, self.heads, -1)).transpose(-1, -2)
        found = F.scaled_dot_product_attention(*parts.unbind(1))
        return x + self.out_proj(found.transpose(-1, -2).reshape(x.shape))


class Nested(nn.Module):
    """The levels below, and beside them what came in.

    Args:
        main: from halving to doubling.
        inner_first: the order of the two in the channels.
    """

    def __init__(self, main: Sequence[nn.Module], *, inner_first: bool) -> None:
        super().__init__()
        self.main = Chain(*main)
        self.inner_first = inner_first

    def forward(self, x: Tensor, vector: Tensor | None) -> Tensor:
        inner = self.main(x, vector)
        return torch.cat([inner, x] if self.inner_first else [x, inner], 1)


class Mapped(nn.Module):
    """Two linear layers beside a way around them."""

    def __init__(self, before: int, after: int, *, last: bool = False) -> None:
        super().__init__()
        layers = [nn.Linear(before, after), nn.ReLU(), nn.Linear(after, after), *(() if last else (nn.ReLU(),))]
        self.main = nn.Sequential(*layers)
        self.skip = nn.Identity() if before == after else nn.Linear(before, after, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x) + self.skip(x)


class VDiffusionUNet(nn.Module):
    """Predicts v = a eps - s x0 at continuous times, 0 clean and 1 noise, with a = cos(pi t / 2).

    A conditional network reads the time itself, normalises and modulates, and upsamples linearly; an unconditional one reads
    the log-SNR, does neither, and upsamples by repetition.

    Args:
        channels: of each level, the largest pictures first.
        blocks: of a level on each way.
        attended: the level from which attention follows every block.
        head_channels: of attention.
        embedding: width of the CLIP embedding that conditions it; None for an unconditional network.
        mapped: width of the vector that modulates a conditional one.
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        blocks: int = 4,
        attended: int = 4,
        head_channels: int = 64,
        embedding: int | None = None,
        mapped: int = MAPPED,
    ) -> None:
        super().__init__()
        self.channels, self.blocks, self.attended, self.head_channels = tuple(channels), blocks, attended, head_channels
        self.embedding, self.mapped = embedding, None if embedding is None else mapped
        self.timestep_embed = Fourier(PLANES, 0.2 if embedding is None else 1.0)
        if embedding is not None:
            self.mapping_timestep_embed = Fourier(TIME_WIDTH)
            self.mapping = nn.Sequential(Mapped(embedding + TIME_WIDTH, mapped), Mapped(mapped, mapped, last=True))
        self.net = Chain(*self._level(0))
        if embedding is not None:
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter *= 0.5**0.5

    def forward(self, x: Tensor, t: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Return v of x (B, 3, H, W) at times (B,) in [0, 1]; an embedding (B, D) of zeros stands for none."""
        planes = self.told(t).to(x.dtype)
        vector = None if embedding is None else self._vector(t, embedding).to(x.dtype)
        return self.net(torch.cat([x, planes[..., None, None].expand(-1, -1, *x.shape[2:])], 1), vector)

    def told(self, t: Tensor) -> Tensor:
        """Return what the planes beside the picture say of times (B,): (B, 16)."""
        return self.timestep_embed(log_snr(t) if self.embedding is None else t)

    def innermost(self) -> nn.Module:
        """Return the layers of the level of the smallest pictures."""
        level = self.net
        while nested := [layer for layer in level if isinstance(layer, Nested)]:
            level = nested[0].main
        return level

    def _vector(self, t: Tensor, embedding: Tensor) -> Tensor:
        unit = F.normalize(embedding.float(), dim=1) * embedding.shape[1] ** 0.5
        known = torch.cat([unit, self.mapping_timestep_embed(t)], 1)
        return self.mapping(known.to(next(self.mapping.parameters()).dtype))

    def _level(self, k: int) -> Iterator[nn.Module]:
        """Yield the layers of a level: its way down, the levels below, its way up, which ends as wide as the level above."""
        width, bottom = self.channels[k], k + 1 == len(self.channels)
        before, after = (self.channels[k - 1],) * 2 if k else (3 + PLANES, 3)
        if k:
            yield nn.AvgPool2d(2)
        down, up = [before, *[width] * self.blocks], [*[width] * self.blocks, after]
        yield from self._blocks(k, down)
        if not bottom:
            yield Nested(list(self._level(k + 1)), inner_first=self.mapped is not None)
            up[0] = 2 * width
        yield from self._blocks(k, up)
        if k:
            smooth = {"mode": "bilinear", "align_corners": False} if self.mapped else {"mode": "nearest"}
            yield nn.Upsample(scale_factor=2, **smooth)  # type: ignore[arg-type]

    def _blocks(self, k: int, widths: Sequence[int]) -> Iterator[nn.Module]:
        for before, after in itertools.pairwise(widths):
            last = after == 3 and k == 0
            yield Block((before, self.channels[k], after), self.mapped, last=last)
            if k >= self.attended:
                yield SelfAttention(after, after // self.head_channels, groups=None if self.mapped is None else 1)


def log_snr(t: Tensor) -> Tensor:
    """Return log(a^2 / s^2) at times in [0, 1], kept finite at both ends."""
    angle = t * math.pi / 2
    a, s = angle.cos().clamp(min=LEAST), angle.sin().clamp(min=LEAST)
    return 2 * (a.log() - s.log())


def _activation(channels: int, modulated: int | None) -> Iterator[nn.Module]:
    if modulated is not None:
        yield nn.GroupNorm(1, channels, affine=False)
        yield Modulation(modulated, channels)
    yield nn.ReLU()
