"""Paint by Example (Yang et al. 2023, .ckpt): Stable Diffusion whose condition is one token of an example image."""

from __future__ import annotations

import re
from functools import partial

import torch
from torch import Tensor
from transformers import CLIPVisionConfig

from editkit.backbones.convert import clip, sd
from editkit.backbones.convert.exact import load_exactly
from editkit.backbones.convert.layout import Converted, Layout, Source
from editkit.backbones.convert.ldm import part
from editkit.backbones.convert.pipeline import Part, saved, scheduler_of
from editkit.backbones.convert.text import as_in_memory
from editkit.backbones.exemplar import PaintByExampleImageEncoder
from editkit.backbones.exemplar_folder import save_image_encoder

KIND = sd.Kind("Paint by Example", "PaintByExamplePipeline", "plms")
CONDITION = "cond_stage_model."
INNER = "vision_model."  # in published files; transformers may leave it out in memory
OUTER = {"learnable_vector": "uncond_vector", "proj_out.weight": "proj_out.weight", "proj_out.bias": "proj_out.bias"}
_STEMS = [(r"^transformer\.", "model."), (r"^final_ln\.", "final_layer_norm."), (r"^mapper\.resblocks\.", "mapper.blocks.")]
_BLOCK = {
    "attn.c_proj": "attn1.to_out.0",
    "ln_1": "norm1",
    "ln_2": "norm3",
    "mlp.c_fc": "ff.net.0.proj",
    "mlp.c_proj": "ff.net.2",
}


def convert(source: Source) -> Converted:
    """Return the folder of the pipeline; its channels are noise, masked image, mask, as in the file.

    Raises:
        UserError: a variant that cannot be converted.
        UsageError: a setting that cannot be.
    """
    weights, unet_source = sd.unet_weights(source)
    unet, vae = sd.networks(source, unet_source, "epsilon")
    encoder = to_image_encoder(source)
    size = encoder.config.image_size
    parts: dict[str, Part | None] = {
        "unet": saved(unet),
        "vae": saved(vae),
        "image_encoder": Part("paint_by_example", "PaintByExampleImageEncoder", partial(save_image_encoder, encoder), encoder),
        "scheduler": scheduler_of(source, KIND.sampler, "epsilon"),
        "feature_extractor": Part("transformers", "CLIPImageProcessor", partial(clip.write_preprocessor, size=size)),
        "safety_checker": None,
    }
    facts = {"version": "1.x", "prediction": "epsilon", "weights": weights}
    return sd.assembled(source, KIND, parts, facts, own=tuple(OUTER))


def to_image_encoder(source: Source) -> PaintByExampleImageEncoder:
    """Return image tower, mapper, projection and the vector that stands for no example.

    Raises:
        UserError: a variant that cannot be converted.
    """
    tower = part(source, f"{CONDITION}transformer.{INNER}")
    inner, _, patch, _ = tower.shape("embeddings.patch_embedding.weight")
    positions = tower.shape("embeddings.position_embedding.weight")[0]
    width = source.shape("proj_out.weight")[0]
    config = CLIPVisionConfig(
        hidden_size=inner,
        intermediate_size=tower.shape("encoder.layers.0.mlp.fc1.weight")[0],
        num_hidden_layers=len({found[1] for key in tower.tensors if (found := re.match(r"encoder\.layers\.(\d+)\.", key))}),
        num_attention_heads=inner // clip.HEAD_CHANNELS,
        hidden_act="quick_gelu",
        image_size=patch * round((positions - 1) ** 0.5),
        patch_size=patch,
        projection_dim=width,
    )
    found = {new: source.tensors[old] for old, new in OUTER.items() if old in source.tensors}
    for name, value in part(source, CONDITION).tensors.items():
        if not name.endswith("position_ids"):
            found |= _renamed(name, value)
    with torch.device("meta"):
        encoder = PaintByExampleImageEncoder(config, width)
    return load_exactly(source.name, encoder, as_in_memory(found, encoder, INNER))


def _renamed(name: str, value: Tensor) -> dict[str, Tensor]:
    for old, new in _STEMS:
        name = re.sub(old, new, name)
    block = re.fullmatch(r"(mapper\.blocks\.\d+)\.(.+)\.(weight|bias)", name)
    if block is None:
        return {name: value}
    home, layer, kind = block.groups()
    if layer == "attn.c_qkv":  # one head: its rows are those of q, then k, then v
        return {f"{home}.attn1.to_{letter}.{kind}": third for letter, third in zip("qkv", value.chunk(3), strict=True)}
    return {f"{home}.{_BLOCK.get(layer, layer)}.{kind}": value}


SETTINGS = {key: sd.SETTINGS[key] for key in ("weights", "size")}
MARKS = (("learnable_vector", "proj_out.weight", f"{CONDITION}mapper.resblocks.0.attn.c_qkv.weight"),)
LAYOUT = Layout("pbe", "Paint by Example .ckpt", MARKS, convert, SETTINGS)
