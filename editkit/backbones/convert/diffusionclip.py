"""DiffusionCLIP's fine-tuned networks (.pth): whole DDPM or ADM checkpoints, for one edit each."""

from __future__ import annotations

import re

from editkit.backbones.convert import adm, ddpm
from editkit.backbones.convert.layout import Converted, Layout, Source
from editkit.backbones.convert.unet import describe
from editkit.errors import UsageError


def convert(source: Source) -> Converted:
    """Return the network as one file of weights that DiffusionCLIP's editor reads beside the original backbone.

    Raises:
        UserError: a variant that cannot be converted.
        UsageError: no t0 in the file's name ("..._t401.pth") and none given.
    """
    named = re.search(r"_t(\d+)(?=[_.])", source.name)
    t0 = source.number("t0") or (int(named[1]) if named else None)
    if t0 is None:
        raise UsageError(f"{source.name} does not say the time that it was trained from: add t0=500 or what it is")
    unet = (ddpm if ddpm.LAYOUT.fits(source.tensors) else adm).to_unet(source)
    levels, size = len(unet.config.block_out_channels), unet.config.sample_size
    side = size >> (levels - 1)
    card = {
        **describe(unet),
        "name": source.prompt or source.path.stem,
        "method": "diffusionclip",
        "kind": "weights",
        "t0": t0,
        "bottleneck_shape": [unet.config.block_out_channels[-1], side, side],
    }
    card |= {key: text for key, text in (("prompt", source.prompt), ("source_prompt", source.source_prompt)) if text}
    tensors = {f"unet.{name}": tensor for name, tensor in unet.state_dict().items()}
    return Converted(card, "editkit edit --method diffusionclip --weights {path}", tensors=tensors)


SETTINGS = {"t0": "time that it was trained from, if the file's name does not say it", **adm.SETTINGS, **ddpm.SETTINGS}
LAYOUT = Layout(
    "diffusionclip",
    "DiffusionCLIP's fine-tuned .pth, to edit with (else it is a network like any: ddpm or adm)",
    ddpm.MARKS + adm.MARKS,
    convert,
    SETTINGS,
    asked=True,
)
