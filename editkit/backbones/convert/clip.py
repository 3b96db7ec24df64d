"""OpenAI's CLIP (.pt, a TorchScript archive or a state dict) as a transformers CLIPModel folder with its tokenizer."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from editkit.backbones.clip import Preprocess
from editkit.backbones.convert.layout import Converted, Layout, Source
from editkit.errors import UserError

HEAD_CHANNELS = 64  # of every published CLIP
SPECIAL = ("<|startoftext|>", "<|endoftext|>")
VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"

_ENDS = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "logit_scale": "logit_scale",
}
_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_PROJECTIONS = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
_LEFT = ("input_resolution", "context_length", "vocab_size", "attn_mask")  # sizes and the causal mask, which are no weights


def convert(source: Source) -> Converted:
    """Return the folder: two towers in single precision, tokenizer, preprocessing.

    Raises:
        UserError: a CLIP with a residual network for images, a variant, or no vocabulary for the tokenizer.
    """
    model = to_model(source)
    about = f"the byte-pair vocabulary of the same publisher ({VOCABULARY})"
    vocabulary = source.companion("tokenizer", VOCABULARY, about)
    size = model.config.text_config.vocab_size
    tokenizer = tokenizer_of(read_merges(vocabulary, size), model.config.text_config.max_position_embeddings)
    if len(tokenizer) != size:
        raise UserError(f"{vocabulary} makes {len(tokenizer)} tokens but {source.name} has {size}: it is another vocabulary")
    vision = model.config.vision_config
    card = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "projection": model.config.projection_dim,
    }

    def write(folder: Path) -> None:
        model.config.architectures = ["CLIPModel"]
        model.config.save_pretrained(folder)
        save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save_pretrained(folder)
        write_preprocessor(folder, vision.image_size)

    return Converted(card, "method.clip.path={path}", write)


def to_model(source: Source) -> CLIPModel:
    """Return both towers; every size is that of the tensors."""
    if "visual.proj" not in source.tensors:
        raise UserError(f"{source.name} is a CLIP with a residual network for images; only those with a ViT can be converted")
    width, _, patch, _ = source.shape("visual.conv1.weight")
    positions, text_width = source.shape("visual.positional_embedding")[0], source.shape("ln_final.weight")[0]
    vocabulary, projection = source.shape("token_embedding.weight")[0], source.shape("text_projection")[1]
    vision = CLIPVisionConfig(
        **_tower(source, "visual.transformer", width),
        projection_dim=projection,
        image_size=patch * round((positions - 1) ** 0.5),
        patch_size=patch,
    )
    text = CLIPTextConfig(
        **_tower(source, "transformer", text_width),
        projection_dim=projection,
        vocab_size=vocabulary,
        max_position_embeddings=source.shape("positional_embedding")[0],
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,  # the highest id, where the text tower pools
        pad_token_id=vocabulary - 1,
    )
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=projection))
    try:
        model.load_state_dict(renamed(source.tensors))
    except RuntimeError as error:
        raise UserError(f"{source.name} is a CLIP that cannot be converted: {' '.join(str(error).split())[:200]}") from error
    return model.eval()


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by CLIPModel's names, the joint projections of the attention split, the last ones transposed."""
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        stem, _, kind = name.rpartition(".")
        layer = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)", name)
        if kind in _LEFT:
            continue
        if name in _PROJECTIONS:
            found[_PROJECTIONS[name]] = value.float().T.contiguous()
        elif layer is not None:
            home = f"{'vision' if layer[1] else 'text'}_model.encoder.layers.{layer[2]}"
            found |= _layer(home, layer[3], value.float())
        else:
            found[_ENDS.get(name) or f"{_ENDS.get(stem, stem)}.{kind}"] = value.float()
    return found


def write_preprocessor(folder: Path, size: int) -> None:
    """Write preprocessor_config.json: the shorter side to `size` pixels, the middle square, CLIP's mean and deviation."""
    constants = Preprocess(size, size)
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": constants.resize},
        "crop_size": {"height": constants.crop, "width": constants.crop},
        "image_mean": list(constants.mean),
        "image_std": list(constants.std),
        "resample": 3,  # bicubic
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")


def read_merges(path: Path, vocabulary: int) -> list[tuple[str, str]]:
    """Return the merges of OpenAI's vocabulary file that a model with so many tokens uses.

    Raises:
        UserError: the file is something else.
    """
    try:
        data = path.read_bytes()
        lines = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8").split("\n")
        wanted = lines[1 : 1 + vocabulary - 512 - len(SPECIAL)]
        return [(left, right) for left, right in (line.split() for line in wanted if line)]
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} is no byte-pair vocabulary: one merge of two parts a line is expected ({error})") from error


def tokenizer_of(merges: list[tuple[str, str]], length: int) -> CLIPTokenizer:
    """Return CLIP's tokenizer: ids are the bytes, the bytes that end a word, the merges, then start and end of a text."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(code) for code in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), *SPECIAL]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)


def _tower(source: Source, place: str, width: int) -> dict[str, Any]:
    layers = {found[1] for name in source.tensors if (found := re.match(rf"{re.escape(place)}\.resblocks\.(\d+)\.", name))}
    return {
        "hidden_size": width,
        "intermediate_size": source.shape(f"{place}.resblocks.0.mlp.c_fc.weight")[0],
        "num_hidden_layers": len(layers),
        "num_attention_heads": width // HEAD_CHANNELS,
        "hidden_act": "quick_gelu",
    }


def _layer(home: str, name: str, value: Tensor) -> dict[str, Tensor]:
    if name.startswith("attn.in_proj_"):
        kind = name.removeprefix("attn.in_proj_")
        return {f"{home}.self_attn.{part}_proj.{kind}": third for part, third in zip("qkv", value.chunk(3), strict=True)}
    stem, _, kind = name.rpartition(".")
    return {f"{home}.{_LAYER.get(stem, stem)}.{kind}": value}


SETTINGS = {"tokenizer": f"its vocabulary, if {VOCABULARY} does not lie beside it"}
MARKS = (("visual.conv1.weight", "token_embedding.weight", "ln_final.weight"),)
LAYOUT = Layout("clip", "OpenAI's CLIP .pt", MARKS, convert, SETTINGS)
