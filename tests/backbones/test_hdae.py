"""A hierarchical diffusion autoencoder: which block reads which code, and what starts from what."""

from __future__ import annotations

import pytest
import torch

from editkit.backbones.diffae import DiffAEBackbone, DiffusionAutoencoder
from editkit.backbones.hdae import HDAEBackbone, HierarchicalAutoencoder, leveled, load_hdae, warm_hdae
from editkit.errors import UsageError
from editkit.networks.two_conditions import TwoConditions
from editkit.types import Condition

SIDE, CODE, LEVELS = 16, 6, ["4", "8", "16"]
SIZES = {"sample_size": SIDE, "channels": (8, 8, 16), "encoder_channels": (8, 8, 16, 16), "attended": (8,), "blocks": 1}
SIZES |= {"groups": 4, "code": CODE, "embedding": 16}


def filled(net):
    torch.manual_seed(0)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net


def backbone(**given) -> HDAEBackbone:
    return HDAEBackbone(filled(HierarchicalAutoencoder(**SIZES, **given)))


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("variant", ["E", "U"])
def test_there_is_a_code_for_every_resolution(variant):
    net = backbone(variant=variant)
    assert list(net.parts) == LEVELS and net.code_width == 3 * CODE
    codes = net.semantic_code(drawn(2, 3, SIDE, SIDE))
    assert codes.shape == (2, 3 * CODE) and codes.std(0).min() > 0
    with pytest.raises(UsageError, match="choose from E, U"):
        HierarchicalAutoencoder(**SIZES, variant="X")


def the_same_for_all(net):
    for layer in net.modules():
        if isinstance(layer, TwoConditions):
            layer.place = 0


@pytest.mark.parametrize("mistake", [None, the_same_for_all], ids=["", "one code for all blocks"])
@torch.no_grad()
def test_a_code_reaches_the_blocks_of_its_resolution_alone(mistake):
    net = backbone()
    if mistake:
        mistake(net)
    blocks = [(level, block.time_emb_proj) for level, block in leveled(net.unet)]
    assert len(blocks) == len([layer for layer in net.modules() if isinstance(layer, TwoConditions)])
    x, codes, right = drawn(1, 3, SIDE, SIDE), drawn(1, 3 * CODE), True
    for name, part in net.parts.items():
        changed, said = codes.clone(), []
        changed[:, part] += 1
        for one in (codes, changed):
            outputs: list[torch.Tensor] = []
            handles = [layer.register_forward_hook(lambda m, i, o, kept=outputs: kept.append(o)) for _, layer in blocks]
            net(x, 500.0, Condition(vector=one))
            for handle in handles:
                handle.remove()
            said.append(outputs)
        moved = [not torch.equal(a, b) for a, b in zip(*said, strict=True)]
        order = [level for level, _ in blocks]  # as they are called: down, middle, up
        right = right and all(hit == (f"{SIDE >> level}" == name) for hit, level in zip(moved, order, strict=True))
    assert right == (mistake is None)


@torch.no_grad()
def test_the_way_down_above_the_smallest_pictures_does_not_see_their_code():
    net, x, codes = backbone(), drawn(1, 3, SIDE, SIDE), drawn(1, 3 * CODE)
    changed, kept = codes.clone(), []
    changed[:, net.parts["4"]] += 1
    handle = net.unet.down_blocks[1].resnets[-1].register_forward_hook(lambda m, i, o: kept.append(o))
    outputs = [net(x, 500.0, Condition(vector=one)).eps for one in (codes, changed)]
    handle.remove()
    assert torch.equal(*kept) and not torch.equal(*outputs)


@pytest.mark.parametrize("variant", ["E", "U"])
@torch.no_grad()
def test_begun_from_a_diffusion_autoencoder_it_is_that_one(tmp_path, variant):
    start = filled(DiffusionAutoencoder(**SIZES))
    folder = start.save(tmp_path / "diffae")
    net = HDAEBackbone(warm_hdae(folder, variant=variant))
    plain = DiffAEBackbone(DiffusionAutoencoder.load(folder))
    x, images = drawn(2, 3, SIDE, SIDE), drawn(2, 3, SIDE, SIDE, seed=1)
    codes = net.semantic_code(images)
    assert torch.equal(codes[:, :CODE], plain.semantic_code(images))
    assert torch.equal(net(x, 300.0, Condition(vector=codes)).eps, plain(x, 300.0, Condition(vector=codes[:, :CODE])).eps)
    net.gates.fill_(0.5)
    assert not torch.equal(net(x, 300.0, Condition(vector=codes)).eps, plain(x, 300.0, Condition(vector=codes[:, :CODE])).eps)


def gradients(net):
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    images = drawn(2, 3, SIDE, SIDE, seed=1)
    net(drawn(2, 3, SIDE, SIDE), 500.0, Condition(vector=net.semantic_code(images))).eps.square().mean().backward()
    return {name: parameter.grad for name, parameter in net.named_parameters()}


@pytest.mark.parametrize("variant", ["E", "U"])
def test_the_error_reaches_every_head(variant):
    found = gradients(backbone(variant=variant))
    assert all(grad is not None and grad.abs().max() > 0 for name, grad in found.items() if ".heads." in name or ".up." in name)


def test_closed_gates_let_only_themselves_learn(tmp_path):
    folder = filled(DiffusionAutoencoder(**SIZES)).save(tmp_path / "diffae")
    found = gradients(HDAEBackbone(warm_hdae(folder)))
    assert all(not grad.any() for name, grad in found.items() if ".heads." in name)
    assert (found["gates"] != 0).all()


def test_a_folder_holds_all_of_it(tmp_path):
    net = HDAEBackbone(HierarchicalAutoencoder(**SIZES, variant="E").half().float())
    again = load_hdae(net.save(tmp_path / "hdae"))
    assert again.digest() == net.digest() and again.config["variant"] == "E"
