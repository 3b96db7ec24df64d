"""ADM checkpoints (.pt): guided-diffusion (Dhariwal and Nichol 2021) and what is trained with it (ILVR, P2 weighting)."""

from __future__ import annotations

import re
from typing import Any

from diffusers import UNet2DModel
from torch import Tensor

from editkit.backbones.convert.blocks import joined, placed, places
from editkit.backbones.convert.layout import Converted, Layout, Source
from editkit.backbones.convert.unet import USE, assemble, describe, scheduler_of, write_pixel_model
from editkit.errors import UsageError, UserError

BOTTOM = 8  # every published network has 8x8 positions in its middle, which tells the size of its images
HEAD_CHANNELS = 64  # of all published networks but the one for 128 pixels, whose heads differ in width
CHANNELS = 3
ORDERS = ("legacy", "new")
LABELS = "label_emb.weight"


def to_unet(source: Source) -> UNet2DModel:
    """Return the network: time scaling and shifting, the time as [cos, sin], residual or strided changes of size.

    Levels, widths, blocks, the levels with attention, learned variance and labels are those of the tensors. What no shape
    tells is a setting: `head_channels` of the attention and its `order`, and the `size` of the images if the middle is not
    8x8. A label embedding is left out: methods run class-conditional networks without a class.

    Raises:
        UserError: a variant that cannot be converted (a super-resolution network, say).
        UsageError: a setting that cannot be.
    """
    levels, layers = depth(source)
    attended = [f"input_blocks.{1 + level * (layers + 1)}.1.qkv.weight" in source.tensors for level in range(levels)]
    residual = f"input_blocks.{layers + 1}.0.op.weight" not in source.tensors
    widths = [source.shape(f"input_blocks.{1 + k * (layers + 1)}.0.out_layers.3.weight")[0] for k in range(levels)]
    head_channels = _head_channels(source, {width for width, has in zip(widths, attended, strict=True) if has} | {widths[-1]})
    scale_shift = source.shape("middle_block.0.emb_layers.1.weight")[0] == 2 * widths[-1]
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if residual else ("DownBlock2D", "UpBlock2D")
    config: dict[str, Any] = {
        "sample_size": source.number("size") or BOTTOM << (levels - 1),
        "in_channels": source.shape("input_blocks.0.0.weight")[1],
        "out_channels": source.shape("out.2.weight")[0],
        "block_out_channels": tuple(widths),
        "layers_per_block": layers,
        "down_block_types": tuple("AttnDownBlock2D" if has else plain[0] for has in attended),
        "up_block_types": tuple("AttnUpBlock2D" if has else plain[1] for has in reversed(attended)),
        "downsample_type": "resnet" if residual else "conv",
        "upsample_type": "resnet" if residual else "conv",
        "downsample_padding": 1,
        "resnet_time_scale_shift": "scale_shift" if scale_shift else "default",
        "attention_head_dim": head_channels,
        "attn_norm_num_groups": 32,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
        "time_embedding_dim": source.shape("time_embed.2.weight")[0],
    }
    if config["in_channels"] != CHANNELS or config["out_channels"] not in (CHANNELS, 2 * CHANNELS):
        raise UserError(
            f"{source.name} takes {config['in_channels']} channels and gives {config['out_channels']}: only networks of colour "
            f"images can be converted, 3 to 3 or 6 (with learned variance)"
        )
    return assemble(source.name, config, _renamed(source, levels, layers, head_channels))


def convert(source: Source) -> Converted:
    """Return the pixel model's folder."""
    unet = to_unet(source)
    card = describe(unet)
    scheduler = scheduler_of(source.settings.get("schedule", "linear"), learned_variance=card["learned_variance"])
    news: tuple[str, ...] = ()
    if LABELS in source.tensors:
        card["classes"] = source.shape(LABELS)[0]
        news = (f"its embedding of {card['classes']} classes is left out: it runs without a class",)
    return Converted(card, USE, lambda folder: write_pixel_model(folder, unet, scheduler), news=news)


def depth(source: Source) -> tuple[int, int]:
    """Return levels and blocks a level: every level but the last ends its way up with a change of size."""
    blocks = 1 + max(int(found[1]) for name in source.tensors if (found := re.match(r"output_blocks\.(\d+)\.", name)))
    ups = {
        found[1]
        for name in source.tensors
        if (found := re.match(r"output_blocks\.(\d+)\.[12]\.(?:in_layers\.0|conv)\.weight", name))
    }
    levels = 1 + len(ups)
    if blocks % levels:
        raise UserError(
            f"{source.name} has {blocks} blocks on its way up for {levels} levels: a variant that cannot be converted"
        )
    return levels, blocks // levels - 1


def _head_channels(source: Source, widths: set[int]) -> int:
    head_channels = source.number("head_channels") or HEAD_CHANNELS
    odd = [width for width in sorted(widths) if width % head_channels]
    if odd:
        raise UsageError(
            f"head_channels={head_channels} does not divide the {odd[0]} channels that {source.name} attends over: give the "
            "number that it was trained with"
        )
    return head_channels


def _renamed(source: Source, levels: int, layers: int, head_channels: int) -> dict[str, Tensor]:
    homes = dict(places(source.tensors, levels, layers, attention="qkv"))
    order = source.settings.get("order", "legacy")
    if order not in ORDERS:
        raise UsageError(f"order={order} is unknown: choose {' or '.join(ORDERS)}")
    found: dict[str, Tensor] = {}
    for name, value in source.tensors.items():
        home, inner, kind = placed(name, homes)
        if ".attentions." in home:
            found |= split_attention(home, inner, kind, value, head_channels if order == "legacy" else None)
        elif name != LABELS:  # a name without a home stays, and is refused with the others that do not fit
            found[joined(home, inner, kind)] = value
    return found


def split_attention(home: str, inner: str, kind: str, value: Tensor, head_channels: int | None) -> dict[str, Tensor]:
    """Split the joint projection: its rows are (head, qkv, channel) in the legacy order, (qkv, head, channel) in the new."""
    value = value.flatten(1) if value.ndim > 1 else value
    if inner != "qkv":
        return {f"{home}.{'group_norm' if inner == 'norm' else 'to_out.0'}.{kind}": value}
    if head_channels is None:
        parts = value.chunk(3)
    else:
        parts = value.unflatten(0, (-1, 3, head_channels)).transpose(0, 1).flatten(1, 2).unbind(0)
    return {f"{home}.to_{letter}.{kind}": part for letter, part in zip("qkv", parts, strict=True)}


SETTINGS = {
    "head_channels": "channels of an attention head (64)",
    "order": "of the attention's joint projection: legacy, or new for the published 64 pixel network",
    "schedule": "linear, or cosine for the published 64 pixel network",
    "size": "side of its images in pixels, if the middle is not 8x8",
}
MARKS = (("time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.1.qkv.weight", "output_blocks.0.0.in_layers.0.weight"),)
LAYOUT = Layout("adm", "ADM .pt (guided-diffusion, ILVR, P2 weighting)", MARKS, convert, SETTINGS)
