"""The pairs that InstructPix2Pix learns from: one noise, one layout, and CLIP as the judge."""

from __future__ import annotations

import json

import pytest
import torch

from editkit.data.published.instructpix2pix import InstructPix2Pix as Published
from editkit.engine.attention import attend
from editkit.errors import UserError
from editkit.methods.fully_supervised.instructpix2pix import PairMaker, pairs
from editkit.methods.fully_supervised.instructpix2pix.pairs import Edit, drawn_pair, read_edits, similarities
from editkit.training.unet_tuning import widened
from tests.backbones import tiny_latent as tiny

SAME, OTHER = Edit("a face", "", "a face"), Edit("a face", "make it smile", "a smiling face with glasses")


def pair(edit, share, backbone=None, **changes):
    return drawn_pair(backbone or tiny.backbone(), edit, **{"seed": 3, "steps": 4, "scale": 7.5, "share": share} | changes)


class Clip(torch.nn.Module):
    """Reads a picture as its mean colour and a text as one of two colours."""

    def image(self, images):
        return torch.nn.functional.normalize(images.mean((2, 3)), dim=1)

    def text(self, texts):
        return torch.nn.functional.normalize(torch.tensor([[1.0, 0, 0], [1.0, 1.0, 0]])[: len(texts)], dim=1)


def test_equal_captions_give_equal_pictures_whatever_is_shared():
    for share in (0.0, 1.0):
        one, other = pair(SAME, share)
        assert one.std() > 0.05 and torch.allclose(one, other, atol=1e-4)


def test_noise_of_ones_own_is_another_picture(monkeypatch):
    """An easy wrong version draws the ancestral noise of the two pictures apart."""
    monkeypatch.setattr(torch.Tensor, "repeat", lambda self, n, *_: torch.cat([self, self.flip(3)]))
    one, other = pair(SAME, 1.0)
    assert not torch.allclose(one, other, atol=1e-2)


def test_the_second_follows_the_firsts_layout_while_it_is_held_and_the_first_never_changes():
    free, held, half = (pair(OTHER, share) for share in (0.0, 1.1, 0.5))
    assert torch.allclose(free[0], held[0], atol=1e-4) and torch.allclose(free[0], half[0], atol=1e-4)
    some, all_of_it = ((held[1] - other[1]).abs().max() for other in (half, free))
    assert 1e-5 < some < all_of_it, "held for a while is between held throughout and free"
    assert not torch.allclose(held[0], held[1], atol=1e-3), "its cross-attention and its values are its own"


@pytest.mark.parametrize(("share", "steps"), [(0.0, 0), (0.1, 1), (0.5, 2), (0.9, 3), (1.1, 4)])
def test_steps_below_the_share_are_held(share, steps, monkeypatch):
    asked = []

    def note(q, k, v, place):
        asked.append((place.name, len(q)))

    monkeypatch.setattr(pairs, "as_the_first", note)
    pair(OTHER, share)
    names = [name for name, _ in asked]
    assert all(name.endswith("attn1") and rows == 4 for name, rows in asked), "self-attention, both lanes in one call"
    assert len(names) == steps * len(set(names))


def test_rows_take_their_own_pairs_first_queries():
    """An easy wrong version lets the unconditional lane follow the conditional one."""
    q, k, v = torch.randn(3, 4, 2, 5, 6)
    place = pairs.Place("x", "self", (1, 5), 0.4)
    out = pairs.as_the_first(q, k, v, place)
    for row, first in enumerate((0, 0, 2, 2)):
        assert torch.allclose(out[row], attend(q[first, None], k[first, None], v[row, None], place)[0], atol=1e-6)


def test_a_widened_model_draws_what_it_drew_before():
    plain = pair(OTHER, 0.5)
    assert torch.allclose(pair(OTHER, 0.5, widened(tiny.backbone(), 4, "x", "sd15")), plain, atol=1e-4)


def test_similarities_are_cosines():
    images = torch.tensor([[1.0, 0, 0], [1.0, 1.0, 0]])[..., None, None].expand(2, 3, 4, 4)
    figures = similarities(Clip(), images, OTHER)
    assert figures["clip_sim_0"] == pytest.approx(1) and figures["clip_sim_dir"] == pytest.approx(1)
    assert figures["clip_sim_image"] == pytest.approx(0.5**0.5)
    assert similarities(Clip(), images.flip(0), OTHER)["clip_sim_dir"] == pytest.approx(-1)


def test_all_four_similarities_count():
    """An easy wrong version filters by the similarity of the pictures alone."""
    maker, good = PairMaker(Clip, "x"), {"clip_sim_0": 0.2, "clip_sim_1": 0.2, "clip_sim_image": 0.7, "clip_sim_dir": 0.2}
    assert maker.passes(good)
    assert not any(maker.passes(good | {name: value - 0.01}) for name, value in good.items())
    assert not maker.passes(good | {"clip_sim_dir": float("nan")})


def test_the_best_are_written_as_the_loader_reads_them_and_not_made_again(tmp_path, monkeypatch):
    captions = tmp_path / "edits.jsonl"
    lines = [{"caption": "a cup", "edit": "make it red", "output": "a red cup"}, {"input": "a", "edit": "b", "output": "c"}]
    captions.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"caption": "a", "edit": "b", "output": "a "}]))
    drawn = []

    def draw(backbone, edit, *, seed, steps, scale, share):
        assert 7.5 <= scale <= 15 and 0.1 <= share <= 0.9
        drawn.append(seed)
        change = 0.1 + seed / 2**31
        return torch.stack([torch.tensor([1.0, 0, 0]), torch.tensor([1.0, change, 0])])[..., None, None].expand(2, 3, 16, 16)

    monkeypatch.setattr(pairs, "drawn_pair", draw)
    maker = PairMaker(Clip, str(tmp_path / "pairs"), str(captions), candidates=6, keep=2, direction=-1.0)
    figures = maker(tiny.backbone(), None)
    assert figures == {"edits": 2, "edits_with_pairs": 2, "pairs": 4} and len(set(drawn)) == 12
    assert maker(tiny.backbone(), None) == figures and len(drawn) == 12
    assert [len(line) for _, line in json.loads((tmp_path / "pairs" / "seeds.json").read_text())] == [2, 2]
    item = Published(tmp_path / "pairs", 16, validation=0.0, test=0.0).train_dataset()[0]
    assert (item["instruction"], item["caption"], item["target_caption"]) == ("make it red", "a cup", "a red cup")
    assert item["image"].shape == item["target"].shape == (3, 16, 16)


@pytest.mark.parametrize("line", ["{", '{"caption": "a"}', "[]"])
def test_captions_that_cannot_be_read_are_named(line, tmp_path):
    (tmp_path / "edits.jsonl").write_text(line)
    with pytest.raises(UserError, match="line 1, is not"):
        read_edits(tmp_path / "edits.jsonl")
    with pytest.raises(UserError, match="cannot read the captions"):
        read_edits(tmp_path / "none.jsonl")
