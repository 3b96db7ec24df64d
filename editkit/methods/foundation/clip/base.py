"""What the trainings of the bundled CLIPs share: the two towers, how they are read, and the folder they are written to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from editkit.backbones.clip import load_clip
from editkit.training.folder import FolderMethod, write_preprocessor
from editkit.training.tokens import save_bpe, train_tokenizer

HEAD = 32  # width of an attention head


class ClipTraining(FolderMethod):
    """Base of the trainings: a CLIPModel with its tokenizer, made anew or taken from a folder.

    Args:
        width, layers: of the vision tower.
        text_width, text_layers: of the text tower.
        patch: side of a vision patch in pixels.
        image_size: side of the images in pixels.
        dim: width of the joint embedding.
        max_length: longest caption in tokens.
        texts: returns what a new tokenizer learns its words from.
        vocabulary: most tokens of a new tokenizer.
        init_from: a CLIP folder whose weights and tokenizer to start from; None starts from scratch.
    """

    def __init__(
        self,
        *,
        width: int,
        layers: int,
        text_width: int,
        text_layers: int,
        patch: int,
        image_size: int,
        dim: int,
        max_length: int,
        texts: Callable[[], Iterable[str]],
        vocabulary: int,
        init_from: str | None,
        optimizer: Any,
        scheduler: Any,
    ):
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        self.max_length = max_length
        start = load_clip(init_from) if init_from else None
        self.tokenizer = start.tokenizer if start else train_tokenizer(texts(), vocabulary)
        vision = CLIPVisionConfig(**_tower(width, layers, dim), image_size=image_size, patch_size=patch)
        text = _text_config(self.tokenizer, max_length, _tower(text_width, text_layers, dim))
        self.clip = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=dim))
        if start:
            self.clip.load_state_dict(start.model.state_dict())
        self.bias = nn.Parameter(torch.zeros(()))  # of the sigmoid loss; not part of the exported model

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        return {"clip": self.parameters()}

    def _read(self, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt")
        pooled = self.clip.text_model(**tokens.to(self.device)).pooler_output
        return F.normalize(self.clip.text_projection(pooled).float(), dim=1)

    def _sigmoid(self, words: Tensor, seen: Tensor, true: Tensor, clear: Tensor) -> Tensor:
        """Return the pairwise sigmoid loss of texts (N, D) and images (M, D), right and wrong pairs of equal weight.

        Args:
            true, clear: bool (N, M), which texts are true of which images, and of which that can be seen.
        """
        logits = words @ seen.T * self.clip.logit_scale.exp().clamp(max=60.0) + self.bias
        cost = F.softplus(torch.where(true, -logits, logits))
        right, wrong = true & clear, ~true & clear
        means = [(cost * part).sum() / part.sum().clamp_min(1) for part in (right, wrong)]
        return means[0] + means[1]

    def save(self, folder: Path) -> None:
        """Write the CLIPModel + CLIPTokenizer folder with its preprocessor configuration."""
        self.clip.half().save_pretrained(folder)
        self.clip.float()
        self.tokenizer.save_pretrained(folder)
        save_bpe(self.tokenizer, folder)
        write_preprocessor(folder, "CLIPImageProcessor", self.clip.config.vision_config.image_size)


def _tower(width: int, layers: int, dim: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "num_attention_heads": width // HEAD,
        "intermediate_size": width * 3,
        "num_hidden_layers": layers,
        "projection_dim": dim,
    }


def _text_config(tokenizer: CLIPTokenizer, max_length: int, tower: dict[str, int]) -> CLIPTextConfig:
    eos = tokenizer.eos_token_id
    return CLIPTextConfig(
        **tower,
        vocab_size=len(tokenizer),
        max_position_embeddings=max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=eos,  # the highest id: transformers pools there, or at the arg-max when it is the legacy 2
        pad_token_id=eos,
    )


def augmented(images: Tensor) -> Tensor:
    """Blur, shift and add noise, each to some of the images, so that half-denoised pictures are read as well."""
    count, device = len(images), images.device
    some = lambda chance: (torch.rand(count, 1, 1, 1, device=device) < chance).float()  # noqa: E731
    amount = torch.rand(count, 1, 1, 1, device=device)
    soft = F.avg_pool2d(F.pad(images, (2, 2, 2, 2), mode="replicate"), 5, 1)
    soft = F.avg_pool2d(F.pad(soft, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = torch.lerp(images, soft, amount * some(0.4))
    images = images + torch.randn_like(images) * torch.rand(count, 1, 1, 1, device=device) * 0.35 * some(0.5)
    dx, dy = (int(v) for v in torch.randint(-3, 4, (2,)))
    return F.pad(images, (3, 3, 3, 3), mode="replicate")[
        ..., 3 + dy : 3 + dy + images.shape[-2], 3 + dx : 3 + dx + images.shape[-1]
    ]
