"""DiffusionCLIP's files and tasks."""

from __future__ import annotations

import json

import pytest
import torch

from editkit.engine.count import count_calls
from editkit.errors import UsageError, UserError
from editkit.methods.weakly_supervised.diffusionclip.tasks import enter_domain, optimise_latents, with_article
from editkit.training.artefact import Artefact
from editkit.training.tuned_editor import checkpoint_of
from editkit.types import EditRequest
from tests.methods.asyrp_parts import Images, ready, tiny_backbone
from tests.methods.diffusionclip_parts import T0, TinyIdentity, editor_of, reconstruction, tiny_method


@pytest.fixture(scope="module")
def images():
    return Images(3)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    data = Images(4)
    method = ready(tiny_method(run_dir=str(folder)))
    for rows in ([0, 1], [2, 3]):
        method.stepper.run(data.batch(rows))
    (path,) = method.export(folder / "export")
    return method, path, folder, data


# Files.


def test_a_saved_file_edits_like_the_trained_network(exported):
    method, path, _, data = exported
    assert path.name == "a-smiling-face.safetensors"
    own = editor_of(method.backbone, method.network()).edit(data.requests()).images
    fresh = tiny_method(backbone=tiny_backbone(), measure=False)
    again = fresh.editor([Artefact.load(path)]).edit(data.requests()).images
    assert torch.allclose(own, again, atol=5e-3)
    assert (own - reconstruction(method.backbone, data.images)).abs().max() > 20 * (own - again).abs().max()
    assert fresh.tuned is None, "editing makes no copy to train"


def test_the_card_says_what_the_file_needs(exported):
    method, path, _, _ = exported
    card = Artefact.load(path).card
    assert (card["kind"], card["t0"], card["n_inv"], card["n_train"]) == ("difference", T0, 8, 6)
    assert (card["prompt"], card["source_prompt"]) == ("a smiling face", "a face")
    assert card["backbone_digest"] == method.backbone.digest()
    json.dumps(card, allow_nan=False)


def test_whole_weights_are_a_file_too(exported):
    """Converted official checkpoints hold them."""
    method, path, _, _ = exported
    artefact = Artefact.load(path)
    whole = Artefact("whole", method.network().state_dict(), card={**artefact.card, "kind": "weights"})
    network = checkpoint_of(whole, method.backbone).network
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), method.network().parameters(), strict=True))


def test_a_file_of_something_else_is_refused(exported):
    method, path, _, _ = exported
    with pytest.raises(UserError, match="not a fine-tuned network"):
        method.editor([Artefact("odd", {}, card={"method": "other"})])
    with pytest.raises(UserError, match=r"another backbone: .* is \(16,.* here it is \(32,"):
        tiny_method(backbone=tiny_backbone(block_out_channels=(8, 32))).editor([Artefact.load(path)])
    with pytest.raises(UserError, match="another backbone"):
        tiny_method(backbone=tiny_backbone(seed=9)).editor([Artefact.load(path)])
    with pytest.raises(UsageError, match="needs a fine-tuned network"):
        method.editor([])


def test_a_backbone_in_half_precision_keeps_the_change_in_float32(exported):
    _, path, _, data = exported
    fresh = tiny_method(measure=False)
    fresh.backbone.to(torch.bfloat16)
    editor = fresh.editor([Artefact.load(path)])
    assert next(editor.checkpoints[0].network.parameters()).dtype == torch.float32
    assert editor.edit(data.requests()).images.dtype == torch.float32


def test_of_files_with_different_times_the_largest_counts(exported):
    method, path, _, _ = exported
    artefact = Artefact.load(path)
    early = Artefact("early", artefact.tensors, card={**artefact.card, "t0": 300})
    assert method.editor([early, artefact]).start == T0
    assert method.editor([early]).start == 300


# Tasks.


def test_unseen_pictures_enter_the_domain_before_they_are_edited(exported):
    method, _, folder, data = exported
    with count_calls(method.backbone, flops=False) as counter:
        figures = method.tasks["unseen"](data)
    assert counter.evaluations == 2 * (2 * 6 + 7)  # two rounds of six calls, then the inversion
    assert (folder / "unseen.png").stat().st_size > 0 and figures["images"] == 2
    with pytest.raises(UserError, match=r"method\.checkpoints"):
        tiny_method(run_dir=str(folder / "nowhere")).tasks["unseen"](data)


def test_a_round_noises_at_t0_minus_1_with_fresh_noise(backbone, images, monkeypatch):
    seen = []
    add_noise = type(backbone.schedule).add_noise
    monkeypatch.setattr(
        type(backbone.schedule), "add_noise", lambda self, x0, t, noise: seen.append((t, noise)) or add_noise(self, x0, t, noise)
    )
    moved = enter_domain(backbone, images.requests(), backbone.schedule.levels(6, start=T0), T0, rounds=2)
    assert [t for t, _ in seen] == [T0 - 1, T0 - 1] and not torch.equal(seen[0][1], seen[1][1])
    again = enter_domain(backbone, images.requests()[1:], backbone.schedule.levels(6, start=T0), T0, rounds=2)
    assert torch.allclose(moved[1:], again, atol=1e-4), "the noise is the image's own"


def test_optimising_latents_trains_no_network(backbone):
    data = Images(2)
    method = tiny_method(backbone=backbone, latent_lr=0.05)
    before = backbone.digest()
    _, early = optimise_latents(tiny_method(backbone=backbone, latent_steps=1), data.images)
    method.latent_steps = 8
    edited, late = optimise_latents(method, data.images)
    assert (late["clip"] + late["l1"] + late["identity"]).sum() < (early["clip"] + early["l1"] + early["identity"]).sum()
    assert backbone.digest() == before and all(p.grad is None for p in backbone.parameters())
    alone, _ = optimise_latents(method, data.images[1:])
    assert torch.allclose(edited[1:], alone, atol=1e-3)


def test_the_latents_task_writes_a_sheet(tmp_path):
    figures = tiny_method(run_dir=str(tmp_path), checkpointing=True).tasks["latents"](Images(2))
    assert (tmp_path / "latents.png").stat().st_size > 0 and {"clip", "l1", "identity"} <= set(figures)
    assert [with_article(text) for text in ("smiling face", "an old face", "The face")] == [
        "a smiling face",
        "an old face",
        "The face",
    ]


def test_needs_an_image(backbone, tuned):
    with pytest.raises(UsageError, match="diffusionclip needs --image"):
        editor_of(backbone, tuned).check([EditRequest(key="a")])


def test_the_identity_network_is_loaded_only_with_a_weight():
    loaded = []
    method = tiny_method(identity=lambda: loaded.append(1) or TinyIdentity(), identity_weight=0.0)
    method.prepare_training()
    assert not loaded
    with pytest.raises(UsageError, match=r"method\.identity"):
        tiny_method(identity=None).prepare_training()
