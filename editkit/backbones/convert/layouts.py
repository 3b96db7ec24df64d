"""The layouts that can be converted, and which of them a checkpoint is in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from editkit.backbones.convert import (
    adm,
    asyrp,
    clip,
    controlnet,
    cyclenet,
    ddpm,
    diffae,
    diffae_classifier,
    diffae_latent,
    diffusionclip,
    irse50,
    lpips,
    pbe,
    sd,
    v_diffusion,
)
from editkit.backbones.convert.layout import Layout
from editkit.backbones.convert.reading import tensor_sets
from editkit.errors import UsageError, UserError, suggestion

# Of layouts that fit, the later one is taken: a ControlNet's file holds the whole Stable Diffusion that it steers.
_LATENT = (sd, pbe, controlnet, cyclenet)
_AUTOENCODERS = (diffae, diffae_latent, diffae_classifier)  # the second holds the first
_MODULES = (ddpm, adm, diffusionclip, asyrp, clip, irse50, lpips, *_LATENT, v_diffusion, *_AUTOENCODERS)
LAYOUTS = {module.LAYOUT.name: module.LAYOUT for module in _MODULES}
SHOWN = 3


@dataclass(frozen=True)
class Found:
    """What of a file is converted.

    Attributes:
        layout: its layout.
        tensors: by the layout's names.
        place: where in the file they are, "" for the file itself.
        others: other places in the same layout.
    """

    layout: Layout
    tensors: dict[str, Tensor]
    place: str
    others: tuple[str, ...] = ()


def find(name: str, content: Any, *, layout: str | None = None, part: str | None = None) -> Found:
    """Return the tensors to convert, and their layout.

    Where a file holds several sets in one layout, an average (a place with "ema" in it) goes first, then the last: training
    loops append what is best to use.

    Args:
        name: the file's name, for messages.
        content: what `read_checkpoint` returned.
        layout: name of the layout, or None to recognise it.
        part: place of the set to take, or None.

    Raises:
        UsageError: an unknown layout, or a part that is not there.
        UserError: a file in none of the layouts, or not in the named one.
    """
    if layout is not None and layout not in LAYOUTS:
        raise UsageError(f"--layout {layout} is unknown.{suggestion(layout, LAYOUTS)} Known are {', '.join(LAYOUTS)}")
    sets = dict(tensor_sets(content))
    if part is not None and part not in sets:
        raise UsageError(f"part={part} is not in {name}: it holds {', '.join(filter(None, sets)) or 'one set of tensors'}")
    sets = sets if part is None else {part: sets[part]}
    known = [LAYOUTS[layout]] if layout else [one for one in LAYOUTS.values() if not one.asked]
    fitting = {place: one for place, tensors in sets.items() for one in known if one.fits(tensors)}
    if not fitting:
        raise UserError(_unknown(name, sets, layout))
    averages = [place for place in fitting if "ema" in place.lower()]
    place = (averages or list(fitting))[-1]
    others = tuple(other for other in fitting if other != place and fitting[other] is fitting[place])
    return Found(fitting[place], sets[place], place, others)


def _unknown(name: str, sets: Mapping[str, Mapping[str, Tensor]], layout: str | None) -> str:
    names = max((list(tensors) for tensors in sets.values()), key=len, default=[])
    seen = f"its tensors are named {', '.join(names[:SHOWN])}" if names else "it holds no tensors with names"
    if layout is not None:
        return f"{name} is not in the layout {layout}: {seen}; leave --layout out to have it recognised"
    return f"{name} is in no layout that is known here: {seen}. Known are {', '.join(LAYOUTS)} (--layout)"
