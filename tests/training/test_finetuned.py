"""Methods that train a copy of their backbone, and the files that hold what changed."""

from __future__ import annotations

import pytest
import torch

from editkit.errors import UserError
from editkit.training.artefact import Artefact
from editkit.training.finetuned import FineTuning, difference, tuned_by
from tests.methods.asyrp_parts import TinyClip, tiny_backbone
from tests.methods.diffusionclip_parts import TinyIdentity, stirred

CARD = {"t0": 500, "method": "editkit.other"}
WEIGHTS = {"clip_weight": 3.0, "l1_weight": 1.0, "identity_weight": 0.0}


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


def method_of(backbone, **weights):
    return FineTuning(backbone, TinyClip, TinyIdentity, "a face", "a smiling face", {**WEIGHTS, **weights})


def test_the_copy_is_made_when_it_is_to_be_trained_and_is_all_that_is(backbone):
    method = method_of(backbone)
    assert method.tuned is None
    assert {name.split(".")[0] for name in method.trained_parameters()["unet"]} == {"tuned"}
    method.freeze_rest()
    assert all(p.requires_grad for p in method.network().parameters())
    assert not any(p.requires_grad for p in backbone.parameters())


def test_the_losses_are_those_of_the_texts_and_the_weights(backbone):
    plain, person, loaded = method_of(backbone), method_of(backbone, identity_weight=0.5), []
    for method in (plain, person):
        method.make_identity = lambda method=method: loaded.append(method) or TinyIdentity()
        method.prepare_training()
    assert loaded == [person] and plain.criterion.identity is None and person.criterion.identity is not None
    criterions = plain.criterions()
    assert criterions("a", "b") is criterions("a", "b"), "texts are read once"
    features, images = torch.ones(1, 3), torch.rand(1, 3, 8, 8)
    smile, age = (criterions("a face", text).direction.cosine(images, features) for text in ("a smiling face", "an old face"))
    assert torch.equal(plain.criterion.direction.cosine(images, features), smile) and not torch.allclose(smile, age, atol=1e-3)


def test_a_file_leads_to_the_network_that_it_was_made_of(backbone):
    method = method_of(backbone)
    method.tuned = stirred(backbone)
    (artefact,) = method.artefacts()
    assert (artefact.name, artefact.card["kind"], artefact.card["source_prompt"]) == ("a smiling face", "difference", "a face")
    artefact.card |= CARD
    x, before = torch.rand(2, 3, 8, 8), backbone.digest()
    network = tuned_by(artefact, backbone)
    with torch.no_grad():
        torch.testing.assert_close(network(x, 300.0).eps, method.tuned(x, 300.0).eps, atol=2e-3, rtol=0)
        assert not torch.allclose(network(x, 300.0).eps, backbone(x, 300.0).eps, atol=1e-2)
    whole = tuned_by(Artefact("whole", method.tuned.state_dict(), card={**CARD, "kind": "weights"}), backbone)
    assert whole.digest() == method.tuned.digest() and backbone.digest() == before


def test_a_small_change_survives_as_a_difference_and_not_as_whole_halves(backbone):
    """An easy wrong version saves the fine-tuned weights in half precision: gains of about 1 lose a change of 1e-4."""
    other = tiny_backbone()
    gain = "unet.conv_norm_out.weight"
    with torch.no_grad():
        other.state_dict()[gain].add_(1e-4)
    assert torch.allclose(difference(other, backbone)[gain].float(), torch.full((8,), 1e-4), rtol=1e-2)
    assert (other.state_dict()[gain].half().float() - backbone.state_dict()[gain]).abs().max() == 0


def test_the_change_is_applied_in_float32_to_a_backbone_of_any_precision(backbone):
    """An easy wrong version adds in bf16, which rounds the change away; the digest of a cast backbone is not compared."""
    cast = tiny_backbone().to(torch.bfloat16)
    change = {name: torch.full_like(tensor, 1e-4).half() for name, tensor in backbone.state_dict().items()}
    network = tuned_by(Artefact("x", change, card={**CARD, "kind": "difference", "backbone_digest": backbone.digest()}), cast)
    moved = [(new - old.float()).mean() for new, old in zip(network.parameters(), cast.parameters(), strict=True)]
    torch.testing.assert_close(torch.stack(moved), torch.full((len(moved),), 1e-4), rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "network"}, "not a fine-tuned network .made by editkit.other"),
        ({"t0": None}, "not a fine-tuned network"),
        ({"backbone_digest": "0123"}, "another backbone: 0123, not"),
    ],
)
def test_a_file_that_does_not_fit_says_so(backbone, changes, said):
    card = {name: value for name, value in {**CARD, "kind": "weights", **changes}.items() if value is not None}
    with pytest.raises(UserError, match=said):
        tuned_by(Artefact("odd", backbone.state_dict(), card=card), backbone)


def test_the_first_tensor_that_differs_in_shape_is_named(backbone):
    wider = tiny_backbone(block_out_channels=(8, 32))
    with pytest.raises(UserError, match=r"another backbone: their unet\.down_blocks.* is \(32,.* here it is \(16,"):
        tuned_by(Artefact("wide", wider.state_dict(), card={**CARD, "kind": "weights"}), backbone)
