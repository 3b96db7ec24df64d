"""Low-rank layers in place of a UNet's own: what learns, what an export holds, and what diffusers makes of it."""

from __future__ import annotations

import copy
import sys
from functools import partial

import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from editkit import cli
from editkit.errors import UsageError, UserError
from editkit.networks.lora import ADAPTER, WHOLE, Lora, add_lora, has_lora, merged
from editkit.training.artefact import Artefact
from editkit.training.pipeline_export import PipelineMethod
from editkit.training.plan import Plan
from editkit.training.stepper import Stepper
from tests.backbones import tiny_latent as tiny
from tests.methods import cyclenet_parts, instructpix2pix_parts, pbe_parts
from tests.tiny import shrink, write_vae

LORA = {"rank": 2, "alpha": 8}  # a factor of 4
METHODS = ("instructpix2pix", "pbe", "cyclenet")


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    return pbe_parts.write_tower(tmp_path_factory.mktemp("tower"))


def new(name: str, tower, **settings) -> PipelineMethod:
    """Return a method as its recipe builds it."""
    settings |= {"optimizer": partial(torch.optim.AdamW, lr=1e-2)}
    if name == "cyclenet":
        return cyclenet_parts.CycleNet(backbone=tiny.backbone(), **settings)
    if name == "pbe":
        return pbe_parts.PaintByExample(backbone=tiny.backbone(), encoder=str(tower), **settings)
    return instructpix2pix_parts.InstructPix2Pix(**{"backbone": tiny.backbone(), "solver": "ddim"} | settings)


def begun(made: PipelineMethod) -> PipelineMethod:
    """Make a method ready for its first batch."""
    torch.manual_seed(1)
    made.prepare_training()
    made.freeze_rest()
    made.train()
    made.stepper = Stepper(made, Plan(steps=9, batch_size=2))
    made.stepper.make_optimizers()
    return made


def trained(name: str, tower, **settings) -> PipelineMethod:
    """Return a method with low-rank layers after three steps."""
    made = begun(new(name, tower, **{"lora": LORA} | settings))
    torch.manual_seed(2)
    for _ in range(3):
        made.stepper.run(made.dummy_batch())
    return made


