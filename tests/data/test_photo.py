"""Pictures of every kind become the same sRGB picture, bad files become one clear line, and pasting touches only its place."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw

from editkit.data import photo as module
from editkit.data.fit import CONTEXT, Fit, fit, fit_holding, to_pil, to_tensor
from editkit.data.photo import Photo, photo_from_pil, read_mask, read_photo
from editkit.errors import UserError


def scene(width: int = 40, height: int = 24) -> Image.Image:
    """A picture without any symmetry."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns * 255 // width, rows * 255 // height, (rows * columns) % 200], 2).astype(np.uint8))


def save(tmp_path: Path, image: Image.Image, name: str = "a.png", **options) -> Path:
    image.save(tmp_path / name, **options)
    return tmp_path / name


# Orientation. What a camera stores for a picture that should look like `scene` when shown, by EXIF tag.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("tag", STORED)
@pytest.mark.parametrize("kind", ["png", "tiff", "webp"])
def test_all_eight_orientations_are_upright(tmp_path, tag, kind):
    shown = np.asarray(scene())
    exif = Image.Exif()
    exif[0x0112] = tag
    stored = Image.fromarray(np.ascontiguousarray(STORED[tag](shown)))
    options = {"lossless": True, "exact": True} if kind == "webp" else {}
    path = save(tmp_path, stored, f"a.{kind}", exif=exif, **options)
    assert np.array_equal(read_photo(path).rgb, shown)


@pytest.mark.parametrize("tag", STORED)
def test_orientation_of_a_jpeg_and_its_mask_agree(tmp_path, tag):
    """The mask drawn on the picture as shown must lie on the same pixels, whatever the file stores."""
    shown = Image.new("RGB", (40, 24), "black")
    ImageDraw.Draw(shown).rectangle((28, 2, 38, 8), fill="white")
    exif = Image.Exif()
    exif[0x0112] = tag
    stored = Image.fromarray(np.ascontiguousarray(STORED[tag](np.asarray(shown))))
    photo = read_photo(save(tmp_path, stored, "a.jpg", exif=exif, quality=100, subsampling=0))
    mask = read_mask(save(tmp_path, shown, "mask.png"), photo.size)
    assert photo.size == (40, 24)
    assert photo.rgb[mask].min() > 200 and photo.rgb[~mask].max() < 55


def test_a_mask_of_the_stored_not_the_shown_size_is_refused(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = read_photo(save(tmp_path, scene(40, 24), "a.jpg", exif=exif))
    assert photo.size == (24, 40)
    with pytest.raises(UserError, match=r"40 x 24 pixels but .* is 24 x 40"):
        read_mask(save(tmp_path, Image.new("L", (40, 24), 255), "m.png"), photo.size)


# Colour modes.


def test_grey_palette_and_one_bit_keep_their_values(tmp_path):
    grey = Image.fromarray(np.arange(240, dtype=np.uint8).reshape(10, 24))
    assert np.array_equal(read_photo(save(tmp_path, grey)).rgb, np.asarray(grey)[..., None].repeat(3, 2))
    palette = scene().quantize(32)
    assert np.array_equal(read_photo(save(tmp_path, palette)).rgb, np.asarray(palette.convert("RGB")))
    bits = Image.fromarray(np.eye(9, dtype=bool))
    assert np.array_equal(read_photo(save(tmp_path, bits)).rgb[..., 0], np.eye(9, dtype=np.uint8) * 255)


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path, kind):
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    read = read_photo(save(tmp_path, Image.fromarray(values), f"a.{kind}"))
    assert read.rgb[0, :, 0].tolist() == [0, 1, 128, 255]


