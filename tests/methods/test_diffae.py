"""Diffusion Autoencoders: what is trained over codes, how attributes are asked for, and what an edit moves."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from editkit import cli, recipe
from editkit.backbones.diffae import DiffAEBackbone, load_diffae
from editkit.backbones.semantic_codes import AttributeClassifier, LatentDDIM
from editkit.backbones.strided import to_pure_noise
from editkit.data.attributes import example, holds
from editkit.engine.guidance import Clip, Guided
from editkit.errors import UsageError
from editkit.methods.weakly_supervised.diffae import Autoencoder, Classifier, DiffAE, DiffAEEditor, Prior
from editkit.training import code_editor as editing
from editkit.training.named_attributes import labelled, named
from editkit.types import Condition, EditRequest
from tests.tiny import SIDE, shrink, write_all

NAMES = ["smiling", "glasses", "grey hair", "hair"]


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def backbone(assets) -> DiffAEBackbone:
    found = load_diffae(assets / "diffae")
    found.unet.conv_out.weight.data.mul_(0.2)  # smooth in x, as a trained network is
    return found


@pytest.fixture
def classifier() -> AttributeClassifier:
    torch.manual_seed(3)
    net = AttributeClassifier(attributes=NAMES, dim=12)
    net.scale.mean.normal_()
    net.scale.std.uniform_(0.5, 3.0)
    return net.requires_grad_(False)


def picture(seed=0):
    coarse = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed)).tanh()
    return torch.nn.functional.interpolate(coarse, size=SIDE, mode="bilinear")[0]


def requests(*labels, **given):
    return [EditRequest(f"{n}.png", picture(n), labels=label, **given) for n, label in enumerate(labels)]


def edited(editor, asked):
    return editor.edit(asked, editor.prepare(asked)).images


# ---------------------------------------------------------------------------------------------------- asking


def test_labels_name_attributes_with_weights():
    assert labelled("smiling, Grey_Hair=-0.5", NAMES) == {"smiling": 1.0, "grey hair": -0.5}
    with pytest.raises(UsageError, match="no attribute 'smilling'.*'smiling'"):
        labelled("smilling", NAMES)
    with pytest.raises(UsageError, match="smiling=0.5"):
        labelled("smiling=much", NAMES)


def test_prompts_name_attributes_too():
    assert named("a smiling face with grey hair", NAMES) == {"grey hair": 1.0, "smiling": 1.0}
    assert named("a face without glasses", NAMES) == {"glasses": -1.0}
    with pytest.raises(UsageError, match="names no attribute"):
        named("a face with eyeglasses", NAMES)


def test_claims_about_factors():
    claims = {"expression": ["smiling"], "age": {"above": 60}, "beard": None}
    assert holds(claims, {"expression": "smiling", "age": 61, "beard": True})
    for odd in ({"expression": "sad"}, {"age": 60}, {"beard": -1}):
        assert not holds(claims, {"expression": "smiling", "age": 61, "beard": True} | odd)
    assert holds(claims, example(claims))


# ---------------------------------------------------------------------------------------------------- moving


def unnormalised(net, codes, wanted, step):
    rows = net.linear.weight[[net.attributes.index(name) for name in wanted]]
    return codes + step * codes.shape[1] ** 0.5 * (torch.tensor(list(wanted.values())) @ (rows / rows.norm(dim=1, keepdim=True)))


def without_the_root(net, codes, wanted, step):
    return editing.moved(net, codes, wanted, step / codes.shape[1] ** 0.5)


@pytest.mark.parametrize("mistake", [None, unnormalised, without_the_root], ids=["", "on raw codes", "without sqrt(dim)"])
def test_a_step_is_as_published(classifier, mistake):
    codes = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    found = (mistake or editing.moved)(classifier, codes, {"glasses": -1.0}, 0.3)
    change = (found - codes) / classifier.scale.std
    row = classifier.linear.weight[1]
    right = torch.allclose(change, -0.3 * 12**0.5 * (row / row.norm()).expand(2, -1), atol=1e-5)
    assert right == (mistake is None)
    assert mistake or torch.allclose(change.square().mean(1).sqrt(), torch.tensor(0.3), atol=1e-5), "RMS of a coordinate"


def test_neither_the_length_of_a_row_nor_the_bias_matters(classifier):
    codes = torch.randn(1, 12)
    before = editing.moved(classifier, codes, {"smiling": 1.0}, 0.3)
    classifier.linear.weight[0] *= 7
    classifier.linear.bias += 5
    assert torch.allclose(editing.moved(classifier, codes, {"smiling": 1.0}, 0.3), before, atol=1e-6)
    assert torch.allclose(editing.moved(classifier, codes, {"smiling": 1.0}, 0.0), codes, atol=1e-5)


# ---------------------------------------------------------------------------------------------------- editing


@pytest.fixture
def editor(backbone, classifier):
    return DiffAEEditor(backbone, classifier, n_inv=5, n_test=5, measure=True)


def test_no_strength_is_the_reconstruction_bit_for_bit(editor):
    plain = edited(editor, requests(None, None))
    assert torch.equal(edited(editor, requests("smiling", "glasses", strength=0.0)), plain)
    moved = edited(editor, requests("smiling", None))
    assert not torch.equal(moved[0], plain[0]) and torch.equal(moved[1], plain[1])
    assert torch.equal(edited(editor, requests("smiling=-1", None)), edited(editor, requests("smiling", None, strength=-1.0)))


def test_what_was_asked_for_rises_with_the_strength(editor):
    asked = requests("smiling", "hair")
    scores = editor.edit(asked, editor.prepare(asked)).scores
    assert all(after > before for before, after in zip(scores["logit_before"], scores["logit_after"], strict=True))
    assert len(scores["reconstruction_psnr"]) == 2 and scores["network_calls"] == [10.0, 10.0]


def test_encoding_ends_where_it_is_told_to(backbone, editor):
    """Published: one query more, and the last state is the eps of the estimate clipped."""
    image, levels = picture()[None], backbone.levels(5)
    cond = Condition(vector=backbone.semantic_code(image))
    published = editor.encode(image, cond.vector, 5)
    editor.terminal = "exact"
    exact = editor.encode(image, cond.vector, 5)
    assert torch.allclose(published, Guided(backbone, Clip())(exact, levels.times[-1], cond).eps, atol=1e-5)
    assert len(to_pure_noise(levels)) == len(levels) + 1 and not torch.equal(published, exact)


@torch.no_grad()
def test_estimates_are_clipped_and_their_noise_moves_along(backbone, editor):
    """The network's own eps beside a clipped estimate does not agree with the state that both came from."""
    x, levels = 3 * torch.randn(1, 3, SIDE, SIDE), backbone.levels(10)
    cond, t = Condition(vector=torch.zeros(1, 12)), levels.times[3]
    pred = editor.inversion.denoiser(x, t, cond)
    a, s = backbone.schedule.coefficients(t, x)
    assert pred.x0.abs().max() <= 1 and torch.allclose(a * pred.x0 + s * pred.eps, x, atol=1e-4)
    kept = backbone(x, t, cond).eps
    assert not torch.allclose(a * pred.x0 + s * kept, x, atol=1e-2)


