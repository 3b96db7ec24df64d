"""A diffusion autoencoder as a denoiser of pictures and of codes."""

from __future__ import annotations

import pytest
import torch

from editkit.backbones.diffae import DiffAEBackbone, DiffusionAutoencoder, begin_diffae, load_diffae
from editkit.backbones.pixel import load_pixel
from editkit.backbones.semantic_codes import AttributeClassifier, LatentDDIM
from editkit.engine.ode import DDIM
from editkit.engine.sample import sample
from editkit.errors import UsageError, UserError
from editkit.networks.two_conditions import TwoConditions
from editkit.types import Condition, EditRequest
from tests.tiny import write_pixel

SIDE, CODE = 16, 12


def network(*, trained=True) -> DiffusionAutoencoder:
    torch.manual_seed(0)
    sizes = {"channels": (8, 16), "encoder_channels": (8, 16, 16), "attended": (8,), "blocks": 1, "groups": 4}
    net = DiffusionAutoencoder(sample_size=SIDE, code=CODE, embedding=16, **sizes)
    for parameter in net.parameters() if trained else ():
        torch.nn.init.normal_(parameter, std=0.2)
    return net


@pytest.fixture
def backbone():
    return DiffAEBackbone(network())


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pictures(batch=2):
    coarse = drawn(batch, 3, 4, 4, seed=1).tanh()
    return torch.nn.functional.interpolate(coarse, size=SIDE, mode="bilinear")


def test_is_a_denoiser_of_the_pictures_sizes(backbone):
    assert not backbone.training and not any(p.requires_grad for p in backbone.parameters())
    assert backbone.sample_shape == (3, SIDE, SIDE) and backbone.parameterization == "eps" and backbone.style == "adm"
    assert backbone.schedule.table[0] == 1 - 1e-4 and len(backbone.schedule) == 1000
    code = backbone.semantic_code(pictures())
    assert code.shape == (2, backbone.code_width) == (2, CODE)
    pred = backbone(drawn(2, 3, SIDE, SIDE), torch.tensor([3.0, 700.0]), Condition(vector=code))
    assert pred.x0.shape == pred.eps.shape == (2, 3, SIDE, SIDE)
    h, _ = backbone.halves(drawn(2, 3, SIDE, SIDE), 10.0, Condition(vector=code))
    assert tuple(h.shape[1:]) == backbone.bottleneck_shape == (16, 8, 8)
    assert backbone.time_embedding(3.0).shape == (1, backbone.time_width) == (1, 16)


@torch.no_grad()
def test_the_code_changes_the_prediction_of_its_own_sample_alone(backbone):
    x, code = drawn(2, 3, SIDE, SIDE), backbone.semantic_code(pictures())
    before = backbone(x, 500.0, Condition(vector=code)).eps
    moved = backbone(x, 500.0, Condition(vector=code + torch.tensor([[0.0], [2.0]]))).eps
    torch.testing.assert_close(moved[0], before[0])
    assert (moved[1] - before[1]).abs().max() > 1e-3
    shared = backbone(x, 500.0, Condition(vector=code[:1])).eps
    torch.testing.assert_close(shared[0], before[0])


@torch.no_grad()
def test_each_half_listens_to_the_code(backbone):
    """Down, middle and up blocks alike: silencing the code in any of them changes what it says."""
    x, cond = drawn(1, 3, SIDE, SIDE), Condition(vector=3 * drawn(1, CODE))
    whole = backbone(x, 500.0, cond).eps
    for part in (backbone.unet.down_blocks, backbone.unet.mid_block, backbone.unet.up_blocks):
        kept = [module for module in part.modules() if isinstance(module, TwoConditions)]
        saved = [module.code.weight.clone() for module in kept]
        for module in kept:
            module.code.weight.zero_()
        assert (backbone(x, 500.0, cond).eps - whole).abs().max() > 1e-4
        for module, weight in zip(kept, saved, strict=True):
            module.code.weight.copy_(weight)
    assert torch.equal(backbone(x, 500.0, cond).eps, whole)


def z_first(scale, shift, code):
    return torch.cat([(1 + code) * (1 + scale) - 1, shift], 1)


@pytest.mark.parametrize("mistake", [None, z_first], ids=["", "z first"])
@torch.no_grad()
def test_the_code_scales_what_the_time_has_shifted(mistake):
    layer, h, both = TwoConditions(6, 5, 4), drawn(2, 4), drawn(2, 11, seed=1)
    (scale, shift), code = layer.time(both[:, :6]).chunk(2, 1), layer.code(both[:, 6:])
    a, b = (mistake(scale, shift, code) if mistake else layer(both)).chunk(2, 1)
    assert torch.allclose(h * (1 + a) + b, (h * (1 + scale) + shift) * (1 + code), atol=1e-6) == (mistake is None)


