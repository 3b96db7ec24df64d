"""The methods that make the bundled models: what they learn from, and that what they export is what was trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import editkit.methods.foundation.clip.robust as robust
from editkit.backbones.clip import load_clip
from editkit.backbones.pixel import PixelBackbone, load_pixel
from editkit.data.pairs import FacePairs, face_named
from editkit.data.toyworld.faces import CATEGORICAL, CONTINUOUS, draw_face
from editkit.data.toyworld.world import EDITS, counterfactual, face_at
from editkit.engine.schedule import Schedule
from editkit.errors import UsageError
from editkit.methods.foundation.clip.faces import ToyClip, factor_classes
from editkit.methods.foundation.clip.robust import direction_loss, drift, part_way
from editkit.methods.foundation.ddpm import PixelDiffusion, without_skips
from editkit.methods.foundation.features import CHANGEABLE, Identity, Perceptual, same_person
from editkit.training.tokens import train_tokenizer

NETWORK = {
    "sample_size": 16,
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "norm_num_groups": 8,
}
TERMS = {"factors": 1.0, "contrast": 1.0, "direction": 1.0, "colour": 1.0, "attack": 1.0}


def diffusion(kind: str = "v_prediction", **settings) -> PixelDiffusion:
    torch.manual_seed(0)
    return PixelDiffusion(**{"network": NETWORK, "noise": {"prediction_type": kind, "clip_sample": False}, **settings})


@pytest.fixture(scope="module")
def clip() -> ToyClip:
    torch.manual_seed(0)
    return ToyClip(width=32, layers=2, image_size=32, dim=16, terms=TERMS)


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon", "sample"])
def test_the_target_of_each_parameterization_leads_back_to_the_image(kind: str) -> None:
    method = diffusion(kind)
    x0, eps, t = torch.randn(3, 3, 16, 16), torch.randn(3, 3, 16, 16), torch.tensor([0, 400, 900])
    x = method.noise_schedule.add_noise(x0, t, eps)
    output = method._target(x0, eps, t)
    pred = method.noise_schedule.convert(x, t, output, method.parameterization)
    torch.testing.assert_close(pred.x0, x0, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(pred.eps, eps, atol=2e-3, rtol=1e-3)
    flipped = method.noise_schedule.convert(x, t, -output, method.parameterization)  # the sign mistake this guards against
    assert not torch.allclose(flipped.x0, x0, atol=0.1)


def test_focused_times_lie_where_images_take_shape() -> None:
    torch.manual_seed(0)
    method = diffusion()
    uniform = torch.cat([method._times(32) for _ in range(50)])
    method.focus, method.focus_at = 0.8, (-0.4, 1.3)
    focused = torch.cat([method._times(32) for _ in range(50)])
    assert abs((uniform >= 500).float().mean() - 0.5) < 0.02
    assert 0.1 < (focused >= 500).float().mean() < 0.2 and focused.max() > 950
    assert min(uniform.min(), focused.min()) >= 0 and max(uniform.max(), focused.max()) <= 999


def test_diffusion_exports_what_it_trained(tmp_path) -> None:
    method = diffusion()
    method.freeze_rest()
    before = {name: p.clone() for name, p in method.unet.named_parameters()}
    method.export(tmp_path)
    assert all(torch.equal(p, before[name]) for name, p in method.unet.named_parameters()), "exporting must not round the weights"
    loaded = load_pixel(tmp_path)
    own = PixelBackbone(method.unet, method.noise_schedule, method.parameterization)
    x = torch.randn(2, 3, 16, 16)
    assert loaded.parameterization == "v"
    torch.testing.assert_close(loaded(x, 500.0).x0, own(x, 500.0).x0, atol=0.02, rtol=0.02)


def test_a_sample_grid_does_not_freeze_the_training() -> None:
    method = diffusion()
    method.sample_steps = 2
    method.freeze_rest()
    assert method.sample_grid().shape == (16, 3, 16, 16)
    assert all(p.requires_grad for p in method.unet.parameters())
    assert method.unet.training


def test_the_end_of_text_has_the_highest_id(clip: ToyClip) -> None:
    ids = clip.tokenizer(["a smiling face"]).input_ids[0]
    assert ids[-1] == clip.tokenizer.eos_token_id == len(clip.tokenizer) - 1
    assert ids[0] == len(clip.tokenizer) - 2
    assert clip.clip.text_model.config.eos_token_id != 2, "2 makes transformers pool at the arg-max token"


def test_the_tokenizer_is_the_same_every_time_and_keeps_whole_words() -> None:
    texts = ["a smiling face", "an angry face", "a face with glasses", "a smiling man"] * 3
    first, again = train_tokenizer(texts, 1024), train_tokenizer(list(reversed(texts)), 1024)
    assert first.get_vocab() == again.get_vocab()
    assert first.tokenize("a smiling face") == ["a</w>", "smiling</w>", "face</w>"]
    assert first.decode(first("zebra!").input_ids, skip_special_tokens=True) == "zebra !", "unknown words are spelled"


def test_clip_exports_what_it_trained(clip: ToyClip, tmp_path) -> None:
    clip.eval()
    clip.export(tmp_path)
    loaded = load_clip(tmp_path)
    texts = ["a smiling face", "a bad photo of an old face.", "words that nobody taught: zebra 123"]
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(loaded.text(texts), clip._read(texts), atol=0.02, rtol=0.02)
        seen = clip._see(images)[1]
        torch.testing.assert_close(loaded.image(images), seen, atol=0.02, rtol=0.02)
        swapped = clip._see(images.flip(1))[1]  # BGR: the fixture must notice a wrong channel order
    assert not torch.allclose(swapped, seen, atol=0.02)


def test_a_caption_is_a_positive_of_every_face_it_is_true_of(clip: ToyClip) -> None:
    from editkit.data.toyworld.captions import Caption

    faces = [counterfactual(face_at("train", k), "smiling") for k in range(2)] + [counterfactual(face_at("train", 2), "angry")]
    caption = Caption("a smiling face", {"expression": ("smiling",)})
    word, other = torch.eye(16)[:1], torch.eye(16)[1:2]
    right = clip._contrast(word, torch.cat([word, word, -word]), [caption], faces)
    wrong = clip._contrast(word, torch.cat([word, other, -word]), [caption], faces)  # the second smile treated as a stranger
    assert right < wrong


def test_direction_loss_wants_each_edit_along_its_own_way() -> None:
    ways = F.normalize(torch.eye(3, 8), dim=1)
    along, across = (direction_loss(ways, ways.expand(3, 3, 8), own) for own in ([0, 1, 2], [1, 2, 0]))
    assert along < 0.01 < across


def test_clip_learns_from_pairs_that_differ_in_one_edit() -> None:
    pairs = FacePairs("train", 32, 8)
    for k in range(8):
        item = pairs[k]
        edit = EDITS[item["edit"]]
        assert item["face"] == face_named(item["key"])
        assert edit.eligible(item["face"]) and item["other_face"] == counterfactual(item["face"], edit.name)
        assert not torch.equal(item["image"], item["other"])


@pytest.mark.parametrize("side", [0, 8, 16])
def test_closed_skips_stay_closed(side) -> None:
    method = diffusion(closed_skips=side)  # its up blocks work at 8 and at 16 pixels
    optimizer = torch.optim.AdamW(method.unet.parameters(), lr=0.1)
    for _ in range(2):
        sum(value.mean() for value in method.loss({"image": torch.rand(4, 3, 16, 16)}).values()).backward()
        optimizer.step()
    below = method.unet.config.block_out_channels[-1]
    for size, block in zip((8, 16), method.unet.up_blocks, strict=True):
        for resnet in block.resnets:
            for weight in (resnet.conv1.weight, resnet.conv_shortcut.weight):
                assert bool((weight[:, below:] == 0).all()) == (size <= side)
                assert weight.grad[:, :below].abs().max() > 0
            below = resnet.out_channels


@pytest.mark.parametrize("side", [8, 16])
def test_what_closed_skips_held_goes_through_the_bottleneck_alone(side) -> None:
    network = NETWORK | {"block_out_channels": [32, 32]}  # so that no norm group spans both sides of a joint
    backbone = PixelBackbone(diffusion(closed_skips=side, network=network).unet, Schedule.linear(), "v")
    one, other = torch.rand(2, 1, 3, 16, 16)
    h = backbone.halves(one, 500.0)[0]
    a, s = backbone.schedule.coefficients(500.0, one)
    outputs = [(a * x - backbone.halves(x, 500.0)[1]([h])[0].x0) / s for x in (one, other)]
    assert torch.allclose(*outputs, atol=1e-5) == (side == 16)


def test_images_without_skips_are_asked_for_the_image_and_not_for_its_noise(monkeypatch) -> None:
    method = diffusion(dropped_skips=1.0, drop_from=300.0)
    x0, eps = torch.rand(2, 3, 16, 16) * 2 - 1, torch.randn(2, 3, 16, 16)
    t = torch.tensor([299, 300])
    monkeypatch.setattr(method, "_times", lambda count: t)
    monkeypatch.setattr(torch, "randn_like", lambda like: eps)
    alpha_bar = method.noise_schedule.alpha_bar(t).float().view(-1, 1, 1, 1)
    a, s = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    target = torch.stack([(a * eps - s * x0)[0], (-s * x0)[1]])
    with without_skips(method.unet, torch.tensor([1.0, 0.0]).view(-1, 1, 1, 1)):
        output = method.unet(a * x0 + s * eps, t).sample
    expected = (output - target).square().mean((1, 2, 3))
    assert torch.allclose(method.loss({"image": x0})["denoise"], expected, rtol=1e-4)
    plain = method.unet(a * x0 + s * eps, t).sample
    assert torch.equal(output[0], plain[0]) and not torch.allclose(output[1], plain[1], atol=1e-3)
    with pytest.raises(UsageError, match="dropped_skips"):
        diffusion("epsilon", dropped_skips=0.5)


def test_a_network_that_goes_on_from_a_folder_has_its_weights_and_not_its_path(tmp_path) -> None:
    first = diffusion()
    first.export(tmp_path / "first")
    diffusion(init_from=str(tmp_path / "first"), network={}).export(tmp_path / "second")
    ours, theirs = (load_pixel(tmp_path / name).unet.state_dict() for name in ("first", "second"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert str(tmp_path) not in (tmp_path / "second" / "unet" / "config.json").read_text()


def test_pictures_part_of_the_way_lie_between_a_face_and_its_counterfactual() -> None:
    torch.manual_seed(0)
    faces, others = torch.zeros(64, 3, 4, 4), torch.ones(64, 3, 4, 4)
    amounts = part_way(faces, others).flatten(1)
    assert torch.equal(amounts.amin(1), amounts.amax(1))  # the same amount all over a picture
    assert 0.3 <= amounts.min() < 0.4 and 0.9 < amounts.max() <= 1.0


def test_the_direction_term_asks_for_the_whole_direction_of_half_a_change(clip, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(robust, "direction_loss", lambda moves, ways, edits: seen.append((moves, edits)) or moves.sum())
    batch = clip.dummy_batch()
    clip.loss(batch)
    ((moves, edits),) = seen
    count = len(batch["edit"])
    assert edits == [*edits[:count], *edits[1:count:2]] and len(moves) == len(edits) == count + count // 2
    assert torch.allclose(moves.norm(dim=1), torch.ones(len(moves)), atol=1e-5)


def test_a_clip_that_goes_on_from_a_folder_has_its_towers_and_its_words(clip, tmp_path) -> None:
    clip.export(tmp_path)
    other = ToyClip(width=32, layers=2, image_size=32, dim=16, terms=TERMS, init_from=str(tmp_path))
    ours, theirs = clip.clip.state_dict(), other.clip.state_dict()
    assert all(torch.equal(theirs[name], tensor.half().float()) for name, tensor in ours.items())
    assert other.tokenizer.get_vocab() == clip.tokenizer.get_vocab()


def test_as_many_pairs_as_asked_differ_in_the_expression() -> None:
    for share in (0.0, 1.0):
        names = [FacePairs("train", 8, 60, expressions=share)[k]["edit"] for k in range(60)]
        changed = sum("expression" in EDITS[name].target for name in names)
        assert changed == 60 if share else changed < 30


def test_factor_classes_cover_every_value() -> None:
    faces = [face_at("train", k) for k in range(200)]
    for name, values in CATEGORICAL.items():
        assert set(factor_classes(name, faces).tolist()) == set(range(len(values)))
    assert set(factor_classes("age", faces).tolist()) == {0, 1, 2}


def test_the_same_person_keeps_what_a_person_keeps() -> None:
    rng = np.random.default_rng(0)
    for k in range(20):
        face = face_at("train", k)
        other = same_person(face, rng)
        kept = set(vars(face)) - set(CHANGEABLE) - {"beard"}
        assert all(getattr(face, name) == getattr(other, name) for name in kept)
        assert not (other.beard and other.look == "feminine")
    assert any(draw_face(rng).skin != face_at("train", 0).skin for _ in range(20))


def test_perceptual_training_reads_every_factor_in_its_own_place() -> None:
    method = Perceptual(optimizer=None)
    batch = method.dummy_batch()
    faces = [face_named(key) for key in batch["key"]]
    answers = [F.one_hot(torch.tensor([v.index(getattr(f, n)) for f in faces]), len(v)) * 30.0 for n, v in CATEGORICAL.items()]
    values = [
        torch.tensor([(getattr(f, n) - low) / (high - low) for f in faces])[:, None] for n, (low, high) in CONTINUOUS.items()
    ]
    perfect = torch.cat([*answers, *values], dim=1)
    method.head.forward = lambda _: perfect  # type: ignore[method-assign]
    assert sum(value.item() for value in method.loss(batch).values()) < 1e-4
    method.head.forward = lambda _: perfect.flip(0)  # type: ignore[method-assign]
    assert sum(value.item() for value in method.loss(batch).values()) > 1.0


def test_identity_training_lowers_its_loss() -> None:
    torch.manual_seed(0)
    method = Identity(optimizer=None)
    batch = method.dummy_batch()
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-3)
    losses = []
    for _ in range(6):
        torch.manual_seed(1)
        loss = method.loss(batch)["identity"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_an_attack_is_short_and_moves_the_embedding_along_a_way(clip) -> None:
    torch.manual_seed(1)
    images, way = torch.rand(6, 3, 32, 32) * 2 - 1, F.normalize(torch.randn(1, 16), dim=1)
    attacked = clip._attacked(images, way)
    lengths = (attacked - images).flatten(1).norm(dim=1)
    assert 0 < lengths.max() <= clip.attack * 1.25 + 1e-4
    random = torch.randn_like(images)
    random *= (lengths / random.flatten(1).norm(dim=1))[:, None, None, None]
    with torch.no_grad():
        start = clip._see(images)[1]
        gain, luck = ((clip._see(other)[1] - start) @ way[0] for other in (attacked, images + random))
    assert (gain > 0).all() and gain.mean() > 3 * luck.abs().mean()
    assert all(parameter.grad is None for parameter in clip.clip.parameters()), "finding an attack trains nothing"


def test_a_drift_costs_along_a_way_and_not_against_it() -> None:
    way = torch.tensor([[1.0, 0.0]])
    assert drift(torch.tensor([[0.2, 0.0]]), way) == pytest.approx(1)
    assert drift(torch.tensor([[-0.2, 0.0], [0.0, 3.0]]), way) == pytest.approx(0)


def test_wrinkles_alone_make_some_pairs_old() -> None:
    torch.manual_seed(0)
    pairs = FacePairs("train", 64, 40, wrinkles=1.0)
    items = [item for item in (pairs[k] for k in range(40)) if item["edit"] == "old"]
    assert len(items) > 20
    for item in items:
        assert item["face"].hair_colour == item["other_face"].hair_colour == "grey"
        assert item["other_face"].age > item["face"].age
    assert all(FacePairs("train", 64, 40)[k]["face"].hair_colour != "grey" for k in range(40))
