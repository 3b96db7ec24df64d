"""A method that needs no network: it inverts colours, so that every pixel it touched can be told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from editkit.app import edit as edit_module
from editkit.app.loaded import Loaded
from editkit.training.editor import Editor
from editkit.types import EditRequest, EditResult

SIZE = (32, 32)


class Inverter(Editor):
    """Inverts colours, by half at strength 0.5; keeps a record of its batches; fails on a picture that is all black."""

    name = "invert"

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.prepared = 0

    def edited(self) -> list[str]:
        """Return the keys of all requests so far."""
        return [key for batch in self.batches for key in batch]

    def prepare(self, requests: Sequence[EditRequest]) -> str:
        self.prepared += 1
        return "ready"

    def edit(self, requests: Sequence[EditRequest], state: str) -> EditResult:
        assert state == "ready" and not torch.is_grad_enabled()
        self.batches.append([request.key for request in requests])
        images = torch.stack([request.image for request in requests])
        if (images == -1).flatten(1).all(1).any():
            raise RuntimeError("a black hole")
        strength = torch.tensor([1.0 if request.strength is None else request.strength for request in requests])
        psnr = [40.0 if request.image.mean() < 0.9 else 12.0 for request in requests]
        return EditResult(images * (1 - 2 * strength).reshape(-1, 1, 1, 1), scores={"reconstruction_psnr": psnr})


def install(setattr, editor: Editor | None = None, *, card: dict | None = None, **more) -> Editor:
    """Put the stand-in where `editkit edit` looks for a method."""
    editor = editor or Inverter()
    loaded = {"batch_size": 4, "provenance": {"method": "invert", "backbone_digest": "abc"}, "expected_psnr": 35.0} | more
    cfg = OmegaConf.create({"card": card if card is not None else {"needs": ["image"]}})
    setattr(edit_module, "compose_for", lambda options, verb: cfg)
    setattr(edit_module, "load_editor", lambda cfg, name, **chosen: Loaded(name, editor, SIZE, **loaded))
    return editor


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (48, 40)) -> Path:
    """Write a picture of coloured noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).copy()


__all__ = ["SIZE", "Inverter", "install", "picture", "pixels"]
