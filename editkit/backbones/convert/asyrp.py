"""Asyrp's published delta blocks (.pth): a mapping whose "0" is the block's state, beside its optimiser's."""

from __future__ import annotations

import re
from typing import Any

from editkit.backbones.convert.layout import Converted, Layout, Source
from editkit.errors import UsageError, UserError
from editkit.networks.delta import DELTAS

# (text before, text after, where the shift acts from, cosine of the texts). The paper lists the time for these edits of
# CelebA-HQ; the cosine is the one that the authors' rule turns into that time.
CELEBA = {
    "smiling": ("face", "smiling face", 513, 0.90),
    "sad": ("face", "sad face", 513, 0.90),
    "angry": ("face", "angry face", 512, 0.89),
    "tanned": ("face", "tanned face", 512, 0.89),
    "man": ("a person", "a man", 513, 0.90),
    "woman": ("a person", "a woman", 513, 0.90),
    "young": ("person", "young person", 515, 0.90),
    "curly_hair": ("person", "person with curly hair", 499, 0.84),
    "neanderthal": ("Human", "Neanderthal", 490, 0.80),
    "nicolas": ("Person", "Nicolas Cage", 461, 0.71),
    "pixar": ("Human", "3D render in the style of Pixar", 446, 0.67),
    "modigliani": ("photo", "Painting in Modigliani style", 403, 0.57),
    "frida": ("photo", "self-portrait by Frida Kahlo", 321, 0.45),
}
# The other published edits: the texts alone.
TEXTS = {
    "makeup": ("person", "person with makeup"),
    "zombie": ("Human", "Zombie"),
    "bedroom_hotel": ("Bedroom", "Hotel Bedroom"),
    "bedroom_princess": ("Bedroom", "Princess Bedroom"),
    "church_department_store": ("church", "department store"),
    "church_factory": ("church", "factory with chimneys"),
    "church_gothic": ("Church", "Gothic Church"),
    "church_red_brick": ("Church", "Red brick wall Church"),
    "church_temple": ("Church", "Temple"),
    "church_wooden_church": ("Church", "Wooden Church"),
    "dog_angry": ("Dog", "Angry Dog"),
    "dog_happy": ("Dog", "Happy Dog"),
    "dog_sleepy": ("Dog", "Sleepy Dog"),
    "dog_wolf": ("Dog", "Wolf"),
    "dog_yorkshire": ("Dog", "Yorkshire Terrier"),
    "metface_angry": ("painting of a person", "painting of a Angry person"),
    "metface_disgusted": ("painting of a person", "painting of a Disgusted person"),
    "metface_sad": ("painting of a person", "painting of a Sad person"),
    "metface_smiling": ("painting of a person", "painting of a Smiling person"),
}
# By data set in the file name: where the shift would act from for texts of cosine 0.9, and where noise begins, both by the
# authors' rule (thresholds 0.33 and 1.2) from their measured distances.
ASSUMED_COSINE = 0.9
TIMES = {
    "CelebA_HQ": (514, 167),
    "bedroom": (365, 221),
    "church_outdoor": (366, 293),
    "dog": (438, 167),
    "metfaces": (312, 180),
}
N_TRAIN = 40  # levels of all published files
SIDE = 8  # of the middle block at 256 pixels

_BLOCKS = {
    "ddpm": {"conv1": "conv_in", "temb_proj": "time", "norm2": "norm", "conv2": "conv_out"},
    "adm": {
        "in_layers.0": "norm_in",
        "in_layers.2": "conv_in",
        "emb_layers.1": "time",
        "out_layers.0": "norm",
        "out_layers.3": "conv_out",
    },
}


def convert(source: Source) -> Converted:
    """Return the block under our names, with the card that Asyrp's editor asks for.

    The file says neither texts nor times: they come from the settings, else from its published name.

    Raises:
        UserError: tensors that are no delta block.
        UsageError: times that are neither known from the name nor given.
    """
    style = "ddpm" if "temb_proj.weight" in source.tensors else "adm"
    tensors = {}
    for name, value in source.tensors.items():
        stem, _, kind = name.rpartition(".")
        tensors[f"{_BLOCKS[style].get(stem, stem)}.{kind}"] = value.float()
    channels, time_width = source.shape("temb_proj.weight" if style == "ddpm" else "emb_layers.1.weight")
    block = DELTAS[style](channels, time_width)
    try:
        block.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{source.name} is no delta block that Asyrp published: {' '.join(str(error).split())[:200]}") from error
    card, news = _known(source)
    card |= {"method": "asyrp", "kind": "network", "style": style, "time_width": time_width}
    side = source.number("bottleneck") or SIDE
    card["bottleneck_shape"] = [channels, side, side]
    return Converted(card, "editkit edit --method asyrp --weights {path}", tensors=tensors, news=news)


def _known(source: Source) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return texts and times, and what was assumed."""
    found = re.match(r"(?:random_noise_)?(.+?)(?:_new)?_LC_(.+?)_t\d+_", source.name)
    edit, data = (found[1], found[2]) if found else ("", "")
    before, after, published, cosine = CELEBA.get(edit) or (*TEXTS.get(edit, (None, None)), None, None)
    usual, boost = TIMES.get(data, (None, None))
    times = {"t_edit": _first(source.number("t_edit"), published, usual), "t_boost": _first(source.number("t_boost"), boost)}
    missing = [f"{key}=" for key, value in times.items() if value is None]
    if missing:
        raise UsageError(f"{source.name} is no published name that tells its times: add {' and '.join(missing)} (0 to 999)")
    assumed = source.number("t_edit") is None and published is None
    after, before = source.prompt or after, source.source_prompt or before
    card = {
        "name": after or source.path.stem,
        "prompt": after,
        "source_prompt": before,
        **times,
        "text_cosine": cosine or ASSUMED_COSINE,
        "n_train": source.number("n_train") or N_TRAIN,
        "trained_on": data or None,
    }
    note = f"t_edit={usual} is the authors' rule for texts of cosine {ASSUMED_COSINE}, theirs is not published; t_edit= sets it"
    return {key: value for key, value in card.items() if value is not None} | {"t_start": None}, (note,) if assumed else ()


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


SETTINGS = {
    "t_edit": "time from which the shift acts",
    "t_boost": "time below which steps add noise",
    "n_train": f"levels that it was trained with ({N_TRAIN})",
    "bottleneck": f"side of the backbone's middle block ({SIDE})",
}
MARKS = (
    ("conv1.weight", "temb_proj.weight", "norm2.weight"),
    ("in_layers.2.weight", "emb_layers.1.weight", "out_layers.3.weight"),
)
LAYOUT = Layout("asyrp", "Asyrp's delta blocks .pth", MARKS, convert, SETTINGS)
