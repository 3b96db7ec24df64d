"""Small stand-ins for an evaluation: judges without training, editors that know the answer."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from editkit.app import contest
from editkit.app.questions.base import pictures
from editkit.app.questions.face_judges import Judges
from editkit.app.questions.faces import Faces, make_cases
from editkit.app.trial import Trial
from editkit.data.toyworld import faces
from editkit.data.toyworld.world import find_edit
from editkit.metrics.oracle import Oracle
from editkit.training.editor import Editor
from editkit.types import EditResult

CARD = {"method": "told", "weights": {"told.safetensors": ["0123", 1.0]}}


class Remembering(Oracle):
    """An oracle that recognises pictures it has been shown with their faces, exact to the pixel; else it reads nothing right."""

    def __init__(self):
        super().__init__(faces.CATEGORICAL, faces.CONTINUOUS, widths=(8, 8, 8), features=8)
        self.known: list[tuple[torch.Tensor, faces.Face]] = []

    def show(self, found):
        self.known += list(zip(pictures(faces.render, found), found, strict=True))

    def read(self, images):
        recognised = [next((face for picture, face in self.known if torch.equal(picture, image)), None) for image in images]
        truth = self.truth([face or faces.Face() for face in recognised])
        wrong = torch.tensor([face is None for face in recognised])
        return {name: torch.where(wrong, torch.full_like(value, -99), value) for name, value in truth.items()}


class Colours:
    """A CLIP that looks at the mean colour; texts are far apart."""

    def image(self, images):
        return normalize(torch.cat([images.mean((2, 3)), torch.ones(len(images), 1)], 1), dim=1)

    def text(self, texts):
        return normalize(torch.tensor([[len(text), 1.0, sum(map(ord, text)) % 7, 2.0] for text in texts]), dim=1)


def judges(oracle=None):
    return Judges(oracle or Remembering(), Colours(), lambda a, b: (a - b).abs().mean((1, 2, 3)), lambda x: x.flatten(1) + 2)


class Told(Editor):
    """An editor that looks the answer up; `wrong` pictures come back as they were."""

    name = "told"

    def __init__(self, cases, *, wrong=(), masks=None):
        self.answers = dict(zip(cases.keys, cases.truth, strict=True))
        self.wrong, self.masks = set(wrong), masks
        self.batches = []

    def edit(self, requests, state):
        self.batches.append(len(requests))
        images = [request.image if request.key in self.wrong else self.answers[request.key] for request in requests]
        masks = None if self.masks is None else torch.stack([self.masks[request.key] for request in requests])
        return EditResult(torch.stack(images), masks=masks, scores={"network_calls": [79.0] * len(requests)})


def trial(edit="smiling", count=6, *, wrong=1, rivals=None, oracle=None):
    """Return a trial of `told`, which fails on the first `wrong` faces, beside no edit; and its judges.

    `rivals` are further methods, each with the number of faces that it fails on.
    """
    cases = make_cases(find_edit(edit), "validation", count)
    seeing = judges(oracle)
    seeing.oracle.show([*cases.sources, *cases.answers])
    methods = {"told": wrong} | (rivals or {})
    held = Trial(Faces(), tuple(methods), "validation", cases, settings=dict.fromkeys(methods, CARD))
    for name, failures in methods.items():
        held.enter(name, contest.run(Told(cases, wrong=cases.keys[:failures]), cases, batch_size=4), seeing)
    held.enter("no-edit", contest.no_edit(cases), seeing)
    held.training = {name: 12.5 if name == "told" else None for name in held.outcomes}
    held.close(seeing)
    return held, seeing
