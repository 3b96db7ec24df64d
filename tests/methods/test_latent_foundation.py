"""The methods that make the bundled latent models."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from editkit.backbones.autoencoder import load_autoencoder
from editkit.backbones.latent_folder import load_latent
from editkit.data.toyworld.scenes.factors import COLOURS
from editkit.data.toyworld.scenes.words import SHAPE_WORDS, noun
from editkit.engine.rng import batch_noise
from editkit.errors import UserError
from editkit.methods.foundation.autoencoder import AutoencoderTraining, _cropped
from editkit.methods.foundation.latent import text_to_image as foundation
from editkit.methods.foundation.latent.text_to_image import LatentDiffusion, prompted
from editkit.metrics.scene_oracle import Objects, Reading
from editkit.training.scene_figures import prompt_figures
from tests.tiny import write_vae

VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [8, 8, 16],
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": 16,
}
UNET = {
    "sample_size": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 20,
}
NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "v_prediction"}
NOISE |= {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}


@pytest.fixture(autouse=True)
def few_words(monkeypatch):
    monkeypatch.setattr(foundation, "corpus", lambda: ["a red cup", "a blue house by night", "make the cup blue"] * 3)


@pytest.fixture
def vae(tmp_path):
    return write_vae(tmp_path / "vae")


def latent(vae, **settings) -> LatentDiffusion:
    torch.manual_seed(0)
    terms = {"denoise": 1.0, "language": 0.1}
    return LatentDiffusion(network=UNET, text=TEXT, noise=NOISE, vae=str(vae), terms=terms, **settings)


def autoencoder(**settings) -> AutoencoderTraining:
    torch.manual_seed(0)
    return AutoencoderTraining(network=VAE, terms={"l1": 1.0, "l2": 4.0, "edges": 0.5, "kl": 1e-4}, size=16, **settings)


def test_the_exported_scale_gives_latents_a_deviation_of_one(tmp_path):
    method = autoencoder()
    method.export(tmp_path)
    loaded = load_autoencoder(tmp_path)
    images = foundation_pictures()
    latents = loaded.posterior(images)[0] * loaded.scaling_factor
    assert abs(latents.std() - 1) < 0.02
    assert loaded.decode(loaded.posterior(images)[0]).shape == images.shape


def test_a_better_decoder_keeps_latents_and_their_scale(tmp_path):
    autoencoder().export(tmp_path / "first")
    method = autoencoder(init_from=str(tmp_path / "first"), keep_latents=True)
    method.freeze_rest()
    images = foundation_pictures()[:8]
    sum(value.mean() for value in method.loss({"image": images}).values()).backward()
    moved = {name.split(".")[0] for name, parameter in method.vae.named_parameters() if parameter.grad is not None}
    assert moved == {"decoder", "post_quant_conv"}
    with torch.no_grad():
        for parameter in method.vae.decoder.parameters():
            parameter.add_(0.1)
    method.export(tmp_path / "second")
    first, second = (load_autoencoder(tmp_path / name) for name in ("first", "second"))
    assert torch.equal(first.posterior(images)[0], second.posterior(images)[0])
    assert first.scaling_factor == second.scaling_factor
    assert not torch.allclose(first.reconstruct(images), second.reconstruct(images), atol=0.01)


def foundation_pictures():
    from editkit.methods.foundation.autoencoder import _pictures

    return _pictures("validation", 64, 16)


def test_crops_are_squares_of_the_pictures_themselves():
    torch.manual_seed(0)
    images = torch.arange(2 * 3 * 16 * 16.0).view(2, 3, 16, 16)
    crops = _cropped(images, 8)
    for image, crop in zip(images, crops, strict=True):
        top, left = divmod(int(crop[0, 0, 0] - image[0, 0, 0]), 16)
        assert torch.equal(crop, image[:, top : top + 8, left : left + 8])
    assert not torch.equal(crops[0] - images[0, 0, 0, 0], crops[1] - images[1, 0, 0, 0]), "each has a place of its own"


def test_an_autoencoder_learns(tmp_path):
    method = autoencoder()
    method.freeze_rest()
    images = foundation_pictures()[:8]
    optimizer = torch.optim.Adam(method.vae.parameters(), 3e-3)
    totals = []
    for _ in range(25):
        loss = sum(value.mean() for value in method.loss({"image": images}).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(float(loss.detach()))
    assert totals[-1] < 0.7 * totals[0]


def test_a_folder_without_an_autoencoder_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="AutoencoderKL"):
        load_autoencoder(tmp_path / "empty")


def test_v_leads_back_to_the_latents(vae, monkeypatch):
    """A network that knows noise and latents has no error; one that takes v for eps, or turns its sign, has."""
    method = latent(vae)
    z = torch.randn(6, 4, 4, 4)

    class Knowing(torch.nn.Module):
        answer = staticmethod(lambda a, s, eps, z: a * eps - s * z)

        def forward(self, x, t, tokens):
            alpha_bar = method.noise_schedule.alpha_bar(t).float().view(-1, 1, 1, 1)
            a, s = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
            eps = (x - a * z) / s
            return type("Output", (), {"sample": self.answer(a, s, eps, z)})

    method.unet = Knowing()
    assert method._error(z, torch.zeros(1)).max() < 1e-6
    for wrong in (lambda a, s, eps, z: eps, lambda a, s, eps, z: s * z - a * eps):
        monkeypatch.setattr(Knowing, "answer", staticmethod(wrong))
        assert method._error(z, torch.zeros(1)).mean() > 0.1


def test_objects_weigh_more_where_noise_leaves_them_visible(vae):
    method = latent(vae, foreground=4.0)
    z, objects = torch.zeros(2, 4, 4, 4), torch.zeros(2, 1, 16, 16)
    objects[..., :8] = 1  # the left half of the latents too

    class Wrong(torch.nn.Module):
        def __init__(self, column):
            super().__init__()
            self.column = column

        def forward(self, x, t, tokens):
            alpha_bar = method.noise_schedule.alpha_bar(t).float().view(-1, 1, 1, 1)
            v = alpha_bar.sqrt() * x / (1 - alpha_bar).sqrt()  # what is right, as z is zero
            v[..., self.column] += 1
            return type("Output", (), {"sample": v})

    def errors(column):
        torch.manual_seed(0)
        method.unet = Wrong(column)
        return method._error(z, torch.zeros(1), objects=objects)

    inside, outside = errors(0), errors(3)
    torch.testing.assert_close(outside, torch.full((2,), 0.25), atol=1e-4, rtol=1e-4)
    early, late = (inside / outside).tolist()  # times are stratified: the first sample has little noise, the second much
    assert 2 < early <= 5 and 1 <= late < 2


def test_continuing_a_text_counts_each_word_and_the_first_end_only(vae):
    method = latent(vae)
    ids = method._read(["a red cup"])[1]
    words = int((ids != method.tokenizer.eos_token_id).sum())  # with the start token: as many predictions, the last the end
    losses = []
    for end in (words, words + 3):

        def fixed(texts, end=end):
            hidden = torch.zeros(1, ids.shape[1], 16)
            hidden[:, end:] = 100.0  # would change the loss if padding counted
            return hidden, ids

        method._read = fixed
        losses.append(method._language(["a red cup"]))
    torch.testing.assert_close(losses[0], losses[1])


def test_dropped_texts_are_read_as_empty_ones(vae, monkeypatch):
    method = latent(vae, dropped_texts=1.0)
    read = []
    keep = method._read
    monkeypatch.setattr(method, "_read", lambda texts: read.append(list(texts)) or keep(texts))
    method.loss(method.dummy_batch())
    assert read[0] == ["", ""]


def test_the_export_opens_in_diffusers_and_gives_the_same_picture(vae, tmp_path):
    method = latent(vae)
    method.freeze_rest()
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    method.export(tmp_path / "out")
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items()), "exporting must not round"
    backbone = load_latent(tmp_path / "out")
    ours = prompted(backbone, ["a red cup"], 3.0, 5)
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "out", safety_checker=None, torch_dtype=torch.float32)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    noise = batch_noise((4, 4, 4), ["0"], seed=0, purpose="start")
    theirs = pipe("a red cup", num_inference_steps=5, guidance_scale=3.0, latents=noise, output_type="pt", height=16, width=16)
    torch.testing.assert_close(ours, theirs.images * 2 - 1, atol=2e-3, rtol=1e-3)


def test_figures_count_what_is_read_as_asked_for():
    """A reader that hears the texts: right in every shape, and in colour for "red" alone."""
    heard = []

    def draw(texts):
        heard[:] = texts
        return torch.zeros(len(texts), 3, 64, 64)

    class Reader:
        def read_objects(self, images, masks):
            assert masks.all() and len(masks) == len(heard)
            shapes, colours = list(SHAPE_WORDS), list(COLOURS)
            shape = [next(n for n, name in enumerate(shapes) if text.endswith(noun({"shape": name}))) for text in heard]
            classes = {"shape": torch.tensor(shape)[:, None], "colour": torch.full((len(heard), 1), colours.index("red"))}
            names = {"shape": shapes, "colour": colours}
            return Objects(masks[:, :, 0, 0], {name: Reading(tuple(names[name]), each, each) for name, each in classes.items()})

    figures = prompt_figures(draw, Reader(), scale=4.0, steps=25)
    assert figures["prompted shape"] == 1 and figures["prompted colour"] == round(1 / len(COLOURS), 4)
    assert figures["prompts"] == len(SHAPE_WORDS) * len(COLOURS)
