"""Pixel-Guided: features, classifiers, maps, and the walk that follows a changed map."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from editkit.backbones.inversion import Inversion
from editkit.data.label_map import PALETTE, numbers_of
from editkit.engine.guidance import Clip, predict
from editkit.engine.sample import sample
from editkit.engine.steps import ddim, ddpm_deviation
from editkit.errors import UsageError, UserError
from editkit.methods.weakly_supervised.pixel_guided.features import at_pixels, noised_maps, watched
from editkit.methods.weakly_supervised.pixel_guided.guidance import PixelGuidance
from editkit.methods.weakly_supervised.pixel_guided.maps import IGNORED, moved, named_parts, region, replaced, without_specks
from editkit.networks.pixel_classifiers import PixelClassifiers
from editkit.training.artefact import Artefact
from editkit.types import EditRequest, Prediction
from tests.methods.pixel_guided_parts import SIDE, Labelled, halves, method, requests, trained


@pytest.fixture(scope="module")
def made():
    return trained()


def edited(made, asked=None, **settings):
    editor = made.editor([])
    for name, value in settings.items():
        setattr(editor, name, value)
    asked = asked or requests()
    return editor.edit(asked, editor.prepare(asked))


# ------------------------------------------------------------------------------------------ features and classifiers


def test_pixels_of_maps_are_those_of_the_enlarged_maps():
    maps = [torch.randn(2, 5, 4, 4), torch.randn(2, 3, 8, 8), torch.randn(2, 2, 1, 1)]
    whole = torch.cat([F.interpolate(part, (8, 8), mode="bilinear", align_corners=False) for part in maps], 1)
    pixels = torch.stack([torch.randperm(64)[:20] for _ in range(2)])
    wanted = whole.flatten(2).transpose(1, 2).gather(1, pixels[..., None].expand(-1, -1, 10))
    assert torch.allclose(at_pixels(maps, (8, 8), pixels), wanted, atol=1e-5)


def test_projecting_before_enlarging_is_exact():
    torch.manual_seed(0)
    several = PixelClassifiers(3, 8, 4)
    several(torch.randn(3, 500, 8) * 3 + 1)  # running statistics of its own
    several.eval()
    maps = [torch.randn(2, 5, 4, 4), torch.randn(2, 3, 8, 8)]
    whole = torch.cat([F.interpolate(part, (8, 8), mode="bilinear", align_corners=False) for part in maps], 1)
    flat = whole.movedim(1, -1).reshape(1, -1, 8).expand(3, -1, -1)
    with torch.no_grad():
        for k in range(3):
            wanted = several(flat)[k].view(2, 8, 8, 4).movedim(-1, 1)
            torch.testing.assert_close(several.on_maps(k, maps, (8, 8)), wanted, rtol=1e-4, atol=1e-5)


def test_classifiers_side_by_side_are_independent_and_as_published():
    torch.manual_seed(0)
    pair, x = PixelClassifiers(2, 6, 3), torch.randn(2, 40, 6)
    first = nn.Sequential(nn.Linear(6, 128), nn.ReLU(), nn.BatchNorm1d(128), nn.Linear(128, 32), nn.ReLU(), nn.BatchNorm1d(32))
    alone = nn.Sequential(first, nn.Linear(32, 3))
    with torch.no_grad():
        for layer, stacked in zip((first[0], first[3], alone[1]), pair.layers, strict=True):
            layer.weight.copy_(stacked.weight[1].T)
            layer.bias.copy_(stacked.bias[1])
    assert torch.allclose(pair(x)[1], alone(x[1]), atol=1e-5), "batch norm after ReLU, over the classifier's own pixels"
    x.requires_grad_()
    pair(x)[0].sum().backward()
    assert x.grad[1].abs().max() == 0
    assert PixelClassifiers(1, 6, 34).layers[0].weight.shape == (1, 6, 256)


def test_features_share_one_noise_and_places_reach_inside_blocks():
    backbone = method().backbone
    images = halves(2)[0]
    one, two = (noised_maps(backbone, images[[k]], 40.0, ("up.0", "up.1.0")) for k in (0, 1))
    both = noised_maps(backbone, images, 40.0, ("up.0", "up.1.0"))
    assert all(torch.allclose(torch.cat(pair), whole, atol=1e-5) for *pair, whole in zip(one, two, both, strict=True))
    assert both[0].shape[2:] == (8, 8) and both[1].shape[2:] == (8, 8)
    with watched(backbone, ["up.0", "up.0.1"]) as maps:
        backbone(images, 40.0)
    assert maps["up.0"].shape[2] == 2 * maps["up.0.1"].shape[2], "a block with its upsampling, a layer without"


def test_maps_are_read_off_new_images(made):
    images, labels = halves(4)
    images = images.flip(0) * 0.9
    maps, unsure = made.reader().segment(images)
    assert (maps == labels.flip(0)).float().mean() > 0.93 and unsure.shape == (4,) and (unsure >= 0).all()
    _, noisy = made.reader().segment(torch.rand(4, 3, SIDE, SIDE) * 2 - 1)
    assert noisy.mean() > unsure.mean()


def test_the_classifiers_are_for_their_own_noise_levels(made):
    backbone, reader = made.backbone, made.reader()
    images, labels = halves(4)
    for k, t in enumerate(reader.times):
        maps = noised_maps(backbone, images, float(t), reader.places)
        assert (reader.steps.on_maps(k, maps, (SIDE, SIDE)).argmax(1) == labels).float().mean() > 0.9


# --------------------------------------------------------------------------------------------------------------- maps


def test_the_region_is_where_the_part_was_and_where_it_is_to_be():
    old, new = torch.zeros(6, 6, dtype=torch.long), torch.zeros(6, 6, dtype=torch.long)
    old[1, 1], new[4, 4] = 2, 2
    assert region(old, new, (2,), 0).sum() == 2 and region(old, new, (2,), 1).sum() == 18
    assert region(old, new, (1,), 3).sum() == 0
    assert region(old, new, (2,), 0)[0, 1, 1] == 1, "the map alone would leave the old part there"


def test_maps_change_without_a_paint_program():
    labels = torch.zeros(4, 4, dtype=torch.long)
    labels[1, 1:3], labels[3] = 5, 7
    shifted = moved(labels, 5, right=1, down=2, left_behind=3)
    assert shifted[1].tolist() == [0, 3, 3, 0] and shifted[3].tolist() == [7, 7, 5, 5]
    assert moved(labels, 5, right=9, down=0, left_behind=0).eq(5).sum() == 0 and labels[1, 1] == 5
    assert replaced(labels, 5, by=7).tolist() == torch.where(labels == 5, 7, labels).tolist()


def test_parts_of_few_pixels_teach_nothing():
    labels = torch.zeros(2, 4, 4, dtype=torch.long)
    labels[0, 0, 0] = labels[1, 0] = 1
    found = without_specks(labels, 2)
    assert found[0, 0, 0] == IGNORED and found[1, 0, 0] == 1 and (found == IGNORED).sum() == 1


def test_parts_are_named_or_numbered():
    assert named_parts("mouth, 0,mouth", ("skin", "mouth")) == (1, 0)
    for text, said in (("moth", "Did you mean 'mouth'"), (" ,", "names no part"), ("7", "no part '7'")):
        with pytest.raises(UsageError, match=said):
            named_parts(text, ("skin", "mouth"))


# ------------------------------------------------------------------------------------------------------- the guidance


def guided(made, x, i, sampler="ddpm", scale=3.0, area=None, levels=None):
    reader, backbone = made.reader(), made.backbone
    levels = levels or backbone.schedule.levels_at(reader.times, entry=1)
    _, labels = halves(len(x))
    area = torch.ones(len(x), 1, SIDE, SIDE) if area is None else area
    with watched(backbone, reader.places) as maps:
        own = partial(reader.steps.on_maps, reader.times.index(int(levels.times[i])), size=(SIDE, SIDE))
        classify = lambda t: own([maps[place] for place in reader.places])  # noqa: E731
        guide = PixelGuidance(classify, labels, area, levels, torch.full((len(x),), scale), sampler=sampler)
        with torch.no_grad():
            return predict(backbone, x, levels.times[i], None, guide), guide


def exact_error(made, i, area):
    """Return the error as a function of the state, in double precision and without any of the guidance's code."""
    reader, backbone = made.reader(), made.backbone.double()
    _, labels = halves(len(area))
    classifiers = made.steps.double()

    def error(state):
        with torch.no_grad(), watched(backbone, reader.places) as maps:
            backbone(state, float(reader.times[i - 1]))
            logits = in_double(classifiers, i - 1, [maps[place] for place in reader.places])
            found = F.cross_entropy(logits, labels, reduction="none") * area[:, 0]
            return float(found.sum() / area[0].sum())

    return error


