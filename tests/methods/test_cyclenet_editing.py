"""Editing with CycleNet, and the files that it leaves."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline

from editkit import cli
from editkit.backbones.controlnet import Controlled
from editkit.backbones.latent_folder import load_latent
from editkit.engine.count import count_calls
from editkit.engine.guidance import ClassifierFree
from editkit.engine.rng import level_noise
from editkit.engine.sample import sample
from editkit.errors import UsageError, UserError
from editkit.methods.weakly_supervised.cyclenet import CycleNet
from editkit.methods.weakly_supervised.cyclenet import editor as module
from editkit.methods.weakly_supervised.cyclenet.terms import NET, told
from editkit.training.artefact import Artefact
from editkit.types import Condition, EditRequest
from tests.backbones import tiny_latent as tiny
from tests.methods.cyclenet_parts import TEXTS, backbone, method
from tests.tiny import shrink, write_all, write_images

STEPS = 10


@pytest.fixture(scope="module")
def made():
    return method()


def requests(count=2, **changes):
    texts = {"source_prompt": TEXTS["S"], "prompt": TEXTS["G"], "steps": STEPS, "strength": 0.5} | changes
    return [EditRequest(f"{k}.png", image=image, **texts) for k, image in enumerate(tiny.images(count))]


def edited(editor, asked):
    return editor.edit(asked, editor.prepare(asked)).images


@torch.no_grad()
def by_hand(made, asked, *, negative="S", net="S", scale=3.0, control=1.0, start=5, eta=1.0):
    """Return the edit as the engine's own parts make it, each branch with its own pass of the ControlNet."""
    model, keys = made.backbone, [one.key for one in asked]
    images = torch.stack([one.image for one in asked])
    tokens = {name: model.tokens([text] * len(asked)) for name, text in (TEXTS | {"": ""}).items()}
    levels = model.schedule.levels(STEPS, spacing="leading", offset=1, clean="ab0")
    first, later = (level_noise((4, 16, 16), keys, seed=0, purpose=f"cyclenet/{purpose}") for purpose in ("start", "step"))
    x = levels.signal(start) * model.encode(images) + levels.noise(start) * first(start)
    cond, uncond = (told(tokens[name], tokens[net], images / 2 + 0.5) for name in ("G", negative))
    walked = sample(
        made.network(control),
        x,
        levels,
        cond,
        start=start,
        guidance=ClassifierFree(scale, uncond),
        step=lambda *args: module.ddim(*args, eta=eta),
        noise=later,
    )
    return model.decode(walked).clamp(-1, 1)


# What an edit is.


def test_guidance_leads_from_the_source_text_with_the_source_text_in_the_controlnet(made):
    asked = requests()
    own = edited(made.editor([]), asked)
    assert torch.allclose(own, by_hand(made, asked), atol=1e-4)
    for wrong in ({"negative": ""}, {"net": "G"}, {"eta": 0.0}, {"start": 6}):
        assert not torch.allclose(own, by_hand(made, asked, **wrong), atol=1e-3), wrong


def test_without_control_it_is_a_noised_start_with_a_negative_text(made):
    asked = requests()
    bare = method(control=0.0)
    assert torch.allclose(edited(bare.editor([]), asked), by_hand(made, asked, control=0.0), atol=1e-4)
    half = method(control=0.5)
    assert torch.allclose(edited(half.editor([]), asked), by_hand(made, asked, control=0.5), atol=1e-4)
    assert not torch.allclose(by_hand(made, asked, control=0.5), by_hand(made, asked), atol=1e-3)


def test_of_equal_texts_the_guidance_does_nothing(made):
    asked = requests(prompt=TEXTS["S"])
    guided, plain = (edited(method(scale=scale).editor([]), asked) for scale in (9.0, 1.0))
    assert torch.allclose(guided, plain, atol=1e-4)


def first_query(made, asked, **changes):
    """Return x and the time of the first query of an edit."""
    seen = []
    editor = method(**changes).editor([])
    hook = editor.network.backbone.unet.register_forward_pre_hook(lambda net, args: seen.append((args[0][:1], float(args[1][0]))))
    edited(editor, asked)
    hook.remove()
    return seen[0]


def test_the_image_is_noised_to_the_level_that_is_denoised_first(made):
    """The released demo, and `parity`, noise it one level higher."""
    (asked,) = requests(1)
    model = made.backbone
    levels = model.schedule.levels(STEPS, spacing="leading", offset=1, clean="ab0")
    noise = level_noise((4, 16, 16), [asked.key], seed=0, purpose="cyclenet/start")
    z = model.encode(asked.image[None])
    for parity, level in ((False, 5), (True, 6)):
        x, t = first_query(made, [asked], parity=parity)
        assert t == levels.times[5] == 401
        assert torch.allclose(x, levels.signal(level) * z + levels.noise(level) * noise(level), atol=1e-5)
    last, _ = first_query(made, [asked.with_(strength=1.0)], parity=True)
    assert torch.allclose(last, levels.signal(10) * z + levels.noise(10) * noise(10), atol=1e-5), "no level above the last"


def test_strength_zero_is_the_image_and_strengths_may_differ_in_a_batch(made):
    editor, asked = made.editor([]), requests()
    state = editor.prepare(asked)
    mixed = editor.edit([asked[0].with_(strength=0.0), asked[1]], state)
    assert mixed.scores["network_calls"] == [0.0, 10.0]
    assert torch.allclose(mixed.images[:1], made.backbone.decode(state.latents[:1]).clamp(-1, 1), atol=1e-5)
    assert torch.allclose(mixed.images[1:], edited(editor, asked[1:]), atol=1e-4)
    with pytest.raises(UsageError, match="outside 0 to 1"):
        edited(editor, requests(1, strength=1.5))


