"""InstructPix2Pix: its conditions, its loss, and edits that agree with diffusers' own pipeline."""

from __future__ import annotations

import functools

import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline

from editkit.backbones.inpainting import image_channels
from editkit.backbones.latent import LatentBackbone
from editkit.engine.rng import batch_noise, level_noise
from editkit.errors import UsageError, UserError
from editkit.methods.fully_supervised.instructpix2pix import InstructPix2Pix
from editkit.methods.fully_supervised.instructpix2pix import method as module
from editkit.training import denoising
from editkit.training.artefact import Artefact
from editkit.training.denoising import denoising_error, drop_conditions, posteriors
from editkit.training.unet_tuning import tuned
from editkit.types import Condition, EditRequest, Prediction
from tests.backbones import tiny_latent as tiny

TEXTS = ["make it a smiling face", "make it old"]


def method(backbone=None, **settings) -> InstructPix2Pix:
    sampling = {"steps": 10, "solver": "ddim", "optimizer": functools.partial(torch.optim.AdamW, lr=3e-3)}
    made = InstructPix2Pix(backbone=backbone or tiny.backbone(), **sampling | settings)
    made.prepare_training()
    made.freeze_rest()
    made.train()
    return made


def requests(**changes) -> list[EditRequest]:
    given = zip(tiny.images(2), TEXTS, strict=True)
    return [EditRequest(f"{n}.png", image=image, instruction=text, **changes) for n, (image, text) in enumerate(given)]


def batch(**changes):
    pair = {"image": tiny.images(2), "target": tiny.images(2).flip(3), "instruction": list(TEXTS), "key": ["a", "b"]}
    return pair | changes


def perturb(made: InstructPix2Pix) -> None:
    """Let the network hear its new channels."""
    torch.manual_seed(11)
    with torch.no_grad():
        made.backbone.unet.conv_in.weight[:, 4:].normal_(std=0.3)


# ---------------------------------------------------------------------------------------------------------- conditions


def independent(count, share, device=None):
    return torch.rand(count) < 2 * share, torch.rand(count) < 2 * share


@pytest.mark.parametrize(("draw", "right"), [(drop_conditions, True), (independent, False)], ids=["one draw", "two draws"])
def test_a_twentieth_each_goes_without_text_image_and_both(draw, right):
    torch.manual_seed(0)
    text, image = draw(100_000, 0.05)
    shares = torch.stack([text & ~image, text & image, image & ~text, ~text & ~image]).float().mean(1)
    assert torch.allclose(shares, torch.tensor([0.05, 0.05, 0.05, 0.85]), atol=0.003) == right


def test_processes_with_other_seeds_drop_others():
    torch.manual_seed(1)
    one = drop_conditions(1000)[0]
    torch.manual_seed(2)
    assert not torch.equal(one, drop_conditions(1000)[0])


def test_a_dropped_text_is_the_empty_one_and_a_dropped_image_is_zero(monkeypatch):
    """Easy wrong versions: a black picture's latents in place of zeros, zeros in place of the empty text's tokens."""
    made = method()
    monkeypatch.setattr(module, "drop_conditions", lambda *_: (torch.tensor([True, False]), torch.tensor([False, True])))
    cond = made.condition(batch())
    assert torch.equal(cond.tokens, made.backbone.tokens(["", TEXTS[1]]))
    assert torch.equal(cond.concat[0], image_channels(made.backbone, tiny.images(2))[0])
    assert torch.equal(cond.concat[1], torch.zeros_like(cond.concat[1]))
    black = image_channels(made.backbone, -torch.ones(1, 3, tiny.SIZE, tiny.SIZE))
    assert black.abs().max() > 0.01 and cond.tokens[0].abs().max() > 0.01


