"""The scenes of each split, with what belongs to them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from editkit.data.toyworld.captions import Caption
from editkit.data.toyworld.samples import Domain, Sample, seed
from editkit.data.toyworld.scenes.captions import caption, thing_caption
from editkit.data.toyworld.scenes.dialogs import Round, dialog
from editkit.data.toyworld.scenes.drawing import PARTS, Picture, box, picture
from editkit.data.toyworld.scenes.edits import KINDS, SceneEdit, draw_edit
from editkit.data.toyworld.scenes.factors import Scene, draw_scene, held_out, measured, visible
from editkit.data.toyworld.scenes.views import Exemplar, draw_exemplar, second_view
from editkit.errors import UsageError, suggestion

# These numbers keep the random streams apart, also from the faces' (0 and 1): never renumber.
SCENES, CAPTIONS, EDITS, VIEWS, EXEMPLARS, DIALOGS = range(10, 16)


@lru_cache(maxsize=8192)
def scene_at(split: str, index: int) -> Scene:
    """Return a scene of a split; splits are disjoint, and only "heldout" shows the held-out combinations of factors.

    Raises:
        UsageError: an unknown split.
        ValueError: a negative index.
    """
    return _next(split, _rng(split, index, SCENES))


def caption_at(split: str, index: int) -> Caption:
    """Return the caption that belongs to a scene of a split."""
    return caption(scene_at(split, index), _rng(split, index, CAPTIONS))


def thing_captions_at(split: str, index: int) -> tuple[Caption, ...]:
    """Return a caption for each object of a scene, from far to near."""
    rng = _rng(split, index, CAPTIONS, 1)
    return tuple(thing_caption(thing, rng) for thing in scene_at(split, index).things)


def second_view_at(split: str, index: int) -> Scene:
    """Return the second view of a scene: the same objects moved, turned and relit."""
    return second_view(scene_at(split, index), _rng(split, index, VIEWS))


def edit_at(split: str, index: int, kinds: Sequence[str] = ()) -> SceneEdit:
    """Return an edit of one of some kinds: of the scene of that index, or where that has none, of another of the split.

    Args:
        kinds: names of KINDS; all by default.

    Raises:
        UsageError: an unknown split or kind.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"scenes have no edits of kind {kind!r}.{suggestion(kind, KINDS)} There are: {', '.join(KINDS)}")
    rng, scene = _rng(split, index, EDITS), scene_at(split, index)
    while (edit := draw_edit(scene, rng, kinds)) is None:
        scene = _next(split, rng)
    return edit


def exemplar_at(split: str, index: int) -> Exemplar:
    """Return the exemplar pair whose target is the scene of that index."""
    return draw_exemplar(scene_at(split, index), _rng(split, index, EXEMPLARS))


def dialog_at(split: str, index: int, rounds: int = 3) -> tuple[Round, ...]:
    """Return a conversation about the scene of that index."""
    return dialog(scene_at(split, index), _rng(split, index, DIALOGS), rounds)


def scene_named(key: str) -> Scene:
    """Return the scene of an item's key, such as "scenes/train/000012"."""
    _, split, index = key.split("/")
    return scene_at(split, int(index))


def sample_at(split: str, index: int, size: int = 64) -> Sample:
    """Render a scene of a split with its captions, factors, visibility, labels, instances and sketch."""
    scene = scene_at(split, index)
    drawn = picture(scene, size)
    return Sample(
        key_of(split, index),
        drawn.image,
        caption_at(split, index),
        measured(scene),
        visible(scene),
        drawn.labels,
        scene,
        layers={"instances": drawn.instances, "sketches": drawn.sketch},
        notes={"objects": _objects(drawn, thing_captions_at(split, index))},
    )


def key_of(split: str, index: int) -> str:
    """Name a scene: "scenes/test/000012"."""
    return f"scenes/{split}/{index:06d}"


def _objects(drawn: Picture, captions: Sequence[Caption]) -> list[dict[str, object]]:
    """Say of each object what it is, where it is seen and how much of it."""
    return [
        {"text": text.text, "box": box(seen), "whole_box": box(whole), "seen": round(float(seen.sum() / max(1, whole.sum())), 3)}
        for text, seen, whole in zip(captions, drawn.seen, drawn.whole, strict=True)
    ]


def _next(split: str, rng: np.random.Generator) -> Scene:
    scene = draw_scene(rng)
    while held_out(scene) != (split == "heldout"):
        scene = draw_scene(rng)
    return scene


def _rng(split: str, *numbers: int) -> np.random.Generator:
    return np.random.default_rng(seed(split, *numbers))


DOMAIN = Domain("scenes", PARTS, sample_at)
