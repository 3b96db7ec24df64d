"""A latent diffusion model in Stable Diffusion's layout, small: UNet2DConditionModel and CLIPTextModel on a trained autoencoder.

Latent diffusion with cross-attention to a text encoder that is trained along (Rombach et al. 2022, sections 3.2 and 3.3), by
v-prediction (Salimans & Ho 2022). Ours: the text encoder also learns to continue texts, so that words that no caption
holds (those of instructions) mean something as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from editkit.backbones.attention import prepare_on_cpu, trained_on_cpu
from editkit.backbones.autoencoder import load_autoencoder
from editkit.backbones.latent import LatentBackbone
from editkit.backbones.latent_folder import load_latent, save_latent
from editkit.data.captioned import CaptionedDataset
from editkit.data.encoded import drawn
from editkit.data.toyworld.scenes.world import edit_at
from editkit.data.toyworld.world import EDITS
from editkit.engine.guidance import ClassifierFree
from editkit.engine.rng import batch_noise
from editkit.engine.sample import sample
from editkit.metrics.scene_oracle import load_scene_oracle
from editkit.training.denoising import check_times, drawn_times
from editkit.training.figures import record
from editkit.training.folder import FolderMethod, network_arguments
from editkit.training.scene_figures import autoencoder_figures, prompt_figures
from editkit.training.tokens import save_bpe, train_tokenizer
from editkit.types import Condition

GRID = 16  # samples of a grid
WORDS = 20_000  # captions that the tokenizer learns from, and a quarter as many instructions
VOCABULARY = 1024  # tokens


class LatentDiffusion(FolderMethod):
    """Train a text-to-image model on encoded pictures and their captions.

    Args:
        network: arguments of diffusers' UNet2DConditionModel.
        text: arguments of transformers' CLIPTextConfig.
        noise: arguments of diffusers' DDIMScheduler, v-prediction.
        vae: the autoencoder, frozen.
        terms: weights of the terms denoise and language.
        dropped_texts: share of the captions replaced by "", for classifier-free guidance (Ho & Salimans 2022).
        foreground: objects weigh 1 + foreground x alpha_bar, for they are a small part of a picture and are learned last.
            Where noise hides them they weigh 1, so that what is guessed of their place stays the mean. Needs the item
            `foreground`; without it all weighs 1.
        times: shares of the noise scale between which times are drawn, 1 = pure noise. What a text says of an outline is learned
            where noise still hides the outline, for large objects from 0.5 upwards.
        scale, sample_steps: guidance scale and DDIM steps of the sample grids.
        init_from: a latent model's folder whose UNet, text encoder and tokenizer to start from; None starts from scratch.
        weights: folder that the task `measure` reads and whose card it completes.
    """

    def __init__(
        self,
        *,
        network: Mapping[str, Any],
        text: Mapping[str, Any],
        noise: Mapping[str, Any],
        vae: str,
        terms: Mapping[str, float],
        dropped_texts: float = 0.1,
        foreground: float = 0.0,
        times: Sequence[float] = (0.0, 1.0),
        scale: float = 4.0,
        sample_steps: int = 25,
        init_from: str | None = None,
        weights: str = "editkit:toy-latent",
        optimizer: Any = None,
        scheduler: Any = None,
    ):
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        self.terms, self.dropped_texts, self.foreground = dict(terms), dropped_texts, foreground
        self.times = check_times(times)
        self.scale, self.sample_steps, self.weights = scale, sample_steps, weights
        self.vae = load_autoencoder(vae).vae
        start = None if init_from is None else load_latent(init_from)
        self.tokenizer = start.tokenizer if start else train_tokenizer(corpus(), VOCABULARY)
        self.text_encoder = start.text_encoder if start else self._new_text_encoder(text)
        self.unet = start.unet if start else UNet2DConditionModel(**network_arguments(network))
        self.ddim = DDIMScheduler(**dict(noise))
        self.noise_schedule = self._backbone().schedule
        self.instructions: list[str] = []

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        return {"latent": [*self.unet.parameters(), *self.text_encoder.parameters()]}

    def prepare_training(self) -> None:
        self.instructions = instructions(WORDS // 4)

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the error of the network's v per image, (B,), and the text encoder's error at continuing texts."""
        z = drawn(batch["image_posterior"]) * self.vae.config.scaling_factor
        texts = list(batch["caption"])
        dropped = (torch.rand(len(texts)) < self.dropped_texts).tolist()
        tokens = self._read(["" if no else text for text, no in zip(texts, dropped, strict=True)])[0]
        losses = {"denoise": self.terms["denoise"] * self._error(z, tokens, objects=batch.get("foreground"))}
        if self.terms["language"]:
            chosen = torch.randint(len(self.instructions), (len(texts) // 2,)).tolist() if self.instructions else []
            losses["language"] = self.terms["language"] * self._language(texts + [self.instructions[k] for k in chosen])
        return losses

    def _error(self, z: Tensor, tokens: Tensor, extra: Tensor | None = None, objects: Tensor | None = None) -> Tensor:
        """Return the squared error of v at a time of each sample's own, stratified over the batch, (B,).

        Args:
            z: scaled latents (B, C, h, w).
            extra: what the network sees besides, (B, C', h, w).
            objects: (B, 1, H, W), 1 = object; these weigh more.
        """
        t = drawn_times(len(z), len(self.noise_schedule.table), z.device, self.times)
        eps = torch.randn_like(z)
        alpha_bar = self.noise_schedule.alpha_bar(t).to(z).view(-1, 1, 1, 1)
        x = alpha_bar.sqrt() * z + (1 - alpha_bar).sqrt() * eps
        v = alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * z
        given = x if extra is None else torch.cat([x, extra], 1)
        with trained_on_cpu(self.unet):
            error = (self.unet(given, t, tokens).sample.float() - v).square()
        if objects is not None:
            error = error * (1 + self.foreground * alpha_bar * F.adaptive_avg_pool2d(objects, z.shape[2:]))
        return error.mean((1, 2, 3))

    def _read(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the text encoder's last hidden state (B, L, D) and the token ids (B, L)."""
        length = self.text_encoder.config.max_position_embeddings
        prepare_on_cpu(self.text_encoder)
        cut = self.tokenizer(list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        ids = cut.input_ids.to(self.device)
        return self.text_encoder(ids).last_hidden_state, ids

    def _language(self, texts: Sequence[str]) -> Tensor:
        """Return the mean cross-entropy of each next token, read off with the token embedding itself, up to the first end."""
        hidden, ids = self._read(texts)
        table = self.text_encoder.get_input_embeddings().weight
        logits = hidden[:, :-1].float() @ table.float().T
        ended = (ids[:, :-1] == self.tokenizer.eos_token_id).cumsum(1) > 0
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].masked_fill(ended, -100).flatten())

    def _new_text_encoder(self, text: Mapping[str, Any]) -> CLIPTextModel:
        end = self.tokenizer.eos_token_id
        own = {"vocab_size": len(self.tokenizer), "bos_token_id": self.tokenizer.bos_token_id}
        return CLIPTextModel(CLIPTextConfig(**dict(text), **own, eos_token_id=end, pad_token_id=end))

    def _backbone(self) -> LatentBackbone:
        config = {**self.ddim.config, "_class_name": "DDIMScheduler"}
        return LatentBackbone(self.unet, self.vae, config, self.text_encoder, self.tokenizer)

    @torch.no_grad()
    def sample_grid(self) -> Tensor:
        """Return guided DDIM samples of validation captions from fixed noise, (16, 3, H, W)."""
        dataset = CaptionedDataset("validation", GRID)
        images = prompted(self._backbone(), [dataset[k]["caption"] for k in range(GRID)], self.scale, self.sample_steps)
        self.freeze_rest()  # the backbone froze the networks that are being trained
        return images

    @property
    def tasks(self) -> dict[str, Callable[[Any], Mapping[str, Any]]]:
        return {"measure": lambda data: record(self.weights, self._figures())}

    def _figures(self) -> dict[str, Any]:
        """Return the autoencoder's PSNR, and how often the model draws the object that it is asked for."""
        backbone = load_latent(self.weights)
        rebuilt = autoencoder_figures(load_autoencoder(self.weights))
        draw = lambda texts: prompted(backbone, texts, self.scale, self.sample_steps)  # noqa: E731
        return rebuilt | prompt_figures(draw, load_scene_oracle(), scale=self.scale, steps=self.sample_steps)

    def save(self, folder: Path) -> None:
        """Write a StableDiffusionPipeline folder in half precision."""
        parts = (self.unet, self.vae, self.text_encoder)
        kept = [{name: tensor.clone() for name, tensor in part.state_dict().items()} for part in parts]
        self.tokenizer.model_max_length = self.text_encoder.config.max_position_embeddings
        save_latent(self._backbone().half(), folder)
        save_bpe(self.tokenizer, folder / "tokenizer")
        for part, state in zip(parts, kept, strict=True):
            part.float().load_state_dict(state)

    def dummy_batch(self) -> dict[str, Any]:
        channels, height, width = self._backbone().sample_shape
        self.freeze_rest()
        return {"image_posterior": torch.zeros(2, 2, channels, height, width, device=self.device), "caption": ["a face", "a cup"]}


@torch.no_grad()
def prompted(backbone: LatentBackbone, texts: Sequence[str], scale: float, steps: int, seed: int = 0) -> Tensor:
    """Return one guided DDIM sample per text, (B, 3, H, W) in [-1, 1]."""
    keys = [str(k) for k in range(len(texts))]
    x = batch_noise(backbone.sample_shape, keys, seed=seed, purpose="start", device=backbone.device)
    guidance = ClassifierFree(scale, Condition(tokens=backbone.tokens([""])))
    levels = backbone.levels(steps)
    z = sample(backbone, x, levels, Condition(tokens=backbone.tokens(texts)), guidance=guidance)
    return backbone.decode(z).clamp(-1, 1)


def instructions(count: int) -> list[str]:
    """Return instructions of training scenes' edits."""
    return [edit_at("train", index).instruction for index in range(count)]


def corpus(count: int = WORDS) -> list[str]:
    """Return texts in the words of captions and instructions of both domains."""
    dataset = CaptionedDataset("train", count)
    return [
        *(dataset.caption(index) for index in range(count)),
        *instructions(count // 4),
        *(edit.prompt for edit in EDITS.values()),
    ]
