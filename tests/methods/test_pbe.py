"""Paint by Example: what it sees, what it learns, what it paints, held against diffusers' own pipeline."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, PNDMScheduler

from editkit.backbones.exemplar_folder import save_exemplar
from editkit.backbones.inpainting import exemplar_channels, inpainting_channels
from editkit.errors import UsageError, UserError
from editkit.methods.self_supervised.pbe import editor as editing
from editkit.methods.self_supervised.pbe import method as training
from editkit.types import Condition
from tests.backbones import tiny_latent as tiny
from tests.methods import pbe_parts as parts


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    return parts.write_tower(tmp_path_factory.mktemp("tower"))


# What the network sees.


def test_the_channels_are_the_masked_image_then_what_to_keep(tower):
    backbone = parts.method(tower).backbone
    images, masks = tiny.images(), tiny.masks()
    seen: list[torch.Tensor] = []
    channels = exemplar_channels(backbone, images, masks, encode=lambda shown: seen.append(shown) or backbone.encode(shown))
    hole = masks.expand_as(images) == 1
    assert (seen[0][hole] == 0).all() and torch.equal(seen[0][~hole], images[~hole])
    keep = F.interpolate(1 - masks, size=channels.shape[2:], mode="bilinear", antialias=False)
    assert torch.equal(channels[:, 4:], keep) and torch.equal(channels[:, :4], backbone.encode(images * (1 - masks)))
    nearest = exemplar_channels(backbone, images, masks, resize="nearest")[:, 4:]
    assert set(nearest.unique().tolist()) == {0.0, 1.0} and keep.unique().numel() > 2


def test_a_model_that_is_to_be_trained_begins_as_the_text_to_image_model(tower):
    backbone, original = parts.method(tower).backbone, tiny.backbone()
    x, tokens = tiny.noise(2), torch.randn(2, 1, tiny.WIDTH)
    concat = 10 * torch.randn(2, 5, tiny.LATENT, tiny.LATENT)
    with torch.no_grad():
        wide = backbone(x, 500, Condition(tokens=tokens, concat=concat)).eps
        assert torch.allclose(wide, original(x, 500, Condition(tokens=tokens)).eps, atol=1e-5)
        louder = parts.trained(tower).backbone(x, 500, Condition(tokens=tokens, concat=concat)).eps
    assert not torch.allclose(wide, louder, atol=1e-3), "the test would see channels that are not zero"


def test_a_reference_is_one_token_of_the_towers_class(tower):
    backbone = parts.trained(tower).backbone
    encoder, shown = backbone.image_encoder, parts.references(2)
    pixels = torch.cat([backbone.preprocess(reference[None]) for reference in shown])
    assert abs(float(pixels.mean() - torch.stack(shown).mean())) > 0.05, "CLIP's normalisation is not [-1, 1]"
    hidden = encoder.model(pixel_values=pixels).pooler_output[:, None]
    for block in encoder.mapper.blocks:
        hidden = hidden + block.attn1.to_out[0](block.attn1.to_v(block.norm1(hidden)))
        hidden = hidden + block.ff.net[2](F.gelu(block.ff.net[0].proj(block.norm3(hidden))))
    tokens, _ = backbone.exemplars(shown)
    assert tokens.shape == (2, 1, tiny.WIDTH) and len(encoder.mapper.blocks) == 1
    assert torch.allclose(tokens, encoder.proj_out(encoder.final_layer_norm(hidden)), atol=1e-5)


def test_queries_and_keys_of_one_token_change_nothing(tower):
    backbone = parts.trained(tower).backbone
    attention = backbone.image_encoder.mapper.blocks[0].attn1.requires_grad_(True)
    tokens, _ = backbone.exemplars(parts.references(2))
    tokens.square().sum().backward()
    assert attention.to_q.weight.grad.abs().max() < 1e-6 < attention.to_v.weight.grad.abs().max()
    with torch.no_grad():
        attention.to_q.weight.normal_()
        attention.to_k.weight.normal_()
        assert torch.allclose(backbone.exemplars(parts.references(2))[0], tokens, atol=1e-6)
        attention.to_v.weight.normal_()
        assert not torch.allclose(backbone.exemplars(parts.references(2))[0], tokens, atol=1e-3)


def test_references_are_squeezed_or_cropped(tower):
    backbone = parts.trained(tower).backbone
    (wide,) = parts.references(1, parts.SIDE, 3 * parts.SIDE)
    middle = wide[:, :, parts.SIDE : 2 * parts.SIDE]
    (squashed, _), (cropped, _) = backbone.exemplars([wide]), backbone.exemplars([wide], "clip")
    assert torch.allclose(cropped, backbone.exemplars([middle])[0], atol=1e-5)
    assert not torch.allclose(squashed, cropped, atol=1e-3), "what is cut away shows when it is squeezed"
    with pytest.raises(UsageError, match="ref_resize 'crop': choose from squash, clip"):
        backbone.exemplars([wide], "crop")


# What it learns.


def test_everything_but_autoencoder_and_tower_learns(tower):
    made = parts.method(tower, dropped=0.5)
    made.prepare_training()
    made.freeze_rest()
    torch.manual_seed(1)
    made.loss(made.dummy_batch())["denoise"].sum().backward()
    received = {name for name, p in made.named_parameters() if p.grad is not None}
    assert received == set(made.trained_state()) and not [name for name in received if ".vae." in name]
    tower_part = "image_encoder.model."
    assert not [name for name in received if tower_part in name] and [n for n, _ in made.named_parameters() if tower_part in n]
    for part in ("unet.conv_in", "image_encoder.mapper", "image_encoder.final_layer_norm", "image_encoder.proj_out"):
        assert any(p.grad.abs().sum() > 0 for n, p in made.named_parameters() if part in n and p.grad is not None), part


@pytest.mark.parametrize("dropped", [0.0, 1.0])
def test_a_dropped_reference_is_the_learned_vector(tower, dropped):
    made = parts.trained(tower, dropped=dropped)
    made.freeze_rest()
    batch, vector = made.dummy_batch(), made.backbone.image_encoder.uncond_vector
    tokens = made.condition(batch).tokens
    seen, _ = made.backbone.exemplars([references[0] for references in batch["references"]])
    assert torch.equal(tokens, vector.expand_as(seen) if dropped else seen)
    tokens.sum().backward()
    assert bool(vector.grad.abs().sum()) == bool(dropped), "a gradient of zero, so that all processes have one"


def test_references_are_dropped_one_by_one_or_all_together(tower):
    made = parts.trained(tower)
    batch = made.dummy_batch()
    batch = {name: value.repeat(20, 1, 1, 1) if torch.is_tensor(value) else value * 20 for name, value in batch.items()}
    vector = made.backbone.image_encoder.uncond_vector

    def dropped() -> torch.Tensor:
        return (made.condition(batch).tokens == vector).all(2).flatten()

    torch.manual_seed(0)
    with torch.no_grad():
        share = torch.stack([dropped() for _ in range(4)]).float().mean()
        assert 0.1 < share < 0.3
        made.dropped_together = True
        draws = torch.stack([dropped() for _ in range(12)])
    assert (draws.all(1) | ~draws.any(1)).all() and 0 < draws.float().mean() < 1


def test_the_error_is_that_of_the_whole_picture(tower, monkeypatch):
    """A loss of the hole alone would not see an error outside it."""
    made = parts.method(tower)
    batch = made.dummy_batch()
    plain = made.backbone.unet.forward

    def wrong_outside(x, *args, **kwargs):
        found = plain(x, *args, **kwargs)
        return type(found)(sample=found.sample + 10 * x[:, 8:9])

    def error():
        torch.manual_seed(5)
        with torch.no_grad():
            return made.loss(batch)["denoise"].mean()

    right = error()
    monkeypatch.setattr(made.backbone.unet, "forward", wrong_outside)
    kept = exemplar_channels(made.backbone, batch["image"], batch["mask"])[:, 4:].square().mean()
    assert error() - right > 50 * kept


def test_the_hole_counts_more_when_asked(tower, monkeypatch):
    """The easy mistake is the polarity: this network's own mask is 1 where to keep."""
    seen = []
    monkeypatch.setattr(training, "denoising_error", lambda *args, weight, **how: seen.append(weight) or torch.zeros(2))
    for share in (0.0, 3.0):
        made = parts.method(tower, inside=share)
        batch = made.dummy_batch()
        made.loss(batch)
    hole = F.adaptive_avg_pool2d(batch["mask"], seen[1].shape[2:])
    assert seen[0] is None and torch.equal(seen[1], 1 + 3 * hole) and 0 < hole.mean() < 0.5


