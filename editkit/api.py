"""The Python door: `editkit.load("asyrp").edit(image, strength=1.0)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from editkit.app.editing import edit_batch
from editkit.app.inputs import Picture, Subject, check_inputs, subject
from editkit.app.loaded import Loaded, compose_for, load_editor
from editkit.app.numbers import check_numbers
from editkit.app.options import EditOptions
from editkit.app.worklist import FILES, TEXTS
from editkit.data.photo import Photo


@dataclass(frozen=True)
class Edited:
    """What an edit returns.

    Attributes:
        images: (B, 3, h, w) in [-1, 1] at the model's size, strengths outermost within each picture, then samples.
        photos: the same results pasted back into the pictures at full resolution.
        scores: figures by name, one each (network calls, reconstruction PSNR...).
        texts: what the method wrote, if it writes.
    """

    images: Tensor
    photos: list[Photo]
    scores: dict[str, list[float]] = field(default_factory=dict)
    texts: list[str] | None = None

    def pil(self, index: int = 0) -> Image.Image:
        """Return one result, pasted back at full resolution, as an RGB or RGBA image."""
        return self.photos[index].pil()

    def pils(self) -> list[Image.Image]:
        """Return all results, pasted back."""
        return [photo.pil() for photo in self.photos]


class Model:
    """A method that is loaded and ready to edit.

    Attributes:
        loaded: its editor, its size and where its weights are from.
    """

    def __init__(self, loaded: Loaded, takes: Sequence[str] = ()) -> None:
        self.loaded, self.takes = loaded, tuple(takes)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the pictures that the method works on; pictures of any size are fitted to it."""
        return self.loaded.size

    def edit(
        self,
        image: Picture | Sequence[Picture] | None = None,
        *,
        mask: Picture | None = None,
        strength: float | Sequence[float] | None = None,
        steps: int | None = None,
        seed: int = 0,
        samples: int = 1,
        fit: str | None = None,
        key: str | Sequence[str] | None = None,
        **inputs: Any,
    ) -> Edited:
        """Edit one picture, or several in batches; other inputs are the same for all of them.

        Args:
            image: path, PIL image, uint8 array (H, W, 3), or tensor (3, H, W) in [-1, 1]; a list of them, or a tensor
                (B, 3, H, W).
            mask: where to edit, in any of these forms, of the picture's size; nothing else changes by a bit.
            strength: how far to go, 1 = as trained; None is the method's own; a list gives a result for each.
            steps: sampling steps; None is the method's own.
            seed: whole number that all noise is drawn from, together with `key`.
            samples: results for each picture.
            fit: `mask`, `crop` or `resize`, see `editkit.data.fit.fit`.
            key: name of each picture, the file's by default; noise is drawn from it.
            inputs: `references`, `prompt`, `instruction`, `sketch`... by field of `editkit.types.EditRequest`; `box` as
                (x0, y0, x1, y1) in pixels, `landmarks` as five (x, y) that turn a face upright (`editkit.data.align`).

        Raises:
            UserError: an input that is missing, useless, unreadable or of a wrong size.
        """
        strengths = _strengths(strength)
        check_numbers(strength=[s for s in strengths if s is not None], steps=steps, samples=samples)
        pictures = _listed(image)
        keys = [key] if isinstance(key, str) else list(key or [_name(picture) for picture in pictures])
        files, texts = _sorted(inputs | {"mask": mask})
        given = {*files, *texts} | ({"image"} if image is not None else set())
        takes = (*self.takes, *(("prompt",) if self.loaded.targets else ()))
        check_inputs(self.loaded.name, self.loaded.editor.needs, given, takes=takes)
        settings: dict[str, Any] = {"how": fit, "steps": steps, "seed": seed}
        settings["whole_references"] = self.loaded.editor.whole_references
        subjects = [
            subject(name, picture, files, texts, self.size, **settings) for name, picture in zip(keys, pictures, strict=True)
        ]
        return self._edit(subjects, strengths, samples)

    def _edit(self, subjects: Sequence[Subject], strengths: Sequence[float | None], samples: int) -> Edited:
        size = 1 if self.loaded.editor.per_image else max(1, self.loaded.batch_size // samples)
        results = [
            (owner, one)
            for start in range(0, len(subjects), size)
            for owner, ones in zip(
                subjects[start : start + size],
                edit_batch(self.loaded, subjects[start : start + size], strengths, samples),
                strict=True,
            )
            for one in ones
        ]
        scores = {name: [one.scores[name] for _, one in results] for name in results[0][1].scores}
        texts = [one.text for _, one in results if one.text is not None]
        photos = [owner.finished(one.image) for owner, one in results]
        return Edited(torch.stack([one.image for _, one in results]), photos, scores, texts or None)


def load(
    method: str,
    *,
    prompt: str | None = None,
    weights: str | Path | Sequence[str | Path] = (),
    backbone: str | None = None,
    overrides: Sequence[str] = (),
    conf: Sequence[str | Path] = (),
    device: str | None = None,
    dtype: str | None = None,
) -> Model:
    """Load a method by the name of its recipe, as `editkit edit --method` does.

    Args:
        method: `asyrp`, `paper/asyrp`, or a recipe file.
        prompt: chooses among trained parts where the method has one per text; None is the recipe's own.
        weights: `[NAME=]PATH[:STRENGTH]`, one or several.
        backbone: name of a file of conf/backbone; None is the recipe's own.
        overrides: `key=value` strings, such as `method.n_test=100`.
        conf: folders of recipes and groups of your own.
        device: `cpu`, `cuda`...; None takes the best one there is.
        dtype: `fp32`, `bf16` or `fp16` for the networks.

    Raises:
        UserError: unknown names, missing or unfitting weights; the message says what to type instead.
    """
    options = EditOptions(
        method=method, backbone=backbone, overrides=list(overrides), conf=[Path(folder) for folder in conf], dtype=dtype
    )
    cfg = compose_for(options, "load")
    parts = [str(part) for part in ([weights] if isinstance(weights, (str, Path)) else weights)]
    loaded = load_editor(cfg, method, weights=parts, prompt=prompt, device=device, dtype=dtype)
    return Model(loaded, takes=tuple((cfg.get("card") or {}).get("takes") or ()))


def _strengths(strength: float | Sequence[float] | None) -> list[float | None]:
    if strength is None or isinstance(strength, (int, float)):
        return [strength]
    return list(strength)


def _listed(image: Picture | Sequence[Picture] | None) -> list[Any]:
    if isinstance(image, Tensor) and image.ndim == 4:
        return list(image)
    return list(image) if isinstance(image, (list, tuple)) else [image]


def _name(picture: Any) -> str:
    return Path(picture).name if isinstance(picture, (str, Path)) else ""


def _sorted(inputs: Mapping[str, Any]) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """Split inputs into those that are pictures and those that are texts.

    Raises:
        TypeError: a name that no request has.
    """
    files: dict[str, list[Any]] = {}
    texts: dict[str, str] = {}
    for name, value in inputs.items():
        if name not in FILES and name not in TEXTS:
            raise TypeError(f"edit() got an unexpected input {name!r}; it takes {', '.join([*FILES, *TEXTS])}")
        if value is None:
            continue
        if name in FILES:
            files[name] = list(value) if isinstance(value, (list, tuple)) else [value]
        else:
            texts[name] = value if isinstance(value, str) else ",".join(str(part) for part in value)
    return files, texts


__all__ = ["Edited", "Model", "load"]
