"""The pixel backbone against diffusers on the same random weights."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

from editkit.backbones.pixel import PixelBackbone, load_pixel
from editkit.backbones.scheduler_config import schedule_of
from editkit.engine.schedule import Schedule
from editkit.errors import UsageError, UserError

BLOCKS = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}


def tiny_unet(**changes) -> UNet2DModel:
    torch.manual_seed(0)
    config = {
        "sample_size": 16,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 8,
    }
    return UNet2DModel(**(config | BLOCKS | changes))


def adm_unet() -> UNet2DModel:
    """The layout of ADM: scale-shift norm, residual up and down sampling, learned variance."""
    return tiny_unet(resnet_time_scale_shift="scale_shift", downsample_type="resnet", upsample_type="resnet", out_channels=6)


def noisy(batch=2, seed=0):
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[tiny_unet, adm_unet], ids=["ddpm", "adm"])
def backbone(request):
    return PixelBackbone(request.param(), Schedule.linear())


def test_is_frozen_and_in_eval_mode(backbone):
    assert not backbone.training
    assert not any(p.requires_grad for p in backbone.parameters())


def test_sizes_are_read_from_the_network(backbone):
    assert backbone.sample_shape == (3, 16, 16)
    h, _ = backbone.halves(noisy(), 10.0)
    assert tuple(h.shape[1:]) == backbone.bottleneck_shape == (16, 8, 8)
    assert backbone.time_embedding(10.0).shape == (1, backbone.time_width)
    assert backbone.time_embedding(torch.tensor([1.0, 2.0])).shape == (2, backbone.time_width)


def test_style_names_the_block_design():
    assert PixelBackbone(tiny_unet(), Schedule.linear()).style == "ddpm"
    assert PixelBackbone(adm_unet(), Schedule.linear()).style == "adm"


@torch.no_grad()
def test_predicts_what_the_network_says(backbone):
    x = noisy()
    assert torch.equal(backbone(x, 300).eps, backbone.unet(x, 300).sample[:, :3])
    times = torch.tensor([300, 20])
    assert torch.equal(backbone(x, times).eps, backbone.unet(x, times).sample[:, :3])


@torch.no_grad()
def test_learned_variance_is_kept_apart():
    backbone = PixelBackbone(adm_unet(), Schedule.linear())
    x = noisy()
    assert torch.equal(backbone(x, 300).features["variance"], backbone.unet(x, 300).sample[:, 3:])
    assert "variance" not in PixelBackbone(tiny_unet(), Schedule.linear())(x, 300).features


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@torch.no_grad()
def test_parity_with_diffusers_ddim_for_every_parameterization(tmp_path, kind):
    unet = tiny_unet()
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False, beta_schedule="squaredcos_cap_v2")
    DDPMPipeline(unet, DDPMScheduler.from_config(scheduler.config)).save_pretrained(tmp_path)
    backbone = load_pixel(tmp_path)
    scheduler.set_timesteps(10)
    x, t = noisy(), 500
    step = scheduler.step(unet(x, t).sample, t, x)
    pred = backbone(x, t)
    assert torch.allclose(pred.x0, step.pred_original_sample, atol=2e-5)
    a, s = (float(v) ** 0.5 for v in (scheduler.alphas_cumprod[400], 1 - scheduler.alphas_cumprod[400]))
    assert torch.allclose(a * pred.x0 + s * pred.eps, step.prev_sample, atol=2e-5)


@torch.no_grad()
def test_plain_h_gives_the_plain_output_bit_for_bit(backbone):
    x = noisy()
    h, finish = backbone.halves(x, 300)
    (pred,) = finish([h])
    plain = backbone(x, 300)
    assert torch.equal(pred.x0, plain.x0)
    assert torch.equal(pred.eps, plain.eps)


@torch.no_grad()
def test_two_h_share_the_skips_and_stay_in_order(backbone):
    x = noisy()
    h, finish = backbone.halves(x, 300)
    shifted, plain = finish([h + 1, h])
    assert torch.allclose(plain.eps, backbone(x, 300).eps, atol=1e-5)
    with backbone.taps("bottleneck", lambda out: out + 1):
        tapped = backbone(x, 300)
    assert torch.allclose(shifted.eps, tapped.eps, atol=1e-5)
    assert not torch.allclose(shifted.eps, plain.eps, atol=1e-3)


@torch.no_grad()
def test_the_neck_is_the_output_of_the_middle_block(backbone):
    """An easy wrong version takes what enters the middle block: adding a shift there is not the same edit."""
    x = noisy()
    h, finish = backbone.halves(x, 300)
    seen = []
    with backbone.taps("bottleneck", lambda out: seen.append(out.clone())):
        backbone(x, 300)
    assert torch.equal(h, seen[0])
    with backbone.taps(f"down.{len(backbone.unet.down_blocks) - 1}", lambda out: out * 3):
        wrong = backbone(x, 300)
    assert not torch.allclose(finish([h * 3])[0].eps, wrong.eps, atol=1e-3)


def test_gradients_reach_h_through_the_frozen_decoder(backbone):
    h, finish = backbone.halves(noisy(), 300)
    shift = torch.zeros_like(h, requires_grad=True)
    finish([h + shift])[0].x0.sum().backward()
    assert shift.grad.abs().max() > 0
    assert all(p.grad is None for p in backbone.parameters())


@torch.no_grad()
def test_taps_see_replace_and_go_away(backbone):
    x = noisy()
    plain = backbone(x, 300).eps
    for place in ("bottleneck", "down.0", "up.1"):
        with backbone.taps(place, lambda out: None):
            assert torch.equal(backbone(x, 300).eps, plain)
        with backbone.taps(place, lambda out: out * 1.5):
            assert not torch.equal(backbone(x, 300).eps, plain)
    assert torch.equal(backbone(x, 300).eps, plain)


def test_unknown_place_gets_a_suggestion(backbone):
    with pytest.raises(UsageError, match=r"Did you mean 'bottleneck'\?"), backbone.taps("botleneck", lambda out: None):
        pass


def test_digest_follows_the_weights_and_the_schedule(backbone):
    before = backbone.digest()
    assert before == backbone.digest()
    assert PixelBackbone(backbone.unet, Schedule.cosine()).digest() != before
    with torch.no_grad():
        next(backbone.unet.parameters()).flatten()[0] += 1e-3
    assert backbone.digest() != before


def test_digest_is_the_same_on_every_machine(backbone):
    """What was trained on one processor is told to belong to the same model on another, whose last bits differ."""
    theirs = Schedule(backbone.schedule.table * (1 - 1e-15))
    assert not torch.equal(theirs.table, backbone.schedule.table)
    assert PixelBackbone(backbone.unet, theirs, backbone.parameterization).digest() == backbone.digest()


def test_reads_pipelines_bare_folders_and_old_layouts(tmp_path):
    unet, scheduler = tiny_unet(), DDPMScheduler(prediction_type="v_prediction")
    DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "pipeline")
    unet.save_pretrained(tmp_path / "old")
    scheduler.save_pretrained(tmp_path / "old")
    unet.save_pretrained(tmp_path / "bare")
    expected = load_pixel(tmp_path / "pipeline")
    assert expected.parameterization == "v"
    given = load_pixel(tmp_path / "bare", scheduler={"prediction_type": "v_prediction"})
    assert load_pixel(tmp_path / "old").digest() == given.digest() == expected.digest()
    with pytest.raises(UserError, match=r"no scheduler_config\.json"):
        load_pixel(tmp_path / "bare")


@torch.no_grad()
def test_half_precision_network_returns_float32(tmp_path):
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(tmp_path)
    backbone, full = load_pixel(tmp_path, dtype="bfloat16"), load_pixel(tmp_path)
    h, finish = backbone.halves(noisy(), 300)
    assert backbone(noisy(), 300).eps.dtype == finish([h])[0].x0.dtype == torch.float32
    assert torch.allclose(backbone(noisy(), 300).eps, full(noisy(), 300).eps, atol=0.1)


@torch.no_grad()
def test_channels_last_changes_the_layout_not_the_answer(backbone):
    before = backbone(noisy(), 300).eps
    after = backbone.accelerate(channels_last=True)(noisy(), 300).eps
    assert torch.allclose(before, after, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("editkit:nothing", "no bundled weights"),
        ("no/such/folder", "no weights at"),
        ("google/no-such-model", "hf download google/no-such-model"),
    ],
)
def test_missing_weights_say_what_to_type(name, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=message) as caught:
        load_pixel(name)
    assert "\n" not in str(caught.value)


def test_hub_names_are_found_in_the_weights_folder(tmp_path, monkeypatch):
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(tmp_path / "some" / "model")
    monkeypatch.setenv("EDITKIT_WEIGHTS", str(tmp_path))
    assert load_pixel("some/model").sample_shape == (3, 16, 16)


def test_what_cannot_work_is_refused(tmp_path):
    with pytest.raises(UserError, match="class labels"):
        PixelBackbone(tiny_unet(num_class_embeds=4), Schedule.linear())
    with pytest.raises(UserError, match="split at the middle"):
        PixelBackbone(tiny_unet(mid_block_type=None), Schedule.linear())
    with pytest.raises(UserError, match="not a pixel model"):
        load_pixel(tmp_path)
    with pytest.raises(UserError, match="beta_schedule=odd"):
        schedule_of({"beta_schedule": "odd"})
