"""Networks and data so small that any recipe can be built and trained in a test: random weights in the real layouts.

`shrink` turns a recipe into the overrides that make it tiny. It knows editkit's own loaders and data modules; what only
one recipe has, its header says in a comment of its own:

    # tiny: method.width=8 method.tables=null
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from editkit import recipe
from editkit.recipe_checks import missing, sections

SIDE = 16  # pixels
LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
LOADERS = {
    "editkit.backbones.pixel.load_pixel": "ddpm",
    "editkit.backbones.diffae.load_diffae": "diffae",
    "editkit.backbones.hdae.load_hdae": "hdae",
    "editkit.backbones.v_diffusion.load_v_diffusion": "v-diffusion",
    "editkit.backbones.latent_folder.load_latent": "latent",
    "editkit.backbones.clip.load_clip": "clip",
    "editkit.backbones.features.load_perceptual": "perceptual",
    "editkit.backbones.identity.load_identity": "identity",
}
TEXTS = {"prompt": "a smiling face", "source_prompt": "a face"}


def write_all(folder: Path) -> Path:
    """Write one of each network and a folder of pictures."""
    from tests.backbones import tiny_latent

    write_pixel(folder / "ddpm")
    write_v_diffusion(folder / "v-diffusion")
    write_diffae(folder)
    tiny_latent.folder(folder / "latent")
    tiny_latent.folder(folder / "inpainting", 9)
    write_clip(folder / "clip")
    write_features(folder)
    for name in ("latent", "inpainting"):
        write_vae(folder / name / "vae")
    write_texts(write_images(folder / "images"))
    write_labels(folder / "images")
    for domain in ("cat", "dog"):
        write_images(folder / "domains" / "train" / domain)
    return folder


def write_pixel(folder: Path) -> Path:
    """Write a UNet2DModel of 16 x 16 pixels with its scheduler."""
    from diffusers import DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    UNet2DModel(
        sample_size=SIDE,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=4,
        resnet_time_scale_shift="scale_shift",
    ).save_pretrained(folder / "unet")
    DDPMScheduler(prediction_type="v_prediction", clip_sample=False).save_pretrained(folder / "scheduler")
    return folder


def write_v_diffusion(folder: Path) -> Path:
    """Write a network of v-diffusion of 16 x 16 pixels that reads the embeddings of `write_clip`'s texts."""
    from editkit.backbones.v_diffusion import VDiffusionNet

    torch.manual_seed(0)
    network = {"channels": [8, 8, 16], "blocks": 1, "attended": 2, "head_channels": 8, "embedding": 16, "mapped": 16}
    return VDiffusionNet(sample_size=SIDE, **network).save(folder)


def write_diffae(folder: Path) -> None:
    """Write a diffusion autoencoder of 16 x 16 pixels, and what is trained over its codes."""
    from editkit.backbones.diffae import DiffusionAutoencoder
    from editkit.backbones.hdae import HierarchicalAutoencoder
    from editkit.backbones.semantic_codes import AttributeClassifier, LatentDDIM

    torch.manual_seed(0)
    sizes = {"channels": (8, 16), "encoder_channels": (8, 16, 16), "attended": (8,), "blocks": 1, "groups": 4}
    net = DiffusionAutoencoder(sample_size=SIDE, code=12, embedding=16, **sizes)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # half of it starts at zero
    net.save(folder / "diffae")
    torch.manual_seed(0)
    levels = HierarchicalAutoencoder(sample_size=SIDE, code=12, embedding=16, **sizes)
    for parameter in levels.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    levels.save(folder / "hdae")
    LatentDDIM(dim=12, width=16, layers=3).save(folder / "prior")
    AttributeClassifier(attributes=["smiling", "mouth"], dim=12).save(folder / "classifier")
    AttributeClassifier(attributes=["smiling", "mouth"], dim=24, parts=["8", "16"]).save(folder / "directions")


def write_clip(folder: Path) -> Path:
    """Write a CLIPModel for 16 x 16 pixels whose tokenizer spells."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

    torch.manual_seed(0)
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: index for index, word in enumerate(words)}, merges=[])
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "projection_dim": 16}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.eos_token_id}
    text = CLIPTextConfig(**tower, **ids, vocab_size=len(words), max_position_embeddings=77)
    vision = CLIPVisionConfig(**tower, image_size=SIDE, patch_size=8)
    CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_vae(folder: Path) -> Path:
    """Write an AutoencoderKL that makes 4 x 4 latents of 16 x 16 pixels."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIDE,
    ).save_pretrained(folder)
    return folder


def write_features(folder: Path) -> None:
    """Write a perceptual, an identity and an oracle network."""
    from editkit.backbones.features import PerceptualNet
    from editkit.backbones.identity import IdentityNet
    from editkit.data.toyworld.faces import CATEGORICAL, CONTINUOUS
    from editkit.metrics.oracle import Oracle

    torch.manual_seed(0)
    PerceptualNet(channels=(8, 16, 16)).save(folder / "perceptual")
    IdentityNet(channels=(8, 16, 16), dim=8, image_size=SIDE).save(folder / "identity")
    Oracle(CATEGORICAL, CONTINUOUS).save(folder / "oracle")


