"""Denoisers with known answers, and a tiny random UNet."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from editkit.engine.schedule import Schedule
from editkit.types import Condition, Prediction

SHAPE = (3, 4, 4)


class Gaussian(nn.Module):
    """The exact denoiser of data ~ N(mean, cov), whose sampling ODE has a closed solution. Works at both ends."""

    parameterization = "eps"

    def __init__(self, schedule: Schedule | None = None) -> None:
        super().__init__()
        self.schedule = schedule or Schedule.linear()
        generator = torch.Generator().manual_seed(0)
        size = SHAPE[0] * SHAPE[1] * SHAPE[2]
        basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
        self.basis = nn.Parameter(basis)
        self.eigenvalues = torch.linspace(0.05, 1.5, size, dtype=torch.float64)
        self.mean = 0.5 * torch.randn(size, generator=generator, dtype=torch.float64)

    def forward(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> Prediction:
        ab = self.schedule.alpha_bar(t).reshape(-1, 1)
        a, s = ab.sqrt(), (1 - ab).sqrt()
        mean = self.mean if cond is None else self.mean + cond.vector.double()
        away = (x.double().flatten(1) - a * mean) @ self.basis
        spread = ab * self.eigenvalues + 1 - ab
        x0 = mean + (away * a * self.eigenvalues / spread) @ self.basis.T
        eps = (away * s / spread) @ self.basis.T
        return Prediction(x0.reshape(x.shape).to(x.dtype), eps.reshape(x.shape).to(x.dtype))

    def flow(self, x: Tensor, high: float, low: float) -> Tensor:
        """Follow the sampling ODE exactly from alpha_bar `high` to `low`."""
        away = (x.double().flatten(1) - high**0.5 * self.mean) @ self.basis
        spread = [ab * self.eigenvalues + 1 - ab for ab in (high, low)]
        return (low**0.5 * self.mean + (away * (spread[1] / spread[0]).sqrt()) @ self.basis.T).reshape(x.shape)


class Wavy(Gaussian):
    """A nonlinear network in float64: the Gaussian's eps and a smooth disturbance of it; `kind` says what it "outputs"."""

    def __init__(self, schedule: Schedule | None = None, kind: str = "eps", bend: float = 0.3) -> None:
        super().__init__(schedule)
        self.parameterization = kind
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(48, 48, generator=generator, dtype=torch.float64) / 48**0.5)
        self.bend = bend

    def forward(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> Prediction:
        time = torch.as_tensor(t, dtype=torch.float64).reshape(-1, 1) / 1000
        wave = self.bend * torch.tanh(2 * x.double().flatten(1) @ self.weight + time)
        pred = super().forward(x, t, cond)
        a, s = self.schedule.coefficients(t, x)
        output = {"eps": pred.eps, "x0": pred.x0, "v": a * pred.eps - s * pred.x0}[self.parameterization]
        return self.schedule.convert(x, t, output + wave.reshape(x.shape).to(x.dtype), self.parameterization)


class Worded(Wavy):
    """A network that reads tokens (B, 6, 8): they move the mean of the data, without bound on what they can say."""

    def forward(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> Prediction:
        assert cond is not None and cond.tokens is not None
        said = torch.sin(2 * cond.tokens.flatten(1).double()) + cond.tokens.flatten(1).double()
        return super().forward(x, t, Condition(vector=said @ self.weight))


class Doubled(nn.Module):
    """A tiny random UNet in float64, for floors that are no network's rounding."""

    parameterization = "eps"

    def __init__(self) -> None:
        super().__init__()
        self.unet, self.schedule = tiny_unet().double().requires_grad_(False), Schedule.linear()

    def forward(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> Prediction:
        return self.schedule.convert(x, t, self.unet(x, t).sample, "eps")


class Oracle:
    """A denoiser that knows x0."""

    parameterization = "x0"

    def __init__(self, x0: Tensor, schedule: Schedule | None = None) -> None:
        self.x0, self.schedule = x0, schedule or Schedule.linear()

    def __call__(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> Prediction:
        return self.schedule.convert(x, t, self.x0.expand_as(x), "x0")


class Calls:
    """A denoiser that counts how often, with how large a batch and at which times it is asked."""

    def __init__(self, denoiser) -> None:
        self.denoiser, self.batches, self.times = denoiser, [], []
        self.schedule, self.parameterization = denoiser.schedule, denoiser.parameterization

    def __call__(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> Prediction:
        self.batches.append(len(x))
        self.times.append(t)
        return self.denoiser(x, t, cond)


def tiny_unet(seed: int = 0) -> UNet2DModel:
    torch.manual_seed(seed)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    )
    with torch.no_grad():
        unet.conv_out.weight.mul_(3)
    return unet.eval()


def tiny_text_unet(seed: int = 0, side: int = 16, **changes) -> UNet2DConditionModel:
    """A UNet of three resolutions, each with self- and cross-attention, whose attention matters to its output."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=side,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=12,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        **changes,
    )
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if ".attn" in name:
                weight.mul_(3)
    return unet.eval().requires_grad_(False)


class TextUNet:
    """A UNet2DConditionModel as a denoiser; the condition's tokens are its context."""

    parameterization = "eps"

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.unet, self.schedule = unet, Schedule.linear()

    def __call__(self, x: Tensor, t: float | Tensor, cond: Condition) -> Prediction:
        tokens = cond.tokens.expand(len(x), *cond.tokens.shape[1:])
        return self.schedule.convert(x, t, self.unet(x, t, tokens, encoder_attention_mask=cond.mask).sample, "eps")


def random(shape, seed: int = 0, dtype=torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def assert_near(ours: Tensor, theirs: Tensor, share: float = 3e-6) -> None:
    """Differ by at most this share of the largest value: a random network's states reach into the hundreds."""
    assert ours.shape == theirs.shape
    away = float((ours - theirs).abs().max() / theirs.abs().max())
    assert away <= share, f"away by {away:.2e} of the largest value"
