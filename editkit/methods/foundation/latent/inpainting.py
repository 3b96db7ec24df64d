"""The inpainting twin of the toy latent model: nine input channels, trained to fill in objects, boxes and whole pictures.

Latent inpainting as Stable Diffusion's own checkpoint was trained (Rombach et al. 2022, section 4.5, and its model card): the
network also sees the mask and the latents of the masked picture. Masks are those of the scene's objects with the object's
own text, as it is or as a box, else a box anywhere, else everything, with the scene's text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from editkit.data.encoded import drawn
from editkit.data.items import collate
from editkit.data.scenes import SceneDataset
from editkit.engine.guidance import ClassifierFree
from editkit.engine.rng import batch_noise
from editkit.engine.sample import sample
from editkit.methods.foundation.latent.text_to_image import GRID, LatentDiffusion
from editkit.networks.conv_in import widen_conv_in
from editkit.types import Condition

CHANNELS = 9  # noisy latents, mask, latents of the masked picture: diffusers' order


class LatentInpainting(LatentDiffusion):
    """Train an inpainting model on scenes with object masks.

    Args:
        objects: share of the masks that are an object's, half of them as its box.
        everything: share of the masks that cover the whole picture.
        others: as for `LatentDiffusion`; `init_from` may have four input channels, it is widened.
    """

    def __init__(self, *, objects: float = 0.65, everything: float = 0.1, **others: Any):
        super().__init__(**others)
        self.objects, self.everything = objects, everything
        widen_conv_in(self.unet, CHANNELS)

    @property
    def tasks(self) -> dict[str, Callable[[Any], Mapping[str, Any]]]:
        return {}  # those of text to image say nothing here

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the error of the network's v per image, (B,)."""
        images = batch["image"]
        masks, texts = self._chosen(batch)
        z = drawn(self._posterior(images)) * self.vae.config.scaling_factor
        dropped = (torch.rand(len(texts)) < self.dropped_texts).tolist()
        tokens = self._read(["" if no else text for text, no in zip(texts, dropped, strict=True)])[0]
        objects = batch["object_masks"].sum(1, keepdim=True)
        return {"denoise": self._error(z, tokens, self._given(images, masks), objects)}

    def _chosen(self, batch: Mapping[str, Any]) -> tuple[Tensor, list[str]]:
        """Return a mask (B, 1, H, W) and a text for each picture."""
        count, (height, width) = len(batch["image"]), batch["image"].shape[2:]
        masks, texts = torch.zeros(count, 1, height, width, device=self.device), list(batch["caption"])
        kinds = torch.rand(count).tolist()
        for n, kind in enumerate(kinds):
            things = len(batch["object_captions"][n])
            if kind < self.objects and things:
                k = int(torch.randint(things, ()))
                texts[n] = batch["object_captions"][n][k]
                left, top, right, bottom = batch["boxes"][n][k].tolist()
                own = F.max_pool2d(batch["object_masks"][n][k][None], 5, 1, 2)[0]
                masks[n, 0] = own if kind < self.objects / 2 else _box(own, left - 1, top - 1, right + 1, bottom + 1)
            elif kind > 1 - self.everything:
                masks[n] = 1
            else:
                left, top = (int(torch.randint(length - length // 4, ())) for length in (width, height))
                right, bottom = left + int(torch.randint(width // 4, width // 2, ())), top + height // 4
                masks[n, 0] = _box(masks[n, 0], left, top, right, bottom + int(torch.randint(height // 4, ())))
        return masks, texts

    def _given(self, images: Tensor, masks: Tensor) -> Tensor:
        """Return [mask, latents of the masked picture], (B, 5, h, w)."""
        latents = self._posterior(images * (1 - masks))[:, 0] * self.vae.config.scaling_factor
        return torch.cat([F.interpolate(masks, size=latents.shape[2:]), latents], 1)

    @torch.no_grad()
    def _posterior(self, images: Tensor) -> Tensor:
        found = self.vae.encode(images).latent_dist
        return torch.stack([found.mean, found.logvar], 1).float()

    @torch.no_grad()
    def sample_grid(self) -> Tensor:
        """Return validation scenes, the same with a hole, and with the hole filled in by its object's text, (3, 8, 3, H, W)."""
        items = [item for k in range(GRID) if (item := SceneDataset("validation", GRID)[k])["object_captions"]][: GRID // 2]
        images = torch.stack([item["image"] for item in items]).to(self.device)
        masks = torch.stack([F.max_pool2d(item["object_masks"][:1], 5, 1, 2) for item in items]).to(self.device)
        filled = self._filled(images, masks, [item["object_captions"][0] for item in items])
        self.freeze_rest()  # the backbone froze the networks that are being trained
        return torch.stack([images, images * (1 - masks), filled])

    def _filled(self, images: Tensor, masks: Tensor, texts: Sequence[str]) -> Tensor:
        backbone = self._backbone()
        given = self._given(images, masks)
        x = batch_noise(backbone.sample_shape, [str(k) for k in range(len(images))], seed=0, purpose="grid", device=self.device)
        guidance = ClassifierFree(self.scale, Condition(tokens=backbone.tokens([""]), concat=given))
        levels = backbone.levels(self.sample_steps)
        z = sample(backbone, x, levels, Condition(tokens=backbone.tokens(texts), concat=given), guidance=guidance)
        return backbone.decode(z).clamp(-1, 1)

    def dummy_batch(self) -> dict[str, Any]:
        size = self._backbone().image_size[0]
        self.freeze_rest()
        batch = collate([SceneDataset("train", 2, size)[k] for k in range(2)])
        return {name: value.to(self.device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def _box(like: Tensor, left: int, top: int, right: int, bottom: int) -> Tensor:
    """Return a mask (H, W) that is 1 in a box, cut at the frame."""
    mask = torch.zeros_like(like)
    mask[max(top, 0) : bottom, max(left, 0) : right] = 1
    return mask
