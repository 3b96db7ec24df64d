"""The UNet of guided-diffusion in blocks counted in the order they run, which LDM took over: where UNet2D* has each of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "op": "conv",  # a strided convolution
    "conv": "conv",  # the convolution after a nearest-neighbour doubling
}
ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def places(names: Iterable[str], levels: int, layers: int, *, attention: str) -> Iterator[tuple[str, str]]:
    """Yield (place in the source, place in UNet2DModel or UNet2DConditionModel) of every block.

    Args:
        names: of all tensors.
        levels: resolutions.
        layers: residual blocks a level on the way down; the way up has one more.
        attention: the layer by which an attention is told from a change of size, "qkv" or "proj_in".
    """
    names, step = set(names), layers + 1
    yield from ENDS.items()
    for part, place in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        yield f"middle_block.{part}", f"mid_block.{place}"
    for level in range(levels):
        for block in range(step):
            down = f"input_blocks.{1 + level * step + block}"
            up, home = f"output_blocks.{level * step + block}", f"up_blocks.{level}"
            if block < layers:
                yield f"{down}.0", f"down_blocks.{level}.resnets.{block}"
                yield f"{down}.1", f"down_blocks.{level}.attentions.{block}"
            else:
                yield f"{down}.0", f"down_blocks.{level}.downsamplers.0"
            has_attention = f"{up}.1.{attention}.weight" in names
            yield f"{up}.0", f"{home}.resnets.{block}"
            yield f"{up}.1", f"{home}.attentions.{block}" if has_attention else f"{home}.upsamplers.0"
            yield f"{up}.2", f"{home}.upsamplers.0"


def placed(name: str, homes: Mapping[str, str]) -> tuple[str, str, str]:
    """Return (block in UNet2D*, layer in the block by the source's name, "weight" or "bias") of a tensor; "" without a block."""
    stem, _, kind = name.rpartition(".")
    place = next((place for place in homes if f"{stem}.".startswith(f"{place}.")), "")
    return homes.get(place, ""), stem.removeprefix(place).lstrip("."), kind


def joined(home: str, inner: str, kind: str) -> str:
    """Return the name of a tensor outside the attentions; one without a block keeps its own, to be refused as unknown."""
    return ".".join(part for part in (home, RESNET.get(inner, inner), kind) if part)
