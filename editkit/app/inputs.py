"""From pictures, masks and texts to the request that a method's editor takes, and back into the photograph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from editkit.data.align import Aligned, align, parse_landmarks
from editkit.data.fit import FITS, Fit, fit, fit_whole, to_pil
from editkit.data.photo import Photo, by, mask_of, photo_from_pil, read_mask, read_photo
from editkit.errors import UsageError, UserError
from editkit.training.editor import option
from editkit.types import EditRequest

# A picture in any form that a person may hold it in; tensors are (3, H, W) in [-1, 1], masks (1, H, W) or (H, W).
Picture = str | Path | Image.Image | np.ndarray | Tensor | Photo
# Every method may be told where to paste and how strongly to edit; the rest is useful only where a method asks for it.
ALWAYS = frozenset({"image", "mask", "landmarks"})


@dataclass(frozen=True)
class Subject:
    """One request with what is needed to put its result back.

    Attributes:
        request: what the editor gets.
        photo: the picture at full resolution; None for methods that start from noise.
        fit: how the picture became `request.image`.
        mask: (H, W) bool over the photo; only these pixels may change.
    """

    request: EditRequest
    photo: Photo | None = None
    fit: Fit | Aligned | None = None
    mask: np.ndarray | None = None

    def finished(self, edited: Tensor) -> Photo:
        """Return the photograph with the edited (3, h, w) in its place, or the edited picture itself without a photograph."""
        if self.photo is None or self.fit is None:
            return photo_from_pil(to_pil(edited))
        return self.fit.paste(self.photo, edited, self.mask)


def check_inputs(name: str, needs: Sequence[str], fields: set[str], *, takes: Sequence[str] = ()) -> None:
    """Hold the inputs of a request (`fields` of EditRequest) against those a method needs and those it can use.

    Raises:
        UsageError: one is missing, or one would be ignored; the message names its option.
    """
    missing = [option(field) for field in needs if field not in fields]
    if missing:
        raise UsageError(f"{name} needs {' and '.join(missing)}")
    useless = sorted(fields - ALWAYS - {*needs, *takes})
    if useless:
        used = ", ".join(dict.fromkeys(option(field) for field in [*needs, *takes, "mask"] if field))
        raise UsageError(f"{name} has no use for {' and '.join(option(field) for field in useless)}: it takes {used}")


def check_fit(how: str | None, has_mask: bool) -> None:
    """Raise a UsageError for a `--fit` that does not exist, or that wants a mask where there is none."""
    if how is not None and how not in FITS:
        raise UsageError(f"--fit {how} does not exist: choose from {', '.join(FITS)}")
    if how == "mask" and not has_mask:
        raise UsageError("--fit mask zooms on the mask: give one with --mask, or choose --fit crop or resize")


def subject(
    key: str,
    image: Picture | None,
    files: Mapping[str, Sequence[Picture]],
    texts: Mapping[str, str],
    size: tuple[int, int],
    *,
    how: str | None = None,
    whole_references: bool = False,
    **settings: Any,
) -> Subject:
    """Return one request at a model's (height, width), read from whatever the pictures are given as.

    Args:
        files: masks, references and other pictures by field of EditRequest.
        texts: prompts and the like by field of EditRequest; `box` as "x0,y0,x1,y1" in pixels of the picture, `landmarks` as
            ten numbers, which turn the face upright.
        how: one of `FITS`, see `editkit.data.fit.fit`; not with landmarks.
        whole_references: see `Editor`.
        settings: further fields of EditRequest (strength, steps, seed).

    Raises:
        UserError: a picture that cannot be read, or whose size is not that of the image it belongs to.
    """
    photo = None if image is None else as_photo(image)
    mask = None
    if "mask" in files and photo is not None:
        mask = as_mask(files["mask"][0], photo)
    check_fit(how, mask is not None)
    place = None if photo is None else _place(photo, size, how, mask, texts.get("landmarks"))
    fields: dict[str, Any] = {field: text for field, text in texts.items() if field not in ("box", "landmarks")} | settings
    if photo is not None and place is not None:
        fields["image"] = _exact(image, size) if isinstance(image, Tensor) and "landmarks" not in texts else None
        fields["image"] = place.image(photo) if fields["image"] is None else fields["image"]
        fields["mask"] = None if mask is None else place.mask(mask)
        if "box" in texts:
            fields["box"] = place.relative(parse_box(texts["box"]))
    fields |= _aligned(files, photo, place, size) | _references(files, size, whole_references) | _examples(files, size)
    return Subject(EditRequest(key, **fields), photo, place, mask)


def _place(photo: Photo, size: tuple[int, int], how: str | None, mask: np.ndarray | None, landmarks: str | None) -> Fit | Aligned:
    if landmarks is None:
        return fit(photo.size, size, how, mask)
    if how is not None:
        raise UsageError(f"--landmarks decides what the method sees: leave out --fit {how}")
    return align(parse_landmarks(landmarks, of=photo.name), photo.size, size, of=photo.name)


def as_photo(picture: Picture) -> Photo:
    """Return a picture of any form as a Photo.

    Raises:
        UserError: an unreadable file, or a tensor that is no picture.
    """
    if isinstance(picture, Photo):
        return picture
    if isinstance(picture, (str, Path)):
        return read_photo(picture)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3):
            raise UserError(f"an array must be (H, W, 3) of uint8, got {picture.shape} of {picture.dtype}")
        picture = Image.fromarray(picture)
    if isinstance(picture, Tensor):
        if picture.ndim != 3 or picture.shape[0] != 3:
            raise UserError(f"an image tensor must be (3, H, W) in [-1, 1], got {tuple(picture.shape)}")
        if picture.min() < -1.001 or picture.max() > 1.001:
            raise UserError(f"an image tensor must be in [-1, 1], got values from {picture.min():.3g} to {picture.max():.3g}")
        picture = to_pil(picture)
    return photo_from_pil(picture)


def as_mask(picture: Picture, photo: Photo) -> np.ndarray:
    """Return a mask of any form as (H, W) bool of the photo's size.

    Raises:
        UserError: unreadable, of another size, or nothing selected.
    """
    if isinstance(picture, (str, Path)):
        return read_mask(picture, photo.size, of=photo.name)
    if isinstance(picture, (np.ndarray, Tensor)):
        values = torch.as_tensor(picture).squeeze()
        mask = (values if values.dtype == torch.bool else values >= (128 if values.dtype == torch.uint8 else 0.5)).cpu().numpy()
    else:
        mask = mask_of(as_photo(picture))
    if mask.shape != photo.rgb.shape[:2]:
        height, width = mask.shape[-2:]
        raise UserError(
            f"the mask is {by((width, height))} but {photo.name} is {by(photo.size)}: a mask needs the size of its image"
        )
    if not mask.any():
        raise UserError("the mask selects nothing: 1 (white) marks what may change")
    return mask


def parse_box(text: str) -> tuple[float, float, float, float]:
    """Return the four numbers of "x0,y0,x1,y1"."""
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--box {text} is not of the form x0,y0,x1,y1 (pixels from the top left corner)") from error
    if x1 <= x0 or y1 <= y0:
        raise UsageError(f"--box {text} is empty: x1 must be larger than x0, and y1 than y0")
    return x0, y0, x1, y1


def _exact(image: Tensor, size: tuple[int, int]) -> Tensor | None:
    """Return a tensor that has the model's size already as it is, not rounded to 8 bits."""
    return image.detach().float() if tuple(image.shape[1:]) == size else None


