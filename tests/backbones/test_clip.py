"""The CLIP encoder against transformers' own processor and towers, on random weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from editkit.backbones.clip import load_clip
from editkit.errors import UserError

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def tiny_clip(folder, *, size=32, eos_first=False, eos_token_id=None, preprocessor=None):
    """Write a random CLIPModel with a tokenizer of single letters."""
    specials = ["<|startoftext|>", "<|endoftext|>"]
    words = [*LETTERS, *(f"{c}</w>" for c in LETTERS)]
    order = [*specials, *words] if eos_first else [*words, *specials]
    tokenizer = CLIPTokenizer(vocab={word: index for index, word in enumerate(order)}, merges=[])
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "projection_dim": 12}
    text = CLIPTextConfig(
        **tower,
        vocab_size=len(order),
        max_position_embeddings=24,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id if eos_token_id is None else eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(**tower, image_size=size, patch_size=8)
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=12)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return load_clip(tiny_clip(tmp_path_factory.mktemp("clip")))


def pictures(height=32, width=32, batch=2):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_embeddings_are_unit_vectors(clip):
    assert clip.image(pictures()).shape == (2, clip.dim)
    for embedding in (clip.image(pictures()), clip.text(["a face", "an angry face"])):
        assert torch.allclose(embedding.norm(dim=1), torch.ones(2), atol=1e-5)
    own = clip.projected(pictures())
    assert torch.allclose(torch.nn.functional.normalize(own, dim=1), clip.image(pictures()), atol=1e-6)
    assert not torch.allclose(own.norm(dim=1), torch.ones(2), atol=1e-2), "that has the network's own length"


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 64), (48, 80), (20, 20)])
def test_any_size_goes_in(clip, height, width):
    assert clip.preprocess(pictures(height, width)).shape == (2, 3, 32, 32)


def test_preprocessing_is_that_of_the_processor(tmp_path):
    """On a smooth picture, where the processor's rounding to bytes is all that may differ."""
    from transformers import CLIPImageProcessor

    size = {"shortest_edge": 32}
    processor = CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32})
    clip = load_clip(tiny_clip(tmp_path, preprocessor={"size": size, "crop_size": {"height": 32, "width": 32}}))
    ramp = np.linspace(0, 255, 96)[None, :, None] * np.linspace(0.3, 1, 64)[:, None, None]
    picture = np.repeat(ramp, 3, 2).astype(np.uint8)
    expected = torch.as_tensor(processor(Image.fromarray(picture), return_tensors="np")["pixel_values"])
    images = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
    assert torch.allclose(clip.preprocess(images), torch.as_tensor(expected), atol=0.05)


def test_constants_come_from_the_config(tmp_path):
    config = {"size": 32, "crop_size": 32, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    clip = load_clip(tiny_clip(tmp_path, preprocessor=config))
    assert torch.allclose(clip.preprocess(torch.ones(1, 3, 32, 32)), torch.full((1, 3, 32, 32), 2.0))


def test_nested_processor_config_of_newer_releases(tmp_path):
    folder = tiny_clip(tmp_path)
    (folder / "processor_config.json").write_text(
        json.dumps({"image_processor": {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}})
    )
    assert torch.allclose(load_clip(folder).preprocess(torch.ones(1, 3, 32, 32)), torch.ones(1, 3, 32, 32))


def test_gradients_reach_the_pixels_only(clip):
    x = pictures(48, 48).requires_grad_()
    clip.image(x)[:, 0].sum().backward()
    assert x.grad.abs().max() > 0
    assert all(p.grad is None for p in clip.parameters())


@torch.no_grad()
def test_text_is_pooled_at_its_end_whatever_the_padding(clip):
    alone = clip.text(["a face"])
    padded = clip.text(["a face", "a very long face here"])[:1]
    assert torch.allclose(alone, padded, atol=1e-5)
    assert not torch.allclose(alone, clip.text(["a fact"]), atol=1e-4)


def test_overlong_texts_are_cut(clip):
    assert clip.text(["a" * 100]).shape == (1, clip.dim)


def test_an_end_token_that_the_tower_would_miss_is_refused(tmp_path):
    """With eos_token_id 2 the tower pools at the largest id: here that is the letter z, not the end of the text."""
    with pytest.raises(UserError, match="pools at token"):
        load_clip(tiny_clip(tmp_path / "a", eos_first=True, eos_token_id=2))
    with pytest.raises(UserError, match="pools at token"):
        load_clip(tiny_clip(tmp_path / "b", eos_token_id=7))
    assert load_clip(tiny_clip(tmp_path / "c", eos_token_id=2)).dim == 12


def test_another_model_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="CLIPModel"):
        load_clip(tmp_path)