@torch.no_grad()
def test_a_silent_code_leaves_the_times_modulation_bit_for_bit():
    layer, both = TwoConditions(6, 5, 4), drawn(2, 11)
    for parameter in layer.code.parameters():
        parameter.zero_()
    assert torch.equal(layer(both), layer.time(both[:, :6].contiguous()))  # as it lies without a code


@torch.no_grad()
def test_a_new_network_predicts_nothing_yet():
    backbone = DiffAEBackbone(network(trained=False))
    assert not backbone(drawn(1, 3, SIDE, SIDE), 500.0, Condition(vector=drawn(1, CODE))).eps.any()
    assert backbone.semantic_code(pictures()).std() > 0


def test_the_condition_is_the_code_of_the_image(backbone):
    image = pictures()[0]
    assert torch.equal(backbone.condition(EditRequest("a", image)).vector, backbone.semantic_code(image[None]))
    assert backbone.condition(EditRequest("a", prompt="old")) is None
    with pytest.raises(UsageError, match="semantic_code"):
        backbone(drawn(1, 3, SIDE, SIDE), 500.0)


def test_gradients_reach_the_encoder(backbone):
    backbone.encoder.requires_grad_(True)
    pred = backbone(drawn(2, 3, SIDE, SIDE), 500.0, Condition(vector=backbone.semantic_code(pictures())))
    pred.eps.square().mean().backward()
    assert backbone.encoder.input_blocks[0][0].weight.grad.abs().max() > 0


def test_levels_are_those_of_the_published_code(backbone):
    levels = backbone.levels(100)
    assert levels.times == (-1.0, *map(float, range(0, 1000, 10))) and levels.entry == 1


@torch.no_grad()
def test_encoding_and_decoding_comes_back_with_its_own_code_alone(backbone):
    images = pictures(1)
    backbone.unet.conv_out.weight.mul_(0.1)  # smooth in x, as a trained network is
    own, other = (Condition(vector=code) for code in (backbone.semantic_code(images), 4 * drawn(1, CODE)))
    levels = backbone.levels(25)
    noise = DDIM().invert(backbone, images, levels, own).states[len(levels) - 1]
    error, wrong = ((sample(backbone, noise, levels, cond) - images).square().mean() for cond in (own, other))
    assert error < 0.05 and wrong > 20 * error


@torch.no_grad()
def test_a_folder_holds_all_of_it(backbone, tmp_path):
    net = network().half().float()  # what the folder keeps
    loaded = load_diffae(net.save(tmp_path / "net"))
    x, cond = drawn(1, 3, SIDE, SIDE), Condition(vector=drawn(1, CODE))
    same = DiffAEBackbone(net)
    assert torch.equal(loaded(x, 9.0, cond).eps, same(x, 9.0, cond).eps) and loaded.digest() == same.digest()
    assert torch.equal(loaded.semantic_code(pictures()), same.semantic_code(pictures()))
    half = load_diffae(tmp_path / "net", dtype="bfloat16")
    assert half(x, 9.0, cond).eps.dtype == half.semantic_code(pictures()).dtype == torch.float32
    with pytest.raises(UserError, match="kind=diffae-latent"):
        LatentDDIM.load(tmp_path / "net")


def latent() -> LatentDDIM:
    torch.manual_seed(0)
    net = LatentDDIM(dim=CODE, width=16, layers=3).eval()
    net.scale.mean.copy_(drawn(CODE, seed=3))
    net.scale.std.copy_(drawn(CODE, seed=4).abs() + 0.5)
    return net


@torch.no_grad()
def test_the_latent_ddim_is_a_denoiser_of_codes(tmp_path):
    net = latent()
    assert net.schedule.table[0] == 1 - 0.008 and float(net.schedule.table[-1]) == pytest.approx(0.992**1000)
    z = sample(net, drawn(4, CODE), net.schedule.levels(10, spacing="leading"))
    assert z.shape == (4, CODE) and z.isfinite().all()
    assert torch.allclose(net.scale.normalize(net.scale.denormalize(z)), z, atol=1e-5)
    both = net(drawn(2, CODE), torch.tensor([3.0, 700.0])).eps
    torch.testing.assert_close(net(drawn(2, CODE)[:1], 3).eps, both[:1])
    assert not torch.allclose(net(drawn(2, CODE), 3.0).eps[1:], both[1:], atol=1e-3)
    net = net.half().float()
    loaded = LatentDDIM.load(net.save(tmp_path))
    assert torch.equal(loaded(z, 5.0).eps, net(z, 5.0).eps) and torch.equal(loaded.scale.std, net.scale.std)


