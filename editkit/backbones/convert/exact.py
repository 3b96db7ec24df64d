"""A network filled with exactly the tensors of a file: nothing missing, nothing left over, every shape the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

from editkit.errors import UserError

Network = TypeVar("Network", bound=nn.Module)


def load_exactly(name: str, network: Network, tensors: Mapping[str, Tensor]) -> Network:
    """Give a network, which may be on the meta device, these tensors in single precision; return it in eval mode.

    Args:
        name: the source, for messages.
        network: of the architecture that was derived from the tensors.
        tensors: by the network's names.

    Raises:
        UserError: tensors that are missing, left over or of another shape.
    """
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    seen = {key: tuple(value.shape) for key, value in tensors.items()}
    odd = sorted(key for key in expected.keys() | seen.keys() if expected.get(key) != seen.get(key))
    if odd:
        there, here = seen.get(odd[0], "missing"), expected.get(odd[0], "unknown")
        raise UserError(
            f"{name} is a variant that cannot be converted: {len(odd)} of its tensors do not fit, such as {odd[0]}, "
            f"which is {there} and should be {here}"
        )
    network.load_state_dict({key: value.float().contiguous() for key, value in tensors.items()}, assign=True)
    return network.eval()
