"""Backbones that are conditioned on a picture instead of a text: Paint by Example (arXiv 2211.13227, section 3.2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from editkit.backbones.clip import Preprocess
from editkit.backbones.latent import LatentBackbone
from editkit.errors import UsageError
from editkit.types import Condition, EditRequest

RESIZES = ("squash", "clip")
_TOWER, _PUBLISHED = "model.", "model.vision_model."


class PaintByExampleImageEncoder(nn.Module):
    """A picture as one token: CLIP's pooled class token through a few blocks, a LayerNorm and a projection.

    One token of a whole picture is the bottleneck that keeps the model from copying its reference (section 3.3). With a
    single token attention has nothing to choose from, so that the blocks' queries and keys change nothing.

    Args:
        config: of the vision tower; a fifth of its layers, rounded, is the number of blocks.
        proj_size: width of the token.

    Attributes:
        uncond_vector: (1, 1, proj_size), learned, stands for "no reference" in classifier-free guidance.
    """

    def __init__(self, config: CLIPVisionConfig, proj_size: int) -> None:
        super().__init__()
        self.config = CLIPVisionConfig.from_dict({**config.to_dict(), "projection_dim": proj_size})
        self.config.architectures = [type(self).__name__]
        width = config.hidden_size
        self.model = CLIPVisionModel(self.config)
        self.mapper = nn.Module()
        self.mapper.blocks = nn.ModuleList(
            BasicTransformerBlock(width, 1, width, activation_fn="gelu", attention_bias=True)
            for _ in range((config.num_hidden_layers + 1) // 5)
        )
        self.final_layer_norm = nn.LayerNorm(width)
        self.proj_out = nn.Linear(width, proj_size)
        self.uncond_vector = nn.Parameter(torch.randn(1, 1, proj_size))

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens (B, 1, proj_size) of pictures (B, 3, side, side), normalised as CLIP's, and a copy of `uncond_vector`.

        The tower learns nothing. What is used of the weights is used here, so that they may be shared out over processes.
        """
        with torch.no_grad():
            pooled = self.model(pixel_values=pixel_values).pooler_output
        hidden = pooled[:, None]
        for block in self.mapper.blocks:
            hidden = block(hidden)
        return self.proj_out(self.final_layer_norm(hidden)), self.uncond_vector.clone()

    def learned(self) -> Iterator[nn.Parameter]:
        """Yield all parameters but the tower's."""
        return (parameter for name, parameter in self.named_parameters() if not name.startswith(_TOWER))

    def published_state(self) -> dict[str, Tensor]:
        """Return the weights by the names of the published files, which transformers 5 has others for."""
        return {published_name(name): tensor for name, tensor in self.state_dict().items()}

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """Copy weights by their published names; position_ids, which old files hold too, are passed over.

        Raises:
            ValueError: names or shapes that differ.
        """
        given = {published_name(name): tensor for name, tensor in state.items() if not name.endswith(".position_ids")}
        own = {published_name(name): name for name in self.state_dict()}
        if odd := sorted(own.keys() ^ given.keys()):
            raise ValueError(f"{len(odd)} names are on one side only, such as {odd[0]!r}")
        try:
            self.load_state_dict({own[name]: tensor for name, tensor in given.items()})
        except RuntimeError as error:
            raise ValueError(" ".join(str(error).split())) from error


class ExemplarBackbone(LatentBackbone):
    """A latent inpainting model whose cross-attention reads one token of a reference picture; it reads no text.

    Its extra channels are those of `editkit.backbones.inpainting.exemplar_channels`.

    Args:
        unet: of nine input channels.
        vae, scheduler: as for `LatentBackbone`.
        image_encoder: reference to token.
        preprocess: what references go through before it.

    Raises:
        UsageError: a UNet of other channels, or with a context of another width than the token.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler: Mapping[str, Any],
        image_encoder: PaintByExampleImageEncoder,
        preprocess: Preprocess,
    ) -> None:
        super().__init__(unet, vae, scheduler)
        width, token = unet.config.cross_attention_dim, image_encoder.proj_out.out_features
        if self.extra_channels != 5 or width != token:
            raise UsageError(
                f"painting by example needs a UNet of {self.sample_shape[0] + 5} input channels and a context as wide as its "
                f"image encoder's token, {token}; this one has {unet.config.in_channels} channels and width {width}"
            )
        self.image_encoder, self.preprocess = image_encoder, preprocess
        self.requires_grad_(False)
        self.eval()

    def exemplars(self, references: Sequence[Tensor], resize: str = "squash") -> tuple[Tensor, Tensor]:
        """Return one token each, (B, 1, D), of references (3, h, w) in [-1, 1] of any sizes, and that of none, (1, 1, D).

        Args:
            references: the pictures.
            resize: "squash" to the encoder's square, as the authors' script does; "clip" keeps the shape and crops the middle,
                as diffusers does.

        Raises:
            UsageError: another `resize`.
        """
        if resize not in RESIZES:
            raise UsageError(f"unknown ref_resize {resize!r}: choose from {', '.join(RESIZES)}")
        side, device = self.preprocess.crop, self.device
        shown = replace(self.preprocess, resize=side) if resize == "squash" else self.preprocess
        pixels = []
        for reference in references:
            picture = reference.to(device)[None]
            if resize == "squash" and picture.shape[2:] != (side, side):
                picture = F.interpolate(picture, size=(side, side), mode="bicubic", antialias=True).clamp(-1, 1)
            pixels.append(shown(picture))
        tokens, none = self.image_encoder(torch.cat(pixels).to(self.image_encoder.proj_out.weight.dtype))
        return tokens.float(), none.float()

    def condition(self, request: EditRequest) -> Condition:
        """Return the token of the request's first reference, batch 1.

        Raises:
            UsageError: it has none.
        """
        if not request.references:
            raise UsageError("this backbone is conditioned on a picture: give one with --reference")
        return Condition(tokens=self.exemplars(request.references[:1])[0])

    def identity(self) -> Mapping[str, Tensor]:
        """Return the weights without those that the image encoder learns on its tower."""
        tower, encoder = f"image_encoder.{_TOWER}", "image_encoder."
        return {name: t for name, t in self.state_dict().items() if name.startswith(tower) or not name.startswith(encoder)}


def published_name(name: str) -> str:
    """Return a weight's name in published files: the tower's are nested once more than in transformers 5."""
    if not name.startswith(_TOWER) or name.startswith(_PUBLISHED):
        return name
    return _PUBLISHED + name.removeprefix(_TOWER)