@torch.no_grad()
def test_every_layer_of_the_latent_ddim_sees_its_input():
    net = latent()
    net.network.layers[0].linear.weight.zero_()
    assert not torch.allclose(net(drawn(1, CODE), 5.0).eps, net(drawn(1, CODE, seed=1), 5.0).eps, atol=1e-3)


@torch.no_grad()
def test_a_classifier_keeps_its_attributes(tmp_path):
    net = AttributeClassifier(attributes=["old", "smiling"], dim=CODE)
    net.scale.mean.fill_(2.0)
    loaded = AttributeClassifier.load(net.half().float().save(tmp_path))
    code = drawn(3, CODE)
    assert loaded.attributes == ["old", "smiling"] and torch.equal(loaded(code), net(code)) and loaded(code).shape == (3, 2)


@pytest.mark.parametrize(("n", "stride", "last"), [(100, 10, 990), (20, 50, 950), (30, 34, 986), (1000, 1, 999)])
def test_the_times_are_those_of_the_published_respacing(backbone, n, stride, last):
    times = backbone.levels(n).times[1:]
    assert len(times) == n and times[-1] == last and times[1] == stride
    assert len(range(0, 1000, stride)) == n, "the only stride that the published code accepts"


def test_other_numbers_of_steps_reach_the_noise_too(backbone):
    times = backbone.levels(60).times[1:]
    assert len(times) == 60 and times[0] == 0 and times[-1] >= 980
    with pytest.raises(UsageError, match="1 to 1000"):
        backbone.levels(1001)


@torch.no_grad()
def test_begun_from_a_model_it_is_that_model(tmp_path):
    """Bit for bit, whatever the code; and listens to it as soon as a projection does."""
    folder = write_pixel(tmp_path / "ddpm")
    start, net = load_pixel(folder), begin_diffae(folder, code=CODE, encoder_channels=[8, 16], blocks=1, attended=[], groups=4)
    begun, x, cond = DiffAEBackbone(net), drawn(2, 3, SIDE, SIDE), Condition(vector=9 * drawn(2, CODE))
    assert begun.parameterization == start.parameterization == "v"
    assert torch.equal(begun(x, 400.0, cond).x0, start(x, 400.0).x0)
    again = load_diffae(begun.save(tmp_path / "diffae"))
    assert again.parameterization == "v" and torch.allclose(again(x, 400.0, cond).x0, start(x, 400.0).x0, atol=1e-2)
    next(layer for layer in begun.modules() if isinstance(layer, TwoConditions)).code.bias.fill_(0.1)
    assert not torch.equal(begun(x, 400.0, cond).x0, start(x, 400.0).x0)


def test_training_goes_on_from_a_trained_one(tmp_path):
    """With all of its weights, those of the code too; of another size it is refused, and what to set is said."""
    sizes = {"code": CODE, "encoder_channels": [8, 16], "blocks": 1, "attended": [], "groups": 4}
    trained = begin_diffae(write_pixel(tmp_path / "ddpm"), **sizes)
    next(layer for layer in trained.modules() if isinstance(layer, TwoConditions)).code.bias.data.fill_(0.25)
    again = begin_diffae(trained.save(tmp_path / "diffae"), **sizes)
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(trained.parameters(), again.parameters(), strict=True))
    assert again.training and all(one.requires_grad for one in again.parameters())
    with pytest.raises(UsageError, match=f"method.network.code={CODE}"):
        begin_diffae(tmp_path / "diffae", **{**sizes, "code": CODE + 1})


def test_a_model_that_adds_the_time_cannot_begin_one(tmp_path):
    folder = write_pixel(tmp_path / "ddpm")
    config = folder / "unet" / "config.json"
    config.write_text(config.read_text().replace('"scale_shift"', '"default"'))
    from safetensors.torch import load_file, save_file

    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    half = {name: w[: len(w) // 2].clone() if "time_emb_proj" in name else w for name, w in load_file(weights).items()}
    save_file(half, weights)
    with pytest.raises(UserError, match="add the time"):
        begin_diffae(folder, code=CODE, encoder_channels=[8, 16])
