"""Stable Diffusion 1.x and 2.x (.ckpt, .safetensors), and what has its parts: inpainting and InstructPix2Pix."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel

from editkit.backbones.convert import text
from editkit.backbones.convert.layout import Converted, Layout, Source
from editkit.backbones.convert.ldm import UNET, VAE, part, to_unet, to_vae
from editkit.backbones.convert.pipeline import BUFFERS, Part, parameters, saved, scheduler_of, write_pipeline
from editkit.errors import UsageError, UserError

EMA = "model_ema."
LATENT = 8  # pixels a side of a latent
SIZES = {"epsilon": 512, "v_prediction": 768}  # pixels that the published models of 2.x are for
USE = "backbone.path={path}"


@dataclass(frozen=True)
class Kind:
    """What a checkpoint is for: its name, diffusers' pipeline, and the sampler of its authors."""

    name: str
    pipeline: str
    sampler: str


KINDS = {  # by the channels that the UNet takes
    4: Kind("Stable Diffusion", "StableDiffusionPipeline", "ddim"),
    8: Kind("InstructPix2Pix", "StableDiffusionInstructPix2PixPipeline", "euler_a"),
    9: Kind("Stable Diffusion inpainting", "StableDiffusionInpaintPipeline", "ddim"),
}


def convert(source: Source) -> Converted:
    """Return the folder of a pipeline with a text tower.

    Raises:
        UserError: a variant that cannot be converted, or of another number of channels.
        UsageError: SD 2.x that predicts who knows what, or a setting that cannot be.
    """
    channels = source.shape(f"{UNET}input_blocks.0.0.weight")[1]
    if channels not in KINDS:
        known = ", ".join(f"{n} ({kind.name})" for n, kind in KINDS.items())
        raise UserError(f"{source.name} has a UNet that takes {channels} channels: only {known} are known")
    parts, facts, news = text_parts(source, KINDS[channels].sampler)
    return assembled(source, KINDS[channels], parts, facts, news=news)


def text_parts(
    source: Source, sampler: str, prediction: str | None = None
) -> tuple[dict[str, Part | None], dict[str, Any], tuple[str, ...]]:
    """Return UNet, autoencoder, text tower, tokenizer and scheduler of a checkpoint, facts for its card, and news.

    Args:
        source: the whole checkpoint.
        sampler: of its authors, see `pipeline.SAMPLERS`.
        prediction: what the UNet predicts, if the layout says it.

    Raises:
        UserError, UsageError: as `convert`.
    """
    weights, unet_source = unet_weights(source)
    linear = len(unet_source.shape("middle_block.1.proj_in.weight")) == 2
    prediction, how = (prediction, "") if prediction else _prediction(source, linear)
    unet, vae = networks(source, unet_source, prediction if linear else "epsilon")
    encoder = text.to_text_encoder(source)
    tokenizer = text.to_tokenizer(source, encoder)
    write_encoder = partial(text.save_text_encoder, encoder)
    parts = {
        "unet": saved(unet),
        "vae": saved(vae),
        "text_encoder": Part("transformers", "CLIPTextModel", write_encoder, encoder),
        "tokenizer": saved(tokenizer) if tokenizer else None,
        "scheduler": scheduler_of(source, sampler, prediction),
        "safety_checker": None,
        "feature_extractor": None,
    }
    facts = {"version": "2.x" if linear else "1.x", "prediction": prediction, "weights": weights}
    return parts, facts, tuple(filter(None, (how, None if tokenizer else text.NO_TOKENIZER)))


