"""Latent diffusion in Stable Diffusion's layout: AutoencoderKL, UNet2DConditionModel, CLIPTextModel and its tokenizer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from editkit.backbones.scheduler_config import grid_of, parameterization_of, schedule_of
from editkit.backbones.unet import UNetBackbone
from editkit.engine.once import once
from editkit.engine.solvers import Solver
from editkit.errors import UsageError, UserError
from editkit.types import Condition, EditRequest, Levels, Prediction

# What the input channels beyond the latents hold, for the layouts that exist.
_EXTRA = {
    0: "no extra channels",
    4: "4 extra channels, the image's own latents (InstructPix2Pix)",
    5: "5 extra channels, mask and masked image's latents (inpainting)",
}
_UNSUPPORTED = ("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim")


class Residuals(NamedTuple):
    """What a side network adds to a UNet: to the skip connections, in their order, and to the middle block's output."""

    down: Sequence[Tensor]
    mid: Tensor


class LatentBackbone(UNetBackbone):
    """A latent diffusion model as a Denoiser, frozen and in eval mode; x are scaled latents (B, C, h, w).

    Args:
        unet: the network; input channels beyond the latents' come from `Condition.concat`.
        vae: images to latents and back.
        scheduler: its scheduler config, which says noise schedule and parameterization.
        text_encoder: prompts to tokens; None for checkpoints that read no text (Paint by Example).
        tokenizer: cuts the prompts.

    Raises:
        UserError: a network with other inputs than latents, extra channels, time and tokens, or with another text encoder's.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler: Mapping[str, Any],
        text_encoder: CLIPTextModel | None = None,
        tokenizer: CLIPTokenizer | None = None,
    ) -> None:
        super().__init__()
        needed = [name for name in _UNSUPPORTED if unet.config.get(name) is not None]
        if needed or unet.mid_block is None:
            raise UserError(
                f"this UNet is not of Stable Diffusion 1 or 2 ({', '.join(needed) or 'no middle block'}); "
                "only those with time and tokens as their conditions are supported"
            )
        takes = unet.config.cross_attention_dim
        gives = takes if text_encoder is None else text_encoder.config.hidden_size
        if isinstance(takes, int) and gives != takes:
            raise UserError(
                f"this UNet takes tokens of {takes} numbers, the text encoder gives {gives}: they are of different models; "
                "set backbone.path to one, and backbone.text_encoder, where it is given, to the same"
            )
        self.unet, self.vae, self.text_encoder, self.tokenizer = unet, vae, text_encoder, tokenizer
        self.scheduler = dict(scheduler)
        self.schedule = schedule_of(scheduler)
        self.parameterization = parameterization_of(scheduler)
        self.style = "adm" if unet.config.resnet_time_scale_shift == "scale_shift" else "ddpm"
        self.requires_grad_(False)
        self.eval()

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Return (C, h, w) of the latents."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.vae.config.latent_channels, height, width

    @property
    def downscale(self) -> int:
        """Return how many pixels a latent is wide."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def image_size(self) -> tuple[int, int]:
        """Return (H, W) of the images that it was trained on."""
        _, height, width = self.sample_shape
        return height * self.downscale, width * self.downscale

    @property
    def extra_channels(self) -> int:
        """Return how many channels `Condition.concat` must have: 0, 4 (InstructPix2Pix) or 5 (inpainting)."""
        return self.unet.config.in_channels - self.vae.config.latent_channels

    def forward(
        self, x: Tensor, t: float | Tensor, cond: Condition | None = None, *, residuals: Residuals | None = None
    ) -> Prediction:
        """Predict x0 and eps of latents x (B, C, h, w) at model time t.

        `cond.tokens` and `cond.concat` serve all samples if their batch is 1; a `cond.mask` hides tokens where it is 0.

        Raises:
            UsageError: no tokens, or other extra channels than this checkpoint takes.
        """
        mask = None if cond is None or cond.mask is None else expanded(cond.mask, len(x))
        down, mid = residuals or (None, None)
        network = self.unet(
            self._input(x, cond),
            self.times_of(t, len(x)),
            self.tokens_of(cond, len(x)),
            encoder_attention_mask=mask,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        )
        return self._prediction(x, t, network.sample)

    def levels(self, n: int, *, start: int | None = None) -> Levels:
        """Return the levels of `n` network queries on the times that the checkpoint's own scheduler walks."""
        return self.schedule.levels(n, start=start, **grid_of(self.scheduler))

    def solver_levels(self, solver: Solver, n: int) -> Levels:
        """Return the levels of `n` steps that diffusers walks with a solver and this checkpoint.

        Raises:
            UsageError: a solver that this checkpoint's noise rules out; too many steps.
        """
        return solver.levels(self.schedule, n, trailing=grid_of(self.scheduler)["spacing"] == "trailing")

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance, unscaled, (B, C, h, w) each, of images (B, 3, H, W) in [-1, 1]."""
        found = self.vae.encode(images.to(self.vae.dtype)).latent_dist
        return found.mean.float(), found.logvar.float()

    def encode(self, images: Tensor) -> Tensor:
        """Return the posterior's mean, scaled, (B, C, h, w): the same latents every time."""
        return self.posterior(images)[0] * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, 3, H, W) of scaled latents, not clamped."""
        return self.vae.decode((latents / self.vae.config.scaling_factor).to(self.vae.dtype)).sample.float()

    def condition(self, request: EditRequest) -> Condition:
        """Return the tokens of the request's prompt, those of "" if there is none, batch 1."""
        return Condition(tokens=self.tokens([request.prompt or ""]))

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Return the text encoder's last hidden state (B, L, D) of texts, padded to the longest that it takes.

        A longer text is cut, with a UserWarning that says what was left out.

        Raises:
            UsageError: this checkpoint reads no text.
        """
        if self.text_encoder is None or self.tokenizer is None:
            raise UsageError("this checkpoint reads no text (it has no text_encoder/): give it what its method conditions on")
        length = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        for text in texts:
            self._warn_if_cut(text, length)
        cut = self.tokenizer(list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        masked = getattr(self.text_encoder.config, "use_attention_mask", False)
        mask = cut.attention_mask.to(self.device) if masked else None
        return self.text_encoder(cut.input_ids.to(self.device), attention_mask=mask).last_hidden_state.float()

    def tokens_of(self, cond: Condition | None, batch: int) -> Tensor:
        """Return a condition's tokens for `batch` samples in the network's dtype.

        Raises:
            UsageError: it has none.
        """
        if cond is None or cond.tokens is None:
            raise UsageError("this backbone is conditioned on tokens: pass backbone.condition(request), also for an empty prompt")
        dtype = self.unet.dtype
        return once(("tokens", dtype, batch), lambda tokens: expanded(tokens, batch).to(dtype), cond.tokens)

    def _input(self, x: Tensor, cond: Condition | None) -> Tensor:
        extra = None if cond is None else cond.concat
        given = 0 if extra is None else extra.shape[1]
        if given != self.extra_channels:
            wanted = _EXTRA.get(self.extra_channels, f"{self.extra_channels} extra channels")
            seen = f"{given} channels" if given else "nothing"
            raise UsageError(
                f"this checkpoint's UNet takes {wanted}, but is given {seen} (Condition.concat): choose a backbone that was made "
                "for this, such as backbone=sd15 where the text is all that it sees"
            )
        if extra is None:
            return x.to(self.unet.dtype)
        if extra.shape[2:] != x.shape[2:]:
            raise UsageError(f"Condition.concat is {_by(extra)}, the latents are {_by(x)}: both must be of one size")
        return torch.cat([x, expanded(extra, len(x)).to(x.dtype)], dim=1).to(self.unet.dtype)

    def _context(self, cond: Condition | None, batch: int) -> Mapping[str, Tensor]:
        context = {"encoder_hidden_states": self.tokens_of(cond, batch)}
        if cond is not None and cond.mask is not None:  # as the UNet itself turns a mask into a bias
            hidden = (1 - expanded(cond.mask, batch).to(self.unet.dtype)) * -10000.0
            context["encoder_attention_mask"] = hidden.unsqueeze(1)
        return context

    def _warn_if_cut(self, text: str, length: int) -> None:
        whole = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        if len(whole) > length - 2:
            left_out = self.tokenizer.decode(whole[length - 2 :])
            warnings.warn(f"the text is longer than {length - 2} tokens; left out: {left_out!r}", UserWarning, stacklevel=3)


def expanded(tensor: Tensor, batch: int) -> Tensor:
    """Return a tensor of batch 1 for `batch` samples; one of that batch is itself."""
    return tensor if len(tensor) == batch else tensor.expand(batch, *tensor.shape[1:])


def _by(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape[2:]))
