"""Prompt-to-prompt on a tiny random UNet: which rows and which maps are controlled, when, and what stays as it was."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from editkit.backbones.attention_taps import attention_taps
from editkit.engine.attention import attend, attention_map
from editkit.engine.guidance import ClassifierFree
from editkit.engine.lanes import stack
from editkit.engine.local_blend import LocalBlend
from editkit.engine.prompt_to_prompt import Controlled, CrossEdit, PromptToPrompt, Rows, in_groups, refine, replace, reweight
from editkit.engine.sample import sample
from editkit.engine.words import equalizer, indicator, split_words
from editkit.errors import UsageError
from editkit.types import Condition
from tests.engine.stand_ins import TextUNet, random, tiny_text_unet

L, STEPS = 8, 5
SOURCE, TARGET, LONGER = (split_words(text, str.split, L) for text in ("a cat sits", "a dog sits", "a black dog sits"))


@pytest.fixture(scope="module")
def denoiser():
    return TextUNet(tiny_text_unet().double())


@pytest.fixture(scope="module")
def levels(denoiser):
    return denoiser.schedule.levels(STEPS, spacing="leading")


def tokens(seed):
    return random((1, L, 12), seed)


PROMPTS = {"source": tokens(1), "target": tokens(2), "empty": tokens(3)}


def conditions(*prompts, groups):
    """Return the conditions of the rows of the branch and of the unconditional one."""
    cond = Condition(tokens=torch.cat([PROMPTS[prompt] for prompt in prompts]))
    return in_groups(cond, groups), in_groups(Condition(tokens=PROMPTS["empty"]), [-1])


def state(rows=2, side=16, seed=5):
    return random((1, 4, side, side), seed).repeat(rows, 1, 1, 1)


def unlike(rows=2):
    return random((rows, 4, 16, 16), 9)


def control(*edits, **settings):
    return PromptToPrompt(CrossEdit.stack(edits), **settings)


def run(denoiser, levels, controller, x, cond, uncond=None, scale=3.0, **changes):
    guidance = ClassifierFree(scale, uncond) if uncond is not None else ClassifierFree(1.0)
    controlled = Controlled(denoiser, controller, levels, STEPS)
    with attention_taps(denoiser.unet, controller):
        return sample(controlled, x, levels, cond, guidance=guidance, on_step=controller.on_step, **changes)


def plain(denoiser, levels, x, cond, uncond):
    return sample(denoiser, x, levels, cond, guidance=ClassifierFree(3.0, uncond))


@pytest.fixture(scope="module")
def maps(denoiser):
    """Collect what each attention computes within a context, as (name, maps, output)."""

    def collected(controller, x, cond, step=0):
        found = {}

        def watch(q, k, v, place):
            out = controller(q, k, v, place)
            found[place.name] = (q, k, v, place, attend(q, k, v, place) if out is None else out)
            return out

        controller.begin(step, STEPS, cond.extra["group"].expand(len(x)).tolist(), x)
        with attention_taps(denoiser.unet, watch):
            denoiser(x, 400.0, cond)
        return found

    return collected


# ------------------------------------------------------------------------------------------------- which rows


def test_rows_are_read_from_the_groups():
    rows = Rows.of([0, 1, -1, 0, 1, 0])
    assert rows.all.tolist() == [0, 1, 3, 4, 5] and rows.edits.tolist() == [3, 4, 5] and rows.sources.tolist() == [0, 1, 0]
    assert rows.edits_within.tolist() == [2, 3, 4] and rows.sources_within.tolist() == [0, 1, 0]
    assert rows.sources_of_all == [0, 1, 0, 1, 0] and len(Rows.of([-1, -1]).all) == 0


def test_groups_stay_right_however_branches_are_stacked():
    cond, uncond = conditions("source", "target", groups=[0, 0])
    assert stack([cond, uncond], [2, 2]).extra["group"].tolist() == [0, 0, -1, -1]
    assert stack([uncond, cond], [2, 2]).extra["group"].tolist() == [-1, -1, 0, 0]


def test_what_is_missing_is_said(denoiser, levels):
    cond, _ = conditions("source", "target", groups=[0, 0])
    controller = control(replace(SOURCE, TARGET))
    with pytest.raises(ValueError, match="in_groups"):
        Controlled(denoiser, controller, levels, STEPS)(state(), levels.times[2], Condition(tokens=cond.tokens))
    with pytest.raises(ValueError, match="none of the levels"):
        Controlled(denoiser, controller, levels, STEPS)(state(), 3.5, cond)
    with pytest.raises(ValueError, match="1 cross-attention edits for 2"):
        controller.begin(0, STEPS, [0, 0, 0], state(3))


# ------------------------------------------------------------------------------------------------- sampling


def test_the_same_prompt_gives_the_source_exactly(denoiser, levels):
    cond, uncond = conditions("source", "source", groups=[0, 0])
    for edit in (replace(SOURCE, SOURCE, 1.0), refine(SOURCE, SOURCE, 1.0)):
        out = run(denoiser, levels, control(edit, self_window=1.0, self_share=1.0), state(), cond, uncond)
        assert torch.equal(out[0], out[1])
    torch.testing.assert_close(out, plain(denoiser, levels, state(), cond, uncond), rtol=1e-6, atol=1e-6)


def test_windows_of_nothing_are_no_control_bit_for_bit(denoiser, levels):
    cond, uncond = conditions("source", "target", groups=[0, 0])
    out = run(denoiser, levels, control(replace(SOURCE, TARGET, 0.0), self_window=0.0), state(), cond, uncond)
    assert torch.equal(out, plain(denoiser, levels, state(), cond, uncond))


def test_sources_are_left_alone_and_edits_are_drawn_to_them(denoiser, levels):
    cond, uncond = conditions("source", "target", groups=[0, 0])
    free = sample(denoiser, state(), levels, cond, guidance=ClassifierFree(3.0, uncond), stop=STEPS - 1)
    held = run(
        denoiser,
        levels,
        control(replace(SOURCE, TARGET, 1.0), self_window=1.0, self_share=1.0),
        state(),
        cond,
        uncond,
        stop=STEPS - 1,
    )
    torch.testing.assert_close(held[0], free[0], rtol=1e-6, atol=1e-6)
    assert (held[1] - held[0]).norm() < (free[1] - free[0]).norm() and not torch.equal(held[1], held[0])


def test_unconditional_rows_are_untouched(maps):
    cond, uncond = conditions("source", "target", groups=[0, 0])
    x, both = unlike(4), stack([cond, uncond], [2, 2])
    found = maps(control(replace(SOURCE, TARGET, 1.0), self_window=1.0, self_share=1.0), x, both)
    for q, k, v, place, out in found.values():
        normal = attend(q, k, v, place)
        assert torch.equal(out[2:], normal[2:]) and not torch.allclose(out[1], normal[1], atol=1e-4)
    wrong = maps(
        control(replace(SOURCE, TARGET, 1.0), replace(SOURCE, TARGET, 1.0), self_window=1.0, self_share=1.0),
        x,
        dataclasses.replace(both, extra={"group": torch.tensor([0, 0, 1, 1])}),  # easy wrong version: all lanes controlled
    )
    q, k, v, place, out = wrong["down.0.0.attn2"]
    assert not torch.equal(out[2:], attend(q, k, v, place)[2:])


def test_only_unconditional_rows_need_no_control(denoiser, levels):
    cond, uncond = conditions("source", "target", groups=[0, 0])
    controller = control(replace(SOURCE, TARGET, 1.0), blend=LocalBlend(torch.ones(2, L)))
    out = run(denoiser, levels, controller, state(), cond, uncond, scale=0.0)
    assert torch.equal(out, sample(denoiser, state(), levels, uncond))


def test_groups_of_several_images_do_not_mix(denoiser, levels):
    """Two images with an edit each, sources first or image by image: the same as each image alone."""
    edits = [replace(SOURCE, TARGET), refine(SOURCE, LONGER)]
    alone = []
    for seed, edit in zip((5, 6), edits, strict=True):
        cond, uncond = conditions("source", "target", groups=[0, 0])
        alone.append(run(denoiser, levels, control(edit), state(seed=seed), cond, uncond))
    for groups, order in (([0, 0, 1, 1], (0, 1, 2, 3)), ([0, 1, 0, 1], (0, 2, 1, 3))):
        prompts = [("source", "target", "source", "target")[row] for row in order]
        cond, uncond = conditions(*prompts, groups=groups)
        x = torch.cat([state(seed=5), state(seed=6)])[list(order)]
        out = run(denoiser, levels, control(*edits), x, cond, uncond)
        torch.testing.assert_close(out, torch.cat(alone)[list(order)], rtol=1e-6, atol=1e-6)


def test_one_source_may_have_several_edits(denoiser, levels):
    cond, uncond = conditions("source", "target", "source", groups=[0, 0, 0])
    out = run(denoiser, levels, control(replace(SOURCE, TARGET), replace(SOURCE, SOURCE, 1.0)), state(3), cond, uncond)
    torch.testing.assert_close(out[2], out[0], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(out[1], out[0], atol=1e-2)


# ------------------------------------------------------------------------------------------------- maps


def read(entry):
    """Return the maps that each row's own queries and keys give, the values, and the output."""
    q, k, v, place, out = entry
    return attention_map(q, k, place), v, out


