"""The terms of CycleNet: which text goes where, and where gradients go."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from editkit.engine.count import count_calls
from editkit.errors import UsageError
from editkit.methods.weakly_supervised.cyclenet import terms as module
from editkit.methods.weakly_supervised.cyclenet.method import CycleNet, hint_channels
from editkit.methods.weakly_supervised.cyclenet.terms import Routed, Weights, terms, told
from editkit.training.plan import Plan
from editkit.training.stepper import Stepper
from editkit.types import Condition, Prediction
from tests.backbones import tiny_latent as tiny
from tests.methods.asyrp_parts import tiny_backbone
from tests.methods.cyclenet_parts import batch, gradients, method, parts, routes

INVARIANCE = Weights(reconstruction=0, consistency=0, cycle=0)
CYCLE = Weights(reconstruction=0, invariance=0, consistency=0, cycle=1)
CONSISTENCY = Weights(reconstruction=0, invariance=0, consistency=1, cycle=0)
FAST = Weights(consistency=0, cycle=0)


@pytest.fixture(scope="module")
def made():
    return method()


@pytest.fixture(scope="module")
def given(made):
    return batch(made)


# Texts, hints and times.


def asked(made, given):
    with torch.no_grad(), routes(made, given) as seen:
        terms(made.network(), given, Weights())
    return seen


ROUTES = {"net": ["SS", "GG", "SSGG"], "unet": ["SS", "GG", "GG", "SSSS"]}  # e1 and e2; e3; e4 and e5


def routed_rightly(seen):
    return {name: seen[name] for name in ROUTES} == ROUTES


def test_the_controlnet_reads_the_source_text_and_the_unet_the_target_text(made, given, monkeypatch):
    assert routed_rightly(asked(made, given))
    monkeypatch.setattr(module, "told", lambda unet, net, image: told(unet, unet, image))  # as stock pipelines do
    assert not routed_rightly(asked(made, given))


def test_hints_are_the_image_and_its_translation(made, given):
    own, translated, both = asked(made, given)["hints"]
    assert torch.equal(own, given.hint) and 0 <= own.min() < 0.45, "in [0, 1], not [-1, 1]"
    assert torch.equal(both, torch.cat([given.hint, translated])) and not torch.allclose(own, translated, atol=1e-2)


def one_time(seen):
    return all(seen["times"][k : k + 2] == [150, 400] for k in range(0, len(seen["times"]), 2))


def test_all_passes_are_at_the_same_time(made, given, monkeypatch):
    assert one_time(asked(made, given))
    real = module._ways_back
    other = replace(given, t=given.t + 100)
    monkeypatch.setattr(module, "_ways_back", lambda network, own, moved, y: real(network, other, moved, y))
    assert not one_time(asked(made, given))


def test_both_states_that_lead_back_have_the_same_value(made, given):
    moved = Prediction(given.z.clone().requires_grad_(), given.noise)
    ways = module._ways_back(made.network(), given, moved, given.hint)
    (one, *_), (other, *_) = ways["consistency"], ways["cycle"]
    assert torch.equal(one, other)
    assert other.requires_grad and not one.requires_grad


class Oracle(nn.Module):
    """Knows the images: a network whose translation is the image itself."""

    parameterization = "eps"

    def __init__(self, made, z):
        super().__init__()
        self.schedule, self.z, self.decode = made.backbone.schedule, z, made.backbone.decode

    @property
    def backbone(self):
        return self

    def residuals(self, x, t, cond):
        return None

    def forward(self, x, t, cond, residuals=None):
        a, s = self.schedule.coefficients(t, x)
        z = self.z.repeat(len(x) // len(self.z), 1, 1, 1)
        return Prediction(z, (x - a * z) / s)


def truth(given):
    return Prediction(given.z, given.noise)


def test_a_perfect_translator_has_no_error(made, given):
    found = terms(Oracle(made, given.z), given, Weights())
    assert len(found) == 4 and max(float(term.max()) for term in found.values()) < 1e-8
    off = terms(Oracle(made, given.z + 0.1), given, Weights())
    assert min(float(off[name].min()) for name in ("reconstruction", "consistency", "cycle")) > 1e-5


def test_errors_of_v_models_are_those_of_v_which_is_that_of_eps_by_alpha_bar(made, given):
    """Of eps nothing would be left where there is no signal, and the text's say there would not be trained."""
    outputs = {}
    for kind in ("eps", "v"):
        oracle = Oracle(made, given.z + 0.1)
        oracle.parameterization = kind
        outputs[kind] = terms(oracle, given, Weights(1, 1, 1, 1))
    alpha_bar = made.backbone.schedule.alpha_bar(given.t).float()
    for name in ("reconstruction", "consistency", "cycle"):
        assert torch.allclose(outputs["v"][name], outputs["eps"][name] / alpha_bar, rtol=1e-3), name
    v = method("v_prediction")
    last = replace(batch(v), t=torch.tensor([999, 999]))
    v.backbone.schedule = v.backbone.schedule.zero_terminal_snr()
    found = terms(v.network(), last, Weights())
    assert all(term.isfinite().all() for term in found.values()) and found["reconstruction"].min() > 1e-3


