"""Diffusion autoencoders (last.ckpt of the authors' training loop): encoder and conditional UNet, of the averaged weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from editkit.backbones.convert.adm import BOTTOM, depth, split_attention
from editkit.backbones.convert.blocks import joined, placed, places
from editkit.backbones.convert.exact import load_exactly
from editkit.backbones.convert.features import write_features
from editkit.backbones.convert.layout import Converted, Layout, Source
from editkit.backbones.diffae import DiffusionAutoencoder

AVERAGE, ENCODER, LATENT = "ema_model.", "encoder.", "latent_net."
MODULATION = {"emb_layers.1": "time_emb_proj.time", "cond_emb_layers.1": "time_emb_proj.code"}
ATTENTION = {"qkv": "qkv_proj", "proj_out": "out_proj"}  # of the encoder


def convert(source: Source) -> Converted:
    """Return the autoencoder's folder; widths, levels and the levels with attention are those of the tensors.

    Raises:
        UserError: a variant that cannot be converted.
    """
    network = replace(source, tensors=averaged(source.tensors))
    levels, blocks = depth(network)
    with torch.device("meta"):
        net = DiffusionAutoencoder(**architecture(network, levels, blocks))
    load_exactly(source.name, net, dict(renamed(network.tensors, levels, blocks)))
    card = {
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "image_size": net.config["sample_size"],
        "code": net.config["code"],
    }
    return Converted(card, "editkit.backbones.diffae.load_diffae: {path}", lambda folder: write_features(folder, net))


def averaged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return encoder and UNet of the average, by the names of guided-diffusion as far as that has them."""
    found = {name.removeprefix(AVERAGE): value for name, value in tensors.items() if name.startswith(AVERAGE)}
    return {
        name.replace("time_embed.time_embed.", "time_embed."): value
        for name, value in found.items()
        if not name.startswith(LATENT)
    }


def architecture(source: Source, levels: int, blocks: int) -> dict[str, Any]:
    """Return the arguments of `DiffusionAutoencoder`."""
    firsts = [1 + level * (blocks + 1) for level in range(levels)]
    size = source.number("size") or BOTTOM << (levels - 1)
    inputs = {name.split(".")[2] for name in source.tensors if name.startswith(f"{ENCODER}input_blocks.")}
    encoded = range(1, len(inputs), blocks + 1)
    return {
        "sample_size": size,
        "channels": [source.shape(f"input_blocks.{n}.0.out_layers.3.weight")[0] for n in firsts],
        "encoder_channels": [source.shape(f"{ENCODER}input_blocks.{n}.0.in_layers.2.weight")[0] for n in encoded],
        "attended": [size >> k for k, n in enumerate(firsts) if f"input_blocks.{n}.1.qkv.weight" in source.tensors],
        "blocks": blocks,
        "code": source.shape("input_blocks.1.0.cond_emb_layers.1.weight")[1],
        "embedding": source.shape("time_embed.2.weight")[0],
    }


def renamed(tensors: Mapping[str, Tensor], levels: int, blocks: int) -> Iterator[tuple[str, Tensor]]:
    """Yield (name in `DiffusionAutoencoder`, tensor)."""
    homes = dict(places(tensors, levels, blocks, attention="qkv"))
    for name, value in tensors.items():
        if name.startswith(ENCODER):
            stem, layer, kind = name.rsplit(".", 2)
            value = value[..., None] if layer in ATTENTION and kind == "weight" else value
            yield f"{stem}.{ATTENTION.get(layer, layer)}.{kind}", value
            continue
        home, inner, kind = placed(name, homes)
        if ".attentions." in home:
            parts = split_attention(home, inner, kind, value, None)  # one head
        else:
            parts = {joined(home, MODULATION.get(inner, inner), kind): value}
        yield from ((f"unet.{key}", part) for key, part in parts.items())


SETTINGS = {"size": "side of its images in pixels, if the middle is not 8x8"}
MARKS = (
    (
        "ema_model.time_embed.time_embed.0.weight",
        "ema_model.encoder.input_blocks.0.0.weight",
        "ema_model.input_blocks.1.0.cond_emb_layers.1.weight",
    ),
)
LAYOUT = Layout("diffae", "diffusion autoencoders .ckpt (phizaz/diffae)", MARKS, convert, SETTINGS)
