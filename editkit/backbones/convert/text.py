"""Text towers of latent diffusion as a transformers CLIPTextModel: OpenAI's of SD 1.x, OpenCLIP's of SD 2.x."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from editkit.backbones.convert import clip
from editkit.backbones.convert.exact import load_exactly
from editkit.backbones.convert.layout import Source
from editkit.backbones.convert.ldm import part
from editkit.errors import UserError

TOWER, OPEN_TOWER = "cond_stage_model.transformer.text_model.", "cond_stage_model.model."
# Weights whose shapes say what a tower is: of its tokens, of a block's MLP, of its positions.
OPENAI_SHAPES = ("embeddings.token_embedding.weight", "encoder.layers.0.mlp.fc1.weight", "embeddings.position_embedding.weight")
OPEN_SHAPES = ("token_embedding.weight", "transformer.resblocks.0.mlp.c_fc.weight", "positional_embedding")
INNER = "text_model."  # in published files; transformers may leave it out in memory
VOCABULARY = clip.VOCABULARY
NO_TOKENIZER = (
    f"there is no tokenizer/ in it, because a checkpoint holds none: convert again with tokenizer=PATH, the folder of a "
    f"CLIP tokenizer or OpenAI's {VOCABULARY} (`editkit weights fetch` brings it with every Stable Diffusion)"
)


def to_text_encoder(source: Source) -> CLIPTextModel:
    """Return the tower of a whole checkpoint: all layers of OpenAI's, all but the last of OpenCLIP's (LDM's "penultimate").

    Raises:
        UserError: a variant that cannot be converted.
    """
    if any(name.startswith(OPEN_TOWER) for name in source.tensors):
        return _open_clip(part(source, OPEN_TOWER))
    tower = part(source, TOWER)
    tensors = {name: value for name, value in tower.tensors.items() if not name.endswith("position_ids")}
    layers = _count(r"encoder\.layers\.(\d+)\.", tensors)
    shapes = [tower.shape(name) for name in OPENAI_SHAPES]
    config = _config(*shapes, layers=layers, act="quick_gelu", pad=shapes[0][0] - 1)
    return _filled(source.name, config, {INNER + name: value for name, value in tensors.items()})


def _open_clip(tower: Source) -> CLIPTextModel:
    last = _count(r"transformer\.resblocks\.(\d+)\.", tower.tensors) - 1
    left = ("logit_scale", "text_projection", "attn_mask", f"transformer.resblocks.{last}.")
    tensors = {name: value for name, value in tower.tensors.items() if not name.startswith(left)}
    shapes = [tower.shape(name) for name in OPEN_SHAPES]
    config = _config(*shapes, layers=last, act="gelu", pad=0)  # OpenCLIP pads with token 0
    return _filled(tower.name, config, clip.renamed(tensors))


def to_tokenizer(source: Source, encoder: CLIPTextModel) -> CLIPTokenizer | None:
    """Return the tokenizer that `tokenizer=` names (a folder, or OpenAI's vocabulary), of a vocabulary beside it, or None.

    Raises:
        UserError: nothing there, or another vocabulary than the encoder's.
    """
    given = source.settings.get("tokenizer")
    size, length = encoder.config.vocab_size, encoder.config.max_position_embeddings
    if given is not None and (folder := Path(given).expanduser()).is_dir():
        if not any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json")):
            raise UserError(f"tokenizer={given} is no folder of a CLIP tokenizer: it has neither tokenizer.json nor vocab.json")
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    elif given is not None or any(source.path.parent.glob(VOCABULARY)):
        file = source.companion("tokenizer", VOCABULARY, "OpenAI's byte-pair vocabulary")
        tokenizer = clip.tokenizer_of(clip.read_merges(file, size), length)
    else:
        return None
    if len(tokenizer) != size:
        raise UserError(f"the tokenizer has {len(tokenizer)} tokens but {source.name} has {size}: it is another vocabulary")
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(encoder.config.pad_token_id)
    return tokenizer


def as_in_memory(tensors: Mapping[str, Tensor], model: nn.Module, inner: str) -> dict[str, Tensor]:
    """Return tensors by published names as this release of transformers names them: with `inner` or without it."""
    keeps = any(inner in key for key in model.state_dict())
    return {key if keeps else key.replace(inner, "", 1): value for key, value in tensors.items()}


def _filled(name: str, config: CLIPTextConfig, tensors: Mapping[str, Tensor]) -> CLIPTextModel:
    with torch.device("meta"):
        model = CLIPTextModel(config)
    return load_exactly(name, model, as_in_memory(tensors, model, INNER))


def save_text_encoder(model: CLIPTextModel, folder: Path) -> None:
    """Write config.json and model.safetensors with the names of published files."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    tensors = {INNER + key.removeprefix(INNER): value for key, value in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _config(
    tokens: Sequence[int], mlp: Sequence[int], positions: Sequence[int], *, layers: int, act: str, pad: int
) -> CLIPTextConfig:
    """Return the config of a tower by the shapes of three of its weights; the highest id ends a text, and there it pools."""
    vocabulary, width = tokens
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=mlp[0],
        num_hidden_layers=layers,
        num_attention_heads=width // clip.HEAD_CHANNELS,
        hidden_act=act,
        max_position_embeddings=positions[0],
        projection_dim=width,
        vocab_size=vocabulary,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=pad,
    )


def _count(pattern: str, names: Mapping[str, Tensor]) -> int:
    return len({found[1] for name in names if (found := re.match(pattern, name))})
