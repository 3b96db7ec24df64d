"""Methods whose export is a folder."""

from __future__ import annotations

import contextlib
import json

import torch

from editkit.training.folder import FolderMethod


class Number(FolderMethod):
    """Trains one number and writes it as text."""

    def __init__(self):
        super().__init__()
        self.number = torch.nn.Parameter(torch.tensor(1.0))

    def save(self, folder):
        folder.mkdir()
        (folder / "number.txt").write_text(str(self.number.item()))
        return folder / "number.txt"

    @contextlib.contextmanager
    def averaged_weights(self):
        with torch.no_grad():
            self.number += 1
            yield
            self.number -= 1


def test_the_export_is_the_average_with_the_card_beside_it(tmp_path):
    method = Number()
    method.provenance = {"recipe": "number"}
    assert method.export(str(tmp_path / "out")) == [tmp_path / "out" / "number.txt"]
    assert (tmp_path / "out" / "number.txt").read_text() == "2.0" and method.number.item() == 1
    assert json.loads((tmp_path / "out" / "card.json").read_text())["recipe"] == "number"
    assert method.artefacts() == []