def test_the_source_is_the_unscaled_mean_in_training_and_editing_alike():
    """Easy wrong versions: scaling it in one of the two, or drawing a sample."""
    made = method(dropped=0.0)
    trained, edited = made.condition(batch()), made.editor([]).prepare(requests())
    assert torch.allclose(trained.concat, edited.both.concat, atol=1e-6)
    assert torch.equal(trained.concat, made.condition(batch()).concat), "the same at every draw"
    scaled = made.backbone.encode(tiny.images(2))
    assert not torch.allclose(trained.concat, scaled, atol=1e-2)


def test_the_target_is_a_scaled_draw(monkeypatch):
    made, seen = method(), []
    monkeypatch.setattr(module, "denoising_error", lambda backbone, x0, cond: seen.append(x0) or x0.mean((1, 2, 3)))
    wide = torch.zeros(2, 2, 4, 16, 16)  # mean 0, variance 1
    for _ in range(2):
        made.loss(batch(image_posterior=wide, target_posterior=wide))
    assert not torch.equal(*seen)
    assert torch.cat(seen).std() == pytest.approx(0.18215, rel=0.1)


def test_pictures_and_encoded_ones_are_the_same():
    made = method()
    kept = torch.stack(made.backbone.posterior(tiny.images(2)), 1)
    assert torch.equal(posteriors(made.backbone, {"image": tiny.images(2)}, "image"), kept)
    assert posteriors(made.backbone, {"image_posterior": kept}, "image") is kept


# ------------------------------------------------------------------------------------------------------------ training


class Knowing(torch.nn.Module):
    """A denoiser that knows the truth."""

    def __init__(self, x0, kind, schedule, shift=0.0):
        super().__init__()
        self.x0, self.parameterization, self.schedule, self.shift = x0, kind, schedule, shift

    def forward(self, x, t, cond):
        assert len(t) == len(x) and t.min() >= 0 and t.max() < 1000
        a, s = self.schedule.coefficients(t, x)
        eps = (x - a * self.x0) / s
        return Prediction(self.x0 - s * self.shift / a, eps + self.shift)


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_the_error_is_that_of_the_networks_own_output(kind):
    schedule, x0 = tiny.backbone().schedule, torch.randn(8, 4, 8, 8)
    torch.manual_seed(0)
    assert denoising_error(Knowing(x0, kind, schedule), x0, None).max() < 1e-4
    torch.manual_seed(0)
    error = denoising_error(Knowing(x0, kind, schedule, shift=0.5), x0, None)
    assert error.shape == (8,)
    if kind == "eps":
        assert torch.allclose(error, torch.full((8,), 0.25), atol=1e-3), "unweighted"
    else:  # a shift of eps by d, with x0 on the same x, shifts v by d / a
        assert error.min() > 0.25 and error.max() > 1


def test_times_cover_the_whole_schedule(monkeypatch):
    torch.manual_seed(0)
    times = []
    backbone = tiny.backbone()
    monkeypatch.setattr(type(backbone), "forward", lambda self, x, t, cond: times.append(t) or Prediction(x, x))
    for _ in range(300):
        denoising.denoising_error(backbone, torch.zeros(4, 4, 2, 2), None)
    seen = torch.cat(times)
    assert seen.min() < 10 and seen.max() > 989 and abs(float(seen.float().mean()) - 499.5) < 10
    first = torch.stack(times)[:, 0]
    assert first.max() < 250, "one time in each part"


