"""The network of Diffusion Autoencoders' latent DDIM (arXiv 2111.15640): noise in vectors, with skips from the input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn


class SkipLayer(nn.Module):
    """A linear layer that the time scales before it is normalised.

    Args:
        before, after: widths.
        condition: width of the time's embedding.
    """

    def __init__(self, before: int, after: int, condition: int) -> None:
        super().__init__()
        self.linear, self.linear_emb = nn.Linear(before, after), nn.Linear(condition, after)
        self.norm = nn.LayerNorm(after)
        for layer in (self.linear, self.linear_emb):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return F.silu(self.norm(self.linear(x) * (1 + self.linear_emb(F.silu(emb)))))


class SkipMLP(nn.Module):
    """Predicts the noise in vectors; every layer but the first sees the input again.

    Args:
        dim: of the vectors, and of the time's embedding.
        width: of the layers between.
        layers: how many, the last one plain.
        sinusoid: width of the time's sinusoid.
    """

    def __init__(self, dim: int = 512, *, width: int = 2048, layers: int = 10, sinusoid: int = 64) -> None:
        super().__init__()
        self.time_proj = Timesteps(sinusoid, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embed = nn.Sequential(nn.Linear(sinusoid, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.layers = nn.ModuleList(SkipLayer(dim + width if n else dim, width, dim) for n in range(layers - 1))
        self.last = nn.Linear(dim + width, dim)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        """Return the noise in z (B, dim) at times (B,)."""
        emb = self.time_embed(self.time_proj(t).to(z.dtype))
        hidden = z
        for n, layer in enumerate(self.layers):
            hidden = layer(torch.cat([hidden, z], 1) if n else hidden, emb)
        return self.last(torch.cat([hidden, z], 1))
