"""ArcFace's IR-SE50 (model_ir_se50.pth of InsightFace_Pytorch), which DiffusionCLIP's identity loss uses."""

from __future__ import annotations

import itertools

from editkit.backbones.arcface import ArcFace
from editkit.backbones.convert.features import filled, write_features
from editkit.backbones.convert.layout import Converted, Layout, Source


def convert(source: Source) -> Converted:
    """Return the folder of an identity network; stages and widths are those of the tensors.

    Raises:
        UserError: a variant: without squeeze-and-excitation, or for another input than 112 pixels.
    """
    count = 1 + max(int(name.split(".")[1]) for name in source.tensors if name.startswith("body."))
    starts = [n for n in range(count) if n == 0 or f"body.{n}.shortcut_layer.0.weight" in source.tensors]
    net = ArcFace(
        channels=[source.shape(f"body.{n}.res_layer.1.weight")[0] for n in starts],
        blocks=[stop - start for start, stop in itertools.pairwise([*starts, count])],
        dim=source.shape("output_layer.3.weight")[0],
    )
    filled(net, source.name, source.tensors)
    card = {"parameters": sum(parameter.numel() for parameter in net.parameters()), "embedding": net.config["dim"]}
    return Converted(card, "editkit.backbones.identity.load_identity: {path}", lambda folder: write_features(folder, net))


MARKS = (("input_layer.0.weight", "body.0.res_layer.1.weight", "output_layer.3.weight"),)
LAYOUT = Layout("irse50", "ArcFace's IR-SE50 .pth", MARKS, convert)