def in_double(classifiers, member, parts):
    own = classifiers.layers[0].weight[member].split([part.shape[1] for part in parts], dim=0)
    x = sum(
        F.interpolate(torch.einsum("bchw,cd->bdhw", part, w), (SIDE, SIDE), mode="bilinear", align_corners=False)
        for part, w in zip(parts, own, strict=True)
    )
    x = x.movedim(1, -1) + classifiers.layers[0].bias[member]
    for norm, layer in zip(classifiers.norms, classifiers.layers[1:], strict=True):
        x = classifiers._normed(norm, member, x.relu()) @ layer.weight[member] + layer.bias[member]
    return x.movedim(-1, 1)


def test_the_slope_is_that_of_the_error_by_finite_differences():
    made = trained(steps=60)
    x = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    area = torch.zeros(1, 1, SIDE, SIDE)
    area[:, :, 2:6, 3:7] = 1
    i = 5
    pred, guide = guided(made, x, i, area=area)
    variance = ddpm_deviation(guide.levels, i, i - 1, pred) ** 2
    slope = (pred.mean_shift / (-3.0 * variance)).double()
    error = exact_error(made, i, area.double())
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    h = 1e-4
    numeric = (error(x.double() + h * direction) - error(x.double() - h * direction)) / (2 * h)
    assert float((slope * direction).sum()) == pytest.approx(numeric, rel=2e-2, abs=1e-6)