def test_network_calls_of_an_edit(made):
    embedded = []
    hook = made.controlnet.controlnet_cond_embedding.conv_in.register_forward_hook(lambda *_: embedded.append(1))
    editor, asked = made.editor([]), requests()
    with count_calls(made.backbone, flops=False) as unet, count_calls(made.controlnet, flops=False) as net:
        result = editor.edit(asked, editor.prepare(asked))
    hook.remove()
    assert (unet.calls, unet.per_image(2)["evaluations"]) == (5, 10), "both branches in one call"
    assert (net.calls, net.per_image(2)["evaluations"]) == (5, 5), "one pass for both branches"
    assert result.scores["network_calls"] == [10.0, 10.0] and len(embedded) == 1


# Files.


@pytest.fixture(scope="module")
def exported(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    return folder, made.export(folder)


def test_a_file_edits_as_what_was_trained(made, exported):
    folder, paths = exported
    (own,) = [path for path in paths if path.parent == folder]
    fresh, asked = method(stir=False), requests()
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    editor = fresh.editor([Artefact.load(own)])
    assert torch.equal(edited(editor, asked), edited(made.editor([]), asked))
    assert not torch.allclose(edited(editor, asked), edited(fresh.editor([]), asked), atol=1e-3)
    assert all(torch.equal(before[name], tensor) for name, tensor in fresh.state_dict().items())
    copied, source = editor.network.backbone.unet, fresh.backbone.unet
    assert copied.conv_in.weight is source.conv_in.weight, "what is not trained is not copied"
    assert copied.conv_out.weight is not source.conv_out.weight
    gone = fresh.editor([Artefact.load(own, strength=0.0)])
    assert torch.equal(edited(gone, asked), edited(method(stir=False, control=0.0).editor([]), asked))


def test_files_of_something_else_are_refused(made, exported):
    file = Artefact.load(exported[1][0])
    with pytest.raises(UsageError, match="one trained file at a time"):
        made.editor([file, file])
    with pytest.raises(UserError, match="are not of cyclenet"):
        made.editor([Artefact("x", file.tensors, card={})])
    other = {**file.tensors, "controlnet.conv_in.weight": torch.zeros(1)}
    with pytest.raises(UserError, match="another backbone: their controlnet.conv_in.weight"):
        made.editor([Artefact("x", other, card=file.card)])


@torch.no_grad()
def test_diffusers_opens_the_folder_and_makes_the_same_image_of_equal_texts(made, exported):
    """Their pipeline has one text for both networks, so source and target are the same here."""
    home = exported[0] / "diffusers"
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(home, torch_dtype=torch.float32, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    (asked,) = requests(1, prompt=TEXTS["S"], strength=1.0)
    ours = method(eta=0.0)
    start, _ = first_query(ours, [asked], eta=0.0)
    theirs = pipeline(
        TEXTS["S"],
        image=asked.image[None] / 2 + 0.5,
        latents=start,
        num_inference_steps=STEPS,
        guidance_scale=1.0,
        output_type="pt",
        height=32,
        width=32,
    ).images
    own = edited(ours.editor([]), [asked]) / 2 + 0.5
    assert torch.allclose(own, theirs, atol=1e-4)


def test_the_folder_is_a_backbone_and_a_controlnet_that_edit_without_a_trained_file(made, exported):
    home = exported[0] / "diffusers"
    again = CycleNet(backbone=load_latent(home), controlnet=str(home / "controlnet"), steps=10, scale=3.0)
    assert not again.needs_trained
    asked = requests()
    assert torch.allclose(edited(again.editor([]), asked), edited(made.editor([]), asked), atol=1e-4)


def test_a_backbone_in_half_precision_edits(exported):
    fresh = CycleNet(backbone=backbone().to(torch.bfloat16), steps=4)
    editor = fresh.editor([Artefact.load(exported[1][0])])
    assert isinstance(editor.network, Controlled) and editor.network.nets[NET].dtype == torch.bfloat16
    assert torch.isfinite(edited(editor, requests(1, steps=4))).all()


def test_from_training_to_an_edited_file(tmp_path, monkeypatch):
    """By the command line: train, then edit by --weights RUN."""
    monkeypatch.chdir(tmp_path)
    assets = write_all(tmp_path / "assets")
    small = [word for word in shrink("cyclenet", assets) if word.split("=")[0].startswith(("backbone", "data", "method"))]
    short = [
        "trainer.steps=2",
        "trainer.batch_size=2",
        "trainer.sample_every=0",
        "trainer=cpu",
        "logger=csv",
        "trainer.precision=32",
    ]
    assert cli.run(["train", "recipe=cyclenet", *small, *short, f"run_dir={tmp_path / 'run'}"]) == 0
    texts = ["--source-prompt", TEXTS["S"], "--prompt", TEXTS["G"], "--steps", "4"]
    photo = write_images(tmp_path / "photo", 1, side=64) / "0.png"
    command = ["edit", "--method", "cyclenet", "--weights", str(tmp_path / "run"), "--image", str(photo)]
    own = [word for word in small if not word.startswith("data")]
    assert cli.run([*command, *texts, "-o", str(tmp_path / "night.png"), *own]) == 0
    assert (tmp_path / "night.png").is_file()
    assert cli.run([*command, "--prompt", TEXTS["G"], "-o", str(tmp_path / "other.png"), *own]) == 2


def test_condition_of_the_branches_differs_in_the_unets_text_alone(made):
    editor, asked = made.editor([]), requests()
    state = editor.prepare(asked)
    assert torch.equal(state.source.tokens, state.source.control[NET].tokens)
    assert isinstance(state.target, Condition) and not state.target.control
    assert state.source.control[NET].concat.min() >= 0, "hints are in [0, 1]"
