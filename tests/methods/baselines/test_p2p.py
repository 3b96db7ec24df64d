"""Prompt-to-prompt as a method, on Stable Diffusion in miniature."""

from __future__ import annotations

import pytest
import torch

from editkit.engine.count import count_calls
from editkit.engine.invert import INVERTERS
from editkit.errors import UsageError
from editkit.methods.baselines.p2p import PromptToPromptMethod, inverter_of
from editkit.types import EditRequest
from tests.backbones import tiny_latent

STEPS = 5


@pytest.fixture(scope="module")
def backbone():
    return tiny_latent.backbone(down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2)


def request(key="a.png", **changes):
    return EditRequest(key, tiny_latent.images()[0], source_prompt="a red square", **{"prompt": "a blue square"} | changes)


def edited(backbone, requests, **settings):
    editor = PromptToPromptMethod(backbone=backbone, steps=STEPS, **settings).editor([])
    return editor.edit(requests, editor.prepare(requests))


def decoded(backbone, one):
    with torch.no_grad():
        return backbone.decode(backbone.encode(one.image[None]))


@pytest.mark.parametrize("inverter", sorted(INVERTERS))
def test_any_inverter_edits(backbone, inverter):
    out = edited(backbone, [request()], inverter=inverter).images
    assert out.shape == (1, 3, tiny_latent.SIZE, tiny_latent.SIZE) and out.isfinite().all()
    other = edited(backbone, [request(prompt="a green circle")], inverter=inverter).images
    assert not torch.allclose(out, other, atol=1e-4)


def test_the_source_itself_comes_back_under_full_control_of_a_local_edit(backbone):
    """With local blend confined to nothing an edit ends on the source's lane, which is the image."""
    one = request()
    editor = PromptToPromptMethod(backbone=backbone, steps=STEPS, blend=["red", "blue"]).editor([])
    build = editor.control.of

    def confined(pairs):
        control = build(pairs)
        control.blend.threshold, control.blend.start, control.blend.shrink = 2.0, 0.0, 2
        return control

    object.__setattr__(editor.control, "of", confined)
    out = editor.edit([one], editor.prepare([one])).images
    torch.testing.assert_close(out, decoded(backbone, one), rtol=1e-4, atol=1e-4)


def test_control_acts_in_its_windows_alone(backbone):
    free = edited(backbone, [request()], cross=0.0, self_attention=0.0).images
    held = edited(backbone, [request()], cross=1.0, self_attention=1.0).images
    assert not torch.allclose(free, held, atol=1e-4)
    assert torch.equal(edited(backbone, [request()], cross=0.0, self_attention=0.0, kind="refine").images, free)


def test_the_kind_follows_the_number_of_words(backbone):
    for prompt, kind in (("a blue square", "replace"), ("a big red square", "refine")):
        chosen = edited(backbone, [request(prompt=prompt)]).images
        assert torch.equal(chosen, edited(backbone, [request(prompt=prompt)], kind=kind).images)
    with pytest.raises(UsageError, match="as many"):
        edited(backbone, [request(prompt="a big red square")], kind="replace")


def test_an_edit_does_not_depend_on_its_batch(backbone):
    requests = [request(), request("b.png", prompt="a big red square"), request("c.png", prompt="a blue circle")]
    together = edited(backbone, requests).images
    alone = torch.cat([edited(backbone, [one]).images for one in requests])
    assert (together - alone).abs().max() < 2 / 255


def test_weights_change_the_edit_and_name_words_of_the_prompt(backbone):
    plain = edited(backbone, [request()]).images
    assert torch.equal(edited(backbone, [request()], weights={"blue": 1.0}).images, plain)
    assert not torch.allclose(edited(backbone, [request()], weights={"blue": 5.0}).images, plain, atol=1e-4)
    with pytest.raises(UsageError, match="'pink' is not in the prompt"):
        edited(backbone, [request()], weights={"pink": 5.0})


def test_calls_are_one_inversion_and_four_lanes_a_step(backbone):
    with count_calls(backbone, flops=False) as counter:
        result = edited(backbone, [request(), request("b.png")])
    assert result.scores["network_calls"] == [counter.evaluations / 2] * 2 == [STEPS + 4 * STEPS] * 2


def test_wrong_settings_are_refused(backbone):
    with pytest.raises(UsageError, match="Did you mean 'fixed-point'"):
        inverter_of("fixedpoint", {})
    with pytest.raises(UsageError, match="no setting 'refinement'; it has: refinements"):
        inverter_of("fixed-point", {"refinement": 3})
    assert inverter_of("ddim", {}).query == "target" and inverter_of("ddim", {"query": "source"}).query == "source"
    with pytest.raises(UsageError, match="reads text"):
        PromptToPromptMethod(backbone=torch.nn.Identity())
    with pytest.raises(UsageError, match="Did you mean 'replace'"):
        PromptToPromptMethod(backbone=backbone, kind="replac")
    with pytest.raises(UsageError, match="one of the prompt"):
        PromptToPromptMethod(backbone=backbone, blend=["square"])
    assert PromptToPromptMethod(backbone=backbone).editor([]).needs == ("image", "source_prompt", "prompt")
