"""The models of v-diffusion: pixels, continuous times, a CLIP embedding as the condition or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from editkit.backbones.assets import resolve
from editkit.backbones.base import Backbone, Finish
from editkit.backbones.clip import ClipEncoder
from editkit.backbones.features import FeatureNet
from editkit.backbones.unet import dtype_of
from editkit.engine.continuous import UNITS, ContinuousCosine
from editkit.errors import UsageError, UserError
from editkit.networks.v_diffusion import VDiffusionUNet
from editkit.types import Condition, EditRequest, Levels, Prediction


class VDiffusionNet(FeatureNet):
    """A `VDiffusionUNet` and its sizes, which its folder holds.

    Args:
        sample_size: side of the pictures that it was trained on.
        network: arguments of `VDiffusionUNet`.
    """

    kind = "v-diffusion"

    def __init__(self, *, sample_size: int = 256, **network: Any) -> None:
        super().__init__(sample_size=sample_size, **network)
        self.network = VDiffusionUNet(**network)


class VDiffusionBackbone(Backbone):
    """A network of v-diffusion as a Denoiser, frozen and in eval mode. Its condition is `Condition.vector`, None for none.

    Args:
        unet: the network.
        clip: makes texts the embeddings that a conditional network reads.
    """

    parameterization = "v"
    style = "v-diffusion"

    def __init__(self, unet: VDiffusionNet, clip: ClipEncoder | None = None) -> None:
        super().__init__()
        self.unet, self.clip = unet, clip
        self.schedule: ContinuousCosine = ContinuousCosine()
        self.requires_grad_(False)
        self.eval()

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Return (3, H, W) of the pictures."""
        return 3, self.unet.config["sample_size"], self.unet.config["sample_size"]

    @property
    def bottleneck_shape(self) -> tuple[int, int, int]:
        """Return (C, h, w) of the innermost level."""
        channels = self.unet.network.channels
        side = self.sample_shape[1] >> (len(channels) - 1)
        return channels[-1], side, side

    @property
    def time_width(self) -> int:
        """Return the number of planes that tell the time."""
        return self.time_embedding(0.0).shape[1]

    def forward(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> Prediction:
        """Predict x0 and eps of x (B, 3, H, W) at model time t, 1000 times the network's own."""
        weight = next(self.unet.parameters())
        times = torch.as_tensor(t, dtype=torch.float32, device=weight.device).expand(len(x)) / UNITS
        v = self.unet.network(x.to(weight.dtype), times, self._vector(cond, len(x), weight))
        return self.schedule.convert(x.float(), t, v.float(), self.parameterization)

    def _vector(self, cond: Condition | None, batch: int, like: Tensor) -> Tensor | None:
        width = self.unet.network.embedding
        if width is None:
            return None
        if cond is None or cond.vector is None:
            return like.new_zeros(batch, width)
        return cond.vector.to(like.device).expand(batch, -1)

    def condition(self, request: EditRequest) -> Condition | None:
        """Return CLIP's embedding of a request's prompt, of zeros where it has none; None for an unconditional network.

        Raises:
            UserError: a prompt for a network that came without its CLIP.
        """
        width = self.unet.network.embedding
        if width is None:
            return None
        if not request.prompt:
            return Condition(vector=torch.zeros(1, width, device=self.device))
        if self.clip is None:
            raise UserError("this v-diffusion model reads CLIP's embedding of the prompt: give its CLIP as backbone.clip")
        return Condition(vector=self.clip.text([request.prompt]))

    def levels(self, n: int, *, start: int | None = None) -> Levels:
        """Return the spliced levels of `n` network queries, or those of them up to a time."""
        levels = self.schedule.spliced(n)
        count = len(levels) if start is None else sum(t <= start for t in levels.times)
        return Levels(levels.alpha_bar[:count], levels.times[:count])

    def time_embedding(self, t: float | Tensor) -> Tensor:
        """Return the planes that tell the time, as vectors (B, 16)."""
        times = torch.as_tensor(t, dtype=torch.float32, device=self.device).reshape(-1) / UNITS
        return self.unet.network.told(times)

    def halves(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> tuple[Tensor, Finish]:
        """Refuse: levels that lie in one another have no halves.

        Raises:
            UsageError: always.
        """
        raise UsageError("a v-diffusion model cannot be split at its middle: choose a backbone of diffusers, such as toy_faces")

    def places(self) -> dict[str, nn.Module]:
        """Return the innermost level."""
        return {"bottleneck": self.unet.network.innermost()}

    def identity(self) -> Mapping[str, Tensor]:
        """Return the network's weights, which a trained file's backbone is told by, not those of its CLIP."""
        return self.unet.state_dict()


def load_v_diffusion(
    path: str | Path, *, clip: Callable[[], ClipEncoder] | None = None, dtype: str = "float32"
) -> VDiffusionBackbone:
    """Load a model that `editkit convert` made of a checkpoint of v-diffusion.

    Args:
        path: its folder, or its name in $EDITKIT_WEIGHTS.
        clip: makes the CLIP whose embeddings condition it, ViT-B/16 for cc12m_1.
        dtype: precision of the network, "float32", "bfloat16" or "float16".

    Raises:
        UserError: no such weights, something else in the folder, an unknown dtype, or a CLIP of another width.
    """
    net = VDiffusionNet.load(resolve(path)).to(dtype_of(dtype))
    width = net.network.embedding
    if clip is None or width is None:
        return VDiffusionBackbone(net)
    encoder = clip()
    if encoder.dim != width:
        raise UserError(f"{path} reads CLIP embeddings of {width} numbers, and this CLIP's have {encoder.dim}: give ViT-B/16's")
    return VDiffusionBackbone(net, encoder)
