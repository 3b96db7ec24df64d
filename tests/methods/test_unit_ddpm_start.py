"""The training before UNIT-DDPM's own: translators that begin as SDEdit, and what the method makes of them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from diffusers import DDPMScheduler

from editkit.engine.guidance import Clip
from editkit.engine.rng import batch_noise
from editkit.engine.sample import sample
from editkit.errors import UsageError, UserError
from editkit.methods.weakly_supervised.unit_ddpm import TranslatorStart
from editkit.training.artefact import Artefact
from editkit.training.editor import walked_levels
from tests.methods.asyrp_parts import tiny_backbone
from tests.methods.unit_ddpm_parts import SIDE, untouched

SMALL = {"width": 4, "blocks": 1, "steps": 4}


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


def prepared(homes, **changes) -> TranslatorStart:
    made = TranslatorStart(models=homes, **(SMALL | changes))
    made.precompute(Dataset())
    return made


@pytest.mark.parametrize("mistake", [None, "the model of the own domain", "noise of its own for each picture"])
def test_a_picture_is_paired_with_its_sdedit_by_the_other_domains_model(homes, mistake):
    made, data = prepared(homes), Dataset()
    levels = walked_levels(made.models[0].schedule, 4, 0.55, "")
    differences = []
    for index in range(6):
        item = data[index]
        model = made.models[item["domain"] if mistake == "the model of the own domain" else 1 - item["domain"]]
        key = item["key"] if mistake == "noise of its own for each picture" else "translators"
        noise = batch_noise((3, SIDE, SIDE), [key], seed=0, purpose="translators")
        begun = levels.signal(4) * item["image"] + levels.noise(4) * noise
        with torch.no_grad():
            walked = sample(model, begun, levels, guidance=Clip()).clamp(-1, 1)
        differences.append((walked[0] - made.answers[item["key"]]).abs().max())
    assert all(d < 1e-5 for d in differences) if mistake is None else min(differences) > 1e-3


def test_each_translator_learns_the_pairs_of_its_domain(homes):
    made, data = prepared(homes), Dataset()
    items = [data[index] for index in range(6)]
    batch = {name: [item[name] for item in items] for name in ("key", "domain")} | {"image": data.images}
    first = made.loss(batch)["translators"]
    assert torch.allclose(first, torch.stack([(made.answers[i["key"]] - i["image"]).abs().mean() for i in items]), atol=1e-6)
    cats = {name: value[::2] for name, value in batch.items()}
    made.loss(cats)["translators"].mean().backward()
    assert made.translators[0].change[0].weight.grad is not None and made.translators[1].change[0].weight.grad is None
    optimizer = torch.optim.Adam(made.trainable()["translators"], lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        made.loss(batch)["translators"].mean().backward()
        optimizer.step()
    assert (made.loss(batch)["translators"] < first).all()


def test_unit_ddpm_begins_with_them_and_lets_them_learn_slowly(homes, tmp_path):
    begun = prepared(homes)
    for translator in begun.translators:
        torch.nn.init.normal_(translator.change[-1].weight)
    [file] = begun.export(tmp_path)
    adam = partial(torch.optim.Adam, lr=1e-3)
    made = untouched(translators_from=str(file), translator_rate=0.1, optimizer=adam)
    made.prepare_training()
    x = Dataset().images
    for own, theirs in zip(made.translators, begun.translators, strict=True):
        assert torch.allclose(own(x), theirs(x), atol=1e-6)
    rates = {name: made.optimizer(list(group)).param_groups[0]["lr"] for name, group in made.trainable().items()}
    assert rates == {"noise": 1e-3, "translators": 1e-4}
    made.freeze_rest()
    assert all(p.requires_grad for group in made.trainable().values() for p in group)


def test_mistakes_take_a_line(homes, tmp_path):
    with pytest.raises(UsageError, match="give the folder of a pixel model of each of the two domains"):
        TranslatorStart(models=homes[:1], **SMALL)
    with pytest.raises(UsageError, match="strength 1.5 is out of range"):
        TranslatorStart(models=homes, strength=1.5, **SMALL)
    with pytest.raises(UsageError, match="translator_rate=0 is out of range"):
        untouched(translator_rate=0)
    other = TranslatorStart(models=homes, **(SMALL | {"width": 8})).export(tmp_path / "wide")
    with pytest.raises(UserError, match="do not fit this recipe"):
        untouched(translators_from=str(other[0])).prepare_training()
    stranger = Artefact("x", {}, card={"kind": "delta"}).save(tmp_path / "stranger.safetensors")
    with pytest.raises(UserError, match="not of the translators' start"):
        untouched(translators_from=str(stranger)).prepare_training()
