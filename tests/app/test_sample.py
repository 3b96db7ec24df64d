"""`editkit sample`: sheets and files, and pictures that depend on the seed and their number alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from editkit.app.options import SampleOptions
from editkit.app.sample import draw, sample_images
from editkit.backbones.pixel import load_pixel
from editkit.data.files import provenance
from editkit.engine.count import count_calls
from editkit.engine.solvers import SOLVERS
from editkit.types import EditRequest
from tests.app import tiny
from tests.app.standin import pixels


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny.backbone(tmp_path_factory.mktemp("model"))


def options(model: Path, **more) -> SampleOptions:
    return SampleOptions(overrides=[f"backbone.path={model}"], **more)


def test_one_sheet(model, tmp_path):
    assert sample_images(options(model, samples=5, steps=3, output=tmp_path / "s.png", seed=4)) == 0
    assert pixels(tmp_path / "s.png").shape == (32, 48, 3)
    assert (pixels(tmp_path / "s.png")[16:, 32:] == 255).all(), "the sixth place is empty"
    said = provenance(tmp_path / "s.png")
    assert (said["seed"], said["steps"], said["solver"], said["samples"]) == (4, 3, "ddim", 5)


def test_one_file_each(model, tmp_path):
    sample_images(options(model, samples=3, steps=3, output=tmp_path / "many"))
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == ["000.png", "001.png", "002.png"]
    sample_images(options(model, samples=3, steps=3, output=tmp_path / "s.png"))
    assert (pixels(tmp_path / "s.png")[:16, 16:32] == pixels(tmp_path / "many" / "001.png")).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_picture_depends_on_seed_and_number_alone(model, solver):
    backbone = load_pixel(model)

    def drawn(batch_size: int, seed: int = 1) -> torch.Tensor:
        return torch.cat(list(draw(backbone, 5, EditRequest("", seed=seed), 4, solver, batch_size)))

    assert torch.allclose(drawn(5), drawn(2), atol=1e-4)
    assert not torch.allclose(drawn(5), drawn(5, seed=2), atol=1e-2)
    assert drawn(5).abs().max() <= 1 + 1e-5 or solver != "ddim", "x0 is clipped"


def test_a_step_is_one_call(model):
    backbone = load_pixel(model)
    with count_calls(backbone, flops=False) as counter:
        list(draw(backbone, 4, EditRequest(""), 7, "dpmpp-2m", 2))
    assert counter.calls == 14 and counter.evaluations == 28
