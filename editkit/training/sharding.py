"""Sharing out a network's weights, gradients and optimiser state over the processes (FSDP2), for those that fill a card.

Zhao et al. 2023 (arXiv 2304.11277), in the form of torch's `fully_shard`: each parameter is a DTensor of which a process holds
its rows; a layer's weights are brought together for as long as it computes.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, TypeVar

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from editkit.errors import UsageError
from editkit.training.shards import whole

if TYPE_CHECKING:
    from editkit.training.method import Method

LISTS = ("resnets", "attentions")  # of layers, in the blocks of diffusers' UNets; each layer is gathered by itself

Network = TypeVar("Network", bound=nn.Module)


class Sharded(DDPStrategy):
    """Lightning's strategy for several processes, with the networks of `Method.shardable` shared out in place of DDP's copies.

    When training has ended, `gather` gives the method ordinary networks with the trained weights.
    """

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method
        self.ordinary: dict[nn.Module, nn.Module] = {}

    def configure_ddp(self) -> None:
        """Shard the networks (Lightning calls this once the method is on its device, before it makes optimisers)."""
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        for network in self.method.shardable():
            self.ordinary[network] = without_weights(network)
            with torch.no_grad():
                for tensor in network.state_dict().values():
                    torch.distributed.broadcast(tensor, 0)
            for layer in layers(network):
                fully_shard(layer, mesh=mesh)
            fully_shard(network, mesh=mesh, reshard_after_forward=True)

    def gather(self) -> None:
        """Put ordinary networks with the whole weights, on the CPU, in the place of the sharded ones."""
        for sharded, ordinary in self.ordinary.items():
            ordinary.load_state_dict(whole(sharded.state_dict()), assign=True)
            for parent in self.method.modules():
                for name, child in list(parent.named_children()):
                    if child is sharded:
                        setattr(parent, name, ordinary)
        assert self.method.stepper is not None
        self.method.stepper.rebind()
        self.optimizers = []


def check_shardable(method: Method) -> None:
    """Raise UsageError unless all that a method trains is part of its shardable networks."""
    inside = {id(parameter) for network in method.shardable() for parameter in network.parameters()}
    if not all(id(p) in inside for named in method.trained_parameters().values() for p in named.values()):
        raise UsageError(
            f"trainer.strategy=fsdp2 does not know how to share out what {type(method).__name__} trains; use trainer.strategy=ddp"
        )


def layers(network: nn.Module) -> list[nn.Module]:
    """Return the layers of a network whose weights come together by themselves."""
    return [module for name, module in network.named_modules() if name.split(".")[-2:-1] and name.split(".")[-2] in LISTS]


def without_weights(network: Network) -> Network:
    """Return a copy whose parameters are on the meta device."""
    memo = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad) for p in network.parameters()}
    return copy.deepcopy(network, memo)
