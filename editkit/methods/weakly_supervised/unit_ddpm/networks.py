"""The noise networks of UNIT-DDPM, and calling a network of each domain for the pictures of that domain."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from editkit.backbones.pixel import PixelBackbone
from editkit.errors import UsageError
from editkit.networks.conv_in import widen_conv_in
from editkit.types import Condition


class NoiseNetwork(PixelBackbone):
    """eps(x_t, c_t, t): a UNet2DModel that reads a noised picture of its own domain and, after it, one of the other domain.

    `Condition.concat` holds the other, (B, C, H, W), which has as much noise as the own one.

    Args:
        backbone: its layout, its noise, and the weights to begin with; those for the other picture begin at zero.
    """

    def __init__(self, backbone: PixelBackbone) -> None:
        unet = widen_conv_in(copy.deepcopy(backbone.unet), 2 * backbone.sample_shape[0])
        super().__init__(unet, backbone.schedule, backbone.parameterization)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Return (C, H, W) of one picture."""
        channels, height, width = super().sample_shape
        return channels // 2, height, width

    def begin_from(self, backbone: PixelBackbone) -> None:
        """Take over the weights of a model of the own domain; those for the other picture become zero.

        Raises:
            UsageError: a network of another layout, or one that predicts something else.
        """
        begun = NoiseNetwork(backbone)
        ours, theirs = (
            (one.parameterization, {name: tensor.shape for name, tensor in one.state_dict().items()}) for one in (self, begun)
        )
        if ours != theirs:
            raise UsageError("method.init_from needs models of the backbone's layout that predict what it does, eps or v")
        self.load_state_dict(begun.state_dict())

    def _input(self, x: Tensor, cond: Condition | None) -> Tensor:
        assert cond is not None and cond.concat is not None, "a noise network reads two pictures"
        return torch.cat([x, cond.concat], 1).to(self.unet.dtype)


def by_domain(networks: Sequence[Callable[..., Tensor]], domain: Sequence[int], *tensors: Tensor) -> Tensor:
    """Return what the network of each row's domain makes of the row, in the order of the rows.

    A network is called once, with all of its rows, or not at all if it has none.

    Args:
        networks: one for each domain.
        domain: of each row.
        tensors: the networks' arguments, (B, ...) each.
    """
    rows = [[row for row, own in enumerate(domain) if own == number] for number in range(len(networks))]
    made = [network(*(tensor[own] for tensor in tensors)) for network, own in zip(networks, rows, strict=True) if own]
    order = [row for own in rows for row in own]
    return torch.cat(made)[sorted(range(len(order)), key=order.__getitem__)]