def test_training_lowers_the_error(tower):
    made = parts.method(tower)
    made.prepare_training()
    made.freeze_rest()
    batch, optimizer = made.dummy_batch(), made.optimizer(made.trainable()["painter"])
    batch["image"] = F.interpolate(F.avg_pool2d(batch["image"], 8), scale_factor=8)
    errors = []
    for step in range(40):
        torch.manual_seed(step % 5)
        error = made.loss(batch)["denoise"].mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert sum(errors[-5:]) < 0.85 * sum(errors[:5])


# What it paints.


@pytest.mark.parametrize(("solver", "scheduler"), [("ddim", DDIMScheduler), ("plms", PNDMScheduler)])
def test_it_paints_as_diffusers_does(tower, tmp_path, solver, scheduler):
    made, asked = parts.trained(tower, solver=solver, mask_resize="nearest"), parts.requests()
    save_exemplar(made.backbone, tmp_path)
    settings = {**tiny.SCHEDULER, "steps_offset": 1, "set_alpha_to_one": False}
    settings |= {"skip_prk_steps": True} if solver == "plms" else {}
    settings.pop("clip_sample") if solver == "plms" else None
    other = parts.theirs(parts.pipeline(tmp_path, scheduler(**settings)), made, asked)
    mine = parts.painted(made, asked)
    assert mine.std() > 0.05 and (mine - other).abs().max() <= 1e-4