def _aligned(
    files: Mapping[str, Sequence[Picture]], photo: Photo | None, place: Fit | Aligned | None, size: tuple[int, int]
) -> dict[str, Tensor]:
    """Return the inputs that lie on the image, cut out and resized like it."""
    found = {}
    for field in ("sketch", "stroke", "segmentation"):
        if field not in files:
            continue
        own = as_photo(files[field][0])
        if photo is not None and own.size != photo.size:
            raise UserError(
                f"{option(field)} {own.name} is {by(own.size)} but {photo.name} is {by(photo.size)}: it needs the image's size"
            )
        where = place or fit(own.size, size)
        found[field] = where.labels(own) if field == "segmentation" else where.image(own)
    return found


def _references(files: Mapping[str, Sequence[Picture]], size: tuple[int, int], whole: bool) -> dict[str, Any]:
    """Return references at the model's size, each zoomed on its own mask if it has one; else in their own shape if `whole`."""
    photos = [as_photo(picture) for picture in files.get("references", ())]
    given = files.get("reference_masks", ())
    if given and len(given) != len(photos):
        raise UsageError(f"{len(photos)} --reference need as many --reference-mask, or none; got {len(given)}")
    masks = [as_mask(mask, photo) for mask, photo in zip(given, photos, strict=True)] if given else [None] * len(photos)
    places = [
        fit_whole(photo.size, size) if whole and mask is None else fit(photo.size, size, None, mask)
        for photo, mask in zip(photos, masks, strict=True)
    ]
    found: dict[str, Any] = {"references": tuple(place.image(photo) for place, photo in zip(places, photos, strict=True))}
    if given:
        found["reference_masks"] = tuple(place.mask(mask) for place, mask in zip(places, masks, strict=True) if mask is not None)
    return found


def _examples(files: Mapping[str, Sequence[Picture]], size: tuple[int, int]) -> dict[str, Tensor]:
    pictures = {field: as_photo(files[field][0]) for field in ("example_before", "example_after") if field in files}
    return {field: fit(photo.size, size).image(photo) for field, photo in pictures.items()}
