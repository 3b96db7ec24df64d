"""What all questions about scenes have in common: pictures with an exact answer, and the networks that read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from editkit.app.questions.base import Cases, Questions
from editkit.app.questions.face_judges import TextImageEncoder
from editkit.app.questions.figures import CLIP_DIRECTION, PIXELS, SCORE, Figure, Scores, pixel_figures
from editkit.data.items import image_tensor
from editkit.data.toyworld.scenes.captions import full_caption
from editkit.data.toyworld.scenes.drawing import picture
from editkit.data.toyworld.scenes.edits import SceneEdit
from editkit.data.toyworld.scenes.factors import readable
from editkit.metrics.clip import directions
from editkit.metrics.images import differing
from editkit.metrics.scene_edits import Expectation, SceneReading, expected, kept_by_factor, read, score
from editkit.metrics.scene_oracle import SceneOracle

FIGURES: Mapping[str, Figure] = {
    "success": Figure("success", 2, 1, "", "the oracle reads what was asked for", "success"),
    "preservation": Figure(
        "preservation", 3, 1, "", "share of the other factors and objects that the oracle reads as they were", "kept"
    ),
    "score": SCORE,
    **PIXELS,
    "clip_direction": CLIP_DIRECTION,
}


@dataclass(frozen=True)
class SceneCases(Cases):
    """The same kind of edit of several scenes.

    Attributes:
        edits: what is asked of each.
        expectations: what a good answer must look like.
        texts: a caption of each source and one of its answer.
    """

    edits: list[SceneEdit]
    expectations: list[Expectation]
    texts: list[tuple[str, str]]

    what: ClassVar[str] = "toy scenes"

    def inputs(self, index: int) -> dict[str, Any]:
        source, target = self.texts[index]
        return {"source_prompt": source, "prompt": target}

    def about(self) -> dict[str, Any]:
        source, target = self.texts[0]
        return {"question": f'Such as "{source}" to "{target}".'}


@dataclass(frozen=True)
class SceneJudges:
    """The networks that look at results: an oracle that reads scenes, and a CLIP for the direction of the change."""

    oracle: SceneOracle
    clip: TextImageEncoder


class SceneQuestions(Questions):
    """Base of the questions about scenes."""

    subject = "scenes"
    figures = FIGURES
    compared = ("score", "success", "preservation")

    def load_judges(self, device: torch.device | str) -> Any:
        return SceneJudges(**load_readers(device))

    def judged(self, judges: SceneJudges, cases: SceneCases, where: slice, images: Tensor) -> Scores:
        readings = read(judges.oracle, images, cases.expectations[where])
        figures = self.measured(judges, cases, where, images, readings)
        return Scores(figures, kept_by_factor(cases.expectations[where], readings))

    def measured(
        self, judges: SceneJudges, cases: SceneCases, where: slice, images: Tensor, readings: Sequence[SceneReading]
    ) -> dict[str, Tensor]:
        """Return the figures (B,) of edited images (B, 3, H, W) in which that was read."""
        source, truth, inside = (part[where].to(images) for part in (cases.images, cases.truth, cases.region))
        scores = score(cases.expectations[where], readings)
        texts = [judges.clip.text(list(part)) for part in zip(*cases.texts[where], strict=True)]
        return {
            **vars(scores),
            **pixel_figures(images, truth, inside),
            "clip_direction": directions(judges.clip.image(source), judges.clip.image(images), *texts),
        }


def load_readers(device: torch.device | str) -> dict[str, Any]:
    """Return the bundled networks that read scenes, by the names of `SceneJudges`.

    Raises:
        UserError: one of them is not there.
    """
    from editkit.backbones.clip import load_clip
    from editkit.metrics.scene_oracle import load_scene_oracle

    oracle, clip = load_scene_oracle("editkit:toy-scene-oracle"), load_clip("editkit:toy-scene-clip")
    return {"oracle": oracle.to(device), "clip": clip.to(device)}


def posed(edits: Sequence[SceneEdit], size: int) -> dict[str, Any]:
    """Return what `SceneCases` hold of edits: pictures of `size` pixels, answers, where they differ, expectations, captions."""
    before, after = (
        [picture(scene, size) for scene in side] for side in zip(*((e.source, e.target) for e in edits), strict=True)
    )
    images, truth = (torch.stack([image_tensor(drawn.image) for drawn in side]) for side in (before, after))
    expectations = [
        expected(edit, torch.from_numpy(a.seen), torch.from_numpy(b.seen), readable(edit.source), readable(edit.target))
        for edit, a, b in zip(edits, before, after, strict=True)
    ]
    texts = [(full_caption(edit.source).text, full_caption(edit.target).text) for edit in edits]
    region = differing(images, truth)
    pictures = {"images": images, "truth": truth, "region": region}
    return {**pictures, "edits": list(edits), "expectations": expectations, "texts": texts}
