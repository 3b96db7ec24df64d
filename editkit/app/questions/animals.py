"""Questions about animals: a cat is to become a dog of the same pose, fur, eyes, collar and background."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from editkit.app.questions.base import NO_EDIT, Cases, Questions, feature_distances, pictures
from editkit.app.questions.figures import PIXELS, SCORE, Figure, Scores, pixel_figures
from editkit.data.toyworld.animals import KINDS, Animal, animal_at, caption, render, translated
from editkit.metrics.edits import judge
from editkit.metrics.images import differing
from editkit.metrics.oracle import Oracle, load_oracle


@dataclass(frozen=True)
class Translation:
    """From one kind of animal to another.

    Attributes:
        source, target: the kinds.
    """

    source: str
    target: str
    prompt: str | None = None

    @property
    def name(self) -> str:
        return f"{self.source} to {self.target}"


EDITS = {way.name: way for way in itertools.starmap(Translation, itertools.permutations(KINDS, 2))}


@dataclass(frozen=True)
class AnimalCases(Cases):
    """The same translation of several animals.

    Attributes:
        sources: the animals before it.
    """

    sources: list[Animal]

    what: ClassVar[str] = "toy animals"

    def inputs(self, index: int) -> dict[str, Any]:
        animal = self.sources[index]
        return {"source_prompt": caption(animal).text, "prompt": caption(translated(animal, self.edit.target)).text}

    def about(self) -> dict[str, Any]:
        return {"question": f"Each {self.edit.source} is to become a {self.edit.target}, and all else to stay."}


class Animals(Questions):
    """Translations between the kinds of animals."""

    name = "animals"
    subject = "animals"
    answer = "Each translation has an exact answer: the same animal rendered as the other kind."
    mark = "results animals"
    figures: Mapping[str, Figure] = {
        "success": Figure("success", 2, 1, "", "the oracle reads the other kind", "success"),
        "preservation": Figure("preservation", 3, 1, "", "share of the other factors that the oracle reads as they were", "kept"),
        "score": SCORE,
        **PIXELS,
        "l2": Figure("L2", 1, -1, "", "norm of the difference to the source, pixels in [0, 1]", "L2"),
    }
    shown = ("success", "preservation", "score", "psnr", "ssim", "l2")
    compared = ("score", "success", "preservation", "l2")
    baselines = (NO_EDIT, "reconstruction", "sdedit", "ilvr")
    typical = "cat to dog"
    target_models = True

    def edits(self) -> Mapping[str, Translation]:
        return EDITS

    def usual(self, weights: Mapping[str, Any]) -> list[Translation]:
        """Return what the bundled models of animals are for."""
        return [EDITS[self.typical]]

    def cases(self, edit: Translation, split: str, count: int, *, size: int) -> AnimalCases:
        """Return the first animals of a kind of a split."""
        animals = [animal_at(split, k, edit.source) for k in range(count)]
        answers = [translated(animal, edit.target) for animal in animals]
        images, truth = pictures(render, animals, size), pictures(render, answers, size)
        keys = [f"animals/{split}/{edit.source}/{k:06d}" for k in range(count)]
        return AnimalCases(edit, keys, images, truth, differing(truth, images), animals)

    def load_judges(self, device: torch.device | str) -> Oracle:
        return load_oracle("editkit:toy-animal-oracle").to(device)

    def judged(self, judges: Oracle, cases: AnimalCases, where: slice, images: Tensor) -> Scores:
        source, truth, inside = (part[where].to(images) for part in (cases.images, cases.truth, cases.region))
        known = {name: value.to(images.device) for name, value in judges.truth(cases.sources[where]).items()}
        seen = {name: torch.ones_like(value, dtype=torch.bool) for name, value in known.items()}
        edited = judge(judges, images, wanted={"kind": cases.edit.target}, truth=known, visible=seen, implied={"kind"})
        found = {"success": edited.success, "preservation": edited.preservation, "score": edited.score}
        found |= pixel_figures(images, truth, inside)
        found["l2"] = ((images - source) / 2).flatten(1).norm(dim=1)
        return Scores({name: found[name] for name in self.figures}, edited.kept, judges.features(images))

    def distances(
        self, judges: Oracle, cases: AnimalCases, split: str, features: Mapping[tuple[str, str], Tensor]
    ) -> dict[tuple[str, str], float]:
        """Return each variant's distance to other animals of the target kind; ("", "") is that of these animals' own answers."""
        other = "test" if split == "validation" else "validation"
        real = self.cases(EDITS[f"{cases.edit.target} to {cases.edit.source}"], other, len(cases), size=cases.images.shape[-1])
        return feature_distances(judges, features, real.images, cases.truth)
