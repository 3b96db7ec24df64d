"""Questions with a picture: an object that a reference shows is to appear in the mask of a scene, and to fit there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from editkit.app.questions.base import NO_EDIT, Named
from editkit.app.questions.figures import CLIP_DIRECTION, PIXELS, SCORE, Figure
from editkit.app.questions.scenes import SceneCases, SceneJudges, SceneQuestions, load_readers, posed
from editkit.data.box_exemplars import box_of
from editkit.data.items import image_tensor
from editkit.data.scenes import mask_tensor
from editkit.data.toyworld.scenes.drawing import picture
from editkit.data.toyworld.scenes.edits import SceneEdit
from editkit.data.toyworld.scenes.views import Exemplar
from editkit.data.toyworld.scenes.words import a, identity, noun
from editkit.data.toyworld.scenes.world import exemplar_at, key_of
from editkit.metrics.harmony import HarmonyNet, load_harmony, outranked
from editkit.metrics.images import eight_bit
from editkit.metrics.scene_edits import Claim, Expectation, SceneReading
from editkit.metrics.scene_oracle import THERE

EDITS = {"exemplar": Named("exemplar")}
ASKED = ("shape", "colour")  # what must be read for success; texture has a figure of its own


@dataclass(frozen=True)
class ExemplarCases(SceneCases):
    """Objects to put into masks.

    Attributes:
        pairs: scene, object and reference of each.
        references, reference_masks: (3, H, W) in [-1, 1] and (1, H, W), 1 = the object, of each.
    """

    pairs: list[Exemplar]
    references: list[Tensor]
    reference_masks: list[Tensor]

    def mask(self, index: int) -> Tensor:
        """Return where the object is to appear, exactly."""
        return self.region[index]

    def inputs(self, index: int) -> dict[str, Any]:
        shown = {"references": (self.references[index],), "reference_masks": (self.reference_masks[index],)}
        return {**shown, "prompt": described(self.pairs[index])}

    def about(self) -> dict[str, Any]:
        return {"question": f"The object of a reference in the mask, such as {described(self.pairs[0])}."}


@dataclass(frozen=True)
class ExemplarJudges(SceneJudges):
    """What reads scenes, and tells true renderings from pasted ones."""

    harmony: HarmonyNet


class Exemplars(SceneQuestions):
    """Objects of references in the masks of scenes."""

    name = "exemplars"
    answer = "Each picture has an exact answer: the scene rendered with the reference's object where the mask is."
    mark = "results exemplars"
    figures: Mapping[str, Figure] = {
        "success": Figure("success", 2, 1, "", "the oracle reads the reference's shape and colour in the mask", "success"),
        "colour": Figure("colour", 2, 1, "", "the oracle reads the reference's colour in the mask"),
        "shape": Figure("shape", 2, 1, "", "the oracle reads the reference's shape in the mask"),
        "texture": Figure("texture", 2, 1, "", "the oracle reads the reference's texture in the mask"),
        "preservation": Figure(
            "preservation", 3, 1, "", "share of the other factors and objects that the oracle reads as they were", "kept"
        ),
        "score": SCORE,
        "outside": Figure("same outside", 2, 1, "", "every pixel outside the mask is the source's, to the bit", "same"),
        "harmony": Figure(
            "harmony", 2, 1, "", "chance that the picture is a true rendering, by a network that looks at the mask"
        ),
        "harmony_auc": Figure(
            "told apart", 2, -1, "", "area under the ROC curve of telling it from the true renderings; .5: nobody can", "AUC"
        ),
        "clip_reference": Figure("CLIP ref.", 2, 1, "", "cosine of the CLIP features of the mask's box and of the reference"),
        **PIXELS,
        "clip_direction": CLIP_DIRECTION,
    }
    shown = (
        *("success", "colour", "shape", "texture", "preservation", "score", "outside"),
        *("harmony", "harmony_auc", "clip_reference", "psnr_inside"),
    )
    compared = ("score", "success", "preservation", "harmony")
    baselines = (NO_EDIT, "copy-paste", "inpaint")
    typical = "exemplar"
    equipped: Mapping[str, tuple[str, ...]] = {"inpaint": ()}
    tradeoffs = (("preservation", "success"), ("clip_reference", "harmony"))

    def edits(self) -> Mapping[str, Named]:
        return EDITS

    def cases(self, edit: Named, split: str, count: int, *, size: int) -> ExemplarCases:
        pairs = [exemplar_at(split, k) for k in range(count)]
        masks = torch.stack([mask_tensor(pair.mask(size)[None]) for pair in pairs])
        given = posed([replacement(pair) for pair in pairs], size)
        wanted = [in_mask(one, *of) for one, *of in zip(given["expectations"], masks, pairs, strict=True)]
        shown = [pair.reference(size) for pair in pairs]
        return ExemplarCases(
            edit,
            [key_of(split, k) for k in range(count)],
            **{**given, "region": masks, "expectations": wanted},
            pairs=pairs,
            references=[image_tensor(crop) for crop, _ in shown],
            reference_masks=[mask_tensor(outline[None]) for _, outline in shown],
        )

    def load_judges(self, device: torch.device | str) -> ExemplarJudges:
        return ExemplarJudges(**load_readers(device), harmony=load_harmony("editkit:toy-harmony").to(device))

    def measured(
        self, judges: ExemplarJudges, cases: ExemplarCases, where: slice, images: Tensor, readings: Sequence[SceneReading]
    ) -> dict[str, Tensor]:
        source, masks = cases.images[where].to(images), cases.region[where].to(images)
        real = torch.cat([judges.harmony(*(part.to(images) for part in chunk)) for chunk in _chunks(cases)])
        logits = judges.harmony(images, masks)
        kept = (eight_bit(images) == eight_bit(source)) | (masks > 0)
        references = torch.stack(cases.references[where]).to(images)
        cut = torch.stack([in_box(*one) for one in zip(images, masks, strict=True)])
        return {
            **super().measured(judges, cases, where, images, readings),
            **aspects(cases.pairs[where], cases.expectations[where], readings),
            "outside": kept.flatten(1).all(1).float(),
            "harmony": logits.sigmoid(),
            "harmony_auc": outranked(logits, real),
            "clip_reference": F.cosine_similarity(judges.clip.image(cut), judges.clip.image(references)),
        }


def described(pair: Exemplar) -> str:
    """Return what the object is: "a striped red star"."""
    return a(noun(identity(pair.thing)))


def replacement(pair: Exemplar) -> SceneEdit:
    """Return a pair as the edit that puts its object in the place of another."""
    (before,) = set(pair.source.things) - set(pair.target.things)
    return SceneEdit("replace", "", pair.source, pair.target, before, pair.thing)


def in_mask(expectation: Expectation, mask: Tensor, pair: Exemplar) -> Expectation:
    """Return an expectation that asks for shape and colour anywhere in the mask (1, H, W), other objects left out.

    The mask is wider than the object: it stands there from half of the share on that it covers in the exact answer.
    """
    seen = torch.from_numpy(picture(pair.target, mask.shape[-1]).seen).float()
    number = pair.target.things.index(pair.thing)
    free = mask[0] * (1 - seen.sum(0) + seen[number]).clamp(0, 1)
    regions = expectation.regions.clone()
    regions[number] = free
    asked = (Claim(number, {name: getattr(pair.thing, name) for name in ASKED}),)
    least = {number: THERE * ((seen[number] * free).sum() / free.sum()).item()}
    return replace(expectation, asked=asked, regions=regions, least=least)


def aspects(
    pairs: Sequence[Exemplar], expectations: Sequence[Expectation], readings: Sequence[SceneReading]
) -> dict[str, Tensor]:
    """Return for each aspect of the objects whether it was read in the mask, (B,)."""
    seen = [reading.regions[one.asked[0].region or 0] or {} for one, reading in zip(expectations, readings, strict=True)]
    return {
        name: torch.tensor([float(own.get(name) == getattr(pair.thing, name)) for own, pair in zip(seen, pairs, strict=True)])
        for name in (*ASKED, "texture")
    }


def in_box(image: Tensor, mask: Tensor) -> Tensor:
    """Return an image (3, H, W) cropped to the box of its mask (1, H, W), squashed to its own size again."""
    left, top, right, bottom = box_of(mask[0])
    size = image.shape[1:]
    return F.interpolate(image[None, :, top:bottom, left:right], size=size, mode="bicubic", antialias=True)[0].clamp(-1, 1)


def _chunks(cases: ExemplarCases) -> list[tuple[Tensor, Tensor]]:
    return list(zip(cases.truth.split(64), cases.region.split(64), strict=True))
