"""Small latent diffusion models, and their tensors by the names of LDM's files: diffusers' modules walked in running order."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig

LENGTH, MERGES = 12, ["a b", "ab c</w>", "e f", "ef g</w>"]
VOCABULARY = 512 + len(MERGES) + 2
_RESNET = [
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
]


def lively(net, seed=0):
    """Fill a network with values that make every detail count."""
    generator = torch.Generator().manual_seed(seed)
    for value in net.parameters():
        spread = 0.2 if value.ndim == 1 else value[0].numel() ** -0.5
        around = 1.0 if value.ndim == 1 and torch.all(value == 1) else 0.0
        value.data = around + spread * torch.randn(value.shape, generator=generator)
    return net.eval()


def shape(channels, second):
    """Return what UNet and ControlNet share, of SD 1.x or (`second`) 2.x."""
    return {
        "in_channels": channels,
        "block_out_channels": (64, 128) if second else (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "cross_attention_dim": 128 if second else 64,
        "attention_head_dim": (1, 2) if second else 8,
        "use_linear_projection": second,
    }


def small_unet(channels=4, second=False):
    ups = ("UpBlock2D", "CrossAttnUpBlock2D")
    return lively(UNet2DConditionModel(sample_size=8, up_block_types=ups, **shape(channels, second)))


def small_controlnet(second=False):
    return lively(ControlNetModel(conditioning_embedding_out_channels=(16, 24), **shape(4, second)), 1)


def small_vae():
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return lively(AutoencoderKL(block_out_channels=(32, 64), latent_channels=4, layers_per_block=1, **kinds), 2)


def small_text(second=False):
    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=128 if second else 64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2 if second else 1,
        max_position_embeddings=LENGTH,
        hidden_act="gelu" if second else "quick_gelu",
        bos_token_id=VOCABULARY - 2,
        eos_token_id=VOCABULARY - 1,
    )
    return lively(CLIPTextModel(config), 3)


def small_vision():
    return CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=96,
        num_hidden_layers=10,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        projection_dim=64,
        hidden_act="quick_gelu",
    )


def unet_tensors(net):
    """Return the tensors of a UNet, or of the half of it in a ControlNet, by the names of openaimodel.py."""
    found = {}

    def put(place, module, names=()):
        for key, value in module.state_dict().items():
            for ours, theirs in names:
                key = key.replace(f"{ours}.", f"{theirs}.") if key.startswith(f"{ours}.") else key
            found[f"{place}.{key}"] = value

    def level(block):
        return zip(block.resnets, getattr(block, "attentions", None) or [None] * len(block.resnets), strict=True)

    put("time_embed.0", net.time_embedding.linear_1)
    put("time_embed.2", net.time_embedding.linear_2)
    put("input_blocks.0.0", net.conv_in)
    n = 1
    for block in net.down_blocks:
        for resnet, attention in level(block):
            put(f"input_blocks.{n}.0", resnet, _RESNET)
            if attention is not None:
                put(f"input_blocks.{n}.1", attention)
            n += 1
        for sampler in block.downsamplers or ():
            put(f"input_blocks.{n}.0.op", sampler.conv)
            n += 1
    put("middle_block.0", net.mid_block.resnets[0], _RESNET)
    put("middle_block.1", net.mid_block.attentions[0])
    put("middle_block.2", net.mid_block.resnets[1], _RESNET)
    n = 0
    for block in getattr(net, "up_blocks", ()):
        for number, (resnet, attention) in enumerate(level(block)):
            put(f"output_blocks.{n}.0", resnet, _RESNET)
            if attention is not None:
                put(f"output_blocks.{n}.1", attention)
            if block.upsamplers and number == len(block.resnets) - 1:
                put(f"output_blocks.{n}.{1 if attention is None else 2}.conv", block.upsamplers[0].conv)
            n += 1
    if hasattr(net, "conv_out"):
        put("out.0", net.conv_norm_out)
        put("out.2", net.conv_out)
    return found


def controlnet_tensors(net):
    """Return the tensors of a ControlNet by the names of cldm.py."""
    found = unet_tensors(net)
    hint = net.controlnet_cond_embedding
    parts = {f"input_hint_block.{2 * n}": part for n, part in enumerate([hint.conv_in, *hint.blocks, hint.conv_out])}
    parts |= {f"zero_convs.{n}.0": part for n, part in enumerate(net.controlnet_down_blocks)}
    parts["middle_block_out.0"] = net.controlnet_mid_block
    return found | {f"{place}.{key}": value for place, part in parts.items() for key, value in part.state_dict().items()}


def vae_tensors(vae):
    """Return the tensors of an autoencoder by the names of LDM's model.py: levels by resolution, attention by 1x1 filters."""
    found = {}

    def put(place, module):
        for key, value in module.state_dict().items():
            found[f"{place}.{key.replace('conv_shortcut', 'nin_shortcut')}"] = value

    for half, way, blocks in (
        (vae.encoder, "encoder.down", vae.encoder.down_blocks),
        (vae.decoder, "decoder.up", list(reversed(vae.decoder.up_blocks))),
    ):
        home = way.partition(".")[0]
        for number, block in enumerate(blocks):
            for n, resnet in enumerate(block.resnets):
                put(f"{way}.{number}.block.{n}", resnet)
            for sampler in getattr(block, "downsamplers", None) or getattr(block, "upsamplers", None) or ():
                put(f"{way}.{number}.{way.partition('.')[2]}sample.conv", sampler.conv)
        middle, attention = half.mid_block, half.mid_block.attentions[0]
        put(f"{home}.mid.block_1", middle.resnets[0])
        put(f"{home}.mid.block_2", middle.resnets[1])
        put(f"{home}.mid.attn_1.norm", attention.group_norm)
        layers = {"q": attention.to_q, "k": attention.to_k, "v": attention.to_v, "proj_out": attention.to_out[0]}
        for name, layer in layers.items():
            found[f"{home}.mid.attn_1.{name}.weight"] = layer.weight.detach()[:, :, None, None]
            found[f"{home}.mid.attn_1.{name}.bias"] = layer.bias.detach()
        put(f"{home}.conv_in", half.conv_in)
        put(f"{home}.norm_out", half.conv_norm_out)
        put(f"{home}.conv_out", half.conv_out)
    put("quant_conv", vae.quant_conv)
    put("post_quant_conv", vae.post_quant_conv)
    return found


