"""Latent diffusion models on disk: the pipeline folders of diffusers, read and written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from editkit.backbones.assets import resolve
from editkit.backbones.clip import no_progress_bar
from editkit.backbones.latent import LatentBackbone
from editkit.backbones.saving import save_part
from editkit.backbones.scheduler_config import read_scheduler
from editkit.backbones.unet import dtype_of
from editkit.errors import UserError

# The pipeline of diffusers that opens a checkpoint, by its channels beyond the latents.
_PIPELINES = {
    0: "StableDiffusionPipeline",
    4: "StableDiffusionInstructPix2PixPipeline",
    5: "StableDiffusionInpaintPipeline",
}
_CONTROLLED = {0: "StableDiffusionControlNetPipeline"}


def load_latent(
    path: str | Path,
    *,
    dtype: str = "float32",
    scheduler: Mapping[str, Any] | None = None,
    vae: str | Path | None = None,
    text_encoder: str | Path | None = None,
    download: bool = False,
    revision: str | None = None,
) -> LatentBackbone:
    """Load a latent diffusion model from a pipeline folder of diffusers: unet/, vae/, text_encoder/, tokenizer/, scheduler/.

    A folder without text_encoder/ (Paint by Example) gives a backbone that reads no text.

    Args:
        path: folder, bundled name ("editkit:toy-latent") or hub name that is already on this machine.
        dtype: precision of the networks, "float32", "bfloat16" or "float16"; everything around them stays in float32.
        scheduler: what a scheduler_config.json would say, instead of the folder's own.
        vae: another pipeline, or its vae/ alone, to take the autoencoder from.
        text_encoder: another pipeline to take text encoder and tokenizer from.
        download: fetch a hub name that is not on this machine.
        revision: revision of a hub name.

    Raises:
        UserError: no such weights, a part missing or unreadable, an unknown dtype.
    """
    precision = dtype_of(dtype)
    folder = resolve(path, download=download, revision=revision)
    texts = folder if text_encoder is None else resolve(text_encoder, download=download)
    images = folder if vae is None else resolve(vae, download=download)
    config = dict(scheduler) if scheduler is not None else read_scheduler(folder / "scheduler", folder)
    reads_text = text_encoder is not None or (texts / "text_encoder").is_dir()
    return LatentBackbone(
        _network(UNet2DConditionModel, folder / "unet", precision),
        _network(AutoencoderKL, images / "vae" if (images / "vae").is_dir() else images, precision),
        config,
        _network(CLIPTextModel, texts / "text_encoder", precision) if reads_text else None,
        _read(CLIPTokenizer, texts / "tokenizer") if reads_text else None,
    )


def save_latent(backbone: LatentBackbone, folder: str | Path, controlnet: ControlNetModel | None = None) -> None:
    """Write a pipeline folder of diffusers, which both `load_latent` and diffusers open, with a ControlNet if there is one.

    Raises:
        UserError: a checkpoint that no such pipeline is made for.
    """
    import diffusers

    known = _PIPELINES if controlnet is None else _CONTROLLED
    if backbone.text_encoder is None or backbone.extra_channels not in known:
        how = "without" if backbone.text_encoder is None else "with"
        channels = backbone.unet.config.in_channels
        raise UserError(f"no pipeline of diffusers takes {channels} channels {how} text: save the parts one by one")
    scheduler = getattr(diffusers, backbone.scheduler.get("_class_name", "DDIMScheduler")).from_config(backbone.scheduler)
    parts = {name: getattr(backbone, name) for name in ("unet", "vae", "text_encoder", "tokenizer")} | {"scheduler": scheduler}
    parts |= {} if controlnet is None else {"controlnet": controlnet}
    with no_progress_bar():
        for name, part in parts.items():
            save_part(part, Path(folder) / name)
    index: dict[str, Any] = {
        "_class_name": known[backbone.extra_channels],
        "_diffusers_version": diffusers.__version__,
        "requires_safety_checker": False,
    }
    index |= {name: [type(part).__module__.partition(".")[0], type(part).__name__] for name, part in parts.items()}
    index |= {name: [None, None] for name in ("feature_extractor", "image_encoder", "safety_checker")}
    (Path(folder) / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _network(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    names = [path.name for path in folder.glob("*.safetensors")]
    variant = "fp16" if names and all(".fp16." in name for name in names) else None  # published in half precision alone
    if kind is CLIPTextModel:
        with no_progress_bar():
            return _read(kind, folder, use_safetensors=True, variant=variant, dtype=dtype)
    return _read(kind, folder, use_safetensors=True, variant=variant, torch_dtype=dtype, low_cpu_mem_usage=False)


def _read(kind: Any, folder: Path, **arguments: Any) -> Any:
    if not folder.is_dir():
        raise UserError(f"{folder.parent} is not a latent diffusion model: expected {folder.name}/ in it")
    try:
        return kind.from_pretrained(folder, **arguments)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        what = f"{kind.__name__} with safetensors weights" if "use_safetensors" in arguments else kind.__name__
        raise UserError(f"{folder} does not hold a {what}: {reason}") from error
