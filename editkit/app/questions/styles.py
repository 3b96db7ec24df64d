"""Questions about styles: a face is to be drawn in a style, as the same face."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from editkit.app.questions.base import NO_EDIT, Cases, Questions, feature_distances, pictures, trained_edits
from editkit.app.questions.figures import PIXELS, SCORE, Figure, Scores, pixel_figures
from editkit.data.toyworld.styled import STYLES, StyledFace, in_style, render, styled_at, visible
from editkit.data.toyworld.styles import CALLED
from editkit.metrics.edits import judge
from editkit.metrics.images import differing
from editkit.metrics.oracle import Oracle, load_oracle
from editkit.metrics.structure import KeyEncoder, structure_distance


@dataclass(frozen=True)
class Stylisation:
    """From a plain picture to one in a style.

    Attributes:
        name: of the style.
    """

    name: str

    @property
    def prompt(self) -> str:
        """The name of the style picture, which what is trained for one style is called by; texts are `CALLED`."""
        return self.name


EDITS = {style: Stylisation(style) for style in STYLES if style != "plain"}


@dataclass(frozen=True)
class StyleCases(Cases):
    """The same style asked of several faces.

    Attributes:
        answers: the faces in the style.
    """

    answers: list[StyledFace]

    what: ClassVar[str] = "toy faces"

    def inputs(self, index: int) -> dict[str, Any]:
        return {"source_prompt": "a face", "prompt": f"{CALLED[self.edit.name]} of a face"}

    def about(self) -> dict[str, Any]:
        return {"question": f"Each face is to become {CALLED[self.edit.name]} of the same face."}


@dataclass(frozen=True)
class StyleJudges:
    """The networks that look at results.

    Attributes:
        oracle: reads a face's style, and of its factors those that the style shows.
        dino: for the structure.
    """

    oracle: Oracle
    dino: KeyEncoder


class Styles(Questions):
    """Faces drawn in styles."""

    name = "styles"
    subject = "faces"
    answer = "Each style has an exact answer: the same face as the toy world draws it in that style."
    mark = "results styles"
    figures: Mapping[str, Figure] = {
        "success": Figure("success", 2, 1, "", "the oracle reads the style", "success"),
        "preservation": Figure(
            "preservation", 3, 1, "", "share of the factors visible in the style that the oracle reads as they were", "kept"
        ),
        "score": SCORE,
        **PIXELS,
        "structure": Figure(
            "structure", 3, -1, "", "distance to the source in the self-similarity of DINO's patch keys, last layer", "struct."
        ),
    }
    shown = ("success", "preservation", "score", "structure", "psnr", "ssim")
    compared = ("score", "success", "preservation", "structure")
    baselines = (NO_EDIT, "reconstruction", "clip-guided", "sdedit")
    typical = "pencil"
    equipped: Mapping[str, tuple[str, ...]] = {"sdedit": ("backbone=toy_latent",)}  # which has read what styles are called
    tradeoffs = (("preservation", "success"), ("structure", "success"))

    def edits(self) -> Mapping[str, Stylisation]:
        return EDITS

    def usual(self, weights: Mapping[str, tuple[str, Sequence[str]]]) -> list[Stylisation]:
        """Return the styles that trained parts are for; all of them where those serve any.

        Raises:
            UserError: weights for a picture that is no style of the toy faces.
        """
        found = {edit.name for own in weights.values() for edit in trained_edits(EDITS, *own)}
        return [edit for edit in EDITS.values() if edit.name in found or not found]

    def cases(self, edit: Stylisation, split: str, count: int, *, size: int) -> StyleCases:
        """Return the first faces of a split."""
        faces = [styled_at(split, k, "plain") for k in range(count)]
        answers = [in_style(face, edit.name) for face in faces]
        images, truth = pictures(render, faces, size), pictures(render, answers, size)
        keys = [f"faces/{split}/{k:06d}" for k in range(count)]
        return StyleCases(edit, keys, images, truth, differing(truth, images), answers)

    def load_judges(self, device: torch.device | str) -> StyleJudges:
        from editkit.backbones.dino import load_dino

        return StyleJudges(load_oracle("editkit:toy-style-oracle").to(device), load_dino("editkit:toy-dino").to(device))

    def judged(self, judges: StyleJudges, cases: StyleCases, where: slice, images: Tensor) -> Scores:
        source, truth, inside = (part[where].to(images) for part in (cases.images, cases.truth, cases.region))
        answers = cases.answers[where]
        known = {name: value.to(images.device) for name, value in judges.oracle.truth(answers).items()}
        shown = [visible(face) for face in answers]
        seen = {name: torch.tensor([one[name] for one in shown], device=images.device) for name in known}
        edited = judge(judges.oracle, images, wanted={"style": cases.edit.name}, truth=known, visible=seen, implied={"style"})
        found = {"success": edited.success, "preservation": edited.preservation, "score": edited.score}
        found |= pixel_figures(images, truth, inside)
        found["structure"] = structure_distance(judges.dino.keys(source), judges.dino.keys(images))
        return Scores({name: found[name] for name in self.figures}, edited.kept, judges.oracle.features(images))

    def distances(
        self, judges: StyleJudges, cases: StyleCases, split: str, features: Mapping[tuple[str, str], Tensor]
    ) -> dict[tuple[str, str], float]:
        """Return each variant's distance to other faces in the style; ("", "") is that of these faces' own answers."""
        other = "test" if split == "validation" else "validation"
        real = self.cases(cases.edit, other, len(cases), size=cases.images.shape[-1]).truth
        return feature_distances(judges.oracle, features, real, cases.truth)
