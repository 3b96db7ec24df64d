"""Checkpoints of v-diffusion (.pth): cc12m_1, with and without training for classifier-free guidance, and wikiart_256."""

from __future__ import annotations

from typing import Any

from editkit.backbones.convert.features import filled, write_features
from editkit.backbones.convert.layout import Converted, Layout, Source
from editkit.backbones.v_diffusion import VDiffusionNet
from editkit.networks.v_diffusion import TIME_WIDTH

# Of both; networks of other depth by the same publisher read another time or end with another layer, which no shape tells.
LEVELS, BLOCKS = 7, 4
HEAD_CHANNELS = {True: 64, False: 128}  # of a conditional network's attention, of an unconditional one's
SIZE = 256


def convert(source: Source) -> Converted:
    """Return the model's folder; widths and the levels with attention are those of the tensors.

    Raises:
        UserError: another network of the same publisher, or a variant.
    """
    net = VDiffusionNet(sample_size=source.number("size") or SIZE, **architecture(source))
    filled(net, source.name, {f"network.{name}": value.float() for name, value in source.tensors.items()})
    card = {"parameters": sum(p.numel() for p in net.parameters()), "conditional": net.network.embedding is not None}
    use = "editkit.backbones.v_diffusion.load_v_diffusion: {path}"
    return Converted(card, use, lambda folder: write_features(folder, net))


def architecture(source: Source) -> dict[str, Any]:
    """Return the arguments of `VDiffusionUNet`."""
    conditional = "mapping.0.main.0.weight" in source.tensors
    channels, attended, place, first = [], [], "net.", 0
    for _ in range(LEVELS):
        attends = f"{place}{first + 1}.qkv_proj.weight" in source.tensors
        channels.append(source.shape(f"{place}{first}.main.0.weight")[0])
        attended.append(attends)
        place, first = f"{place}{first + BLOCKS * (2 if attends else 1)}.main.", 1  # each level begins with halving
    found: dict[str, Any] = {"channels": channels, "blocks": BLOCKS, "attended": LEVELS - sum(attended)}
    found["head_channels"] = source.number("head_channels") or HEAD_CHANNELS[conditional]
    if conditional:
        mapped, known = source.shape("mapping.0.main.0.weight")
        found |= {"embedding": known - TIME_WIDTH, "mapped": mapped}
    return found


SETTINGS = {
    "head_channels": "channels of an attention head (64 of cc12m_1, 128 of wikiart_256)",
    "size": "side of its images (256)",
}
MARKS = (("timestep_embed.weight", "net.0.main.0.weight", "net.4.main.1.main.0.weight"),)
LAYOUT = Layout("v-diffusion", "v-diffusion .pth (cc12m_1, wikiart_256)", MARKS, convert, SETTINGS)