def write_images(folder: Path, count: int = 8, side: int = SIDE) -> Path:
    """Write pictures as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return folder


def write_texts(folder: Path) -> None:
    """Write a metadata.jsonl with a source and a target text and an attribute for each picture."""
    texts = {"source": "a face", "target": "a smiling face", "factors": {"Smiling": 1}}
    lines = [json.dumps({"file_name": path.name, **texts}) for path in sorted(folder.glob("*.png"))]
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")


def write_labels(folder: Path) -> None:
    """Write a map of two parts for each picture."""
    from editkit.data.label_map import indexed

    (folder / "labels").mkdir()
    for path in sorted(folder.glob("*.png")):
        indexed((np.asarray(Image.open(path).convert("L")) > 127).astype(np.uint8)).save(folder / "labels" / path.name)


def shrink(name: str, folder: Path) -> list[str]:
    """Return the overrides that make a recipe tiny, `recipe=name` first; `folder` is that of `write_all`."""
    plain = OmegaConf.to_container(recipe.compose([f"recipe={name}"]))
    assert isinstance(plain, dict)
    changes: dict[str, Any] = {}
    for place, section in sections(plain):
        if section["_target_"] in LOADERS:
            model = "inpainting" if "inpainting" in str(section.get("path")) else LOADERS[section["_target_"]]
            changes[f"{place}.path"] = folder / model
    changes |= {place: folder / value.rpartition("-")[2] for place, value in _bundled(plain) if place not in changes}
    if str(plain["method"].get("encoder")).startswith("openai/"):  # an image encoder's CLIP folder
        changes["method.encoder"] = folder / "clip"
    if isinstance(plain["method"].get("classifier"), str) and "method.classifier" not in changes:
        many = "hdae" in plain["backbone"]["_target_"]
        changes["method.classifier"] = folder / ("directions" if many else "classifier")
    if "models" in plain["method"]:  # of two domains
        changes["method.models"] = f"[{folder / 'ddpm'},{folder / 'ddpm'}]"
    sizes = {"train": 8, "validation": 8, "test": 8, "size": SIDE}
    for place, data in (("data", plain["data"]), ("data.inner", plain["data"].get("inner", {}))):
        changes |= {f"{place}.{key}": value for key, value in sizes.items() if key in data}
    for place, data in (("data", plain["data"]), ("data.inner", plain["data"].get("inner", {}))):
        folders = {"root": "domains" if "domains" in data else "images", "cache_dir": "cache"}
        changes |= {f"{place}.{key}": folder / home for key, home in folders.items() if data.get(key) is not None}
    changes |= {f"method.{key}": f"'{TEXTS[key]}'" for key in TEXTS if f"method.{key}" in missing(plain)}
    changes |= {"trainer.steps": 8, "trainer.images": "null", "trainer.batch_size": 2, "trainer.accumulate": 1}
    changes |= {"trainer.devices": 1, "trainer.num_nodes": 1, "trainer.num_workers": 0, "trainer.accelerator": "cpu"}
    changes |= {"trainer.sample_every": 0, "trainer.log_every": 1}
    text = recipe.recipe_file(name).read_text(encoding="utf-8")
    own = [word for line in re.findall(r"^# tiny: (.*)$", text, flags=re.MULTILINE) for word in line.split()]
    changes |= dict(word.split("=", 1) for word in own)
    return [f"recipe={name}", *(f"{key}={value}" for key, value in changes.items())]


def _bundled(node: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, name) of every bundled network that a configuration names, outside its card."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if where or key != "card":
                yield from _bundled(value, f"{where}.{key}".lstrip("."))
    elif isinstance(node, str) and node.startswith("editkit:"):
        yield where, node


def request(key: str = "a.png", **changes: Any) -> Any:
    """Return a request with every input that an editor could need."""
    from editkit.types import EditRequest

    noise = torch.Generator().manual_seed(len(key))
    picture = torch.rand(3, SIDE, SIDE, generator=noise) * 2 - 1
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, 4:12, 4:12] = 1
    given = {
        "image": picture,
        "mask": mask,
        "references": [picture.flip(2)],
        "reference_masks": [mask],
        "prompt": TEXTS["prompt"],
        "source_prompt": TEXTS["source_prompt"],
        "instruction": "make it smile",
        "sketch": picture.mean(0, keepdim=True),
        "segmentation": mask,
        "stroke": picture,
        "box": (4.0, 4.0, 12.0, 12.0),
        "labels": "mouth",
        "example_before": picture,
        "example_after": picture.flip(2),
        "steps": 4,
    }
    return EditRequest(key, **{**given, **changes})
