"""CycleNet (Xu et al. 2023): a ControlNet whose hint is the image itself, and the Stable Diffusion 2.1 that it tuned."""

from __future__ import annotations

from dataclasses import replace

from editkit.backbones.convert import controlnet, sd
from editkit.backbones.convert.layout import Converted, Layout, Source

KIND = sd.Kind("CycleNet", controlnet.KIND.pipeline, "ddim")
PROMPTS = "the ControlNet takes the source prompt and the UNet the target prompt: diffusers' own pipeline gives both the same one"


def convert(source: Source) -> Converted:
    """Return the folder of a pipeline with the tuned UNet and the ControlNet; its base, 2.1-base, predicts epsilon.

    Raises:
        UserError: a variant that cannot be converted.
        UsageError: as `sd.convert`.
    """
    made = controlnet.with_base(source, KIND, "epsilon")
    return replace(made, news=(*made.news, PROMPTS))


SETTINGS = {key: about for key, about in sd.SETTINGS.items() if key != "prediction"}
MARKS = tuple((*marks, *both) for marks in sd.MARKS for both in controlnet.MARKS)
LAYOUT = Layout("cyclenet", "CycleNet .ckpt (else it is a ControlNet like any)", MARKS, convert, SETTINGS, asked=True)
