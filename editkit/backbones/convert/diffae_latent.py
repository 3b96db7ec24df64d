"""The latent DDIM of a diffusion autoencoder: last.ckpt of its training, which holds the autoencoder beside it."""

from __future__ import annotations

import re

from torch import Tensor

from editkit.backbones.convert.diffae import AVERAGE, LATENT
from editkit.backbones.convert.features import filled, write_features
from editkit.backbones.convert.layout import Converted, Layout, Source
from editkit.backbones.semantic_codes import LatentDDIM

NET = f"{AVERAGE}{LATENT}"
ALIAS = ".cond_layers."  # the same layer as linear_emb, by another way


def convert(source: Source) -> Converted:
    """Return the latent DDIM's folder, of the averaged weights; the autoencoder is left out.

    Raises:
        UserError: a variant that cannot be converted.
    """
    found = {
        name.removeprefix(NET): value for name, value in source.tensors.items() if name.startswith(NET) and ALIAS not in name
    }
    last = max(int(name.split(".")[1]) for name in found if name.startswith("layers."))
    width, dim = source.shape(f"{NET}layers.0.linear.weight")
    net = LatentDDIM(dim=dim, width=width, layers=last + 1, sinusoid=source.shape(f"{NET}time_embed.0.weight")[1])
    plain = re.compile(rf"layers\.{last}\.linear\.")
    tensors = {f"network.{plain.sub('last.', name)}": value.float() for name, value in found.items()}
    filled(net, source.name, tensors | scale_of(source))
    card = {"parameters": sum(parameter.numel() for parameter in net.parameters()), "code": dim, "layers": last + 1}
    news = ("its autoencoder is left out: --layout diffae converts that",)
    use = "editkit.backbones.semantic_codes.LatentDDIM.load: {path}"
    return Converted(card, use, lambda folder: write_features(folder, net), news=news)


def scale_of(source: Source) -> dict[str, Tensor]:
    """Return mean and deviation of z_sem by the names of a network that holds them as `scale`.

    Raises:
        UserError: they are not there.
    """
    for kind in ("mean", "std"):
        source.shape(f"conds_{kind}")
    return {f"scale.{kind}": source.tensors[f"conds_{kind}"].float().flatten() for kind in ("mean", "std")}


MARKS = ((f"{NET}layers.0.linear.weight", f"{NET}layers.0.linear_emb.weight", f"{NET}time_embed.0.weight"),)
LAYOUT = Layout("diffae-latent", "latent DDIM of diffusion autoencoders .ckpt", MARKS, convert)