# Gradients.


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_at_the_start_it_is_the_backbone_and_the_invariance_holds(prediction):
    fresh = method(prediction, stir=False)
    given = batch(fresh)
    found = terms(fresh.network(), given, Weights())
    assert torch.equal(found["invariance"], torch.zeros(2))
    with torch.no_grad():
        x = fresh.backbone.schedule.add_noise(given.z, given.t, given.noise)
        bare = fresh.backbone(x, given.t, Condition(tokens=given.source))
    said = [fresh.backbone.schedule.output(one, given.t, fresh.backbone.parameterization) for one in (bare, truth(given))]
    assert torch.allclose(found["reconstruction"], (said[0] - said[1]).square().mean((1, 2, 3)), rtol=1e-5)


def test_the_invariance_trains_the_controlnet_alone(made, given, monkeypatch):
    found = gradients(made, given, INVARIANCE)
    assert found["net"] > 0 and found["decoder"] == found["rest"] == 0
    with monkeypatch.context() as patch:
        patch.setattr(Routed, "unet_as_constant", Routed.unet)
        assert gradients(made, given, INVARIANCE)["decoder"] > 0, "a UNet with its gradient would be noticed"
    real = Routed.unet_as_constant

    def detached(*args):
        pred = real(*args)
        return replace(pred, x0=pred.x0.detach(), eps=pred.eps.detach())

    monkeypatch.setattr(Routed, "unet_as_constant", detached)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradients(made, given, INVARIANCE)


def test_the_frozen_part_gets_no_gradient_of_any_term(made, given):
    found = gradients(made, given, Weights())
    assert found["net"] > 0 and found["decoder"] > 0 and found["rest"] == 0


def test_the_cycle_leads_back_to_the_translation_and_the_consistency_does_not(made, given, monkeypatch):
    """The hook on e2 sees a gradient of the cycle term alone."""
    reached = []
    real = Routed.unet_as_constant

    def watched(*args):
        pred = real(*args)
        pred.x0.register_hook(lambda grad: reached.append(float(grad.abs().max())))
        return pred

    monkeypatch.setattr(Routed, "unet_as_constant", watched)
    gradients(made, given, CONSISTENCY)
    assert reached == []
    gradients(made, given, CYCLE)
    assert len(reached) == 1 and reached[0] > 0


def slope(network, given, call):
    x = given.z.clone().requires_grad_()
    eps = call(network, x, given.t, told(given.source, given.target, given.hint)).eps
    return torch.autograd.grad(eps.sum(), x, allow_unused=True)[0]


def test_a_state_has_its_gradient_through_the_controlnet_alone(made, given):
    assert slope(Routed(made.network()), given, Routed.__call__).abs().max() > 0
    assert slope(Routed(made.network(0.0)), given, Routed.__call__) is None
    assert slope(made.network(0.0), given, type(made.network()).forward).abs().max() > 0, "undetached it would have one"


def test_passes_that_run_again_give_the_same_gradients(made, given):
    def all_gradients(recompute):
        made.zero_grad(set_to_none=True)
        sum(term.mean() for term in terms(made.network(), given, Weights(), recompute=recompute).values()).backward()
        return [None if p.grad is None else p.grad.clone() for p in made.parameters()]

    kept, again = all_gradients(False), all_gradients(True)
    for one, other in zip(kept, again, strict=True):
        assert (one is None) == (other is None) and (one is None or torch.allclose(one, other, atol=1e-6))


