from __future__ import annotations

import numpy as np
import pytest
import torch

from editkit.data.toyworld import faces
from editkit.errors import UserError
from editkit.metrics.oracle import SEEN, Oracle, load_oracle


@pytest.fixture(scope="module")
def oracle():
    torch.manual_seed(0)
    return Oracle(faces.CATEGORICAL, faces.CONTINUOUS).eval()


def drawn(count, seed=0):
    rng = np.random.default_rng(seed)
    return [faces.draw_face(rng) for _ in range(count)]


def pictures(found):
    return torch.stack([torch.from_numpy(faces.render(face)[0].copy()).permute(2, 0, 1) / 127.5 - 1 for face in found])


def test_it_is_small_and_has_a_head_for_every_factor(oracle):
    assert sum(p.numel() for p in oracle.parameters()) <= 600_000
    logits = oracle.logits(torch.rand(2, 3, 64, 64) * 2 - 1)
    assert {name: tuple(value.shape) for name, value in logits.items()} == {
        **{name: (2, len(values)) for name, values in faces.CATEGORICAL.items()},
        **dict.fromkeys(faces.CONTINUOUS, (2,)),
    }


def test_the_truth_of_a_face_agrees_with_itself_and_not_with_another(oracle):
    found = [faces.Face(x=0.45), faces.Face(x=0.55, glasses=True)]
    truth = oracle.truth(found)
    assert all(flags.all() for flags in oracle.agreement(truth, truth).values())
    swapped = oracle.agreement({name: value.flip(0) for name, value in truth.items()}, truth)
    wrong = {name for name, flags in swapped.items() if not flags.any()}
    assert wrong == {"x", "glasses"}


def test_a_continuous_reading_may_be_off_by_a_tenth_of_its_range_and_no_more(oracle):
    truth = oracle.truth([faces.Face(x=0.5), faces.Face(x=0.5)])
    off = {**truth, "x": truth["x"] + torch.tensor([0.0119, 0.0121])}  # the range is 0.12
    assert oracle.agreement(off, truth)["x"].tolist() == [True, False]


def test_years_that_no_picture_shows_are_clamped(oracle):
    targets = oracle.targets([faces.Face(age=20.0), faces.Face(age=80.0), faces.Face(age=57.0)])
    assert targets["age"].tolist() == pytest.approx([0.0, 1.0, 0.5])
    assert oracle.truth([faces.Face(age=20.0)])["age"].item() == SEEN["age"][0]
    young, younger = faces.render(faces.Face(age=41.9))[0], faces.render(faces.Face(age=20.0))[0]
    assert (young == younger).all(), "the renderer shows ages below the seen range: widen SEEN"
    old, older = faces.render(faces.Face(age=72.1))[0], faces.render(faces.Face(age=80.0))[0]
    assert (old == older).all(), "the renderer shows ages above the seen range: widen SEEN"


def test_perfect_outputs_have_no_loss_and_one_wrong_head_has(oracle):
    found = drawn(8)
    targets = oracle.targets(found)
    perfect = {
        name: torch.nn.functional.one_hot(value, len(oracle.categorical[name])) * 50.0 if name in oracle.categorical else value
        for name, value in targets.items()
    }
    assert oracle.loss(perfect, targets) < 1e-6
    for name in ("brow", "age"):
        assert oracle.loss({**perfect, name: perfect[name].flip(0)}, targets) > 1e-3


def test_it_learns_a_few_faces_with_their_small_details():
    torch.manual_seed(0)
    student = Oracle(faces.CATEGORICAL, faces.CONTINUOUS, widths=(16, 24, 32), features=96)
    found = drawn(12)
    images, targets = pictures(found), student.targets(found)
    optimizer = torch.optim.AdamW(student.parameters(), 5e-3)
    for _ in range(60):
        loss = student.loss(student.logits(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = student.agreement(student.read(images), student.truth(found))
    assert torch.stack(list(right.values())).float().mean() > 0.95


def test_saving_keeps_the_readings_to_half_precision(oracle, tmp_path):
    oracle.save(tmp_path)
    again = load_oracle(tmp_path)
    images = pictures(drawn(2))
    assert again.categorical == oracle.categorical and again.continuous == oracle.continuous
    assert (again.features(images) - oracle.features(images)).abs().max() < 1e-2
    assert not again.training and not any(p.requires_grad for p in again.parameters())


def test_other_sizes_are_read_too_and_probability_belongs_to_its_class(oracle):
    large = torch.rand(2, 3, 96, 96) * 2 - 1
    probabilities = [oracle.probability(large, "expression", value) for value in faces.CATEGORICAL["expression"]]
    assert torch.stack(probabilities).sum(0) == pytest.approx(1.0)
    best = oracle.read(large)["expression"]
    assert torch.stack(probabilities).argmax(0).equal(best)


def test_a_folder_that_holds_no_oracle_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"kind": "identity"}')
    with pytest.raises(UserError, match="holds no oracle"):
        load_oracle(tmp_path)
