"""Objects pasted into pictures in simple ways, and true renderings beside them: what a judge of harmony learns from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from editkit.data.box_exemplars import box_of
from editkit.data.items import image_tensor
from editkit.data.scene_views import drawn_generator
from editkit.data.scenes import SceneDataset, Scenes, mask_tensor
from editkit.data.toyworld.scenes.drawing import render
from editkit.data.toyworld.scenes.factors import Scene
from editkit.data.toyworld.scenes.views import Exemplar
from editkit.data.toyworld.scenes.words import pick
from editkit.data.toyworld.scenes.world import exemplar_at, key_of
from editkit.engine.blend import paste

FADE = 2  # pixels over which a feathered crop appears


def squashed(image: Tensor, mask: Tensor, reference: Tensor, shown: Tensor | None = None) -> Tensor:
    """Return an image (3, H, W) with a reference (3, h, w), resized to the mask's box, where the mask (1, H, W) is."""
    return _inside(image, mask, lambda height, width: (_resized(reference, height, width), torch.ones(1, height, width)))


def feathered(image: Tensor, mask: Tensor, reference: Tensor, shown: Tensor | None = None) -> Tensor:
    """Return the same, faded in from the mask's border."""
    return paste(image[None], squashed(image, mask, reference)[None], mask[None], FADE)[0]


def by_its_mask(image: Tensor, mask: Tensor, reference: Tensor, shown: Tensor) -> Tensor:
    """Return an image with the object of a reference alone, `shown` (1, h, w) in its own proportions, in the mask's middle."""
    left, top, right, bottom = box_of(shown[0])
    object_, outline = (part[:, top:bottom, left:right] for part in (reference, shown))

    def fitted(height: int, width: int) -> tuple[Tensor, Tensor]:
        scale = min(height / (bottom - top), width / (right - left))
        size = max(1, round(scale * (bottom - top))), max(1, round(scale * (right - left)))
        across, down = width - size[1], height - size[0]
        around = (across // 2, across - across // 2, down // 2, down - down // 2)
        return F.pad(_resized(object_, *size), around), F.pad(_resized(outline, *size).clamp(0, 1), around)

    return _inside(image, mask, fitted)


Composition = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
COMPOSITIONS: Mapping[str, Composition] = MappingProxyType(
    {"squashed": squashed, "feathered": feathered, "by its mask": by_its_mask}
)


class PastedScenes(SceneDataset):
    """Scenes of a split with a mask about one object, half of them true renderings, half with a reference pasted there.

    A rendering shows the object, another one or nothing in the mask; what is pasted comes over another object or over nothing.
    Items are drawn anew each time. They hold image, key, index, caption (""), factors ({}) and mask (see
    `editkit.data.items`), and
        rendered  1 for a true rendering, 0 for a pasted one
    """

    def item(self, index: int) -> dict[str, Any]:
        rng, pair = drawn_generator(), exemplar_at(self.split, index)
        rendered = rng.random() < 0.5
        if rendered:
            image = image_tensor(render(pick(rng, (pair.target, pair.target, pair.source, bare(pair))), self.size))
        else:
            name = pick(rng, tuple(COMPOSITIONS))
            image = composed(pair, name, self.size, over=pick(rng, (pair.source, bare(pair))))
        return {
            "image": image,
            "key": key_of(self.split, index),
            "index": index,
            "caption": "",
            "factors": {},
            "mask": mask_tensor(pair.mask(self.size)[None]),
            "rendered": int(rendered),
        }


class PastedScenesData(Scenes):
    """True renderings and pasted pictures in three splits; arguments as for `Scenes`."""

    def dataset(self, split: str) -> PastedScenes:
        return PastedScenes(split, self.counts[split], self.size)


def bare(pair: Exemplar) -> Scene:
    """Return the scene with nothing where the object is to appear."""
    return replace(pair.target, things=tuple(one for one in pair.target.things if one != pair.thing))


def composed(pair: Exemplar, name: str, size: int, *, over: Scene) -> Tensor:
    """Return the picture (3, size, size) of a scene with the reference pasted into the mask by a composition of that name."""
    crop, shown = pair.reference(size)
    parts = image_tensor(render(over, size)), mask_tensor(pair.mask(size)[None]), image_tensor(crop), mask_tensor(shown[None])
    return COMPOSITIONS[name](*parts)


def _inside(image: Tensor, mask: Tensor, fitted: Callable[[int, int], tuple[Tensor, Tensor]]) -> Tensor:
    """Blend what is fitted to the mask's box, a picture and its opacity, over the image where the mask is."""
    left, top, right, bottom = box_of(mask[0])
    picture, opacity = fitted(bottom - top, right - left)
    result, part = image.clone(), image[:, top:bottom, left:right]
    chosen = (mask[:, top:bottom, left:right] >= 0.5).float() * opacity.to(image)
    result[:, top:bottom, left:right] = torch.where(chosen > 0, torch.lerp(part, picture.to(image), chosen), part)
    return result


def _resized(picture: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(picture[None], size=(height, width), mode="bicubic", antialias=True)[0].clamp(-1, 1)
