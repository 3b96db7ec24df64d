"""Paint by Example on disk: the published folder, read and written, and how a new model begins.

    unet/ vae/ scheduler/ image_encoder/ feature_extractor/ model_index.json

diffusers itself no longer opens such a folder in one call, since its class of the image encoder has moved; its pipeline can
still be built from the parts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from editkit.backbones.assets import resolve
from editkit.backbones.clip import Preprocess, no_load_report, no_progress_bar, preprocess_of
from editkit.backbones.exemplar import ExemplarBackbone, PaintByExampleImageEncoder
from editkit.backbones.latent import LatentBackbone
from editkit.backbones.latent_folder import load_latent
from editkit.backbones.saving import save_part
from editkit.backbones.unet import dtype_of
from editkit.errors import UserError
from editkit.networks.conv_in import take_exemplars, widen_conv_in

WEIGHTS = "model.safetensors"
CHANNELS = 5  # beyond the latents: the masked image's latents, the mask


def load_exemplar(
    path: str | Path, *, dtype: str = "float32", download: bool = False, revision: str | None = None
) -> ExemplarBackbone:
    """Load Paint by Example from its published folder, or from one that `save_exemplar` wrote.

    Args:
        path: folder, bundled name or hub name that is already on this machine.
        dtype: precision of the networks, "float32", "bfloat16" or "float16".
        download: fetch a hub name that is not on this machine.
        revision: revision of a hub name.

    Raises:
        UserError: no such weights, or a part missing or unreadable.
    """
    folder = resolve(path, download=download, revision=revision)
    home = folder / "image_encoder"
    if not (home / WEIGHTS).is_file():
        raise UserError(f"{folder} is not a Paint by Example model: expected image_encoder/{WEIGHTS} in it")
    try:
        state = load_file(home / WEIGHTS)
        config = CLIPVisionConfig.from_dict(json.loads((home / "config.json").read_text(encoding="utf-8")))
        encoder = PaintByExampleImageEncoder(config, len(state["proj_out.bias"]))
        encoder.load_published(state)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{home} does not hold Paint by Example's image encoder: {str(error).splitlines()[0]}") from error
    preprocess = preprocess_of(folder / "feature_extractor", config.image_size)
    latent = load_latent(folder, dtype=dtype)
    return ExemplarBackbone(latent.unet, latent.vae, latent.scheduler, encoder.to(dtype_of(dtype)), preprocess)


def begin_exemplar(backbone: LatentBackbone, clip: str | Path) -> ExemplarBackbone:
    """Return a model to train: a text-to-image UNet, widened by zeros in place, with the vision tower of a CLIP.

    Args:
        backbone: of four input channels (arXiv 2211.13227 starts from Stable Diffusion 1.4), or an inpainting model of nine,
            which knows already what a mask is; its channels are put into the order of Paint by Example.
        clip: a CLIP folder, bundled name or hub name that is already on this machine.

    Raises:
        UserError: not a CLIP.
    """
    folder = resolve(clip)
    try:
        with no_progress_bar(), no_load_report():
            tower, report = CLIPVisionModel.from_pretrained(
                folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{folder} does not hold a CLIP: {str(error).splitlines()[0]}") from error
    if report["missing_keys"]:
        raise UserError(f"{folder} does not hold a CLIP: its vision tower lacks {min(report['missing_keys'])}")
    encoder = PaintByExampleImageEncoder(tower.config, backbone.unet.config.cross_attention_dim)
    encoder.model.load_state_dict(tower.state_dict())
    inpaints = backbone.extra_channels == CHANNELS
    unet = take_exemplars(backbone.unet) if inpaints else widen_conv_in(backbone.unet, backbone.sample_shape[0] + CHANNELS)
    preprocess = preprocess_of(folder, tower.config.image_size)
    return ExemplarBackbone(unet, backbone.vae, backbone.scheduler, encoder.to(unet.device), preprocess)


def save_exemplar(backbone: ExemplarBackbone, folder: str | Path) -> None:
    """Write the published layout; the scheduler is that of the backbone's config."""
    import diffusers

    folder = Path(folder)
    name = backbone.scheduler.get("_class_name", "DDIMScheduler")
    scheduler = getattr(diffusers, name).from_config(backbone.scheduler)
    with no_progress_bar():
        for part, network in (("unet", backbone.unet), ("vae", backbone.vae), ("scheduler", scheduler)):
            save_part(network, folder / part)
    save_image_encoder(backbone.image_encoder, folder / "image_encoder")
    _write(folder / "feature_extractor" / "preprocessor_config.json", _extractor(backbone.preprocess))
    _write(
        folder / "model_index.json",
        {
            "_class_name": "PaintByExamplePipeline",
            "_diffusers_version": diffusers.__version__,
            "feature_extractor": ["transformers", "CLIPImageProcessor"],
            "image_encoder": ["paint_by_example", "PaintByExampleImageEncoder"],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", name],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )


def save_image_encoder(encoder: PaintByExampleImageEncoder, folder: Path) -> None:
    """Write config.json and model.safetensors as published."""
    encoder.config.save_pretrained(folder)
    state = {name: tensor.contiguous() for name, tensor in encoder.published_state().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def _extractor(preprocess: Preprocess) -> dict[str, Any]:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": preprocess.resize},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": preprocess.crop, "width": preprocess.crop},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