def with_another_code(self, images, codes, steps, own=DiffAEEditor.encode):
    return own(self, images, 30 + 4 * codes, steps)


@pytest.mark.parametrize("mistake", [None, with_another_code], ids=["", "encoded with another code"])
def test_more_steps_reconstruct_better(backbone, monkeypatch, mistake):
    if mistake:
        monkeypatch.setattr(DiffAEEditor, "encode", mistake)
    quality = []
    for steps in (5, 10, 40):
        editor = DiffAEEditor(backbone, n_inv=steps, n_test=steps, measure=True, terminal="exact")
        quality.append(editor.prepare(requests(None)).reconstruction_psnr[0])
    assert (quality[0] < quality[1] < quality[2] and quality[2] > 30) == (mistake is None), quality


def test_towards_a_reference(editor):
    first, second = requests(None, None)
    towards = lambda share, **given: edited(editor, [EditRequest("0.png", picture(0), references=[picture(1)], strength=share)])  # noqa: E731
    own, other = edited(editor, [first]), edited(editor, [second])
    near = lambda a, b: torch.allclose(a, b, atol=1e-3)  # noqa: E731 - batches of other sizes round differently
    assert near(towards(0.0), own) and near(towards(1.0), other)
    middle = towards(0.5)
    assert not near(middle, own) and not near(middle, other)
    editor.moves = ("noise",)
    state = editor.prepare([first, second])
    assert near(towards(1.0), editor.decode(state.codes[:1], state.noises[1:], 5)), "code of a, noise of b"
    editor.moves, editor.shares = ("code", "noise"), [0.0, 2.0]
    assert near(towards(None), other)
    editor.shares = [1.0]
    with pytest.raises(UsageError, match="2 pictures cannot be mixed"):
        towards(None)


