"""LPIPS v0.1: the published heads (alex.pth, vgg.pth, squeeze.pth) with the features that they were trained on."""

from __future__ import annotations

from editkit.backbones.convert.features import write_features
from editkit.backbones.convert.layout import Converted, Layout, Source
from editkit.backbones.convert.reading import read_checkpoint, tensor_sets
from editkit.backbones.lpips import LPIPS
from editkit.errors import UserError

FILES = {"lpips-alex": "alexnet-*.pth", "lpips-vgg": "vgg16-*.pth", "lpips-squeeze": "squeezenet1_1-*.pth"}


def convert(source: Source) -> Converted:
    """Return the folder of a perceptual network: which one is told by the widths of the heads.

    Raises:
        UserError: heads of none of the three networks, or features that are not those of torchvision's.
    """
    heads = sorted(name for name in source.tensors if name.startswith("lin") and name.endswith(".model.1.weight"))
    widths = tuple(source.shape(name)[1] for name in heads)
    nets = [net for net in LPIPS if net.widths == widths]
    if not nets:
        raise UserError(f"{source.name} has heads for {widths} channels: neither AlexNet, VGG16 nor SqueezeNet 1.1")
    pattern = FILES[nets[0].kind]
    file = source.companion("features", pattern, f"torchvision's weights, such as {pattern}")
    try:
        _, features = next(tensor_sets(read_checkpoint(file)))
        net = nets[0].from_published(features, source.tensors)
    except (StopIteration, KeyError, RuntimeError) as error:
        raise UserError(f"{file} does not hold the features that {source.name} belongs to ({pattern})") from error
    card = {"network": net.kind, "parameters": sum(parameter.numel() for parameter in net.parameters())}
    return Converted(card, "editkit.backbones.lpips.load_lpips: {path}", lambda folder: write_features(folder, net))


SETTINGS = {"features": "torchvision's weights of the network, if they do not lie beside it"}
LAYOUT = Layout("lpips", "heads of LPIPS v0.1 .pth", (("lin0.model.1.weight", "lin4.model.1.weight"),), convert, SETTINGS)