@pytest.mark.parametrize("mistake", ["order", "polarity", "uncond", "width"])
def test_easy_mistakes_are_seen(tower, monkeypatch, mistake):
    made, asked = parts.trained(tower), parts.requests(1)
    right = parts.painted(made, asked)

    def inpainting(backbone, images, masks, **_):
        return inpainting_channels(backbone, images, masks)

    def inverted(backbone, images, masks, **_):
        return exemplar_channels(backbone, images, 1 - masks)

    if mistake in ("order", "polarity"):
        monkeypatch.setattr(editing, "exemplar_channels", inpainting if mistake == "order" else inverted)
    elif mistake == "uncond":
        made.backbone.image_encoder.uncond_vector.data.zero_()
    else:
        monkeypatch.setattr(made.backbone.preprocess.__class__, "__call__", lambda self, images: images)
    assert (parts.painted(made, asked) - right).abs().max() > 1e-3


def test_it_also_starts_from_an_inpainting_model(tower):
    made = parts.trained(tower, backbone=tiny.backbone(9))
    assert made.backbone.unet.config.in_channels == 9 and parts.painted(made, parts.requests(1)).isfinite().all()


def test_without_guidance_one_branch_is_asked(tower):
    made, asked = parts.trained(tower), parts.requests(1)
    editor = made.editor([])
    for strength, calls in ((1.0, 2), (0.2, 1), (0.0, 1)):
        result = editor.edit([asked[0].with_(strength=strength)], editor.prepare(asked))
        assert result.scores["network_calls"] == [calls * parts.STEPS]
    nothing = [request.with_(strength=0.0) for request in asked]
    other = [nothing[0].with_(references=tuple(parts.references(2)[1:]))]
    assert torch.equal(parts.painted(made, nothing), parts.painted(made, other)), "scale 0 is the learned vector alone"
    alone = parts.painted(parts.trained(tower, scale=1.0), asked)
    assert torch.equal(alone, parts.painted(made, [asked[0].with_(strength=0.2)])), "5 x 0.2 is the reference alone"


def test_settings_of_requests_may_differ(tower):
    made = parts.trained(tower)
    first, second = parts.requests()
    asked = [first.with_(steps=4), second.with_(strength=0.5)]
    together = parts.painted(made, asked)
    alone = torch.cat([parts.painted(made, [one]) for one in asked])
    assert (together - alone).abs().max() < 1e-4


# What cannot be.


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mask": torch.zeros(1, tiny.SIZE, tiny.SIZE)}, "0.png: the mask selects nothing"),
        ({"mask": torch.ones(1, tiny.SIZE, tiny.SIZE)}, "0.png: the mask covers everything"),
        ({"mask": torch.ones(1, 8, 9)}, "the mask is 8x9 .* the image 32x32"),
        ({"references": (torch.zeros(3, 5, 40),)}, "the reference is 5x40 pixels .* at least 8"),
        ({"references": (torch.zeros(3, 9, 9),) * 2}, "one --reference, got 2"),
        ({"references": ()}, "pbe needs --reference"),
        ({"mask": None}, "pbe needs --mask"),
    ],
)
def test_inputs_that_cannot_be_are_named(tower, changes, said):
    with pytest.raises(UserError, match=said):
        parts.method(tower).editor([]).check(parts.requests(1, **changes))


def test_other_backbones_are_refused(tower):
    with pytest.raises(UsageError, match="takes 8 channels, of another meaning"):
        parts.method(tower, backbone=tiny.backbone(8))
    with pytest.raises(UsageError, match="dropped=2 is out of range"):
        parts.method(tower, dropped=2)
    with pytest.raises(UsageError, match="unknown mask_resize 'area'"):
        parts.painted(parts.method(tower, mask_resize="area"), parts.requests(1))
