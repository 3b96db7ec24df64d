"""Reading a user's picture by rule: whatever the file's mode, size, orientation or colour profile, a method sees sRGB.

The rules: only the formats of `FORMATS`; size checked from the header, before anything is decoded; EXIF orientation applied
at the door; alpha kept apart (a method sees the picture on white); an RGB colour profile stays with the pixels, which are
converted on their way to a method and back; every other colour model (grey, CMYK, Lab) becomes sRGB; 16 bits become 8.
"""

from __future__ import annotations

import hashlib
import io
import threading
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

from editkit.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"})
# Below Pillow's own hard limit (179 million), above what the largest phone cameras write.
MAX_PIXELS = 150_000_000

_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF", b"II*\x00", b"MM\x00*", b"BM")
_DEEP_GREY = ("I;16", "I;16B", "I;16L", "I;16N", "I")
# What Pillow's decoders raise for a damaged file; each of them documents only OSError.
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, OverflowError, TypeError)

_FILTERS = threading.Lock()

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Photo:
    """A picture as it lies on the screen, in its own colour space.

    Attributes:
        rgb: (H, W, 3) uint8, not premultiplied.
        alpha: (H, W) uint8, or None for an opaque picture.
        profile: ICC profile that `rgb` is meant in; None is sRGB.
        name: what messages call it.
        digest: SHA-256 of the file's bytes (of the pixels for a picture that was never a file).
    """

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    profile: bytes | None = None
    name: str = "the image"
    digest: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.rgb.shape[1], self.rgb.shape[0]

    def seen(self, box: Box) -> Image.Image:
        """Return the part in box = (left, top, right, bottom) as a method sees it: sRGB, on white."""
        left, top, right, bottom = box
        picture = Image.fromarray(np.ascontiguousarray(self.rgb[top:bottom, left:right]))
        if self.profile is not None:
            picture = _convert(picture, _profile(self.profile), _srgb())
        if self.alpha is None:
            return picture
        white = Image.new("RGB", picture.size, (255, 255, 255))
        return Image.composite(picture, white, Image.fromarray(np.ascontiguousarray(self.alpha[top:bottom, left:right])))

    def painted(self, box: Box, picture: Image.Image, where: np.ndarray | None = None) -> Photo:
        """Return a copy with an edited sRGB picture of the box's size put back, under the old alpha.

        `where` is (H, W) bool over the whole photo; no pixel outside it, outside the box or wholly transparent changes
        by a single bit. Half-transparent pixels are painted so that they look like `picture` when laid on white.
        """
        left, top, right, bottom = box
        chosen = np.ones((bottom - top, right - left), bool) if where is None else where[top:bottom, left:right]
        colours = np.asarray(picture)
        if self.alpha is not None:
            alpha = self.alpha[top:bottom, left:right]
            chosen = chosen & (alpha > 0)
            colours = _without_white(colours, alpha)
        if self.profile is not None:
            colours = np.asarray(_convert(Image.fromarray(colours), _srgb(), _profile(self.profile)))
        rgb = self.rgb.copy()
        np.copyto(rgb[top:bottom, left:right], colours, where=chosen[..., None])
        return replace(self, rgb=rgb)

    def pil(self) -> Image.Image:
        """Return an RGB or RGBA image that carries the profile."""
        bands = self.rgb if self.alpha is None else np.dstack([self.rgb, self.alpha])
        image = Image.fromarray(np.ascontiguousarray(bands))
        if self.profile is not None:
            image.info["icc_profile"] = self.profile
        return image


def read_photo(path: str | Path, *, first_frame: bool = False) -> Photo:
    """Return the picture in a file.

    Raises:
        UserError: no such file, empty, damaged or cut off, not of `FORMATS`, over `MAX_PIXELS`, or animated
            (with `first_frame` its first frame is taken).
    """
    return photo_from_bytes(_bytes(Path(path)), str(path), first_frame=first_frame)


def photo_from_bytes(data: bytes, name: str, *, first_frame: bool = False) -> Photo:
    """Return the picture in an encoded file's bytes; messages call it `name`.

    Raises:
        UserError: as `read_photo`.
    """
    if not data:
        raise UserError(f"{name} is empty (0 bytes)")
    return photo_from_pil(_decoded(data, name, first_frame), name=name, digest=hashlib.sha256(data).hexdigest())


def photo_from_pil(image: Image.Image, *, name: str = "the image", digest: str | None = None) -> Photo:
    """Return a Pillow image of any mode as a Photo.

    Raises:
        UserError: a colour mode without a rule.
    """
    _check_size(image.size, name)
    image = _upright(image)
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data and image.mode not in _DEEP_GREY else None
    rgb, profile = _rgb(image, name)
    photo = Photo(np.array(rgb), None if alpha is None else np.array(alpha), profile, name)
    return replace(photo, digest=digest if digest is not None else hashlib.sha256(photo.pil().tobytes()).hexdigest())


