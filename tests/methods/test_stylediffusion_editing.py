"""StyleDiffusion's editing and its files."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from editkit.app.edit import edit_images
from editkit.app.options import EditOptions
from editkit.backbones.pixel import load_pixel
from editkit.data.files import provenance
from editkit.errors import UserError
from editkit.methods.weakly_supervised.stylediffusion.style import Gray, luma
from editkit.training.artefact import Artefact
from tests.app.standin import picture, pixels
from tests.methods.asyrp_parts import Images
from tests.methods.diffusionclip_parts import reconstruction
from tests.methods.stylediffusion_parts import T0, N, editor_of, tiny_method, trained
from tests.tiny import write_pixel


@pytest.fixture(scope="module")
def images():
    return Images(4)


@pytest.fixture(scope="module")
def one_epoch(images):
    return trained(images)


def test_the_original_network_brings_the_gray_content_back(backbone, tuned, images):
    plain = reconstruction(backbone, luma(images.images), N, T0)
    assert torch.equal(editor_of(backbone, backbone).edit(images.requests()).images, plain)
    assert torch.equal(editor_of(backbone, tuned).edit(images.requests(strength=0.0)).images, plain)
    assert not torch.allclose(editor_of(backbone, tuned).edit(images.requests()).images, plain, atol=1e-2)


def test_contents_may_lose_what_a_painting_has_of_style(backbone, tuned, images):
    removal = tiny_method(backbone=backbone, content_removal="full").content_removal
    gray_alone, full = (editor_of(backbone, tuned, removal=one).edit(images.requests()) for one in (Gray(), removal))
    assert full.scores["network_calls"] == [2 * N - 1 + 2 * N - 1.0] * 4
    assert gray_alone.scores["network_calls"] == [2 * N - 1.0] * 4
    assert not torch.allclose(full.images, gray_alone.images, atol=1e-2)


def test_noised_contents_give_results_of_their_own(backbone, tuned, images):
    requests = images.requests()[:1]
    again = [request.with_(sample=1) for request in requests]
    other = [request.with_(seed=7) for request in requests]
    fixed, free = (editor_of(backbone, tuned, stochastic=flag) for flag in (False, True))
    assert torch.equal(fixed.edit(requests).images, fixed.edit(again).images)
    results = [free.edit(one).images for one in (requests, again, other)]
    assert all(not torch.allclose(results[a], results[b], atol=1e-2) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert torch.equal(results[0], free.edit(requests).images)
    assert free.edit(requests).scores["network_calls"] == [float(N)]


def test_a_later_time_leads_farther_from_the_content(backbone, tuned, images):
    contents = luma(images.images)
    distances = [
        float((editor_of(backbone, tuned, start=t).edit(images.requests()).images - contents).abs().mean())
        for t in (101, 301, 601)
    ]
    assert distances == sorted(distances)


def test_a_saved_style_is_that_of_the_network(one_epoch, images, tmp_path):
    (path,) = one_epoch.export(tmp_path)
    artefact = Artefact.load(path)
    assert path.name == "neon.safetensors"
    assert {key: artefact.card[key] for key in ("style_picture", "kind", "t0", "t_removal")} == {
        "style_picture": "neon",
        "kind": "difference",
        "t0": T0,
        "t_removal": 601,
    }
    fresh = tiny_method(style="a picture that is not here any more.png")
    own = editor_of(one_epoch.backbone, one_epoch.network()).edit(images.requests()).images
    again = fresh.editor([artefact]).edit(images.requests()).images
    assert fresh.tuned is None and torch.allclose(own, again, atol=5e-3)
    assert (own - editor_of(one_epoch.backbone, one_epoch.backbone).edit(images.requests()).images).abs().max() > 10 * (
        own - again
    ).abs().max()
    assert tiny_method(t_test=401).editor([artefact]).start == 401
    mixture = tiny_method(mix={0: [1, 0]}).editor([artefact, Artefact("none", artefact.tensors, 0.0, artefact.card)])
    assert torch.equal(mixture.edit(images.requests()).images, again)
    with pytest.raises(UserError, match="are of no style .made by editkit.other"):
        fresh.editor([Artefact("odd", artefact.tensors, card={"kind": "difference", "t0": T0, "method": "editkit.other"})])


def test_the_command_stylises_a_photograph(images, tmp_path):
    model, photo = write_pixel(tmp_path / "model"), picture(tmp_path / "photo.png")
    method = trained(Images(4, size=16), backbone=load_pixel(model))
    method.export(tmp_path / "run" / "export")

    def stylised(out, *more, **typed):
        own = [f"backbone.path={model}", f"method.n_inv={N}", f"method.n_test={N}", *more]
        given = {"image": photo, "weights": [str(tmp_path / "run")], "overrides": own, "output": tmp_path / out, "device": "cpu"}
        return edit_images(EditOptions(method="stylediffusion", **(given | typed)))

    assert stylised("o.png") == 0 and stylised("p.png", strength=[0.0]) == 0
    assert provenance(tmp_path / "o.png")["scores"]["network_calls"] == 2 * N - 1
    assert not np.array_equal(pixels(tmp_path / "o.png"), pixels(tmp_path / "p.png"))
    assert stylised("q.png", "method.stochastic=true", samples=2) == 0
    assert not np.array_equal(pixels(tmp_path / "q.1.png"), pixels(tmp_path / "q.2.png"))
    with pytest.raises(UserError, match="no trained weights for the backbone"):
        stylised("r.png", weights=[])
