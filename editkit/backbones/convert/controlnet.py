"""ControlNet (Zhang et al. 2023) in its authors' layout: with the Stable Diffusion that it steers, or alone (v1.1)."""

from __future__ import annotations

from editkit.backbones.convert import sd
from editkit.backbones.convert.layout import Converted, Layout, Source
from editkit.backbones.convert.ldm import CONTROL, UNET, part, to_controlnet
from editkit.backbones.convert.pipeline import parameters, saved

KIND = sd.Kind("ControlNet", "StableDiffusionControlNetPipeline", "ddim")


def convert(source: Source) -> Converted:
    """Return the folder of a pipeline, or of the ControlNet alone if the file holds no UNet.

    Raises:
        UserError: a variant that cannot be converted.
        UsageError: as `sd.convert`.
    """
    if any(name.startswith(UNET) for name in source.tensors):
        return with_base(source, KIND)
    net = to_controlnet(part(source, CONTROL))
    left = [name for name in source.tensors if not name.startswith(CONTROL)]
    news = (f"{len(left)} tensors that are no part of it are left out, such as {left[0]}",) if left else ()
    card = {"model": KIND.name, "parameters": parameters({"controlnet": saved(net)})}
    return Converted(card, "ControlNetModel.from_pretrained('{path}')", net.save_pretrained, news=news)


def with_base(source: Source, kind: sd.Kind, prediction: str | None = None) -> Converted:
    """Return the folder of a pipeline with a ControlNet beside the other parts.

    Args:
        source: the whole checkpoint.
        kind: what it is.
        prediction: what its UNet predicts, if the layout says it.

    Raises:
        UserError, UsageError: as `convert`.
    """
    parts, facts, news = sd.text_parts(source, kind.sampler, prediction)
    parts["controlnet"] = saved(to_controlnet(part(source, CONTROL)))
    return sd.assembled(source, kind, parts, facts, own=(CONTROL,), news=news)


MARKS = ((f"{CONTROL}input_hint_block.0.weight", f"{CONTROL}zero_convs.0.0.weight"),)
LAYOUT = Layout("controlnet", "ControlNet .pth of SD 1.5 or 2.1", MARKS, convert, sd.SETTINGS)
