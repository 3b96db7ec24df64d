"""CLIP as a differentiable critic: images and texts to unit embeddings of one space."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from editkit.backbones.assets import resolve
from editkit.errors import UserError


@dataclass(frozen=True)
class Preprocess:
    """How a CLIP wants its images: the shorter side resized (bicubic), a centre crop, then mean and deviation per channel.

    The defaults are the constants of the original models.
    """

    resize: int
    crop: int
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    def __call__(self, images: Tensor) -> Tensor:
        """Return images (B, 3, H, W) in [-1, 1] as the vision tower's input (B, 3, crop, crop); differentiable."""
        x = images.float() * 0.5 + 0.5
        height, width = x.shape[-2:]
        if min(height, width) != self.resize:
            scale = self.resize / min(height, width)
            size = (max(self.resize, round(height * scale)), max(self.resize, round(width * scale)))
            x = F.interpolate(x, size=size, mode="bicubic", antialias=True, align_corners=False)
        top, left = (x.shape[-2] - self.crop) // 2, (x.shape[-1] - self.crop) // 2
        x = x[..., top : top + self.crop, left : left + self.crop]
        return (x - x.new_tensor(self.mean)[:, None, None]) / x.new_tensor(self.std)[:, None, None]


class ClipEncoder(nn.Module):
    """A frozen CLIPModel with its tokenizer; both towers return unit vectors of `dim` numbers.

    Args:
        model: the two towers.
        tokenizer: cuts texts; longer texts than the model takes are truncated.
        preprocess: what images go through first.
    """

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer, preprocess: Preprocess) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.requires_grad_(False)
        self.eval()

    @property
    def dim(self) -> int:
        """Return the width of the embeddings."""
        return self.model.config.projection_dim

    def image(self, images: Tensor) -> Tensor:
        """Return unit embeddings (B, dim) of images (B, 3, H, W) in [-1, 1]; gradients reach the pixels."""
        return F.normalize(self.projected(images), dim=-1)

    def projected(self, images: Tensor) -> Tensor:
        """Return the embeddings of images at the length that the network gives them, (B, dim)."""
        pixels = self.preprocess(images).to(self.model.dtype)
        pooled = self.model.vision_model(pixel_values=pixels).pooler_output
        return self.model.visual_projection(pooled).float()

    def text(self, texts: Sequence[str]) -> Tensor:
        """Return unit embeddings (N, dim) of texts."""
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        tokens = tokens.to(self.model.device)
        pooled = self.model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
        return F.normalize(self.model.text_projection(pooled).float(), dim=-1)


def load_clip(path: str | Path = "editkit:toy-clip", *, download: bool = False, revision: str | None = None) -> ClipEncoder:
    """Load a CLIPModel folder with its tokenizer and preprocessor config, in single precision.

    Args:
        path: folder, bundled name ("editkit:toy-clip") or hub name that is already on this machine.
        download: fetch a hub name that is not on this machine.
        revision: revision of a hub name.

    Raises:
        UserError: no such weights, not a CLIPModel, or a tokenizer whose end token the text tower would not find.
    """
    folder = resolve(path, download=download, revision=revision)
    try:
        with no_progress_bar():
            model = CLIPModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
        tokenizer = CLIPTokenizer.from_pretrained(folder)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{folder} does not hold a CLIPModel with its tokenizer: {str(error).splitlines()[0]}") from error
    _check_end_token(folder, model, tokenizer)
    return ClipEncoder(model, tokenizer, preprocess_of(folder, model.config.vision_config.image_size))


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Load without transformers' progress bar: for 0.1 s of loading it would stand between the lines of a command's output."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


@contextmanager
def no_load_report() -> Iterator[None]:
    """Load a part of a checkpoint without transformers' table of the weights that stay unused."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _check_end_token(folder: Path, model: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    # With eos_token_id 2 (the value in the original configs) the text tower pools at the largest token id of a text, else
    # at the first eos_token_id: a tokenizer that disagrees gives embeddings of the wrong token without any error.
    declared, actual = model.config.text_config.eos_token_id, tokenizer.eos_token_id
    highest = max(tokenizer.get_vocab().values())
    wanted = highest if declared == 2 else declared
    if actual != wanted:
        raise UserError(
            f"{folder}: the text tower pools at token {wanted} but the tokenizer ends texts with token {actual}; "
            "give the end token the highest id, or set text_config.eos_token_id to it"
        )


def preprocess_of(folder: Path, image_size: int) -> Preprocess:
    """Return what the preprocessor config of a folder says; without one, images of that size and the original constants."""
    config = _processor_config(folder)
    size, crop = config.get("size", image_size), config.get("crop_size", image_size)
    constants = {name: tuple(config[key]) for name, key in (("mean", "image_mean"), ("std", "image_std")) if key in config}
    return Preprocess(resize=_side(size), crop=_side(crop), **constants)


def _processor_config(folder: Path) -> dict[str, Any]:
    if (folder / "preprocessor_config.json").exists():
        return json.loads((folder / "preprocessor_config.json").read_text())
    if (folder / "processor_config.json").exists():
        return json.loads((folder / "processor_config.json").read_text()).get("image_processor", {})
    return {}


def _side(size: int | dict[str, int]) -> int:
    return size if isinstance(size, int) else size.get("shortest_edge", size.get("height"))
