"""Methods whose export is a folder."""

from __future__ import annotations

import contextlib
import json

import torch
from safetensors.torch import load_file, save_file

from editkit.training.folder import FolderMethod


class Number(FolderMethod):
    """Trains one number and writes it twice."""

    def __init__(self):
        super().__init__()
        self.number = torch.nn.Parameter(torch.tensor(1.0))

    def save(self, folder):
        for place in (folder, folder / "again"):
            place.mkdir()
            save_file({"number": self.number.detach().clone()}, place / "number.safetensors")

    @contextlib.contextmanager
    def averaged_weights(self):
        with torch.no_grad():
            self.number += 1
            yield
            self.number -= 1


def test_the_export_is_the_average_with_the_card_beside_it(tmp_path):
    method = Number()
    method.provenance = {"recipe": "number"}
    paths = method.export(str(tmp_path / "out"))
    assert paths == [tmp_path / "out" / "again" / "number.safetensors", tmp_path / "out" / "number.safetensors"]
    assert [load_file(path)["number"].item() for path in paths] == [2, 2] and method.number.item() == 1
    assert json.loads((tmp_path / "out" / "card.json").read_text())["recipe"] == "number"
    assert method.artefacts() == []