def test_random_noise_keeps_the_code_alone(editor):
    editor.noise = "random"
    one, two = (edited(editor, requests(None, sample=n)) for n in (0, 1))
    assert not torch.equal(one, two) and torch.equal(one, edited(editor, requests(None)))


def test_what_cannot_be_asked_for(backbone, editor):
    with pytest.raises(UsageError, match="names no attribute"):
        edited(editor, [EditRequest("a", picture(), prompt="a cat")])
    with pytest.raises(UsageError, match="method.classifier=FOLDER"):
        edited(DiffAEEditor(backbone, n_inv=2, n_test=2), requests("smiling"))
    with pytest.raises(UsageError, match="choose from encoded, random"):
        DiffAEEditor(backbone, noise="uniform")


# ---------------------------------------------------------------------------------------------------- training


class Pictures:
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return {"image": picture(index), "key": f"{index}", "factors": {"bright": index % 2}}


def trained(method, steps, batch):
    method.freeze_rest()
    method.train()
    parameters = [p for group in method.trainable().values() for p in group]
    optimizer, losses = torch.optim.Adam(parameters, 1e-2), []
    for _ in range(steps):
        total = next(method.updates(batch)).total()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))
    return losses


def test_the_encoder_learns_from_the_decoders_error(assets):
    network = {"code": 12, "encoder_channels": [8, 16], "blocks": 1, "attended": [], "groups": 4}
    method = Autoencoder(network=network, init_from=str(assets / "ddpm"), flipped=0.0)
    batch = {"image": torch.stack([picture(n) for n in range(4)]), "key": list("abcd")}
    torch.manual_seed(0)
    losses = trained(method, 25, batch)
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])
    method.loss(batch)["denoise"].mean().backward()
    assert method.denoiser.encoder.input_blocks[0][0].weight.grad.abs().max() > 0


def test_encoder_and_decoder_see_the_same_mirrored_image(assets, monkeypatch):
    seen = {}
    network = {"code": 12, "encoder_channels": [8, 16], "blocks": 1, "attended": [], "groups": 4}
    method = Autoencoder(network=network, init_from=str(assets / "ddpm"), flipped=1.0)
    monkeypatch.setattr(method.denoiser.encoder, "forward", lambda x: seen.update(encoded=x) or torch.zeros(len(x), 12))
    monkeypatch.setattr(method.denoiser.schedule, "add_noise", lambda x0, t, noise: seen.update(noised=x0) or x0)
    image = torch.stack([picture(), picture(1)])
    method.loss({"image": image})
    assert torch.equal(seen["encoded"], image.flip(-1)) and torch.equal(seen["noised"], image.flip(-1))


def prior(backbone) -> Prior:
    torch.manual_seed(0)
    return Prior(backbone=backbone, network={"width": 32, "layers": 3}, codes=64)


def test_the_prior_keeps_the_statistics_of_unflipped_codes(backbone):
    method = prior(backbone)
    method.precompute(Pictures())
    codes = backbone.semantic_code(torch.stack([picture(n) for n in range(6)]))
    assert torch.allclose(method.net.scale.mean, codes.mean(0), atol=1e-5)
    assert torch.allclose(method.net.scale.std, codes.std(0), atol=1e-5), "unbiased"
    assert method.table.mean(0).abs().max() < 1e-4 and (method.table.std(0) - 1).abs().max() < 1e-4
    losses = trained(method, 60, method.dummy_batch())
    assert sum(losses[-10:]) < 0.85 * sum(losses[:10])


def test_the_prior_adds_the_same_noise_at_all_times_and_compares_absolutely(backbone):
    method = prior(backbone)
    method.precompute(Pictures())
    assert torch.allclose(method.net.schedule.table[-1], torch.tensor(0.992**1000, dtype=torch.float64))
    method.net.network.last.weight.data.zero_()
    method.net.network.last.bias.data.zero_()
    torch.manual_seed(0)
    loss = float(method.loss(method.dummy_batch())["noise"].mean())
    assert abs(loss - (2 / torch.pi) ** 0.5) < 0.05, "the mean of |eps|; its square would be 1"


@torch.no_grad()
def test_the_latent_networks_input_reaches_every_layer():
    net = LatentDDIM(dim=12, width=16, layers=3)
    net.network.layers[0].linear.weight.zero_()
    z, t = torch.randn(2, 12), torch.tensor([5, 5])
    assert not torch.allclose(net.network(z, t), net.network(z + 1, t))


