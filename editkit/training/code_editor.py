"""Editing by codes: encode to a code and a noise, change either, decode (diffusion autoencoders, arXiv 2111.15640)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editkit.backbones.diffae import DiffAEBackbone
from editkit.backbones.inversion import Inversion
from editkit.backbones.semantic_codes import AttributeClassifier
from editkit.backbones.strided import to_pure_noise
from editkit.engine.cache import InversionCache
from editkit.engine.guidance import Clip
from editkit.engine.rng import batch_noise
from editkit.engine.sample import sample
from editkit.engine.slerp import slerp_all
from editkit.errors import UsageError
from editkit.metrics.images import psnr
from editkit.training.editor import Editor, by_steps, draws_of, images_of
from editkit.training.named_attributes import asked
from editkit.types import Condition, EditRequest, EditResult, Levels

NOISES, TERMINALS, NOISE = ("encoded", "random"), ("published", "exact"), "noise"


@dataclass
class Encoded:
    """Pictures as codes and noises: what an edit at any strength starts from.

    Attributes:
        codes: z_sem of every image, and after them those of all references, (N, dim).
        noises: their x_T, (N, 3, H, W).
        others: for each request where its references stand.
        calls: network calls of its encoding, per request.
        reconstruction_psnr: of the plain way back in dB, per request; empty if it was not measured.
    """

    codes: Tensor
    noises: Tensor
    others: list[list[int]]
    calls: list[int]
    reconstruction_psnr: list[float]


class CodeEditor(Editor):
    """Moves an image along attributes, or towards references; with neither it reconstructs (sections 5.1 to 5.3).

    A request's labels, or its prompt, name attributes. Its strength multiplies `step`; with references it is the share of the
    way to them. Its sample number gives variants where the noise is random.

    Args:
        backbone: the diffusion autoencoder.
        classifier: whose rows are the directions of attributes.
        n_inv: queries of encoding.
        n_test: queries of decoding; a request's `steps` replaces both numbers.
        step: RMS change of the normalised code at strength 1.
        noise: "encoded" keeps the image's own noise; "random" draws it anew, so that only what the code says stays.
        moves: what goes towards references: parts of the code (`DiffAEBackbone.parts`) and "noise", the details; None is all.
        shares: of the image and its references, if not by the strength.
        terminal: where encoding ends: "published" at pure noise, "exact" at the level that decoding starts from.
        cache: keeps encoded noises.
        measure: decode the image's own code as well and report the PSNR.

    Raises:
        UsageError: an unknown noise, move or terminal.
    """

    needs = ("image",)

    def __init__(
        self,
        backbone: DiffAEBackbone,
        classifier: AttributeClassifier | None = None,
        *,
        n_inv: int = 250,
        n_test: int = 100,
        step: float = 0.3,
        noise: str = "encoded",
        moves: Sequence[str] | None = None,
        shares: Sequence[float] | None = None,
        terminal: str = "published",
        cache: InversionCache | None = None,
        measure: bool = False,
    ) -> None:
        parts = (*backbone.parts, NOISE)
        moves = parts if moves is None else [str(name) for name in moves]
        for key, values, known in (("noise", [noise], NOISES), ("terminal", [terminal], TERMINALS), ("moves", moves, parts)):
            if odd := [value for value in values if value not in known]:
                raise UsageError(f"method.{key}={odd[0]} is unknown: choose from {', '.join(known)}")
        self.backbone, self.classifier = backbone, classifier
        self.n_inv, self.n_test, self.step, self.noise = n_inv, n_test, step, noise
        self.moves, self.shares, self.terminal = tuple(moves), shares, terminal
        self.cache, self.measure = cache, measure
        self.inversion = Inversion(backbone, guidance=Clip())

    @torch.no_grad()
    def prepare(self, requests: Sequence[EditRequest]) -> Encoded:
        """Encode the images of the requests and their references."""
        references = [picture for request in requests for picture in request.references]
        counts = [len(request.references) for request in requests]
        ends = [len(requests) + sum(counts[: n + 1]) for n in range(len(counts))]
        others = [list(range(end - count, end)) for end, count in zip(ends, counts, strict=True)]
        images = torch.stack([*images_of(requests), *references]).to(self.backbone.device)
        codes = self.backbone.semantic_code(images)
        noises, calls, quality = torch.empty_like(images), [0] * len(requests), [0.0] * len(requests)
        for steps, rows in by_steps(requests, self.n_inv):
            every = rows + [place for row in rows for place in others[row]]
            noises[every] = self.encode(images[every], codes[every], steps)
            for row in rows:
                calls[row] = steps * (1 + len(others[row]))
        for steps, rows in by_steps(requests, self.n_test) if self.measure else ():
            back = self.decode(codes[rows], noises[rows], steps).clamp(-1, 1)
            for row, figure in zip(rows, psnr(back, images[rows]).tolist(), strict=True):
                quality[row] = figure
        return Encoded(codes, noises, others, calls, quality if self.measure else [])

    def encode(self, images: Tensor, codes: Tensor, steps: int) -> Tensor:
        """Return x_T (B, 3, H, W) of images, by DDIM upwards with each one's own code (the paper's stochastic encoder)."""
        levels = self.backbone.levels(steps)
        reached: Levels = to_pure_noise(levels) if self.terminal == "published" else levels
        return self.inversion(images, reached, self.cache, Condition(vector=codes)).x

    def decode(self, codes: Tensor, noises: Tensor, steps: int) -> Tensor:
        """Return the images (B, 3, H, W) of codes (B, dim) and noises."""
        return sample(self.backbone, noises, self.backbone.levels(steps), Condition(vector=codes), guidance=Clip())

    @torch.no_grad()
    def edit(self, requests: Sequence[EditRequest], state: Encoded | None = None) -> EditResult:
        """Return the edited images; `state` is what `prepare` returned for these requests (None: prepare now).

        Raises:
            UsageError: an attribute that the classifier does not know, or shares that do not fit the references.
        """
        state = state or self.prepare(requests)
        mixed = [self._mixed(request, row, state) for row, request in enumerate(requests)]
        codes, noises = torch.cat([code for code, _ in mixed]), torch.cat([noise for _, noise in mixed])
        if self.noise == "random":
            noises = batch_noise(noises.shape[1:], purpose="x_T", device=noises.device, **draws_of(requests))
        wanted = [self._attributes(request) for request in requests]
        moved = torch.cat([self._moved(codes[k : k + 1], wanted[k], _amount(one)) for k, one in enumerate(requests)])
        images, calls = torch.empty_like(noises), [0.0] * len(requests)
        for steps, rows in by_steps(requests, self.n_test):
            images[rows] = self.decode(moved[rows], noises[rows], steps)
            for row in rows:
                calls[row] = float(state.calls[row] + steps)
        scores = {"network_calls": calls, **self._logits(wanted, codes, moved)}
        if state.reconstruction_psnr:
            scores["reconstruction_psnr"] = list(state.reconstruction_psnr)
        return EditResult(images, scores=scores)

    def _mixed(self, request: EditRequest, row: int, state: Encoded) -> tuple[Tensor, Tensor]:
        """Return code and noise (1, ...) between a request's image and its references."""
        places = [row, *state.others[row]]
        if len(places) == 1:
            return state.codes[places], state.noises[places]
        weights = self._weights(request, len(places))
        own = [1.0] + [0.0] * (len(places) - 1)
        share = {name: weights if name in self.moves else own for name in (*self.backbone.parts, NOISE)}
        code = [lerp_all(state.codes[places, part], share[name]) for name, part in self.backbone.parts.items()]
        return torch.cat(code)[None], slerp_all([state.noises[[place]] for place in places], share[NOISE])

    def _weights(self, request: EditRequest, count: int) -> list[float]:
        """Return the weights of a request's pictures, which sum to 1."""
        if self.shares is None:
            share = 0.5 if request.strength is None else request.strength
            weights = [1 - share] + [share / (count - 1)] * (count - 1)
        else:
            weights = list(self.shares)
        if len(weights) != count or min(weights) < 0 or not sum(weights):
            raise UsageError(
                f"{count} pictures cannot be mixed by the shares {weights}: give --strength from 0 to 1, or one share a picture "
                f"as method.shares=[...]"
            )
        return [weight / sum(weights) for weight in weights]

    def _attributes(self, request: EditRequest) -> dict[str, float]:
        if self.classifier is None:
            if request.labels or (request.prompt and not request.references):
                raise UsageError("this diffusion autoencoder has no classifier of attributes: give method.classifier=FOLDER")
            return {}
        return asked(request, self.classifier.attributes)

    def _moved(self, code: Tensor, wanted: Mapping[str, float], amount: float) -> Tensor:
        if self.classifier is None or not amount or not any(wanted.values()):
            return code
        return self.moved(self.classifier, code, wanted, amount * self.step)

    def moved(self, classifier: AttributeClassifier, codes: Tensor, wanted: Mapping[str, float], step: float) -> Tensor:
        """Return codes (B, dim) moved by step sqrt(dim) along each wanted unit direction, in normalised codes."""
        return moved(classifier, codes, wanted, step)

    def _logits(self, wanted: Sequence[Mapping[str, float]], before: Tensor, after: Tensor) -> dict[str, list[float]]:
        """Return the logits of what was asked for, before and after, if all requests ask for something."""
        if self.classifier is None or not all(wanted):
            return {}
        names = self.classifier.attributes
        found = {}
        for title, codes in (("logit_before", before), ("logit_after", after)):
            logits = self.classifier(codes.float())
            found[title] = [
                sum(float(logits[row, names.index(name)]) * (1 if weight > 0 else -1) for name, weight in one.items()) / len(one)
                for row, one in enumerate(wanted)
            ]
        return found


def moved(classifier: AttributeClassifier, codes: Tensor, wanted: Mapping[str, float], step: float) -> Tensor:
    """Return codes (B, dim) moved along attributes' directions.

    In normalised codes by step sqrt(dim) w / |w| for each attribute, times its own weight; a classifier's bias and the length
    of its rows do not matter (manipulation of the released code, section 5.2).
    """
    rows = classifier.linear.weight[[classifier.attributes.index(name) for name in wanted]].double()
    units = rows / rows.norm(dim=1, keepdim=True)
    weights = torch.tensor(list(wanted.values()), dtype=torch.float64, device=units.device)
    normal = classifier.scale.normalize(codes.double()) + step * codes.shape[1] ** 0.5 * (weights @ units)
    return classifier.scale.denormalize(normal).to(codes.dtype)


def lerp_all(codes: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the weighted sum (dim,) of codes (K, dim), without those of weight 0."""
    return torch.stack([weight * code for code, weight in zip(codes, weights, strict=True) if weight]).sum(0)


def _amount(request: EditRequest) -> float:
    """Return how far a request goes along attributes: its strength, unless that is the share of references."""
    return 1.0 if request.strength is None or request.references else request.strength