def unet_weights(source: Source) -> tuple[str, Source]:
    """Return "ema" or "raw", and the UNet's tensors: the averaged ones of files that hold both, as published samplers use them.

    LDM stores an average under model_ema., its names without their dots.

    Raises:
        UsageError: weights= that is neither, or ema where there is none.
        UserError: an average that lacks tensors.
    """
    raw = part(source, UNET)
    has = any(name.startswith(EMA) for name in source.tensors)
    chosen = source.settings.get("weights", "ema" if has else "raw")
    if chosen not in ("ema", "raw") or (chosen == "ema" and not has):
        there = "ema or raw" if has else "raw, there is no average in the file"
        raise UsageError(f"weights={chosen} is not to be had: choose {there}")
    if chosen == "raw":
        return chosen, raw
    names = {name: EMA + f"{UNET.removeprefix('model.')}{name}".replace(".", "") for name in raw.tensors}
    for name in names.values():
        source.shape(name)
    return chosen, replace(raw, tensors={name: source.tensors[flat] for name, flat in names.items()})


def networks(source: Source, unet: Source, prediction: str) -> tuple[UNet2DConditionModel, AutoencoderKL]:
    """Return UNet and autoencoder for images of `size` pixels, or of what the published models are for."""
    size = source.number("size") or SIZES[prediction]
    if size % LATENT:
        raise UsageError(f"size={size} is no multiple of {LATENT}, the pixels a side of a latent")
    return to_unet(unet, sample_size=size // LATENT), to_vae(part(source, VAE), sample_size=size)


def assembled(
    source: Source,
    kind: Kind,
    parts: Mapping[str, Part | None],
    facts: Mapping[str, Any],
    *,
    own: tuple[str, ...] = (),
    news: tuple[str, ...] = (),
) -> Converted:
    """Return the folder of a pipeline, and tell of tensors that found no place in it.

    Args:
        source: the whole checkpoint.
        kind: what it is.
        parts: of the pipeline.
        facts: what else the card says.
        own: starts of names that the layout uses beside those of Stable Diffusion.
        news: what the user should know.
    """
    known = (UNET, VAE, EMA, "cond_stage_model.", *own)
    left = [name for name in source.tensors if not name.startswith(known) and not BUFFERS.fullmatch(name)]
    if left:
        news = (*news, f"{len(left)} tensors that are no part of it are left out, such as {left[0]}")
    card = {"model": kind.name, **facts, "parameters": parameters(parts), "pipeline": kind.pipeline}
    return Converted(card, USE, lambda folder: write_pipeline(folder, kind.pipeline, parts), news=news)


def _prediction(source: Source, linear: bool) -> tuple[str, str]:
    """Return what the UNet predicts and, if it is a guess, from what: SD 2.x of 768 pixels predicts v, all else epsilon."""
    given = source.settings.get("prediction")
    if given is not None:
        if given not in SIZES:
            raise UsageError(f"prediction={given} is unknown: choose {' or '.join(SIZES)}")
        return given, ""
    if not linear or source.shape(f"{UNET}input_blocks.0.0.weight")[1] != min(KINDS):
        return "epsilon", ""
    named = re.search(r"(?<!\d)(512|768)(?!\d)", source.path.stem)
    if named is None:
        raise UsageError(
            f"{source.name} is of Stable Diffusion 2.x, whose tensors do not tell what they predict: add prediction=epsilon "
            "(trained on 512-base) or prediction=v_prediction (on 768-v)"
        )
    prediction = next(kind for kind, size in SIZES.items() if size == int(named[1]))
    return prediction, f"it predicts {prediction}, as the {named[1]} in its name says; prediction= says otherwise"


SETTINGS = {
    "tokenizer": f"folder of a CLIP tokenizer, or {text.VOCABULARY} where that does not lie beside the checkpoint",
    "weights": "ema (if the file holds an average) or raw",
    "prediction": "epsilon or v_prediction, if it is of Stable Diffusion 2.x and its name does not tell",
    "size": "side of its images in pixels (512; 768 if it predicts v)",
}
_UNET_MARK = f"{UNET}input_blocks.0.0.weight"
MARKS = (
    (_UNET_MARK, f"{text.TOWER}embeddings.token_embedding.weight"),
    (_UNET_MARK, f"{text.OPEN_TOWER}token_embedding.weight"),
)
LAYOUT = Layout("sd", "Stable Diffusion 1.x and 2.x, inpainting, InstructPix2Pix", MARKS, convert, SETTINGS)