def test_it_starts_as_the_model_it_came_from_whatever_the_image():
    """An easy wrong version gives the widened convolution a new bias."""
    plain, made = tiny.backbone(), method()
    x, tokens = tiny.noise(2), plain.tokens(TEXTS)
    with torch.no_grad():
        was = plain(x, 400.0, Condition(tokens=tokens)).eps
        for image in (torch.zeros(2, 4, 16, 16), torch.randn(2, 4, 16, 16)):
            assert torch.allclose(made.backbone(x, 400.0, Condition(tokens=tokens, concat=image)).eps, was, atol=1e-5)
        made.backbone.unet.conv_in.bias.normal_()
        assert not torch.allclose(made.backbone(x, 400.0, Condition(tokens=tokens, concat=image)).eps, was, atol=1e-2)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_learns_and_only_the_unet_changes(checkpointing):
    made = method(checkpointing=checkpointing)
    frozen = {name: tensor.clone() for name, tensor in made.state_dict().items() if not name.startswith("backbone.unet.")}
    assert frozen and not made.backbone.vae.training and made.backbone.unet.training
    optimizer = made.optimizer(made.trainable()["unet"])
    kept = {name: posteriors(made.backbone, batch(), name) for name in ("image", "target")}
    encoded = batch(**{f"{name}_posterior": posterior.repeat(8, 1, 1, 1, 1) for name, posterior in kept.items()})
    encoded["instruction"] = TEXTS * 8
    torch.manual_seed(0)
    losses = []
    for _ in range(8 if checkpointing else 40):
        loss = made.loss(encoded)["denoise"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-4:]) < (0.95 if checkpointing else 0.7) * sum(losses[:4])
    after = made.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in frozen.items())
    assert made.backbone.unet.conv_in.weight[:, 4:].abs().max() > 0, "it has begun to see the image"


def test_a_share_that_three_cannot_have_and_backbones_of_other_kinds_are_refused():
    with pytest.raises(UsageError, match=r"method\.dropped=0\.4"):
        method(dropped=0.4)
    with pytest.raises(UsageError, match="4 or 8 input channels, this backbone's has 9: choose backbone=sd15"):
        method(tiny.backbone(9))
    made = tiny.parts()
    with pytest.raises(UsageError, match="a model that reads no text"):
        method(LatentBackbone(made["unet"], made["vae"], made["scheduler"].config))
    with pytest.raises(UsageError, match="a model of pixels"):
        InstructPix2Pix(backbone=torch.nn.Linear(1, 1))


# ------------------------------------------------------------------------------------------------------------- editing


def theirs(folder, images, latents, **arguments):
    """Return the images of diffusers' own pipeline, of a folder as it is."""
    pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        made = pipe(TEXTS, images / 2 + 0.5, latents=latents, output_type="pt", **arguments).images
    return torch.as_tensor(made) * 2 - 1


def start(purpose="start"):
    return batch_noise((4, tiny.LATENT, tiny.LATENT), ["0.png", "1.png"], seed=0, purpose=purpose)


def edited(editor, some):
    return editor.edit(some, editor.prepare(some)).images


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_an_exported_folder_opens_in_diffusers_and_gives_the_same_image(kind, tmp_path):
    parts = tiny.parts() | {"scheduler": tiny.scheduler(prediction_type=kind)}
    names = ("unet", "vae")
    made = method(LatentBackbone(*(parts[n] for n in names), parts["scheduler"].config, parts["text_encoder"], tiny.tokenizer()))
    perturb(made)
    files = made.export(tmp_path)
    ours = edited(made.editor([Artefact.load(files[0])]), requests())
    scales = {"guidance_scale": 7.5, "image_guidance_scale": 1.5}
    other = theirs(tmp_path / "diffusers", tiny.images(2), start(), num_inference_steps=10, **scales)
    assert ours.std() > 0.05 and (ours - other).abs().max() <= 1e-4
    swapped = theirs(tmp_path / "diffusers", tiny.images(2), start(), num_inference_steps=10, guidance_scale=1.5)
    assert (ours - swapped).abs().max() > 1e-2


def test_euler_ancestral_is_that_of_diffusers(tmp_path, monkeypatch):
    """Their state is x / a and their noise comes from a generator: the same noise is put in its place."""
    made = method(solver="euler-ancestral")
    perturb(made)
    made.export(tmp_path)
    editor = made.editor([Artefact.load(tmp_path / "instructpix2pix.safetensors")])
    levels = editor.solver.levels(made.backbone.schedule, 10)
    noises = level_noise((4, 16, 16), ["0.png", "1.png"], seed=0)
    steps = iter(range(10, 0, -1))
    target = "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor"
    monkeypatch.setattr(target, lambda *_, **__: noises(next(steps)))
    latents = start() / levels.noise(10)  # theirs begins at s rather than 1: noise x sigma = x / a
    other = theirs(tmp_path / "diffusers", tiny.images(2), latents, num_inference_steps=10)
    ours = edited(editor, requests())
    assert ours.std() > 0.05 and (ours - other).abs().max() <= 1e-4


