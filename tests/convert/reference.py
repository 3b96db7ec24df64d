"""The published networks as plain formulas, slow and by name: a forward pass that makes its weights up as it asks for them.

Running one on an empty `Weights` leaves a state dict in the published layout, so a layout is written down once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class Weights(dict[str, Tensor]):
    """A state dict that fills itself with random values of useful sizes."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, name: str, *shape: int, spread: float | None = None, around: float = 0.0) -> Tensor:
        if name not in self:
            spread = 1 / math.sqrt(math.prod(shape[1:])) if spread is None else spread
            self[name] = around + spread * torch.randn(shape, generator=self.generator)
        assert self[name].shape == shape, name
        return self[name]

    def conv(self, name: str, x: Tensor, out: int, k: int, stride: int = 1, bias: bool = True) -> Tensor:
        """Convolve x (B, C, H, W), padded to keep its size but for the stride."""
        shift = self(f"{name}.bias", out, spread=0.1) if bias else None
        return F.conv2d(x, self(f"{name}.weight", out, x.shape[1], k, k), shift, stride, k // 2)

    def line(self, name: str, x: Tensor, out: int) -> Tensor:
        """Apply a linear layer to the last axis."""
        return F.linear(x, self(f"{name}.weight", out, x.shape[-1]), self(f"{name}.bias", out, spread=0.1))

    def group_norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        """Normalise 32 groups of channels, by hand."""
        groups = x.unflatten(1, (32, -1)).flatten(2)
        mean, var = groups.mean(2, keepdim=True), groups.var(2, keepdim=True, unbiased=False)
        flat = ((groups - mean) / (var + eps).sqrt()).view_as(x)
        view = (1, -1) + (1,) * (x.ndim - 2)
        scale = self(f"{name}.weight", x.shape[1], spread=0.2, around=1.0).view(view)
        return flat * scale + self(f"{name}.bias", x.shape[1], spread=0.2).view(view)

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        scale = self(f"{name}.weight", x.shape[-1], spread=0.2, around=1.0)
        return F.layer_norm(x, x.shape[-1:], scale, self(f"{name}.bias", x.shape[-1], spread=0.2))

    def batch_norm(self, name: str, x: Tensor) -> Tensor:
        """Normalise by running statistics."""
        view = (1, -1) + (1,) * (x.ndim - 2)
        mean, var = (
            self(f"{name}.running_mean", x.shape[1], spread=0.1),
            self(f"{name}.running_var", x.shape[1], spread=0.0, around=1.5),
        )
        scale, shift = self(f"{name}.weight", x.shape[1], spread=0.2, around=1.0), self(f"{name}.bias", x.shape[1], spread=0.1)
        self.setdefault(f"{name}.num_batches_tracked", torch.tensor(7))
        return (x - mean.view(view)) / (var + 1e-5).sqrt().view(view) * scale.view(view) + shift.view(view)


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def doubled(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return the mixture of v (..., C, N) for q and k of the same shape."""
    weights = torch.softmax(torch.einsum("...ci,...cj->...ij", q, k) / math.sqrt(q.shape[-2]), -1)
    return torch.einsum("...cj,...ij->...ci", v, weights)


def ddpm(p: Weights, x: Tensor, t: Tensor, *, ch: int, mult: Sequence[int], layers: int, attended: Sequence[int]) -> Tensor:
    """The DDPM network of SDEdit and DiffusionCLIP, eps for x (B, 3, H, W) at t (B,)."""
    rates = torch.exp(-math.log(10000) * torch.arange(ch // 2) / (ch // 2 - 1))
    angles = t[:, None].float() * rates
    temb = p.line("temb.dense.0", torch.cat([angles.sin(), angles.cos()], 1), 4 * ch)
    temb = p.line("temb.dense.1", swish(temb), 4 * ch)

    def block(name: str, x: Tensor, out: int) -> Tensor:
        h = p.conv(f"{name}.conv1", swish(p.group_norm(f"{name}.norm1", x, 1e-6)), out, 3)
        h = h + p.line(f"{name}.temb_proj", swish(temb), out)[:, :, None, None]
        h = p.conv(f"{name}.conv2", swish(p.group_norm(f"{name}.norm2", h, 1e-6)), out, 3)
        return h + (x if x.shape[1] == out else p.conv(f"{name}.nin_shortcut", x, out, 1))

    def attend(name: str, x: Tensor) -> Tensor:
        flat = p.group_norm(f"{name}.norm", x, 1e-6)
        q, k, v = (p.conv(f"{name}.{part}", flat, x.shape[1], 1).flatten(2) for part in "qkv")
        return x + p.conv(f"{name}.proj_out", attention(q, k, v).view_as(x), x.shape[1], 1)

    skips = [p.conv("conv_in", x, ch, 3)]
    for level, width in enumerate(ch * m for m in mult):
        for n in range(layers):
            h = block(f"down.{level}.block.{n}", skips[-1], width)
            skips.append(attend(f"down.{level}.attn.{n}", h) if level in attended else h)
        if level < len(mult) - 1:
            name, padded = f"down.{level}.downsample.conv", F.pad(skips[-1], (0, 1, 0, 1))
            skips.append(F.conv2d(padded, p(f"{name}.weight", width, width, 3, 3), p(f"{name}.bias", width, spread=0.1), 2))
    h = block("mid.block_1", skips[-1], width)
    h = block("mid.block_2", attend("mid.attn_1", h), width)
    for level in reversed(range(len(mult))):
        for n in range(layers + 1):
            h = block(f"up.{level}.block.{n}", torch.cat([h, skips.pop()], 1), ch * mult[level])
            h = attend(f"up.{level}.attn.{n}", h) if level in attended else h
        h = p.conv(f"up.{level}.upsample.conv", doubled(h), h.shape[1], 3) if level else h
    return p.conv("conv_out", swish(p.group_norm("norm_out", h, 1e-6)), 3, 3)


def attend(p: Weights, name: str, x: Tensor, head: int | None, new_order: bool = False) -> Tensor:
    """Guided-diffusion's attention block of x (B, C, H, W), with heads of so many channels; one head where it is None."""
    c = x.shape[1]
    flat = p.group_norm(f"{name}.norm", x, 1e-5).flatten(2)
    joint = torch.einsum("oc,bcn->bon", p(f"{name}.qkv.weight", 3 * c, c, 1)[..., 0], flat)
    joint = joint + p(f"{name}.qkv.bias", 3 * c, spread=0.1)[:, None]
    mixed, d = [], head or c
    for n in range(c // d):
        rows = [n * d + c * i for i in range(3)] if new_order else [(3 * n + i) * d for i in range(3)]
        mixed.append(attention(*(joint[:, row : row + d] for row in rows)))
    h = torch.einsum("oc,bcn->bon", p(f"{name}.proj_out.weight", c, c, 1)[..., 0], torch.cat(mixed, 1))
    return x + (h + p(f"{name}.proj_out.bias", c, spread=0.1)[:, None]).view_as(x)


def embedded(p: Weights, t: Tensor, ch: int) -> Tensor:
    """guided-diffusion's embedding (B, 4 ch) of times t (B,)."""
    angles = t[:, None].float() * torch.exp(-math.log(10000) * torch.arange(ch // 2) / (ch // 2))
    emb = p.line("time_embed.0", torch.cat([angles.cos(), angles.sin()], 1), 4 * ch)
    return p.line("time_embed.2", swish(emb), 4 * ch)


def adm(
    p: Weights,
    x: Tensor,
    t: Tensor,
    *,
    ch: int,
    mult: Sequence[float],
    layers: int,
    attended: Sequence[int],
    head: int | None,
    residual: bool = True,
    scale_shift: bool = True,
    new_order: bool = False,
    out: int = 6,
    code: Tensor | None = None,
) -> Tensor:
    """The network of guided-diffusion: eps, and variance where out is 6, for x (B, 3, H, W) at t (B,).

    One head where `head` is None. A code (B, D) scales every block after the time, as in diffusion autoencoders.
    """
    emb = embedded(p, t, ch)

    def block(name: str, x: Tensor, width: int, resize=lambda x: x) -> Tensor:
        h = p.conv(f"{name}.in_layers.2", resize(swish(p.group_norm(f"{name}.in_layers.0", x, 1e-5))), width, 3)
        said = p.line(f"{name}.emb_layers.1", swish(emb), width * (2 if scale_shift else 1))[:, :, None, None]
        if scale_shift:
            scale, shift = said[:, :width], said[:, width:]
            h = p.group_norm(f"{name}.out_layers.0", h, 1e-5) * (1 + scale) + shift
        else:
            h = p.group_norm(f"{name}.out_layers.0", h + said, 1e-5)
        if code is not None:
            h = h * (1 + p.line(f"{name}.cond_emb_layers.1", swish(code), width))[:, :, None, None]
        h = p.conv(f"{name}.out_layers.3", swish(h), width, 3)
        x = resize(x)
        return h + (x if x.shape[1] == width else p.conv(f"{name}.skip_connection", x, width, 1))

    widths = [int(m * ch) for m in mult]
    skips, place = [p.conv("input_blocks.0.0", x, widths[0], 3)], 0
    for level, width in enumerate(widths):
        for _ in range(layers):
            place += 1
            h = block(f"input_blocks.{place}.0", skips[-1], width)
            skips.append(attend(p, f"input_blocks.{place}.1", h, head, new_order) if level in attended else h)
        if level < len(widths) - 1:
            place += 1
            halve = lambda x: F.avg_pool2d(x, 2)  # noqa: E731
            name = f"input_blocks.{place}.0"
            skips.append(block(name, skips[-1], width, halve) if residual else p.conv(f"{name}.op", skips[-1], width, 3, 2))
    h = block("middle_block.0", skips[-1], width)
    h = block("middle_block.2", attend(p, "middle_block.1", h, head, new_order), width)
    for place in range(len(widths) * (layers + 1)):
        level, part = len(widths) - 1 - place // (layers + 1), 1
        h = block(f"output_blocks.{place}.0", torch.cat([h, skips.pop()], 1), widths[level])
        if level in attended:
            h, part = attend(p, f"output_blocks.{place}.1", h, head, new_order), 2
        if level and place % (layers + 1) == layers:
            name = f"output_blocks.{place}.{part}"
            h = block(name, h, widths[level], doubled) if residual else p.conv(f"{name}.conv", doubled(h), widths[level], 3)
    return p.conv("out.2", swish(p.group_norm("out.0", h, 1e-5)), out, 3)


def delta(p: Weights, h: Tensor, temb: Tensor, style: str) -> Tensor:
    """Asyrp's delta block for h (B, C, H, W) and the time embedding temb (B, D)."""
    c = h.shape[1]
    if style == "ddpm":
        x = p.conv("conv1", h, c, 1) + p.line("temb_proj", swish(temb), c)[:, :, None, None]
        return p.conv("conv2", swish(p.group_norm("norm2", x, 1e-6)), c, 1)
    x = p.conv("in_layers.2", swish(p.group_norm("in_layers.0", h, 1e-5)), c, 1)
    x = x + p.line("emb_layers.1", swish(temb), c)[:, :, None, None]
    return p.conv("out_layers.3", swish(p.group_norm("out_layers.0", x, 1e-5)), c, 1)


def arcface(p: Weights, faces: Tensor, *, channels: Sequence[int], blocks: Sequence[int], dim: int) -> Tensor:
    """IR-SE's unit embedding of faces (B, 3, 112, 112)."""
    prelu = lambda name, x: torch.where(x > 0, x, x * p(name, x.shape[1], spread=0.05, around=0.25).view(1, -1, 1, 1))  # noqa: E731
    x = p.conv("input_layer.0", faces, channels[0], 3, bias=False)
    x = prelu("input_layer.2.weight", p.batch_norm("input_layer.1", x))
    place = 0
    for width, count in zip(channels, blocks, strict=True):
        for n in range(count):
            name, stride = f"body.{place}", 2 if n == 0 else 1
            short = x[:, :, ::stride, ::stride]
            if x.shape[1] != width:
                short = p.batch_norm(f"{name}.shortcut_layer.1", p.conv(f"{name}.shortcut_layer.0", short, width, 1, bias=False))
            h = p.conv(f"{name}.res_layer.1", p.batch_norm(f"{name}.res_layer.0", x), width, 3, bias=False)
            h = p.conv(f"{name}.res_layer.3", prelu(f"{name}.res_layer.2.weight", h), width, 3, stride, bias=False)
            h = p.batch_norm(f"{name}.res_layer.4", h)
            gate = p.conv(f"{name}.res_layer.5.fc1", h.mean((2, 3), keepdim=True), width // 16, 1, bias=False)
            gate = p.conv(f"{name}.res_layer.5.fc2", gate.clamp(min=0), width, 1, bias=False)
            x, place = short + h * torch.sigmoid(gate), place + 1
    x = p.line("output_layer.3", p.batch_norm("output_layer.0", x).flatten(1), dim)
    x = p.batch_norm("output_layer.4", x)
    return x / x.norm(dim=1, keepdim=True)


def clip_image(p: Weights, pixels: Tensor, *, width: int, layers: int, patch: int, dim: int) -> Tensor:
    """CLIP's image embedding (B, dim), not of unit length, of normalised pixels (B, 3, S, S)."""
    x = F.conv2d(pixels, p("visual.conv1.weight", width, 3, patch, patch), stride=patch).flatten(2).mT
    x = torch.cat([p("visual.class_embedding", width, spread=0.3).expand(len(x), 1, -1), x], 1)
    x = p.layer_norm("visual.ln_pre", x + p("visual.positional_embedding", x.shape[1], width, spread=0.3))
    x = _transformer(p, "visual.transformer", x, layers, causal=False)
    return p.layer_norm("visual.ln_post", x[:, 0]) @ p("visual.proj", width, dim)


def clip_text(p: Weights, tokens: Tensor, *, width: int, layers: int, length: int, vocabulary: int, dim: int) -> Tensor:
    """CLIP's text embedding (B, dim), not of unit length, of token ids (B, N); the last token has the highest id."""
    x = p("token_embedding.weight", vocabulary, width, spread=0.3)[tokens]
    x = x + p("positional_embedding", length, width, spread=0.3)[: x.shape[1]]
    x = p.layer_norm("ln_final", _transformer(p, "transformer", x, layers, causal=True))
    return x[torch.arange(len(x)), tokens.argmax(1)] @ p("text_projection", width, dim)


def _transformer(p: Weights, place: str, x: Tensor, layers: int, *, causal: bool) -> Tensor:
    width, n = x.shape[-1], x.shape[1]
    hidden = torch.full((n, n), -math.inf).triu(1) if causal else torch.zeros(n, n)
    for layer in range(layers):
        name = f"{place}.resblocks.{layer}"
        joint = p(f"{name}.attn.in_proj_weight", 3 * width, width), p(f"{name}.attn.in_proj_bias", 3 * width, spread=0.1)
        q, k, v = F.linear(p.layer_norm(f"{name}.ln_1", x), *joint).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (width // 64, 64)).transpose(1, 2) for part in (q, k, v))
        mixed = torch.softmax(q @ k.mT / 8 + hidden, -1) @ v
        x = x + p.line(f"{name}.attn.out_proj", mixed.transpose(1, 2).flatten(2), width)
        h = p.line(f"{name}.mlp.c_fc", p.layer_norm(f"{name}.ln_2", x), 4 * width)
        x = x + p.line(f"{name}.mlp.c_proj", h * torch.sigmoid(1.702 * h), width)
    return x
