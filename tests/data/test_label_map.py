"""Maps of labels as pictures: numbers, colours of the palette, and what a soft brush leaves between them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from editkit.app.inputs import as_photo
from editkit.data.fit import fit
from editkit.data.label_map import PALETTE, indexed, numbers_of

LABELS = (np.arange(64).reshape(8, 8) % 9).astype(np.uint8)


@pytest.mark.parametrize("form", ["indexed", "colours", "numbers"])
def test_a_map_comes_back_from_every_form(form, tmp_path):
    picture = {"indexed": indexed(LABELS), "colours": indexed(LABELS).convert("RGB"), "numbers": Image.fromarray(LABELS)}[form]
    picture.save(tmp_path / "map.png")
    photo = as_photo(tmp_path / "map.png")
    found = fit(photo.size, (8, 8), "resize").labels(photo)
    assert found.shape == (1, 8, 8) and (found[0].numpy() == LABELS).all()


def test_shades_of_grey_as_luminance_would_be_the_wrong_numbers():
    assert (np.asarray(indexed(LABELS).convert("L")) != LABELS).mean() > 0.8
    assert (np.asarray(numbers_of(indexed(LABELS))) == LABELS).all()


def test_other_colours_count_as_the_nearest_with_a_warning(recwarn):
    pixels = np.array(indexed(LABELS).convert("RGB"))
    numbers_of(Image.fromarray(pixels))
    assert not recwarn
    pixels[0, 3] = np.add(PALETTE[3], (4, 0, 6))
    with pytest.warns(UserWarning, match=r"1\.6% of the map's pixels have colours that are no part's"):
        found = numbers_of(Image.fromarray(pixels))
    assert np.asarray(found)[0, 3] == 3