def predicted(unet: torch.nn.Module) -> torch.Tensor:
    unet = unet.eval()
    x = torch.randn(2, unet.config.in_channels, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return unet(x, 400, tiny.backbone().tokens(["a", "b"])).sample


# ------------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("name", METHODS)
def test_only_low_rank_and_new_layers_of_the_unet_learn(name, tower):
    made = begun(new(name, tower, lora=LORA))
    before = {key: tensor.clone() for key, tensor in made.backbone.unet.state_dict().items()}
    made.stepper.run(made.dummy_batch())
    made.stepper.run(made.dummy_batch())
    moved = {key for key, tensor in made.backbone.unet.state_dict().items() if not torch.equal(tensor, before[key])}
    low_rank = {key for key in before if ".lora_" in key}
    one_token = {key for key in low_rank if "attn2.to_q.lora_B" in key or "attn2.to_k.lora_B" in key}
    deaf = one_token if name == "pbe" else set()  # attention to a single token does not depend on queries and keys
    assert low_rank and moved | deaf == low_rank | (set() if name == "cyclenet" else {"conv_in.weight", "conv_in.bias"})
    assert all(key.startswith("up_blocks.") for key in low_rank) == (name == "cyclenet"), "its decoder alone"
    others = {"cyclenet": lambda: made.controlnet.parameters(), "pbe": lambda: made.backbone.image_encoder.learned()}
    beside = list(others.get(name, tuple)())
    assert sum(len(group) for group in made.stepper.parameters.values()) == len(moved | deaf) + len(beside)


def test_a_first_convolution_that_was_there_stays(tower):
    made = begun(new("instructpix2pix", tower, backbone=tiny.backbone(8), lora=LORA))
    assert all(".lora_" in name for name in made.trained_state())


def test_they_begin_by_adding_nothing():
    unet = tiny.unet()
    before = predicted(unet)
    add_lora(unet, Lora(**LORA))
    assert torch.equal(predicted(unet), before)


def test_a_checkpoint_holds_them_alone_and_goes_on_bit_for_bit(tower):
    made = trained("instructpix2pix", tower)
    weights = {name: tensor.clone() for name, tensor in made.trained_state().items()}
    assert all(".lora_" in name or ".conv_in." in name for name in weights)
    other = begun(new("instructpix2pix", tower, lora=LORA))
    other.load_trained(weights)
    other.stepper.load_state_dict(copy.deepcopy(made.stepper.state_dict()))
    for one in (made, other):
        torch.manual_seed(4)
        one.stepper.run(one.dummy_batch())
    assert all(torch.equal(tensor, other.trained_state()[name]) for name, tensor in made.trained_state().items())


# ------------------------------------------------------------------------------------------------------------- merging


@pytest.mark.parametrize(("targets", "within"), [(Lora.targets, ("",)), (["conv1", "proj_in"], ("up_blocks.",))])
def test_merged_it_is_what_it_was_apart(targets, within):
    """An easy wrong version adds B A without the factor alpha / rank."""
    unet = tiny.unet()
    plain = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    add_lora(unet, Lora(**LORA, targets=targets), within)
    torch.manual_seed(5)
    for name, parameter in unet.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    apart, whole = predicted(unet), merged(unet)
    assert has_lora(unet) and not has_lora(whole) and whole.state_dict().keys() == plain.keys()
    assert torch.allclose(predicted(whole), apart, atol=1e-5)
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            parameter.lerp_(plain[name], 0.75)  # a factor of 1 in place of 4
    assert not torch.allclose(predicted(whole), apart, atol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_an_export_is_whole_and_edits_without_peft(name, tower, tmp_path, monkeypatch):
    made = trained(name, tower)
    files = made.export(tmp_path)
    artefact = Artefact.load(files[0])
    assert artefact.card["lora"]["rank"] == 2 and artefact.card["backbone_digest"] == made.starts_from
    whole = begun(new(name, tower))
    assert artefact.tensors.keys() == Artefact.load(whole.export(tmp_path / "whole")[0]).tensors.keys(), "as without them"
    unet = type(made.backbone.unet).from_pretrained(tmp_path / "diffusers" / "unet", torch_dtype=torch.float32)
    assert torch.allclose(predicted(unet), predicted(made.backbone.unet), atol=5e-3), "in half precision"
    assert not torch.allclose(predicted(unet), predicted(whole.backbone.unet), atol=5e-2)
    monkeypatch.setitem(sys.modules, "peft", None)
    for other in (made, new(name, tower, lora=LORA), new(name, tower)):
        editor = other.editor([artefact])
        network = editor.network.denoiser if name == "cyclenet" else editor.backbone
        near = 2e-3 if name == "cyclenet" else 1e-6  # its frozen encoder stays in single precision here
        assert torch.allclose(predicted(network.unet), predicted(unet), atol=near)
    assert not (tmp_path / "whole" / "lora").exists()


# ----------------------------------------------------------------------------------------------------------- diffusers


def pipeline(backbone, folder=None) -> StableDiffusionInstructPix2PixPipeline:
    """Return diffusers' pipeline of a backbone's parts, with an adapter file if there is one."""
    parts = {name: getattr(backbone, name) for name in ("unet", "vae", "text_encoder", "tokenizer")}
    extra = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    made = StableDiffusionInstructPix2PixPipeline(**parts, **extra, scheduler=tiny.scheduler())
    if folder is not None:
        made.load_lora_weights(folder, weight_name=ADAPTER)
    return made


@pytest.mark.parametrize("channels", [4, 8])
def test_the_adapter_file_opens_in_diffusers(channels, tower, tmp_path):
    """Without the file's alpha diffusers takes the rank for it."""
    made = trained("instructpix2pix", tower, backbone=tiny.backbone(channels))
    made.export(tmp_path)
    start = new("instructpix2pix", tower, backbone=tiny.backbone(channels)).backbone
    assert (tmp_path / "lora" / WHOLE).exists() == (channels == 4)
    if channels == 4:
        assert not start.unet.load_state_dict(load_file(tmp_path / "lora" / WHOLE), strict=False).unexpected_keys
    pipe = pipeline(start, tmp_path / "lora")
    assert torch.allclose(predicted(pipe.unet), predicted(made.backbone.unet), atol=1e-5)
    pipe.unload_lora_weights()
    assert not torch.allclose(predicted(pipe.unet), predicted(made.backbone.unet), atol=1e-3)
    with safe_open(tmp_path / "lora" / ADAPTER, "pt") as file:
        assert all(name.startswith("unet.") and ".lora_" in name for name in file.keys())  # noqa: SIM118


# -------------------------------------------------------------------------------------------------- from a command line


def test_a_run_with_low_rank_layers(tmp_path, capsys):
    tiny.folder(tmp_path / "latent")
    write_vae(tmp_path / "latent" / "vae")
    arguments = [text for text in shrink("instructpix2pix", tmp_path) if not text.startswith("trainer.steps")]
    train = ["train", *arguments, "trainer.steps=2", f"run_dir={tmp_path / 'run'}", "trainer.ema=0.5"]
    assert cli.run([*train, "method.lora={rank: 2}"]) == 0
    export = sorted(str(path.relative_to(tmp_path / "run" / "export")) for path in (tmp_path / "run" / "export").glob("lora/*"))
    assert export == [f"lora/{ADAPTER}", f"lora/{WHOLE}"]
    (newest,) = (tmp_path / "run" / "checkpoints").glob("step-*2")
    names = [name for file in newest.glob("*.safetensors") for name in load_file(file)]
    assert any(".lora_" in name for name in names) and not any(".base_layer." in name for name in names)
    capsys.readouterr()
    assert cli.run([*train, "method.lora={rang: 2}", f"run_dir={tmp_path / 'other'}"]) == 2
    assert "method.lora has no 'rang'. Did you mean 'rank'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rang": 2}, "has no 'rang'. Did you mean 'rank'"),
        ({"rank": 0}, "rank=0 must be a whole number from 1 on"),
        ({"targets": "to_q"}, "targets=to_q must be a list"),
        ({"targets": []}, "must be a list"),
    ],
)
def test_settings_that_cannot_be_are_named(given, said):
    with pytest.raises(UsageError, match=said):
        Lora.of(given)


def test_what_is_missing_is_named(monkeypatch):
    with pytest.raises(UsageError, match=r"targets=\[to_z\] names no linear or convolutional layer"):
        add_lora(tiny.unet(), Lora(targets=["to_z"]))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"peft, which is not installed: pip install 'editkit\[lora\]'"):
        add_lora(tiny.unet(), Lora())


def test_without_a_word_there_are_none():
    assert Lora.of(None) is None and not has_lora(tiny.unet())
