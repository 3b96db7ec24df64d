"""What every backbone offers to the engine and to methods, whatever checkpoint it wraps."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from editkit.engine.schedule import Schedule
from editkit.engine.taps import Tap, tap
from editkit.errors import UsageError, suggestion
from editkit.types import Condition, EditRequest, Levels, Prediction

Finish = Callable[[Sequence[Tensor]], list[Prediction]]
_NESTING = re.compile(r"(text|vision)_model\.")


class Backbone(nn.Module, ABC):
    """A pretrained diffusion network as a Denoiser, with its inside reachable by named places.

    Attributes:
        schedule: the noise schedule that it was trained with.
        parameterization: what its network outputs, "eps", "v" or "x0".
        style: block design of its network, "ddpm" (time added) or "adm" (time scales and shifts).
    """

    schedule: Schedule
    parameterization: str
    style: str

    @property
    def device(self) -> torch.device:
        """Return where the weights are."""
        return next(self.parameters()).device

    @property
    @abstractmethod
    def sample_shape(self) -> tuple[int, int, int]:
        """Return (C, H, W) of what is diffused."""

    @property
    @abstractmethod
    def bottleneck_shape(self) -> tuple[int, int, int]:
        """Return (C, h, w) of the middle block's output."""

    @property
    @abstractmethod
    def time_width(self) -> int:
        """Return the width of the time embedding."""

    @abstractmethod
    def forward(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> Prediction:
        """Predict x0 and eps, in float32, of x (B, C, H, W) at model time t, a number or (B,)."""

    @abstractmethod
    def halves(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> tuple[Tensor, Finish]:
        """Run the network as far as the middle block's output h; return h and `finish`.

        `finish([h1, h2...])` runs the rest once for all of them in one batch, with the same skip connections, and
        returns one Prediction each, of the same x and t.
        """

    @abstractmethod
    def time_embedding(self, t: float | Tensor) -> Tensor:
        """Return the network's own embedding of the time, (B, time_width); a number gives B = 1."""

    @abstractmethod
    def places(self) -> dict[str, nn.Module]:
        """Return the modules whose output `taps` can reach, by place: "bottleneck", "down.0", "up.0"..."""

    def levels(self, n: int, *, start: int | None = None) -> Levels:
        """Return the levels of `n` network queries that models of this kind are inverted and sampled on (`Schedule.levels`)."""
        return self.schedule.levels(n, start=start)

    def inversion_levels(self, n: int) -> Levels:
        """Return the levels of `n` network queries that images are inverted on.

        They are those of `levels`, but stop short of pure noise (alpha_bar 0), in which nothing of an image is left.
        """
        levels = self.levels(n)
        if levels.alpha_bar[-1] > 0:
            return levels
        more = self.levels(n + 1)
        return Levels(more.alpha_bar[:-1], more.times[:-1], more.entry)

    def encode(self, images: Tensor) -> Tensor:
        """Return what is diffused for images (B, 3, H, W) in [-1, 1]; pixels themselves unless a backbone has latents."""
        return images

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images of what is diffused."""
        return latents

    def condition(self, request: EditRequest) -> Condition | None:
        """Return what the network is conditioned on for a request; None for an unconditional one."""
        return None

    @contextmanager
    def taps(self, place: str, fn: Tap) -> Iterator[None]:
        """Let `fn` see, and replace if it returns a tensor, the output of a place while the context is open.

        At "down.N" the replaced tensor goes on to the next block; the skip connections keep what they were.

        Raises:
            UsageError: the network has no such place.
        """
        places = self.places()
        if place not in places:
            raise UsageError(f"no place {place!r} in this backbone.{suggestion(place, places)} It has: {', '.join(places)}")
        with tap(places[place], fn):
            yield

    def identity(self) -> Mapping[str, Tensor]:
        """Return the weights that a trained file's backbone is told by: all of them, but for parts that start at random."""
        return self.state_dict()

    def digest(self) -> str:
        """Return a hash of the weights and of the noise schedule, 16 hex digits, the same on every machine.

        So the schedule, whose last bits depend on the processor, is rounded, and names are without the nesting that versions of
        transformers add or leave out.
        """
        sha = hashlib.sha256(self.parameterization.encode())
        named = {_NESTING.sub("", name): tensor for name, tensor in self.identity().items()}
        for name, tensor in sorted(named.items()):
            sha.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        sha.update(self.schedule.rounded().cpu().numpy().tobytes())
        return sha.hexdigest()[:16]