def test_sixteen_bit_rgb_png_is_read(tmp_path):
    values = np.array([[[0, 0x8040, 0xFFFF], [0x0100, 0x7FFF, 0x1234]]], dtype=">u2")
    rows = b"".join(b"\x00" + row.tobytes() for row in values)
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(_png([(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]))
    assert np.abs(read_photo(tmp_path / "a.png").rgb.astype(int) - values.astype(int) // 257).max() <= 1


def test_integer_and_float_tiffs_by_rule(tmp_path):
    def read(values: list[float], kind: type) -> list[int]:
        return read_photo(save(tmp_path, Image.fromarray(np.array([values], kind)), "a.tiff")).rgb[0, :, 0].tolist()

    assert read([0, 65535], np.int32) == [0, 255]
    assert read([0, 0.5], np.float32) == [0, 128]
    with pytest.raises(UserError, match=r"grey values from 0 to 1e\+06 where 0 to 1 is expected"):
        read([0, 1e6], np.float32)


def test_cmyk_becomes_rgb(tmp_path):
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # red ink
    red = read_photo(save(tmp_path, cmyk, "a.tiff")).rgb[0, 0]
    assert red[0] > 200 and red[1] < 60 and red[2] < 60
    photo = read_photo(save(tmp_path, cmyk, "a.jpg", quality=100))
    assert photo.rgb.shape == (8, 8, 3) and photo.profile is None


def test_lab_becomes_rgb(tmp_path):
    lab = ImageCms.profileToProfile(scene(), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB")
    read = read_photo(save(tmp_path, lab, "a.tiff")).rgb
    assert np.abs(read.astype(int) - np.asarray(scene()).astype(int)).mean() < 3


# Alpha.


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_alpha_is_kept_and_a_method_sees_white_under_it(tmp_path, mode):
    rgba = np.dstack([np.asarray(scene()), np.full((24, 40), 255, np.uint8)])
    rgba[:, :10, 3] = 0
    image = Image.fromarray(rgba)
    image = image.quantize(64, method=Image.Quantize.FASTOCTREE) if mode == "P" else image.convert(mode)
    photo = read_photo(save(tmp_path, image))
    assert photo.alpha is not None and (photo.alpha[:, :10] == 0).all() and (photo.alpha[:, 10:] == 255).all()
    seen = np.asarray(photo.seen((0, 0, 40, 24)))
    assert (seen[:, :10] == 255).all() and np.array_equal(seen[:, 10:], photo.rgb[:, 10:])


def test_a_transparent_colour_of_an_rgb_png_counts_as_alpha(tmp_path):
    image = Image.new("RGB", (4, 4), (10, 20, 30))
    image.putpixel((0, 0), (255, 0, 255))
    photo = read_photo(save(tmp_path, image, transparency=(255, 0, 255)))
    assert photo.alpha is not None and photo.alpha[0, 0] == 0 and photo.alpha[1, 1] == 255


def test_an_edit_under_half_transparency_looks_like_the_edit_on_white():
    rng = np.random.default_rng(0)
    alpha = np.full((8, 8), 128, np.uint8)
    alpha[0], alpha[1] = 0, 255
    photo = Photo(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), alpha)
    seen = np.asarray(photo.seen((0, 0, 8, 8))).astype(int)
    wish = Image.fromarray(np.clip(seen + 3, 0, 255).astype(np.uint8))
    after = photo.painted((0, 0, 8, 8), wish)
    assert np.array_equal(after.alpha, alpha)
    assert np.array_equal(after.rgb[0], photo.rgb[0]), "wholly transparent pixels keep their hidden colours"
    assert np.abs(np.asarray(after.seen((0, 0, 8, 8))).astype(int)[1:] - np.asarray(wish).astype(int)[1:]).max() <= 1


# Colour profiles, made from the sRGB one that LittleCMS builds.


def _srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _swapped() -> bytes:
    """A profile whose first number is green and whose second is red."""
    return _srgb().replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")


def test_a_profile_is_converted_for_the_method_and_stays_with_the_file(tmp_path):
    profile = _swapped()  # made once: it carries the second of its making
    path = save(tmp_path, scene(), icc_profile=profile)
    photo = read_photo(path)
    assert np.array_equal(photo.rgb, np.asarray(scene())), "the file's own numbers stay"
    seen = np.asarray(photo.seen((0, 0, 40, 24))).astype(int)
    swapped = np.asarray(scene())[..., [1, 0, 2]].astype(int)
    assert np.abs(seen - swapped).max() <= 2, "the method sees what the profile means"
    after = photo.painted((0, 0, 40, 24), photo.seen((0, 0, 40, 24)))
    assert np.abs(after.rgb.astype(int) - photo.rgb.astype(int)).max() <= 3
    assert after.pil().info["icc_profile"] == profile


def test_a_grey_profile_is_applied(tmp_path):
    grey = _srgb().replace(b"RGB ", b"GRAY", 1).replace(b"rTRC", b"kTRC")
    values = np.arange(0, 250, 10, dtype=np.uint8)[None]
    photo = read_photo(save(tmp_path, Image.fromarray(values), icc_profile=grey))
    assert photo.profile is None and np.abs(photo.rgb[0, :, 0].astype(int) - values[0]).max() <= 2


@pytest.mark.parametrize("profile", [b"nonsense", _srgb()[:200], _srgb().replace(b"RGB ", b"CMYK", 1)])
def test_a_broken_profile_counts_as_none(tmp_path, profile):
    photo = read_photo(save(tmp_path, scene(), icc_profile=profile))
    assert photo.profile is None and np.array_equal(photo.rgb, np.asarray(scene()))


# Bad files: one line each.


def _png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    packed = (struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def _huge(side: int) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return _png([(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")])


def _encoded(kind: str, **options) -> bytes:
    file = io.BytesIO()
    scene(200, 120).save(file, kind, **options)
    return file.getvalue()


BAD = {
    "zero bytes": (b"", "empty"),
    "text": (b"dear diary\n" * 20, "not a picture"),
    "gif": (_encoded("GIF"), "not a picture"),
    "huge": (_huge(13_000), "169 million pixels"),
    "over Pillow's own limit": (_huge(90_000), "more than the 150 million"),
    "animated": (_encoded("PNG", save_all=True, append_images=[scene(200, 120).rotate(90)]), "2 frames"),
    "several pages": (_encoded("TIFF", save_all=True, append_images=[scene(9, 9)]), "2 frames or pages"),
    "only a signature": (b"\x89PNG\r\n\x1a\n", "damaged"),
    **{f"truncated {kind}": (_encoded(kind)[: len(_encoded(kind)) * 2 // 3], "damaged") for kind in module.FORMATS},
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_file_gives_one_line_that_names_it(tmp_path, what, recwarn):
    data, expected = BAD[what]
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    with pytest.raises(UserError, match=expected) as caught:
        read_photo(path)
    assert "picture.png" in str(caught.value) and "\n" not in str(caught.value)
    assert not [w for w in recwarn if "DecompressionBomb" in str(w.category)], "an error, not a warning"


def test_every_cut_of_a_file_is_an_error_or_whole(tmp_path):
    """Whatever byte a download stopped at, no decoder's own exception comes out."""
    for kind in module.FORMATS:
        data = _encoded(kind)
        for end in range(1, len(data), max(1, len(data) // 25)):
            (tmp_path / "cut").write_bytes(data[:end])
            with pytest.raises(UserError):
                read_photo(tmp_path / "cut")


def test_flipped_bytes_never_raise_anything_but_user_errors(tmp_path):
    rng = np.random.default_rng(1)
    for kind in module.FORMATS:
        data = _encoded(kind)
        for _ in range(40):
            broken = bytearray(data)
            for place in rng.integers(0, min(len(data), 400), 4):
                broken[place] = rng.integers(256)
            (tmp_path / "broken").write_bytes(broken)
            with contextlib.suppress(UserError):
                read_photo(tmp_path / "broken", first_frame=True)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match=r"there is no file .*nothing\.png"):
        read_photo(tmp_path / "nothing.png")
    with pytest.raises(UserError, match="cannot read"):
        read_photo(tmp_path)


def test_the_size_is_checked_before_anything_is_decoded(tmp_path, monkeypatch):
    path = save(tmp_path, scene())
    monkeypatch.setattr(module, "MAX_PIXELS", 40 * 24 - 1)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(UserError, match="million"):
        read_photo(path)


def test_the_first_frame_on_request(tmp_path):
    (tmp_path / "a.png").write_bytes(BAD["animated"][0])
    assert np.array_equal(read_photo(tmp_path / "a.png", first_frame=True).rgb, np.asarray(scene(200, 120)))


def test_a_phones_jpeg_with_a_second_picture_is_no_animation(tmp_path):
    path = save(tmp_path, scene(), "a.jpg", format="MPO", save_all=True, append_images=[scene(20, 12)])
    assert read_photo(path).size == (40, 24)


# Masks.


def test_mask_files_of_any_mode(tmp_path):
    want = np.zeros((24, 40), bool)
    want[4:9, 6:20] = True
    grey = Image.fromarray(np.where(want, 200, 90).astype(np.uint8))
    clear = Image.new("RGBA", (40, 24), (0, 0, 0, 0))
    clear.paste((0, 0, 0, 255), (6, 4, 20, 9))
    bits = grey.convert("1", dither=Image.Dither.NONE)
    for number, image in enumerate([grey, grey.convert("RGB"), bits, grey.convert("P"), clear]):
        assert np.array_equal(read_mask(save(tmp_path, image, f"{number}.png"), (40, 24)), want), image.mode
    deep = Image.fromarray(np.where(want, 60000, 30000).astype(np.uint16))
    assert np.array_equal(read_mask(save(tmp_path, deep, "deep.png"), (40, 24)), want)


def test_an_empty_mask_is_refused(tmp_path):
    with pytest.raises(UserError, match="selects nothing"):
        read_mask(save(tmp_path, Image.new("L", (40, 24), 100)), (40, 24))


# Fitting and pasting.


@pytest.mark.parametrize("size", [(64, 64), (200, 90), (90, 200), (30, 17), (1, 50), (64, 1)])
@pytest.mark.parametrize("how", ["crop", "resize"])
def test_any_size_fits_and_returns(size, how):
    photo = photo_from_pil(scene(*size))
    place = fit(photo.size, (64, 64), how)
    image = place.image(photo)
    assert image.shape == (3, 64, 64) and image.min() >= -1 and image.max() <= 1
    pasted = place.paste(photo, -image)
    outside = np.ones(photo.rgb.shape[:2], bool)
    left, top, right, bottom = place.box
    outside[top:bottom, left:right] = False
    assert pasted.rgb.shape == photo.rgb.shape and np.array_equal(pasted.rgb[outside], photo.rgb[outside])
    assert how == "crop" or not outside.any()


def test_a_picture_of_the_models_size_is_not_resampled():
    photo = photo_from_pil(scene(64, 64))
    place = fit(photo.size, (64, 64))
    assert np.array_equal(np.asarray(to_pil(place.image(photo))), photo.rgb)
    assert np.array_equal(place.paste(photo, place.image(photo)).rgb, photo.rgb)


def test_the_crop_is_the_largest_centred_one_of_the_models_shape():
    assert fit((200, 100), (64, 64)).box == (50, 0, 150, 100)
    assert fit((100, 200), (64, 64)).box == (0, 50, 100, 150)
    assert fit((200, 100), (32, 64)).box == (0, 0, 200, 100)


@pytest.mark.parametrize(
    ("box", "left"),
    [
        ((60, 0, 140, 100), 50),  # in the centre already
        ((10.5, 0, 50, 20), 10),
        ((120, 30, 180.2, 60), 81),
        ((150, 0, 200, 100), 100),
        ((40, 0, 190, 10), 65),  # longer than the crop: its middle
        ((0, 0, 200, 100), 50),
    ],
)
def test_a_crop_that_holds_a_box_is_as_near_to_the_centre_as_it_can_be(box, left):
    assert fit_holding((200, 100), (64, 64), box).box == (left, 0, left + 100, 100)
    upright = (box[1], box[0], box[3], box[2])
    assert fit_holding((100, 200), (64, 64), upright).box == (0, left, 100, left + 100)


def test_bits_outside_the_mask_never_change():
    rng = np.random.default_rng(2)
    photo = Photo(rng.integers(0, 256, (90, 130, 3), dtype=np.uint8))
    mask = rng.random((90, 130)) < 0.1
    place = fit(photo.size, (64, 64), None, mask)
    pasted = place.paste(photo, -place.image(photo), mask)
    assert np.array_equal(pasted.rgb[~mask], photo.rgb[~mask])
    assert (pasted.rgb[mask] != photo.rgb[mask]).any(1).mean() > 0.9, "and inside it they do"


def test_the_box_of_a_mask_holds_all_of_it_with_surroundings():
    rng = np.random.default_rng(3)
    for _ in range(200):
        width, height = rng.integers(5, 300, 2)
        x0, y0 = rng.integers(0, width), rng.integers(0, height)
        x1, y1 = rng.integers(x0, width) + 1, rng.integers(y0, height) + 1
        mask = np.zeros((height, width), bool)
        mask[y0:y1, x0:x1] = True
        left, top, right, bottom = fit((int(width), int(height)), (64, 48), "mask", mask).box
        assert 0 <= left <= x0 and x1 <= right <= width and 0 <= top <= y0 and y1 <= bottom <= height


def test_a_small_mask_is_zoomed_on_but_never_enlarged_beyond_the_models_pixels():
    mask = np.zeros((400, 600), bool)
    mask[200:220, 300:310] = True
    left, top, right, bottom = fit((600, 400), (64, 64), "mask", mask).box
    assert (right - left, bottom - top) == (64, 64)
    mask[100:220, 300:310] = True
    left, top, right, bottom = fit((600, 400), (64, 64), "mask", mask).box
    assert right - left == bottom - top == round(CONTEXT * 120)


def test_a_thin_mask_survives_on_its_way_to_the_model():
    mask = np.zeros((640, 640), bool)
    mask[100, 5:630] = True
    assert Fit((0, 0, 640, 640), (64, 64)).mask(mask).sum() == 63


def test_tensors_and_pictures_return_to_themselves():
    image = scene()
    assert np.array_equal(np.asarray(to_pil(to_tensor(image))), np.asarray(image))


def test_boxes_become_shares_of_the_models_picture():
    assert Fit((10, 20, 110, 70), (64, 64)).relative((10, 20, 60, 95)) == (0.0, 0.0, 0.5, 1.0)