def test_the_mean_moves_by_the_steps_variance(made):
    x = torch.randn(2, 3, SIDE, SIDE)
    one, guide = guided(made, x, 5, scale=1.0)
    two, _ = guided(made, x, 5, scale=2.0)
    assert torch.allclose(two.mean_shift, 2 * one.mean_shift, rtol=1e-4) and one.mean_shift.abs().max() > 0
    sparse = made.backbone.schedule.levels_at([0, 20, 40], entry=1)
    far, _ = guided(made, x, 3, scale=1.0, levels=sparse)
    ratio = (ddpm_deviation(sparse, 3, 2, far) / ddpm_deviation(guide.levels, 5, 4, one)) ** 2
    assert torch.allclose(far.mean_shift, ratio * one.mean_shift, rtol=1e-3, atol=1e-9) and abs(ratio - 1) > 0.02


def test_samples_of_a_batch_have_their_own_slopes(made):
    """A mean over the batch, without its factor, is the easy mistake."""
    x = torch.randn(2, 3, SIDE, SIDE)
    both, _ = guided(made, x, 5)
    alone, _ = guided(made, x[:1], 5)
    assert torch.allclose(both.mean_shift[:1], alone.mean_shift, rtol=1e-3, atol=1e-7)


def test_ddim_moves_eps_and_nothing_is_followed_without_a_region(made):
    x = torch.randn(1, 3, SIDE, SIDE)
    pred, guide = guided(made, x, 5, sampler="ddim")
    plain = made.backbone(x, guide.levels.times[5])
    a, s = guide.levels.signal(5), guide.levels.noise(5)
    assert pred.mean_shift is None and not torch.allclose(pred.eps, plain.eps, atol=1e-5)
    assert torch.allclose(a * pred.x0 + s * pred.eps, x, atol=1e-4)
    empty, guide = guided(made, x, 5, area=torch.zeros(1, 1, SIDE, SIDE))
    assert empty.mean_shift is None and not guide.needs_grad(1.0)


# ------------------------------------------------------------------------------------------------------------ editing


def test_the_changed_map_is_followed_and_the_rest_stays(made):
    asked = requests()
    result = edited(made, asked)
    images = torch.stack([one.image for one in asked])
    outside = (result.masks == 0).expand_as(images)
    assert outside.any() and torch.equal(result.images[outside], images[outside]), "bit for bit"
    before = edited(made, [one.with_(strength=0.0) for one in asked])
    assert sum(result.scores["map_error"]) < sum(before.scores["map_error"])
    assert result.scores["network_calls"] == [4 + 5 + 2.0] * 2, "inversion, the way back, the maps"


def test_without_guidance_and_blend_it_is_inversion_and_back(made):
    asked = [one.with_(strength=0.0) for one in requests()]
    editor = made.editor([])
    editor.sampler, editor.clip, editor.final_paste = "ddim", False, False
    editor._kept = lambda *args: lambda i, j, x, pred: None
    images = torch.stack([one.image for one in asked])
    levels = editor.levels(40)
    with torch.no_grad():
        x = Inversion(made.backbone)(images, levels).x
        back = sample(made.backbone, x, levels, start=len(levels) - 1, step=ddim).clamp(-1, 1)
    assert torch.allclose(editor.edit(asked, editor.prepare(asked)).images, back, atol=1e-5)


