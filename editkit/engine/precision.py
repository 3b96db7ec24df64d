"""How networks compute at inference: precision, memory layout, compilation, and the settings of exact repetition."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from editkit.errors import UsageError

_DTYPES = {"fp32": None, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Precision:
    """Inference settings. The state of sampling stays in float32 under all of them.

    Attributes:
        compute: "fp32", or "bf16" = autocast of the network: good for sampling and naive inversion; fixed-point inversion
            then ends at a floor of about 1e-2.
        channels_last: memory layout of convolution weights, faster on GPUs; changes rounding.
        compile: torch.compile; the first call at every shape is slow. Changes rounding.

    Raises:
        UsageError: another precision.
    """

    compute: str = "fp32"
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.compute not in _DTYPES:
            raise UsageError(f"unknown precision {self.compute!r}: choose from {', '.join(_DTYPES)}")

    def prepare(self, network: nn.Module) -> nn.Module:
        """Apply layout and compilation in place and return the network; one with its own `accelerate` does it itself."""
        accelerate = getattr(network, "accelerate", None)
        if callable(accelerate):
            accelerate(channels_last=self.channels_last, compile=self.compile)
            return network
        if self.channels_last:
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # absent from torch's stubs
        if self.compile:
            network.compile()
        return network

    @contextmanager
    def running(self, device: torch.device | str) -> Iterator[None]:
        """Run networks in this precision while the context is open."""
        dtype = _DTYPES[self.compute]
        with torch.autocast(torch.device(device).type, dtype, enabled=dtype is not None):
            yield


def computes_bf16(device: torch.device | str) -> bool:
    """Say whether a device computes in bfloat16; one that imitates it can take a hundred times as long as in float32."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "cpu" and platform.machine() in ("x86_64", "AMD64"):
        return bool(torch.cpu._is_avx512_bf16_supported())
    return kind != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@contextmanager
def exact() -> Iterator[None]:
    """Make repeated runs of equal shapes equal to the bit: deterministic kernels, no autotuning, no TF32."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # read when CUDA starts; harmless elsewhere
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
    )
    _set_exact(True, False, False, False)
    try:
        yield
    finally:
        _set_exact(*before)


def _set_exact(deterministic: bool, benchmark: bool, conv_tf32: bool, matmul_tf32: bool) -> None:
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = benchmark
    torch.backends.cudnn.allow_tf32 = conv_tf32
    torch.backends.cuda.matmul.allow_tf32 = matmul_tf32