def test_replacement_uses_the_sources_maps(maps):
    cond, _ = conditions("source", "target", groups=[0, 0])
    found = maps(control(replace(SOURCE, TARGET, 1.0), self_window=1.0, self_share=1.0), unlike(), cond)
    for entry in found.values():
        own, v, out = read(entry)
        torch.testing.assert_close(out[1], own[0] @ v[1], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(out[0], own[0] @ v[0], rtol=1e-9, atol=1e-9)
        assert not torch.allclose(out[1], own[1] @ v[1], atol=1e-4)


def test_refinement_takes_shared_tokens_from_the_source_and_new_ones_from_itself(maps):
    cond, _ = conditions("source", "target", groups=[0, 0])
    found = maps(control(refine(SOURCE, LONGER, 1.0), self_window=0.0), unlike(), cond)
    own, v, out = read(found["down.2.0.attn2"])
    # a black dog sits <- a cat sits: black and dog are new, and sits, at 4, is the source's 3
    mixed = own[1].clone()
    for target, source in ((0, 0), (1, 1), (4, 3), (5, 4), (6, 5), (7, 6)):
        mixed[..., target] = own[0][..., source]
    torch.testing.assert_close(out[1], mixed @ v[1], rtol=1e-9, atol=1e-9)


def test_reweighting_scales_the_columns_of_words(maps):
    cond, _ = conditions("source", "target", groups=[0, 0])
    edit = replace(SOURCE, TARGET, 1.0)
    found = maps(control(reweight(edit, equalizer(TARGET, {"dog": -2.0})), self_window=0.0), unlike(), cond)
    own, v, out = read(found["down.2.0.attn2"])
    scaled = own[0].clone()
    scaled[..., 2] *= -2
    torch.testing.assert_close(out[1], scaled @ v[1], rtol=1e-9, atol=1e-9)
    same = reweight(edit, equalizer(TARGET, {}))
    assert torch.equal(same.matrix, edit.matrix) and torch.equal(same.keep, edit.keep)
    refined = reweight(refine(SOURCE, LONGER), equalizer(LONGER, {"black": 3.0}))
    assert refined.keep[2] == 3 and refined.keep[3] == 1


def test_cross_windows_end_word_by_word():
    edit = replace(SOURCE, TARGET, 0.8, {"dog": (0.0, 0.4)})
    active = [edit.at(step, 10) for step in range(10)]
    for step, now in enumerate(active):
        matrix, keep = now if now is not None else (torch.zeros(L, L), torch.ones(L))
        assert (matrix.sum(0) + keep).tolist() == [1] * L
        assert [int(keep[position]) for position in (1, 2)] == [step >= 8, step >= 4]
    assert active[7] is not None and active[8] is None
    assert replace(SOURCE, TARGET, 1.0).at(9, 10) is not None and replace(SOURCE, TARGET, 0.29).at(28, 100) is not None


def test_self_attention_is_controlled_in_its_window_and_on_small_grids_alone(maps):
    cond, _ = conditions("source", "target", groups=[0, 0])

    def controlled(side, step=0, **settings):
        found = maps(control(replace(SOURCE, TARGET, 0.0), **settings), state(side=side), cond, step)
        entries = {name: entry for name, entry in found.items() if name.endswith("attn1")}
        return {e[3].size[0] for e in entries.values() if not torch.equal(e[4], attend(*e[:4]))}

    # A quarter of the latent's side, whatever its size and wherever such layers are in the network.
    assert controlled(16, self_window=1.0) == {4} and controlled(32, self_window=1.0) == {8}
    assert controlled(16, self_window=1.0, self_share=0.5) == {4, 8}
    assert controlled(16, 1, self_window=0.4) == {4} and controlled(16, 2, self_window=0.4) == set()
    assert controlled(16, 1, self_window=(0.4, 0.8)) == set() and controlled(16, 2, self_window=(0.4, 0.8)) == {4}


# ------------------------------------------------------------------------------------------------- local blend


def blend(**settings):
    words = torch.stack([indicator(SOURCE, ["cat"]), indicator(TARGET, ["dog"])])
    return LocalBlend(words, **{"start": 0.0} | settings)


def test_outside_the_mask_an_edit_ends_where_its_source_does(denoiser, levels):
    cond, uncond = conditions("source", "target", groups=[0, 0])
    local = blend(threshold=0.9)
    out = run(denoiser, levels, control(replace(SOURCE, TARGET), blend=local), state(), cond, uncond)
    mask = local.mask([0, 0], (16, 16))[1].expand(4, -1, -1)
    assert 0.02 < mask.float().mean() < 0.98
    assert torch.equal(out[1][~mask], out[0][~mask]) and not torch.allclose(out[1][mask], out[0][mask], atol=1e-2)
    everywhere = run(denoiser, levels, control(replace(SOURCE, TARGET), blend=blend(threshold=-1.0)), state(), cond, uncond)
    unblended = run(denoiser, levels, control(replace(SOURCE, TARGET)), state(), cond, uncond)
    torch.testing.assert_close(everywhere, unblended, rtol=1e-6, atol=1e-6)
    nowhere = run(denoiser, levels, control(replace(SOURCE, TARGET), blend=blend(threshold=2.0)), state(), cond, uncond)
    assert torch.equal(nowhere[1], nowhere[0])


def test_the_mask_comes_from_the_maps_as_the_network_used_them(maps):
    """Edits included, of the layers at a quarter of the latent's side, summed over the steps."""
    cond, _ = conditions("source", "target", groups=[0, 0])
    local = blend()
    controller = control(replace(SOURCE, TARGET, 1.0), self_window=0.0, blend=local)
    found = maps(controller, state(), cond)
    layers = [entry for name, entry in found.items() if name.endswith("attn2") and entry[3].size == (4, 4)]
    assert len(layers) == 4, "down, mid and both of up"
    own = sum(read(entry)[0].sum(1)[..., 2] for entry in layers).reshape(2, 4, 4).float()
    torch.testing.assert_close(local.sums[0][0], own[0])
    torch.testing.assert_close(local.sums[0][1], own[0])  # the edit's map of "dog" is the source's of "cat"
    assert not torch.allclose(own[1], own[0], atol=1e-3)
    maps(controller, state(), cond, step=1)
    torch.testing.assert_close(local.sums[0][0], 2 * own[0])
    maps(controller, state(), cond, step=0)
    torch.testing.assert_close(local.sums[0][0], own[0])  # a new run starts anew


def test_a_mask_is_pooled_takes_in_its_sources_and_leaves_out_what_is_avoided():
    local = LocalBlend(torch.ones(2, L), torch.ones(2, L), start=0.0)
    local.sums = torch.zeros(2, 2, 4, 4)
    local.sums[0, :, 1, 1] = torch.tensor([1.0, 2.0])
    local.sums[0, 1, 1, 3] = 0.5  # a quarter of the largest: below the threshold
    local.sums[1, :, 0, 0] = 1
    mask = local.mask([0, 0], (8, 8))
    assert mask[1, 0, :6, :6].sum() == 36 - 4 and not mask[1, 0, :2, :2].any(), "3 x 3 around the cell, doubled, less a cell"
    assert not mask[1, 0, 6:].any() and not mask[1, 0, :, 6:].any()
    local.sums[0, 0] = 0
    local.sums[0, 0, 3, 3] = 1
    assert local.mask([0, 0], (8, 8))[1, 0, 6:, 6:].all(), "the source's own mask counts as well"


def test_blending_starts_after_its_share_of_the_steps(denoiser, levels):
    cond, _ = conditions("source", "target", groups=[0, 0])
    equal = []
    controller = control(replace(SOURCE, TARGET, 0.0), self_window=0.0, blend=blend(start=0.4, threshold=2.0))

    def watched(i, j, x, pred):
        x = controller.on_step(i, j, x, pred)
        equal.append(x is not None and torch.equal(x[0], x[1]))
        return x

    with attention_taps(denoiser.unet, controller):
        sample(Controlled(denoiser, controller, levels, STEPS), state(), levels, cond, on_step=watched)
    assert equal == [False, False, True, True, True]


def test_local_blend_says_what_it_lacks(denoiser, levels):
    cond, _ = conditions("source", "target", groups=[0, 0])
    with pytest.raises(UsageError, match="a word in every prompt"):
        LocalBlend(torch.zeros(2, L))
    with pytest.raises(UsageError, match=r"no cross-attention at 2 x 2 \(1/8"):
        run(denoiser, levels, control(replace(SOURCE, TARGET), blend=blend(shrink=8)), state(), cond)


# ------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_right_also_under_checkpointing(checkpointing):
    unet = tiny_text_unet().double()
    if checkpointing:
        unet.train().enable_gradient_checkpointing()
    denoiser, local = TextUNet(unet), blend()
    cond, _ = conditions("source", "target", groups=[0, 0])
    x = state().requires_grad_()
    controller = control(replace(SOURCE, TARGET, 1.0), self_window=1.0, blend=local)
    controller.begin(0, STEPS, [0, 0], x)
    with attention_taps(unet, controller):
        pred = denoiser(x, 400.0, cond)
        sums = local.sums.clone()
        (slope,) = torch.autograd.grad(pred.eps[1].square().sum(), x)
    assert torch.equal(local.sums, sums), "repeated passes add no maps"
    assert slope[0].abs().max() > 0 and slope[1].abs().max() > 0, "the edit depends on its source"
    with torch.no_grad(), attention_taps(unet.eval(), controller):
        step = 1e-5 * slope / slope.norm()
        up, down = (denoiser(x + sign * step, 400.0, cond).eps[1].square().sum() for sign in (1, -1))
    assert float((up - down) / 2) == pytest.approx(float((slope * step).sum()), rel=1e-3)
