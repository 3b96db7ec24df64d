"""UNIT-DDPM's noise networks beside SDEdit's pictures: the pairs, what learns from them, and what training leaves behind."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from editkit.engine.guidance import Clip
from editkit.engine.rng import batch_noise
from editkit.engine.sample import sample
from editkit.errors import UsageError
from editkit.methods.weakly_supervised.unit_ddpm import PairedUnitDDPM
from editkit.training.editor import walked_levels
from tests.methods.asyrp_parts import tiny_backbone
from tests.methods.unit_ddpm_parts import SIDE, edited, untouched

SMALL = {"domains": ("cat", "dog"), "width": 4, "blocks": 1, "steps": 4, "pair_steps": 4}


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    """Return the folders of a model of each domain, and what they predict."""
    made = []
    for seed in (1, 2):
        made.append(tmp_path_factory.mktemp(f"domain{seed}"))
        tiny_backbone(seed).unet.save_pretrained(made[-1] / "unet")
        DDPMScheduler(prediction_type="v_prediction").save_pretrained(made[-1] / "scheduler")
    return [str(home) for home in made]


class Dataset:
    """Six pictures of two domains in turn."""

    def __init__(self):
        self.images = torch.rand(6, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2)) * 2 - 1

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return {"image": self.images[index], "key": f"picture/{index}", "domain": index % 2}


def prepared(homes, **changes) -> PairedUnitDDPM:
    torch.manual_seed(4)
    made = PairedUnitDDPM(backbone=tiny_backbone(), models=homes, **(SMALL | changes))
    made.precompute(Dataset())
    return made


def batch_of(data: Dataset) -> dict:
    items = [data[index] for index in range(6)]
    return {name: [item[name] for item in items] for name in ("key", "domain")} | {"image": data.images}


@pytest.mark.parametrize("mistake", [None, "the model of the own domain", "one noise for all pictures"])
def test_a_picture_is_paired_with_its_sdedit_by_the_other_domains_model(homes, mistake):
    made, data = prepared(homes), Dataset()
    levels = walked_levels(made.models[0].schedule, 4, 0.55, "")
    differences = []
    for index in range(1, 6):
        item = data[index]
        model = made.models[item["domain"] if mistake == "the model of the own domain" else 1 - item["domain"]]
        key = "picture/0" if mistake == "one noise for all pictures" else item["key"]
        noise = batch_noise((3, SIDE, SIDE), [key], seed=0, purpose="pairs")
        begun = levels.signal(4) * item["image"] + levels.noise(4) * noise
        with torch.no_grad():
            walked = sample(model, begun, levels, guidance=Clip()).clamp(-1, 1)
        differences.append((walked[0] - made.answers[item["key"]]).abs().max())
    assert all(d < 1e-5 for d in differences) if mistake is None else min(differences) > 1e-3


@pytest.mark.parametrize("mistake", [None, "beside itself", "each domain by the other's network"])
def test_each_network_learns_its_pictures_beside_their_translations(homes, mistake):
    made, data = prepared(homes), Dataset()
    batch = batch_of(data)
    for network in made.noise:
        torch.nn.init.normal_(network.unet.conv_in.weight, std=0.2)  # so that what lies beside counts
    torch.manual_seed(0)
    [update] = made.updates(batch)
    torch.manual_seed(0)
    drawn = made.drawn(batch)
    by_hand = []
    for row, (key, own) in enumerate(zip(batch["key"], batch["domain"], strict=True)):
        network = made.noise[1 - own if mistake == "each domain by the other's network" else own]
        beside = data.images[row] if mistake == "beside itself" else made.answers[key]
        t = drawn.t[row : row + 1]
        a, s = network.schedule.coefficients(t, drawn.x[:1])
        x, other = a * drawn.x[row] + s * drawn.noise[row], a * beside + s * drawn.other[row]
        with torch.no_grad():
            v = network.unet(torch.cat([x, other], 1), t).sample
        by_hand.append((v - (a * drawn.noise[row] - s * drawn.x[row])).square().mean())
    assert update.group == "noise"
    assert torch.allclose(update.losses["noise"], torch.stack(by_hand), atol=1e-5) is (mistake is None)


def test_the_networks_learn_and_the_models_that_made_the_pairs_do_not(homes):
    made = prepared(homes)
    assert set(made.trainable()) == {"noise"} and not list(made.translators)
    made.freeze_rest()
    optimizer = torch.optim.Adam(made.trainable()["noise"], lr=3e-3)
    errors = []
    for _ in range(60):
        torch.manual_seed(0)
        [update] = made.updates(batch_of(Dataset()))
        optimizer.zero_grad()
        update.losses["noise"].mean().backward()
        optimizer.step()
        errors.append(update.losses["noise"].mean().item())
    assert errors[-1] < 0.8 * errors[0]
    assert all(parameter.grad is None for parameter in made.models.parameters())


def test_the_export_is_one_of_unit_ddpm_and_goes_on_from_one(homes, tmp_path):
    made = prepared(homes)
    for network in made.noise:
        torch.nn.init.normal_(network.unet.conv_in.weight, std=0.2)
    [file] = made.export(tmp_path)
    again = prepared(homes, init_from=[str(file)])
    assert not torch.allclose(again.noise[0].unet.conv_in.weight, made.noise[0].unet.conv_in.weight, atol=1e-3)
    again.prepare_training()
    other = untouched(init_from=[str(file)], steps=4)
    other.prepare_training()
    assert torch.allclose(edited(again), edited(other), atol=1e-5)


def test_mistakes_take_a_line(homes):
    with pytest.raises(UsageError, match="give the folder of a pixel model of each of the two domains"):
        prepared(homes[:1])
    with pytest.raises(UsageError, match="strength 1.5 is out of range"):
        prepared(homes, pair_strength=1.5)
    with pytest.raises(UsageError, match=r"makes pictures of \(3, 64, 64\)"):
        PairedUnitDDPM(backbone=tiny_backbone(), models=[homes[0], "editkit:dogs-ddpm"], **SMALL)
