"""The latent backbone: what it is given, what it refuses, what it writes and reads."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from editkit.app.invert import Way
from editkit.backbones.inpainting import image_channels, inpainting_channels
from editkit.backbones.latent import LatentBackbone
from editkit.backbones.latent_folder import load_latent, save_latent
from editkit.engine.invert import INVERTERS
from editkit.engine.lanes import evaluate
from editkit.errors import UsageError, UserError
from editkit.types import Condition, EditRequest
from tests.backbones import tiny_latent as tiny

T = 300.0


@pytest.fixture
def backbone():
    return tiny.backbone()


def prompt(backbone, text="a smiling face") -> Condition:
    with torch.no_grad():
        return backbone.condition(EditRequest("a.png", prompt=text))


def test_is_frozen_and_in_eval_mode(backbone):
    assert not any(module.training for module in backbone.modules())
    assert not any(weight.requires_grad for weight in backbone.parameters())


@torch.no_grad()
def test_sizes_are_read_from_the_networks(backbone):
    assert backbone.sample_shape == (4, tiny.LATENT, tiny.LATENT)
    assert backbone.image_size == (tiny.SIZE, tiny.SIZE)
    h, _ = backbone.halves(tiny.noise(2), T, prompt(backbone))
    assert tuple(h.shape[1:]) == backbone.bottleneck_shape
    assert backbone.time_embedding(T).shape == (1, backbone.time_width)


@torch.no_grad()
def test_encodes_to_the_scaled_mean(backbone):
    pictures = tiny.images(2)
    mean, logvar = backbone.posterior(pictures)
    theirs = backbone.vae.encode(pictures).latent_dist
    assert torch.equal(mean, theirs.mean) and torch.equal(logvar, theirs.logvar)
    assert torch.equal(backbone.encode(pictures), mean * 0.18215)
    assert torch.allclose(backbone.decode(mean * 0.18215), backbone.vae.decode(mean).sample, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 16), (14, 10), (15, 13)], ids=str)
def test_plain_h_gives_the_plain_output_bit_for_bit(backbone, size):
    x = torch.randn(2, 4, *size)
    cond = prompt(backbone)
    h, finish = backbone.halves(x, T, cond)
    plain = backbone(x, T, cond)
    assert torch.equal(finish([h])[0].eps, plain.eps)
    shifted, again = finish([h + 1, h])
    assert torch.allclose(again.eps, plain.eps, atol=1e-5)
    with backbone.taps("bottleneck", lambda out: out + 1):
        assert torch.allclose(shifted.eps, backbone(x, T, cond).eps, atol=1e-5)


@torch.no_grad()
def test_the_decoder_half_sees_the_prompt_and_its_mask(backbone):
    """An easy wrong version drops them after the middle block, or repeats them in another order than h."""
    x, mask = tiny.noise(2), torch.ones(1, tiny.LENGTH)
    mask[:, 5:] = 0
    tokens = backbone.tokens(["a smiling face", "an old face with glasses"])
    for cond in (Condition(tokens=tokens), Condition(tokens=tokens, mask=mask)):
        h, finish = backbone.halves(x, T, cond)
        both = finish([h, h + 1])
        assert torch.allclose(both[0].eps, backbone(x, T, cond).eps, atol=1e-5)
        assert torch.allclose(both[1].eps, finish([h + 1])[0].eps, atol=1e-5)
    assert not torch.allclose(backbone(x, T, Condition(tokens=tokens)).eps, both[0].eps, atol=1e-4)


@torch.no_grad()
def test_one_prompt_serves_a_batch_and_lanes_are_independent(backbone):
    x, smiling, old = tiny.noise(2), prompt(backbone), prompt(backbone, "an old face")
    lanes = evaluate(backbone, [(x, T, smiling), (x, T, old)])
    assert torch.allclose(lanes[0].eps, backbone(x, T, smiling).eps, atol=1e-5)
    assert torch.allclose(lanes[1].eps, backbone(x, T, old).eps, atol=1e-5)
    assert not torch.allclose(lanes[0].eps, lanes[1].eps, atol=1e-4)


@torch.no_grad()
def test_no_prompt_is_the_empty_prompt(backbone):
    assert torch.equal(backbone.condition(EditRequest("a.png")).tokens, backbone.tokens([""]))
    assert backbone.tokens(["", "a face"]).shape == (2, tiny.LENGTH, tiny.WIDTH)


@torch.no_grad()
def test_a_long_text_is_cut_with_a_warning_that_says_what(backbone, recwarn):
    fits = "a face " * ((tiny.LENGTH - 2) // 2)
    tokens = backbone.tokens([fits])
    assert not recwarn
    with pytest.warns(UserWarning, match="longer than 10 tokens; left out: 'glasses'"):
        assert torch.equal(backbone.tokens([f"{fits} glasses"]), tokens)


def test_gradients_reach_latents_and_pixels_but_no_weight(backbone):
    x = tiny.noise().requires_grad_()
    backbone.decode(backbone(x, T, prompt(backbone)).x0).sum().backward()
    assert x.grad.abs().max() > 0
    assert all(weight.grad is None for weight in backbone.parameters())


@torch.no_grad()
def test_zero_terminal_snr_has_finite_predictions_at_the_end():
    made = tiny.parts()
    config = dict(tiny.scheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True).config)
    backbone = LatentBackbone(made["unet"], made["vae"], config, made["text_encoder"], made["tokenizer"])
    pred = backbone(tiny.noise(), 999, prompt(backbone))
    assert backbone.parameterization == "v" and float(backbone.schedule.alpha_bar(999)) == 0
    assert torch.equal(pred.eps, tiny.noise()), "all of x is noise there"
    assert pred.x0.isfinite().all() and pred.x0.std() > 0


@torch.no_grad()
@pytest.mark.parametrize("name", INVERTERS)
def test_every_inverter_stops_short_of_pure_noise(name):
    """EDICT divides by the signal of each level, and what the others bring to a level without any, no image comes back from."""
    changes = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    made = tiny.parts()
    config = dict(tiny.scheduler(**changes).config)
    backbone = LatentBackbone(made["unet"], made["vae"], config, made["text_encoder"], made["tokenizer"])
    assert backbone.levels(5).alpha_bar[-1] == 0
    levels = backbone.inversion_levels(5)
    assert len(levels) == 6 and levels.alpha_bar[-1] > 0 and levels.times[-1] < 900
    assert tiny.backbone().inversion_levels(5) == tiny.backbone().levels(5)
    found = Way(backbone, INVERTERS[name](), levels, EditRequest("", prompt="a face")).invert(list(tiny.images(1)), ["a"])
    assert math.isfinite(found[0].psnr) and found[0].psnr > 5


@torch.no_grad()
@pytest.mark.parametrize(
    ("channels", "extra", "message"),
    [
        (9, None, "5 extra channels, mask and masked image's latents .inpainting., but is given nothing"),
        (9, 4, "5 extra channels.* is given 4 channels"),
        (8, None, "4 extra channels.* .InstructPix2Pix., but is given nothing"),
        (4, 5, "no extra channels, but is given 5 channels"),
    ],
)
def test_missing_or_wrong_channels_name_what_the_checkpoint_needs(channels, extra, message):
    backbone = tiny.backbone(channels)
    concat = None if extra is None else torch.zeros(1, extra, tiny.LATENT, tiny.LATENT)
    cond = Condition(tokens=prompt(backbone).tokens, concat=concat)
    for call in (backbone, backbone.halves):
        with pytest.raises(UsageError, match=message) as caught:
            call(tiny.noise(), T, cond)
        assert "\n" not in str(caught.value)


@torch.no_grad()
def test_channels_of_another_size_are_refused():
    backbone = tiny.backbone(8)
    cond = Condition(tokens=prompt(backbone).tokens, concat=torch.zeros(1, 4, 8, 8))
    with pytest.raises(UsageError, match="concat is 8x8, the latents are 16x16"):
        backbone(tiny.noise(), T, cond)


def test_a_condition_without_tokens_is_refused(backbone):
    for cond in (None, Condition()):
        with pytest.raises(UsageError, match="conditioned on tokens"):
            backbone(tiny.noise(), T, cond)


@torch.no_grad()
def test_inpainting_channels_are_mask_then_latents_of_the_image_without_the_hole():
    backbone, pictures, masks = tiny.backbone(9), tiny.images(2), tiny.masks(2)
    channels = inpainting_channels(backbone, pictures, masks * 0.7)
    assert torch.equal(channels[:, :1], masks[..., ::2, ::2])
    assert torch.equal(channels[:, 1:], backbone.encode(pictures * (masks < 0.5)))
    inside = torch.where(masks > 0.5, -pictures, pictures)
    assert torch.equal(inpainting_channels(backbone, inside, masks), channels), "what is inside the mask is not seen"


@torch.no_grad()
def test_instruct_channels_are_unscaled_latents():
    backbone, pictures = tiny.backbone(8), tiny.images(2)
    assert torch.equal(image_channels(backbone, pictures), backbone.vae.encode(pictures).latent_dist.mode())


@pytest.mark.parametrize(("channels", "other"), [(4, 9), (8, 4), (9, 8)])
def test_a_method_on_a_backbone_of_another_layout_says_which_to_choose(channels, other):
    backbone = tiny.backbone(channels)
    if channels != 9:
        with pytest.raises(UsageError, match=f"needs a UNet of 9 .* has {channels}.*backbone=sd15_inpainting"):
            inpainting_channels(backbone, tiny.images(), tiny.masks())
    if channels != 8:
        with pytest.raises(UsageError, match=f"needs a UNet of 8 .* has {channels}.*backbone=instructpix2pix"):
            image_channels(backbone, tiny.images())


@torch.no_grad()
@pytest.mark.parametrize(
    ("channels", "pipeline"),
    [(4, "StableDiffusionPipeline"), (8, "StableDiffusionInstructPix2PixPipeline"), (9, "StableDiffusionInpaintPipeline")],
)
def test_saved_folders_open_here_and_in_diffusers(tmp_path, channels, pipeline):
    backbone = tiny.backbone(channels)
    save_latent(backbone, tmp_path)
    loaded = load_latent(tmp_path)
    assert loaded.digest() == backbone.digest()
    assert torch.equal(loaded.tokens(["a smiling face"]), backbone.tokens(["a smiling face"]))
    theirs = DiffusionPipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    assert type(theirs).__name__ == pipeline
    assert theirs.unet.config.in_channels == channels
    assert theirs.scheduler.config.steps_offset == 1
    assert theirs.tokenizer("a smiling face").input_ids == backbone.tokenizer("a smiling face").input_ids


def test_parts_may_come_from_another_folder(tmp_path):
    tiny.folder(tmp_path / "own")
    tiny.folder(tmp_path / "other")
    weights = tmp_path / "other" / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: value + 0.1 for name, value in load_file(weights).items()}, weights, {"format": "pt"})
    own, other = load_latent(tmp_path / "own"), load_latent(tmp_path / "other")
    for path in (tmp_path / "other", tmp_path / "other" / "vae"):
        mixed = load_latent(tmp_path / "own", vae=path, text_encoder=tmp_path / "other")
        assert torch.equal(mixed.vae.encoder.conv_in.weight, other.vae.encoder.conv_in.weight)
        assert torch.equal(mixed.unet.conv_in.weight, own.unet.conv_in.weight)
    assert load_latent(tmp_path / "own", scheduler={"prediction_type": "v_prediction"}).parameterization == "v"


@torch.no_grad()
def test_half_precision_networks_return_float32(tmp_path):
    half, full = load_latent(tiny.folder(tmp_path), dtype="bfloat16"), load_latent(tmp_path)
    cond = prompt(half)
    h, finish = half.halves(tiny.noise(), T, cond)
    pictures = half.decode(half.encode(tiny.images()))
    for value in (cond.tokens, half(tiny.noise(), T, cond).eps, finish([h])[0].x0, pictures, *half.posterior(tiny.images())):
        assert value.dtype == torch.float32
    assert torch.allclose(half(tiny.noise(), T, cond).eps, full(tiny.noise(), T, cond).eps, atol=0.1)


@torch.no_grad()
def test_a_folder_without_text_reads_no_text(tmp_path):
    shutil.rmtree(tiny.folder(tmp_path, 9) / "text_encoder")
    backbone = load_latent(tmp_path)
    with pytest.raises(UsageError, match="reads no text"):
        backbone.tokens(["a face"])
    concat = inpainting_channels(backbone, tiny.images(), tiny.masks())
    assert backbone(tiny.noise(), T, Condition(tokens=torch.zeros(1, 1, tiny.WIDTH), concat=concat)).eps.isfinite().all()
    with pytest.raises(UserError, match="no pipeline of diffusers takes 9 channels without text"):
        save_latent(backbone, tmp_path / "again")


def test_folders_that_cannot_work_are_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"no scheduler_config\.json"):
        load_latent(tmp_path)
    with pytest.raises(UserError, match="not a latent diffusion model: expected unet/ in it"):
        load_latent(tmp_path, scheduler={})
    folder = tiny.folder(tmp_path / "whole")
    with pytest.raises(UserError, match="dtype=float8 is unknown"):
        load_latent(folder, dtype="float8")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="UNet2DConditionModel with safetensors weights") as caught:
        load_latent(folder)
    assert "\n" not in str(caught.value)


def test_networks_of_another_kind_are_refused():
    made = tiny.parts(class_embed_type="timestep")
    with pytest.raises(UserError, match="class_embed_type"):
        LatentBackbone(made["unet"], made["vae"], made["scheduler"].config)


def test_digest_follows_every_network(backbone):
    seen = {backbone.digest()}
    for part in (backbone.unet, backbone.vae, backbone.text_encoder):
        with torch.no_grad():
            next(part.parameters()).flatten()[0] += 1e-3
        seen.add(backbone.digest())
    assert len(seen) == 4


def test_the_index_names_every_part(tmp_path):
    index = json.loads((tiny.folder(tmp_path) / "model_index.json").read_text())
    for name, entry in index.items():
        if isinstance(entry, list) and entry != [None, None]:
            assert (tmp_path / name).is_dir()
    assert {"unet", "vae", "text_encoder", "tokenizer", "scheduler"} <= index.keys()


@torch.no_grad()
def test_weights_published_in_half_precision_alone_are_found(tmp_path):
    folder = tiny.folder(tmp_path)
    for part in ("unet", "vae", "text_encoder"):
        for file in (folder / part).glob("*.safetensors"):
            file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    assert load_latent(folder).digest() == tiny.backbone().digest()


def test_a_saved_folder_does_not_tell_where_its_networks_were_loaded_from(tmp_path):
    first = tiny.folder(tmp_path / "first")
    again = load_latent(first)
    assert str(first) in str(again.unet.config.get("_name_or_path"))
    save_latent(again, tmp_path / "again")
    for path in (tmp_path / "again").rglob("*.json"):
        assert str(tmp_path) not in path.read_text(), path
    assert load_latent(tmp_path / "again").digest() == again.digest()