def test_trained_are_the_controlnet_and_the_decoder(made):
    names = set(made.trained_parameters()["cyclenet"])
    wanted = ("controlnet.", "backbone.unet.up_blocks.", "backbone.unet.conv_norm_out.", "backbone.unet.conv_out.")
    assert names == {name for name, _ in made.named_parameters() if name.startswith(wanted)}
    assert {id(p) for p in made.trainable()["cyclenet"]} == {id(p) for p in (*parts(made)["net"], *parts(made)["decoder"])}


# Cost and training.


def cost(made, given, weights):
    with torch.no_grad(), count_calls(made.backbone, flops=False) as unet, count_calls(made.controlnet, flops=False) as net:
        found = terms(made.network(), given, weights)
    return found, (unet.calls, unet.per_image(2)["evaluations"], net.calls, net.per_image(2)["evaluations"])


def test_network_calls_of_a_step(made, given):
    full, (*calls,) = cost(made, given, Weights())
    assert calls == [4, 5, 3, 4], "five passes; the first two share one of the ControlNet"
    fast, (*calls,) = cost(made, given, FAST)
    assert calls == [3, 3, 2, 2]
    assert fast.keys() == {"reconstruction", "invariance"}
    assert all(torch.equal(fast[name], full[name]) for name in fast)


def test_training_lowers_the_loss_and_leaves_the_rest():
    trained = method(stir=False, optimizer=partial(torch.optim.AdamW, lr=5e-3))
    trained.prepare_training()
    trained.freeze_rest()
    trained.train()
    trained.stepper = Stepper(trained, Plan(steps=20, batch_size=2))
    trained.stepper.make_optimizers()
    still = {name: p.detach().clone() for name, p in trained.named_parameters() if not p.requires_grad}
    items = trained.dummy_batch()

    def loss():
        torch.manual_seed(3)
        with torch.no_grad():
            return sum(float(term.mean()) for term in trained.loss(items).values())

    before = loss()
    for _ in range(20):
        torch.manual_seed(3)
        trained.stepper.run(items)
    assert loss() < 0.9 * before
    assert all(torch.equal(still[name], p) for name, p in trained.named_parameters() if name in still)


def test_posteriors_are_kept_where_images_come_again():
    texts = {"caption": "by day", "target_caption": "at night"}
    two = [{"image": image, "key": f"{k}", **texts} for k, image in enumerate(tiny.images(2))]
    fresh = method()
    fresh.precompute(two)
    both = {"image": tiny.images(2), "key": ["0", "1"], "caption": ["by day"] * 2, "target_caption": ["at night"] * 2}

    def loss(keys):
        torch.manual_seed(1)
        with torch.no_grad():
            return fresh.loss(both | {"key": keys})["reconstruction"]

    assert torch.allclose(loss(["0", "1"]), loss(["new", "newer"]), atol=1e-5)
    assert fresh.kept.keys() == {"0", "1"} and [one.prompt for one in fresh.preview] == ["at night"] * 2


# What does not fit.


def test_data_without_target_texts_are_named():
    with pytest.raises(UsageError, match="these data lack: choose data=scene_domains"):
        method().precompute([{"image": tiny.images()[0], "key": "0", "caption": "by day"}])


def test_the_hint_encoder_halves_as_often_as_the_autoencoder():
    assert [hint_channels(f) for f in (1, 2, 4, 8)] == [(16,), (16, 32), (16, 32, 96), (16, 32, 96, 256)]


def test_other_backbones_and_controlnets_are_named(tmp_path):
    with pytest.raises(UsageError, match="cyclenet needs a latent model"):
        CycleNet(backbone=tiny_backbone())
    with pytest.raises(UsageError, match="this backbone takes 9 channels"):
        CycleNet(backbone=tiny.backbone(9))
    tiny.controlnet().save_pretrained(tmp_path)
    assert not CycleNet(backbone=tiny.backbone(), controlnet=str(tmp_path)).needs_trained
    with pytest.raises(UsageError, match="of another UNet: its cross_attention_dim is 16, here it is 8"):
        CycleNet(backbone=other_width(), controlnet=str(tmp_path))


def other_width():
    made = tiny.parts(cross_attention_dim=8) | {"text_encoder": tiny.text_encoder(hidden_size=8)}
    return tiny.LatentBackbone(made["unet"], made["vae"], made["scheduler"].config, made["text_encoder"], made["tokenizer"])