def test_new_codes_are_denormalised(assets, backbone, tmp_path):
    net = LatentDDIM(dim=12, width=16, layers=3)
    net.scale.mean.fill_(100.0)
    net.scale.std.fill_(0.01)
    method = DiffAE(backbone=backbone, latent=str(net.save(tmp_path / "prior")), latent_steps=10)
    codes = method.sampled_codes(["a", "b"])
    assert codes.shape == (2, 12) and (codes - 100).abs().max() < 20
    assert torch.equal(codes[1:], method.sampled_codes(["b"]))


def test_the_classifier_tells_attributes(assets, backbone):
    method = Classifier(backbone=backbone, attributes={"bright": {"bright": [1]}, "dark": {"bright": [0]}}, flipped=0.0)
    method.precompute(Pictures())
    items = [Pictures()[n] for n in range(6)]
    batch = {name: [item[name] for item in items] for name in ("key", "factors")}
    batch |= {"image": torch.stack([item["image"] for item in items])}
    losses = trained(method, 150, batch)
    assert losses[-1] < 0.5 * losses[0] and float(next(method.updates(batch)).report["accuracy"]) > 0.8
    with pytest.raises(UsageError, match="'smiling'.*bright"):
        Classifier(backbone=backbone, attributes=["smiling"]).precompute(Pictures())


@pytest.mark.parametrize("flipped", [0.0, 1.0])
def test_codes_of_pictures_that_are_never_mirrored_are_computed_once(backbone, flipped, monkeypatch):
    method = Classifier(backbone=backbone, attributes=["bright"], flipped=flipped)
    method.precompute(Pictures())
    images, keys = torch.stack([picture(n) for n in (4, 2)]), [Pictures()[n]["key"] for n in (4, 2)]
    right = backbone.semantic_code(images.flip(-1) if flipped else images)
    seen = []
    monkeypatch.setattr(type(backbone), "semantic_code", lambda self, images: seen.append(images) or right)
    assert torch.allclose(method.codes({"image": images, "key": keys}), right, atol=1e-5)
    assert [torch.equal(one, images.flip(-1)) for one in seen] == ([True] if flipped else [])


def test_the_classifier_takes_over_the_statistics_of_the_autoencoders_pictures(assets, backbone, tmp_path):
    net = LatentDDIM(dim=12, width=16, layers=3)
    net.scale.mean.normal_()
    folder = net.save(tmp_path / "prior")
    method = Classifier(backbone=backbone, attributes=["bright"], latent=str(folder))
    method.precompute(Pictures())
    assert torch.equal(method.net.scale.mean, load_file(folder / "model.safetensors")["scale.mean"].float())


# ---------------------------------------------------------------------------------------------------- from the command line


def test_trained_in_stages_and_used(assets, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    for stage in ("encoder", "autoencoder", "latent", "classifier"):
        texts = dict(text.split("=", 1) for text in shrink(f"diffae/{stage}", assets))
        given = ("recipe", "backbone.path", "method.latent", "method.encoder_from")  # by the stages before
        own = [f"{key}={value}" for key, value in texts.items() if key not in given]
        assert cli.run(["train", "recipe=diffae", "--stage", stage, "--run-dir", str(run), *own, "trainer.steps=2"]) == 0
    Image.fromarray(((picture() + 1) * 127).byte().permute(1, 2, 0).numpy()).save(tmp_path / "face.png")
    asked = ["--image", str(tmp_path / "face.png"), "--edit", "smiling", "--steps", "4", "-o", str(tmp_path / "out.png")]
    assert cli.run(["edit", "--from", str(run / "edit"), *asked]) == 0
    assert Image.open(tmp_path / "out.png").size == (SIDE, SIDE)
    cfg = recipe.thaw(run / "edit")
    assert cfg.backbone.path == str(run / "autoencoder" / "export")
    card = json.loads((run / "classifier" / "export" / "card.json").read_text())
    assert card["backbone_digest"] == load_diffae(cfg.backbone.path).digest()
    where = [f"backbone.path={cfg.backbone.path}", f"method.latent={cfg.method.latent}", f"run_dir={tmp_path}/task"]
    small = ["method.task_images=2", "method.latent_steps=4", "method.n_test=2", "method.n_inv=2", "method.step_counts=[2]"]
    assert cli.run(["task", "diffae", "samples", *where, *small]) == 0
    assert (tmp_path / "task" / "samples.png").is_file()
    other = [f"data.size={SIDE}", f"method.identity.path={assets / 'identity'}", "method.classifier=null"]
    capsys.readouterr()
    assert cli.run(["task", "diffae", "reconstructions", *where, *small, *other]) == 0
    assert "code alone, 2 steps" in capsys.readouterr().out
