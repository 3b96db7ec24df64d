"""ControlNets around a latent backbone (arXiv 2302.05543)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import ControlNetModel
from torch import Tensor, nn

from editkit.backbones.assets import resolve
from editkit.backbones.latent import LatentBackbone, Residuals, expanded
from editkit.backbones.unet import dtype_of
from editkit.engine.denoiser import Wrapper
from editkit.engine.lanes import select
from editkit.engine.once import once
from editkit.errors import UsageError, UserError
from editkit.types import Condition, Prediction


class Controlled(nn.Module, Wrapper):
    """A latent backbone with ControlNets, itself a Denoiser; what they return is added to its UNet's skips and middle.

    Each net reads `cond.control[name]`, made by `hint`: images as `concat` and the tokens that it attends to, the UNet's own
    where they are None. Wrap calls in `attention.constant_text` to embed each image once. Gradients of the nets are left
    as they are: a method may train them.

    Args:
        backbone: what they control.
        nets: by name.
        scales: conditioning scale by name, 1 where absent; 0 leaves a net out.
        guess: weigh the residuals by depth, from 0.1 at the top to 1 in the middle (guess mode, which also takes
            `without_control` of the condition as the unconditional branch).

    Raises:
        UsageError: a scale for a net that does not exist.
    """

    def __init__(
        self,
        backbone: LatentBackbone,
        nets: Mapping[str, ControlNetModel],
        scales: Mapping[str, float] | None = None,
        *,
        guess: bool = False,
    ) -> None:
        super().__init__()
        self.denoiser = backbone
        self.nets = nn.ModuleDict(nets)
        self.scales = dict.fromkeys(nets, 1.0) | dict(scales or {})
        self.guess = guess
        if unknown := self.scales.keys() - nets.keys():
            raise UsageError(f"no ControlNet {', '.join(sorted(unknown))} to scale: there are {', '.join(nets)}")

    @property
    def backbone(self) -> LatentBackbone:
        """Return the backbone inside."""
        return self.denoiser

    def forward(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> Prediction:
        """Predict x0 and eps of latents x (B, C, h, w) at model time t.

        Raises:
            UsageError: a condition without tokens, or without the hint of a net.
        """
        return self.denoiser(x, t, cond, residuals=self.residuals(x, t, cond))

    def residuals(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> Residuals | None:
        """Return what the nets add to the UNet at latents x (B, C, h, w); None if none of them acts.

        Raises:
            UsageError: a condition without the hint of a net, or without tokens for it.
        """
        found = [self._residuals(name, x, t, cond) for name in self.nets if self.scales[name] != 0]
        parts = [one for one in found if one is not None]
        return _sum(parts) if parts else None

    def _residuals(self, name: str, x: Tensor, t: float | Tensor, cond: Condition | None) -> Residuals | None:
        control = None if cond is None else cond.control.get(name)
        if control is None or control.concat is None:
            raise UsageError(f"the ControlNet {name!r} has no hint: give Condition.control[{name!r}] = hint(images)")
        if control.tokens is None:
            control = replace(control, tokens=cond.tokens)
        rows = _active(control, len(x))
        if rows is None:
            return self._run(name, x, t, control)
        if len(rows) == 0:
            return None
        times = t[rows.to(t.device)] if isinstance(t, Tensor) and t.ndim else t
        part = self._run(name, x[rows.to(x.device)], times, select(control, rows))
        return Residuals([_spread(one, rows, len(x)) for one in part.down], _spread(part.mid, rows, len(x)))

    def _run(self, name: str, x: Tensor, t: float | Tensor, control: Condition) -> Residuals:
        net, batch = self.nets[name], len(x)
        down, mid = net(
            x.to(net.dtype),
            self.denoiser.times_of(t, batch),
            encoder_hidden_states=self.denoiser.tokens_of(control, batch).to(net.dtype),
            controlnet_cond=once((net, batch), lambda images: expanded(images, batch).to(net.dtype), control.concat),
            conditioning_scale=self.scales[name],
            guess_mode=self.guess,
            return_dict=False,
        )
        return Residuals(down, mid)


def hint(images: Tensor, tokens: Tensor | None = None, *, active: bool = True) -> Condition:
    """Return what one ControlNet is given: hint images (B, 3, H, W) in [0, 1] and its own tokens (B, L, D), if any.

    An inactive one costs nothing and adds nothing: for the branches of a guidance that a net should not see.
    """
    return Condition(tokens=tokens, concat=images, extra={"active": torch.tensor([active])})


def without_control(cond: Condition) -> Condition:
    """Return the condition with all its hints inactive: the unconditional branch of guess mode."""
    off = {name: replace(control, extra={"active": torch.tensor([False])}) for name, control in cond.control.items()}
    return replace(cond, control=off)


def load_controlnet(
    path: str | Path, *, dtype: str = "float32", download: bool = False, revision: str | None = None
) -> ControlNetModel:
    """Load a ControlNetModel folder of diffusers, frozen and in eval mode.

    Raises:
        UserError: no such weights, not a ControlNetModel in safetensors, an unknown dtype.
    """
    precision = dtype_of(dtype)
    folder = resolve(path, download=download, revision=revision)
    try:
        net = ControlNetModel.from_pretrained(folder, torch_dtype=precision, use_safetensors=True, low_cpu_mem_usage=False)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder} does not hold a ControlNetModel with safetensors weights: {reason}") from error
    return net.requires_grad_(False).eval()


def _active(control: Condition, batch: int) -> Tensor | None:
    """Return the indices of the samples that a net acts on, on the CPU; None for all."""
    active = control.extra.get("active")
    if active is None or bool(active.all()):
        return None
    return expanded(active, batch).nonzero().flatten()


def _spread(part: Tensor, rows: Tensor, batch: int) -> Tensor:
    return part.new_zeros(batch, *part.shape[1:]).index_copy(0, rows.to(part.device), part)


def _sum(parts: Sequence[Residuals]) -> Residuals:
    return Residuals([sum(layer) for layer in zip(*(part.down for part in parts), strict=True)], sum(part.mid for part in parts))
