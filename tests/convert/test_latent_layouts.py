"""Single files of latent diffusion: converted, they are the networks that diffusers' own modules of these tensors are."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from diffusers.pipelines.deprecated.paint_by_example.image_encoder import PaintByExampleImageEncoder
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPTextModel

from editkit.app.convert import ConvertOptions, convert
from editkit.backbones.convert.clip import VOCABULARY as BPE
from editkit.backbones.convert.layout import Source
from editkit.backbones.convert.ldm import to_unet, to_vae
from editkit.errors import UsageError, UserError
from tests.convert import latent

KINDS = {  # channels, whether 2.x, file, pipeline, scheduler, prediction, size
    "1.x": (4, False, "sd-v1-4.ckpt", "StableDiffusionPipeline", "DDIMScheduler", "epsilon", 512),
    "inpainting": (9, False, "inpaint.ckpt", "StableDiffusionInpaintPipeline", "DDIMScheduler", "epsilon", 512),
    "InstructPix2Pix": (
        8,
        False,
        "ip2p.ckpt",
        "StableDiffusionInstructPix2PixPipeline",
        "EulerAncestralDiscreteScheduler",
        "epsilon",
        512,
    ),
    "2.1-base": (4, True, "v2-1_512-ema-pruned.ckpt", "StableDiffusionPipeline", "DDIMScheduler", "epsilon", 512),
    "2.1-v": (4, True, "v2-1_768-ema-pruned.ckpt", "StableDiffusionPipeline", "DDIMScheduler", "v_prediction", 768),
    "2.x inpainting": (9, True, "2inpaint.ckpt", "StableDiffusionInpaintPipeline", "DDIMScheduler", "epsilon", 512),
}


@pytest.fixture(scope="module")
def vae():
    return latent.small_vae()


@pytest.fixture(scope="module")
def texts():
    return {second: latent.small_text(second) for second in (False, True)}


def options(path, *settings, **more):
    return ConvertOptions(source=path, settings=list(settings), **more)


def written(folder, name, tensors, *, vocabulary=True):
    """Write a Lightning checkpoint, and beside it a vocabulary as OpenAI publishes it."""
    path = folder / name
    torch.save({"epoch": 1, "global_step": 470000, "state_dict": tensors}, path)
    if vocabulary:
        (folder / BPE).write_bytes(gzip.compress("\n".join(["#version: 0.2", *latent.MERGES]).encode()))
    return path


def config(folder, part, file="config.json"):
    return json.loads((folder / part / file).read_text())


def same(module, expected):
    found, wanted = module.state_dict(), expected.state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


@torch.no_grad()
def same_answers(found, unet):
    x, context = torch.randn(2, unet.config.in_channels, 8, 8), torch.randn(2, 5, unet.config.cross_attention_dim)
    times = torch.tensor([3, 801])
    assert (found(x, times, context).sample - unet(x, times, context).sample).abs().max() < 1e-5


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_a_file_becomes_the_pipeline_that_diffusers_opens(tmp_path, vae, texts, name):
    channels, second, file, pipeline, scheduler, prediction, size = KINDS[name]
    unet = latent.small_unet(channels, second)
    path, told = convert(options(written(tmp_path, file, latent.checkpoint(unet, vae, texts[second], second))))
    pipe = getattr(diffusers, pipeline).from_pretrained(path, local_files_only=True)
    assert type(pipe).__name__ == pipeline and config(path, ".", "model_index.json")["_class_name"] == pipeline
    same(pipe.unet, unet)
    same(pipe.vae, vae)
    same(pipe.text_encoder, texts[second])
    same_answers(pipe.unet, unet)
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    assert torch.allclose(pipe.vae.encode(images).latent_dist.mean, vae.encode(images).latent_dist.mean, atol=1e-5)
    latents = torch.randn(1, 4, 8, 8)
    assert torch.allclose(pipe.vae.decode(latents).sample, vae.decode(latents).sample, atol=1e-5)
    tokens = pipe.tokenizer("ab ab", padding="max_length", return_tensors="pt").input_ids
    assert tokens.shape == (1, latent.LENGTH)
    assert torch.allclose(pipe.text_encoder(tokens)[0], texts[second](tokens)[0], atol=1e-5)
    assert tokens[0, -1] == (0 if second else latent.VOCABULARY - 1), "OpenCLIP pads with 0, OpenAI's CLIP with the end"
    said = pipe.scheduler.config
    assert type(pipe.scheduler).__name__ == scheduler and said.prediction_type == prediction
    assert (said.beta_start, said.beta_end, said.beta_schedule) == (0.00085, 0.012, "scaled_linear")
    if scheduler != "EulerAncestralDiscreteScheduler":
        assert said.steps_offset == 1 and said.set_alpha_to_one is False and said.clip_sample is False
    assert pipe.unet.config.sample_size == size // 8 and pipe.vae.config.sample_size == size
    assert pipe.vae.config.scaling_factor == 0.18215
    assert config(path, "text_encoder")["hidden_act"] == ("gelu" if second else "quick_gelu")
    card = json.loads((path / "card.json").read_text())
    assert card["source"]["file"] == file and card["prediction"] == prediction and card["companions"][0]["file"] == BPE
    assert not any("left out" in line for line in told)


@pytest.mark.parametrize("wrong", [{"attention_head_dim": 4}, {"norm_eps": 1e-6}, {"flip_sin_to_cos": False}])
@torch.no_grad()
def test_the_comparison_tells_a_network_that_is_wrong_in_one_detail(wrong):
    unet = latent.small_unet()
    other = UNet2DConditionModel(**(dict(unet.config) | wrong))
    other.load_state_dict(unet.state_dict())
    with pytest.raises(AssertionError):
        same_answers(other.eval(), unet)


def test_of_two_sets_of_weights_the_average_is_taken(tmp_path, vae, texts):
    unet = latent.small_unet(8)
    tensors = latent.checkpoint(unet, vae, texts[False]) | latent.averaged(unet)
    source = written(tmp_path, "ip2p.ckpt", tensors)
    path, told = convert(options(source))
    found = UNet2DConditionModel.from_pretrained(path / "unet").state_dict()
    assert all(torch.equal(found[key], value + 0.5) for key, value in unet.state_dict().items())
    assert json.loads((path / "card.json").read_text())["weights"] == "ema" and "weights ema" in told[0]
    raw, _ = convert(options(source, "weights=raw", output=tmp_path / "raw"))
    same(UNet2DConditionModel.from_pretrained(raw / "unet"), unet)
    with pytest.raises(UsageError, match="weights=mean is not to be had: choose ema or raw"):
        convert(options(source, "weights=mean", output=tmp_path / "x"))
    del tensors["model_ema.diffusion_modelout2bias"]
    with pytest.raises(UserError, match=r"lacks model_ema\.diffusion_modelout2bias"):
        convert(options(written(tmp_path, "cut.ckpt", tensors)))


def test_what_sd2_predicts_is_not_guessed(tmp_path, vae, texts):
    source = written(tmp_path, "mine.ckpt", latent.checkpoint(latent.small_unet(4, True), vae, texts[True], True))
    with pytest.raises(UsageError, match=r"add prediction=epsilon .* or prediction=v_prediction") as caught:
        convert(options(source))
    assert "\n" not in str(caught.value)
    path, _ = convert(options(source, "prediction=v_prediction", "size=512"))
    assert config(path, "scheduler", "scheduler_config.json")["prediction_type"] == "v_prediction"
    assert config(path, "unet")["sample_size"] == 64
    with pytest.raises(UsageError, match="prediction=v is unknown"):
        convert(options(source, "prediction=v", output=tmp_path / "x"))


def test_without_a_vocabulary_the_folder_has_no_tokenizer_and_says_how_to_add_it(tmp_path, vae, texts):
    tensors = latent.checkpoint(latent.small_unet(), vae, texts[False])
    source = written(tmp_path, "a.safetensors", {}, vocabulary=False)
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, source)
    path, told = convert(options(source))
    assert sum("no tokenizer/" in line and "tokenizer=PATH" in line for line in told) == 1
    assert not (path / "tokenizer").exists() and config(path, ".", "model_index.json")["tokenizer"] == [None, None]
    with_one, _ = convert(options(written(tmp_path, "b.ckpt", tensors)))
    given, told = convert(options(source, f"tokenizer={with_one / 'tokenizer'}", force=True))
    assert (given / "tokenizer").is_dir() and not any("tokenizer=" in line for line in told)
    with pytest.raises(UserError, match="no folder of a CLIP tokenizer"):
        convert(options(source, f"tokenizer={with_one / 'vae'}", force=True))


def test_what_does_not_fit_is_one_line(tmp_path, vae, texts):
    whole = latent.checkpoint(latent.small_unet(), vae, texts[False])
    first = "model.diffusion_model.input_blocks.0.0.weight"
    for change, message in [
        (
            {"model.diffusion_model.middle_block.0.in_layers.2.bias": None},
            r"mid_block\.resnets\.0\.conv1\.bias, which is missing",
        ),
        (
            {"model.diffusion_model.label_emb.0.0.weight": torch.ones(1)},
            r"label_emb\.0\.0\.weight, which is \(1,\) and should be unk",
        ),
        ({"first_stage_model.encoder.conv_out.bias": None}, r"encoder\.conv_out\.bias, which is missing"),
        ({"cond_stage_model.transformer.text_model.final_layer_norm.bias": None}, r"final_layer_norm\.bias, which is missing"),
        ({key: None for key in whole if key.startswith("first_stage_model.")}, r"no tensors first_stage_model\.\*"),
        ({first: torch.ones(32, 5, 3, 3)}, "takes 5 channels: only 4 .*8 .*9 "),
        ({"betas": torch.linspace(1e-4, 0.02, 1000)}, "other betas than Stable Diffusion"),
    ]:
        tensors = {key: value for key, value in (whole | change).items() if value is not None}
        with pytest.raises(UserError, match=message) as caught:
            convert(options(written(tmp_path, "odd.ckpt", tensors)))
        assert "\n" not in str(caught.value) and not (tmp_path / "odd").exists()
    _, told = convert(options(written(tmp_path, "more.ckpt", whole | {"lora.weight": torch.ones(1)})))
    assert sum("1 tensors that are no part of it are left out, such as lora.weight" in line for line in told) == 1


@torch.no_grad()
def test_paint_by_example(tmp_path, vae):
    encoder = latent.lively(PaintByExampleImageEncoder(latent.small_vision()), 4)
    unet = latent.small_unet(9)
    tensors = latent.checkpoint(unet, vae, latent.image_encoder_tensors(encoder))
    path, told = convert(options(written(tmp_path, "model.ckpt", tensors)))
    assert told[0].startswith("pbe: model Paint by Example") and not any("left out" in line for line in told)
    found = PaintByExampleImageEncoder.from_pretrained(path / "image_encoder")
    same(found, encoder)
    pixels = torch.randn(2, 3, 28, 28)
    for ours, theirs in zip(found(pixels, return_uncond_vector=True), encoder(pixels, return_uncond_vector=True), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    same(UNet2DConditionModel.from_pretrained(path / "unet"), unet)
    same(AutoencoderKL.from_pretrained(path / "vae"), vae)
    assert CLIPImageProcessor.from_pretrained(path / "feature_extractor").crop_size == {"height": 28, "width": 28}
    index, names = config(path, ".", "model_index.json"), load_file(path / "image_encoder" / "model.safetensors")
    assert index["image_encoder"] == ["paint_by_example", "PaintByExampleImageEncoder"]
    assert index["_class_name"] == "PaintByExamplePipeline" and index["scheduler"][1] == "PNDMScheduler"
    assert "model.vision_model.embeddings.class_embedding" in names and "text_encoder" not in index
    said = config(path, "scheduler", "scheduler_config.json")
    assert said["steps_offset"] == 1 and said["set_alpha_to_one"] is False and said["skip_prk_steps"] is True
    tensors["cond_stage_model.mapper.resblocks.0.attn.c_qkv.bias"] = torch.ones(3)
    with pytest.raises(UserError, match=r"mapper\.blocks\.0\.attn1\.to_k\.bias, which is \(1,\)"):
        convert(options(written(tmp_path, "odd.ckpt", tensors)))


@torch.no_grad()
def test_a_controlnet_alone_is_a_folder_of_its_own(tmp_path):
    net = latent.small_controlnet()
    path, told = convert(
        options(written(tmp_path, "control.pth", latent.under("control_model.", latent.controlnet_tensors(net))))
    )
    found = ControlNetModel.from_pretrained(path)
    same(found, net)
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([9]), torch.randn(1, 5, 64), torch.rand(1, 3, 16, 16)
    for ours, theirs in zip(found(*inputs).down_block_res_samples, net(*inputs).down_block_res_samples, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert f"ControlNetModel.from_pretrained('{path}')" in told[-1]


def test_a_controlnet_with_its_base_and_cyclenet(tmp_path, vae, texts):
    net, unet = latent.small_controlnet(True), latent.small_unet(4, True)
    tensors = latent.checkpoint(unet, vae, texts[True], True) | latent.under("control_model.", latent.controlnet_tensors(net))
    source = written(tmp_path, "cycle_sd21.ckpt", tensors)
    with pytest.raises(UsageError, match="add prediction="):
        convert(options(source))
    made, told = convert(options(source, layout="cyclenet", output=tmp_path / "cycle"))
    assert "model CycleNet" in told[0] and any("source prompt" in line for line in told)
    assert not any("left out" in line for line in told)
    pipe = diffusers.StableDiffusionControlNetPipeline.from_pretrained(made, local_files_only=True)
    same(pipe.controlnet, net)
    same(pipe.unet, unet)
    assert pipe.scheduler.config.prediction_type == "epsilon" and isinstance(pipe.text_encoder, CLIPTextModel)
    other, told = convert(options(source, "prediction=epsilon", output=tmp_path / "control"))
    assert "controlnet: model ControlNet" in told[0] and not any("source prompt" in line for line in told)
    same(ControlNetModel.from_pretrained(other / "controlnet"), net)


@pytest.mark.parametrize("second", [False, True])
def test_published_sizes_fit(second):
    levels = {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 1024 if second else 768}
    heads = {"attention_head_dim": (5, 10, 20, 20) if second else 8, "use_linear_projection": second}
    with torch.device("meta"):
        published = UNet2DConditionModel(**levels, **heads)
        widths = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
        kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        autoencoder = AutoencoderKL(**widths, **kinds)
    unet = to_unet(Source(Path("sd.ckpt"), latent.unet_tensors(published)), sample_size=64)
    assert sum(p.numel() for p in unet.parameters()) == (865_910_724 if second else 859_520_964)
    assert unet.config.attention_head_dim == heads["attention_head_dim"]
    vae = to_vae(Source(Path("sd.ckpt"), latent.vae_tensors(autoencoder)), sample_size=512)
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863