def plain(model, inner):
    """Return a tower's tensors without the prefix that releases of transformers differ in."""
    return {key.replace(inner, "", 1): value for key, value in model.state_dict().items()}


def open_clip_tensors(tower):
    """Return a text tower's tensors by OpenCLIP's names, with the last layer that LDM leaves unused."""
    own = plain(tower, "text_model.")
    found = {
        "token_embedding.weight": own["embeddings.token_embedding.weight"],
        "positional_embedding": own["embeddings.position_embedding.weight"],
        "ln_final.weight": own["final_layer_norm.weight"],
        "ln_final.bias": own["final_layer_norm.bias"],
        "text_projection": torch.ones(128, 32),
        "logit_scale": torch.ones([]),
    }
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    for n, kind in ((n, kind) for n in (0, 1) for kind in ("weight", "bias")):
        here, there = f"encoder.layers.{n}", f"transformer.resblocks.{n}"
        found[f"{there}.attn.in_proj_{kind}"] = torch.cat([own[f"{here}.self_attn.{x}_proj.{kind}"] for x in "qkv"])
        found[f"{there}.attn.out_proj.{kind}"] = own[f"{here}.self_attn.out_proj.{kind}"]
        found |= {f"{there}.{new}.{kind}": own[f"{here}.{old}.{kind}"] for old, new in names.items()}
    last = {key.replace(".1.", ".2."): torch.ones_like(value) for key, value in found.items() if "resblocks.1." in key}
    return found | last


def image_encoder_tensors(encoder):
    """Return the tensors of diffusers' PaintByExampleImageEncoder by the names of Paint by Example's checkpoint."""
    state = plain(encoder, "vision_model.")
    found = {"learnable_vector": state.pop("uncond_vector")}
    found |= {key: state.pop(key) for key in ("proj_out.weight", "proj_out.bias")}
    home = "cond_stage_model.mapper.resblocks"
    for n, kind in ((n, kind) for n in range(len(encoder.mapper.blocks)) for kind in ("weight", "bias")):
        block = f"mapper.blocks.{n}"
        found[f"{home}.{n}.attn.c_qkv.{kind}"] = torch.cat([state.pop(f"{block}.attn1.to_{letter}.{kind}") for letter in "qkv"])
        found[f"{home}.{n}.attn.c_proj.{kind}"] = state.pop(f"{block}.attn1.to_out.0.{kind}")
        found[f"{home}.{n}.ln_1.{kind}"] = state.pop(f"{block}.norm1.{kind}")
        found[f"{home}.{n}.ln_2.{kind}"] = state.pop(f"{block}.norm3.{kind}")
        found[f"{home}.{n}.mlp.c_fc.{kind}"] = state.pop(f"{block}.ff.net.0.proj.{kind}")
        found[f"{home}.{n}.mlp.c_proj.{kind}"] = state.pop(f"{block}.ff.net.2.{kind}")
    for key, value in state.items():
        stem = "transformer.vision_model." if key.startswith("model.") else "final_ln."
        found[f"cond_stage_model.{stem}{key.removeprefix('model.').removeprefix('final_layer_norm.')}"] = value
    return found


def under(prefix, tensors):
    return {prefix + key: value for key, value in tensors.items()}


def checkpoint(unet, vae, condition, second=False):
    """Return a whole file's tensors; `condition` is a text tower, or the tensors of what stands in its place."""
    found = under("model.diffusion_model.", unet_tensors(unet)) | under("first_stage_model.", vae_tensors(vae))
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    found |= {"betas": betas.float(), "alphas_cumprod": (1 - betas).cumprod(0).float()}
    if isinstance(condition, dict):
        return found | condition
    if second:
        return found | under("cond_stage_model.model.", open_clip_tensors(condition))
    home = "cond_stage_model.transformer.text_model."
    found[f"{home}embeddings.position_ids"] = torch.arange(LENGTH)[None]
    return found | under(home, plain(condition, "text_model."))


def averaged(unet):
    """Return an average of a UNet's weights as LDM's ema.py names it."""
    average = small_unet(unet.config.in_channels)
    flat = {key.replace(".", ""): value + 0.5 for key, value in under("diffusion_model.", unet_tensors(average)).items()}
    return under("model_ema.", flat | {"decay": torch.tensor(0.9999), "num_updates": torch.tensor(7)})