def read_mask(path: str | Path, size: tuple[int, int], *, of: str = "the image") -> np.ndarray:
    """Return a mask file of any mode as (H, W) bool: where it is at least half bright, or half opaque if it has only alpha.

    Raises:
        UserError: an unreadable file, a size other than the (width, height) of the upright image, or nothing selected.
    """
    photo = read_photo(path)
    if photo.size != size:
        raise UserError(
            f"the mask {path} is {by(photo.size)} but {of} is {by(size)}: a mask needs the size of the image as it is shown "
            f"(after EXIF rotation)"
        )
    mask = mask_of(photo)
    if not mask.any():
        raise UserError(f"the mask {path} selects nothing: no pixel of it is brighter than 50 %. White marks what may change")
    return mask


def mask_of(photo: Photo) -> np.ndarray:
    """Return (H, W) bool: bright pixels, or opaque ones where the colours say nothing and alpha does."""
    values = np.asarray(Image.fromarray(photo.rgb).convert("L"))
    if photo.alpha is not None:
        painted = values[photo.alpha > 0]
        if painted.size == 0 or painted.min() == painted.max():
            return photo.alpha >= 128
        values = np.where(photo.alpha >= 128, values, 0)
    return values >= 128


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _decoded(data: bytes, name: str, first_frame: bool) -> Image.Image:
    try:
        # Pillow's size warning starts below our limit, which is an error. Filters belong to the process: one thread at a time.
        with _FILTERS, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        millions = MAX_PIXELS // 10**6
        raise UserError(f"{name} has more than the {millions} million pixels editkit reads: make it smaller first") from error
    except _DECODER_ERRORS as error:
        if data.startswith(_SIGNATURES):
            raise UserError(f"{name} is damaged or cut off: its header cannot be read") from error
        raise UserError(f"{name} is not a picture editkit reads: save it as PNG, JPEG, WebP, TIFF or BMP") from error
    _check_size(image.size, name)
    try:
        # A phone's JPEG with a second picture (depth, gain map) opens as MPO and is not an animation.
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        if frames > 1 and not first_frame:
            raise UserError(f"{name} has {frames} frames or pages: save the one to edit as its own file")
        image.load()
    except _DECODER_ERRORS as error:
        raise UserError(f"{name} is damaged or cut off: {error}") from error
    return image


def _check_size(size: tuple[int, int], name: str) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        millions = size[0] * size[1] / 10**6
        raise UserError(
            f"{name} is {by(size)}, {millions:.0f} million pixels; editkit reads up to {MAX_PIXELS // 10**6} million: "
            f"make it smaller first"
        )


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _DECODER_ERRORS:  # a broken EXIF block says nothing about orientation
        return image


def _rgb(image: Image.Image, name: str) -> tuple[Image.Image, bytes | None]:
    """Return the colours as RGB and the profile they stay in (None once they are sRGB)."""
    if image.mode in _DEEP_GREY or image.mode == "F":
        image = Image.fromarray(_eight_bits(image, name))
    embedded = image.info.get("icc_profile")
    try:
        profile = _profile(embedded) if embedded else None
        if profile is None or image.mode == "LAB":
            return _without_profile(image, name), None
        space = profile.profile.xcolor_space.strip()
        if space == "RGB":
            colours = _without_profile(image, name)
            # Only a profile that also leads back can stay with the pixels.
            ImageCms.buildTransform(_srgb(), profile, "RGB", "RGB")
            ImageCms.buildTransform(profile, _srgb(), "RGB", "RGB")
            return colours, embedded
        if space == "CMYK" and image.mode == "CMYK":
            return _convert(image, profile, _srgb()), None
        if space == "GRAY" and image.mode in ("1", "L", "LA"):
            return _convert(image.convert("L"), profile, _srgb()), None
    except (ImageCms.PyCMSError, OSError):
        pass  # a profile that cannot be used says nothing about the colours
    return _without_profile(image, name), None


def _without_profile(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "LAB":
        return _convert(image, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")), _srgb())
    if image.mode in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr"):
        # By way of RGBA where colours are premultiplied or transparent, so that hidden colours come out as stored.
        return image.convert("RGBA").convert("RGB") if image.has_transparency_data else image.convert("RGB")
    raise UserError(f"{name} has the colour mode {image.mode}, which editkit has no rule for: save it as an 8-bit PNG")


def _eight_bits(image: Image.Image, name: str) -> np.ndarray:
    values = np.asarray(image).astype(np.float64)
    top = 1.0 if image.mode == "F" else 65535.0
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > top:
        raise UserError(
            f"{name} has grey values from {values.min():g} to {values.max():g} where 0 to {top:g} is expected: "
            f"save it as a 16-bit PNG"
        )
    return np.rint(values * (255.0 / top)).astype(np.uint8)


def _without_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return C with alpha * C + (1 - alpha) * white = colours, as near as 0..255 allows."""
    share = np.maximum(alpha, 1)[..., None].astype(np.float32) / 255
    return np.rint(np.clip((colours.astype(np.float32) - 255 * (1 - share)) / share, 0, 255)).astype(np.uint8)


def _convert(image: Image.Image, source: ImageCms.ImageCmsProfile, target: ImageCms.ImageCmsProfile) -> Image.Image:
    converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    assert converted is not None
    return converted


def _profile(data: bytes) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(io.BytesIO(data))


def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def by(size: tuple[int, int]) -> str:
    """Return (width, height) in words."""
    return f"{size[0]} x {size[1]} pixels"