def test_what_the_last_step_leaves_outside_is_the_first_levels_noise(made):
    asked = requests(2, image=torch.zeros(3, SIDE, SIDE))
    found = edited(made, asked, final_paste=False)
    outside = (found.masks == 0).expand_as(found.images)
    assert found.images[outside].std() == pytest.approx(0.01, rel=0.25), "alpha_bar_0 of the linear schedule"


def test_the_map_outside_the_region_has_no_say(made):
    asked = requests()
    editor = made.editor([])
    state = editor.prepare(asked)
    result = editor.edit(asked, state)
    other = [one.with_(segmentation=one.segmentation.clone()) for one in asked]
    for k, one in enumerate(other):
        far = (result.masks[k] == 0) & (torch.arange(SIDE) == 0)
        assert far.any()
        one.segmentation[far] = 2.0  # a part that is not named
    assert torch.equal(editor.edit(other, state).images, result.images)


def test_results_do_not_depend_on_the_batch_and_editing_changes_no_statistics(made):
    kept = {name: value.clone() for name, value in made.state_dict().items()}
    asked = requests()
    together, alone = edited(made, asked).images, torch.cat([edited(made, [one]).images for one in asked])
    assert torch.allclose(together, alone, atol=1e-4)
    assert all(torch.equal(value, kept[name]) for name, value in made.state_dict().items())
    assert not torch.allclose(edited(made, [asked[0].with_(sample=1)]).images, alone[:1], atol=1e-3)


def test_the_size_of_the_region_decides_where_it_starts():
    editor = method(last=750, stride=250, start=None, scale=None).editor([])
    request = requests(1)[0]
    assert editor._depth(request, 0.05) == (500, 100.0) and editor._depth(request, 0.2) == (750, 40.0)
    assert editor._depth(request.with_(strength=2.0), 0.2) == (750, 80.0)
    assert editor.levels(500).times == (-1.0, 0.0, 250.0, 500.0) and editor.levels(750, 2).times == (-1.0, 0.0, 750.0)


def test_training_files_and_what_they_refuse(made, tmp_path):
    [path] = made.export(tmp_path)
    kept = Artefact.load(path)
    again = method().editor([kept])
    asked = requests()
    assert torch.equal(again.edit(asked, again.prepare(asked)).images, edited(made, asked).images)
    assert kept.card["classes"] == ["dark", "light", "other"]
    with pytest.raises(UserError, match="do not fit this recipe"):
        method(stride=20).editor([kept])
    with pytest.raises(UserError, match="not of pixel-guided"):
        method().editor([Artefact("x", kept.tensors, card={"kind": "delta"})])
    with pytest.raises(UsageError, match="start=100 is out of range"):
        method(start=100)
    with pytest.raises(UserError, match="the map has a part 5"):
        edited(made, [requests(1)[0].with_(segmentation=torch.full((1, SIDE, SIDE), 5.0))])
    with pytest.raises(UsageError, match="needs --segmentation and --labels"):
        made.editor([]).check([EditRequest("a", image=asked[0].image)])


def test_maps_are_written_for_a_paint_program(made, tmp_path):
    made.export(tmp_path / "export")
    made.run_dir = tmp_path
    data = Labelled()
    found = made.segment(SimpleNamespace(test_dataset=lambda: data))
    assert found["maps"] == 6
    picture = Image.open(tmp_path / "maps" / "0.png")
    assert picture.convert("RGB").getpixel((7, 0)) == PALETTE[1]
    assert (torch.tensor(list(numbers_of(picture).getdata())).view(SIDE, SIDE) == data[0]["labels"]).float().mean() > 0.9


def test_clip_keeps_the_shift():
    pred = Prediction(torch.full((1, 3, 2, 2), 5.0), torch.zeros(1, 3, 2, 2), mean_shift=torch.ones(1, 3, 2, 2))

    class Fixed:
        def combine(self, x, t, preds, schedule):
            return pred

    clipped = Clip(inner=Fixed()).combine(torch.zeros(1, 3, 2, 2), 10.0, [pred], method().backbone.schedule)
    assert torch.equal(clipped.mean_shift, pred.mean_shift) and clipped.x0.max() == 1
