"""First convolutions made for other channels see in them what they saw before."""

from __future__ import annotations

import pytest
import torch

from editkit.backbones.inpainting import exemplar_channels, inpainting_channels
from editkit.networks.conv_in import take_exemplars, widen_conv_in
from tests.backbones import tiny_latent as tiny


@torch.no_grad()
@pytest.mark.parametrize("mistake", [None, "order", "polarity"])
def test_an_inpainting_network_sees_the_same_in_paint_by_examples_channels(mistake):
    backbone = tiny.backbone(9)
    images, masks = torch.rand(2, 3, 16, 16) * 2 - 1, torch.zeros(2, 1, 16, 16)
    masks[:, :, 4:10, 2:12] = 1
    z = torch.randn(2, 4, *backbone.encode(images).shape[2:])
    before = backbone.unet.conv_in(torch.cat([z, inpainting_channels(backbone, images, masks)], 1))
    given = exemplar_channels(backbone, images, masks, resize="nearest")
    take_exemplars(backbone.unet)
    if mistake == "polarity":
        given[:, 4:] = 1 - given[:, 4:]
    elif mistake == "order":
        given = given.roll(1, 1)
    after = backbone.unet.conv_in(torch.cat([z, given], 1))
    apart = (after - before)[..., 1:-1, 1:-1].abs().max()
    assert (apart < 1e-5) == (mistake is None)


def test_fewer_channels_than_before_are_refused():
    with pytest.raises(ValueError, match="takes 9 channels already"):
        widen_conv_in(tiny.unet(9), 4)