def test_an_edit_starts_from_noise_and_not_from_the_source(monkeypatch):
    """An easy wrong version noises the source: a network deaf to the image then still keeps some of it."""
    made = method()
    other = [request.with_(image=-request.image) for request in requests()]
    assert torch.allclose(edited(made.editor([]), requests()), edited(made.editor([]), other), atol=1e-5)
    perturb(made)
    assert not torch.allclose(edited(made.editor([]), requests()), edited(made.editor([]), other), atol=1e-2)


def test_scales_of_one_and_zero_leave_one_lane():
    made = method()
    perturb(made)
    for text, image, lanes in ((1.0, 1.0, 1), (0.0, 0.0, 1), (3.0, 3.0, 2), (7.5, 1.5, 3)):
        editor = made.editor([])
        editor.text_scale, editor.image_scale = text, image
        assert editor.edit(requests(), editor.prepare(requests())).scores["network_calls"] == [10.0 * lanes] * 2


def test_strength_scales_the_text_and_the_three_lanes_are_one_call(monkeypatch):
    made = method(text_scale=4.0)
    perturb(made)
    editor, batches = made.editor([]), []
    forward = LatentBackbone.forward
    monkeypatch.setattr(LatentBackbone, "forward", lambda self, x, *a, **k: batches.append(len(x)) or forward(self, x, *a, **k))
    half = edited(editor, requests(strength=0.5))
    assert batches == [6] * 10
    editor.text_scale = 2.0
    assert torch.equal(half, edited(editor, requests()))
    mixed = [requests(strength=0.5)[0], requests(strength=1.5)[1]]
    editor.text_scale = 4.0
    assert torch.allclose(edited(editor, mixed)[0], half[0], atol=1e-4)


def test_published_weights_edit_without_a_trained_part():
    ready = InstructPix2Pix(backbone=tiny.backbone(8), solver="ddim", steps=4)
    assert not ready.needs_trained and method().needs_trained
    assert edited(ready.editor([]), requests()).shape == (2, 3, tiny.SIZE, tiny.SIZE)


def test_weights_that_do_not_fit_are_named(tmp_path):
    made = method()
    (own,) = made.artefacts()
    with pytest.raises(UserError, match="not a trained UNet"):
        tuned(made.backbone, Artefact("x", own.tensors, card={"method": "asyrp"}))
    missing = {name: tensor for name, tensor in own.tensors.items() if name != "conv_in.bias"}
    with pytest.raises(UserError, match=r"another backbone: their conv_in\.bias is missing"):
        tuned(made.backbone, Artefact("x", missing, card={"kind": "unet"}))
    with pytest.raises(UsageError, match="one trained UNet"):
        made.editor([own, own])


def test_a_files_strength_is_its_share_of_the_weights():
    made = method()
    (own,) = made.artefacts()
    shifted = Artefact("x", {name: tensor + 1 for name, tensor in own.tensors.items()}, 0.5, {"kind": "unet"})
    bias = tuned(made.backbone, shifted).unet.conv_in.bias
    assert torch.allclose(bias, made.backbone.unet.conv_in.bias + 0.5, atol=1e-3)


def test_a_grid_shows_source_edit_and_answer_also_of_encoded_pairs():
    made = method()
    kept = {name: posteriors(made.backbone, batch(), name) for name in ("image", "target")}
    plain = {name: batch()[name] for name in ("image", "target", "instruction", "key")}
    items = [{name: value[n] for name, value in plain.items()} for n in range(2)]
    hidden = [{f"{name}_posterior": kept[name][n] for name in kept} | {"instruction": "", "key": "c"} for n in range(2)]
    for dataset in (items, hidden):
        made.precompute(dataset)
        assert made.sample_grid().shape == (2, 3, 3, tiny.SIZE, tiny.SIZE)
