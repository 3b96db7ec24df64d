"""What an evaluation asks: edits with a known answer of some pictures, and how results are judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from editkit.app.artefacts import bundled, choose
from editkit.app.questions.figures import Figure, Scores, joined
from editkit.data.items import image_tensor
from editkit.errors import UsageError, UserError, suggestion
from editkit.metrics.frechet import frechet
from editkit.metrics.oracle import Oracle
from editkit.types import EditRequest

MARGIN = 2  # pixels that a mask reaches beyond what must change
NO_EDIT = "no-edit"
BATCH = 64  # pictures that are judged at once


class Edit(Protocol):
    """What is asked of every picture of a row group of the table.

    Attributes:
        name: as in the table and for `--edit`.
        prompt: chooses among trained parts that are for one text each; None where there is no such text.
    """

    @property
    def name(self) -> str: ...
    @property
    def prompt(self) -> str | None: ...


@dataclass(frozen=True)
class Named:
    """An edit that is no more than its name."""

    name: str
    prompt: str | None = None


@dataclass(frozen=True)
class Cases:
    """The same edit asked of several pictures.

    Attributes:
        edit: what to change.
        keys: name of each source picture.
        images, truth: sources and exact answers (N, 3, H, W) in [-1, 1].
        region: (N, 1, H, W), 1 where a picture must change.
    """

    edit: Any
    keys: list[str]
    images: Tensor
    truth: Tensor
    region: Tensor

    what: ClassVar[str] = "toy world"  # as it is called in messages

    def __len__(self) -> int:
        return len(self.keys)

    def inputs(self, index: int) -> dict[str, Any]:
        """Return what a picture's request says besides the picture and the mask: fields of EditRequest."""
        raise NotImplementedError(f"{type(self).__name__}.inputs")

    def mask(self, index: int) -> Tensor:
        """Return the mask (1, H, W) for methods that need one: `MARGIN` pixels around what must change."""
        return F.max_pool2d(self.region[index], 2 * MARGIN + 1, stride=1, padding=MARGIN)

    def about(self) -> dict[str, Any]:
        """Return what metrics.json says of the edit, `question` among it: one sentence for a reader."""
        raise NotImplementedError(f"{type(self).__name__}.about")

    def back(self, images: Tensor) -> Cases | None:
        """Return what is asked of the edited pictures themselves, the way back; None where nothing is."""
        return None

    def requests(self, needs: Sequence[str] = (), *, steps: int | None = None, seed: int = 0) -> list[EditRequest]:
        """Return what an editor is asked; a mask only if it needs one.

        Raises:
            UsageError: the editor needs an input that this evaluation does not have.
        """
        found = []
        for i, key in enumerate(self.keys):
            mask = self.mask(i) if "mask" in needs else None
            found.append(EditRequest(key, self.images[i], mask=mask, steps=steps, seed=seed, **self.inputs(i)))
        missing = found[0].missing(needs)
        if missing:
            raise UsageError(f"the {self.what} have no {missing[0].replace('_', ' ')} to give, which this method needs")
        return found


class Questions(ABC):
    """One kind of questions; a subclass sets the attributes and writes the methods.

    Attributes:
        name: value of the key `evaluate` of recipes.
        subject: what the pictures show, in the plural.
        answer: what an exact answer is, one sentence.
        mark: between which marks of a README the table goes.
        figures: all that is measured, with "success", "preservation" and "score" among it.
        shown: the figures of the table.
        compared: figures whose differences from the baselines get an interval.
        baselines: names of recipes, `NO_EDIT` among them.
        equipped: baselines that do not take the method's backbone, each with overrides of its recipe, which say what they take.
        plain: overrides for baselines beside a method whose own backbone is no plain diffusion model; none: it has to do.
        typical: the edit that stands for all of them where a method gets one row.
        target_models: whether backbones know what is wanted and nothing else, so that SDEdit needs no text.
        tradeoffs: pairs of figures (x, y) whose curves a sweep draws.
    """

    name: ClassVar[str]
    subject: ClassVar[str]
    answer: ClassVar[str]
    mark: ClassVar[str]
    figures: ClassVar[Mapping[str, Figure]]
    shown: ClassVar[tuple[str, ...]]
    compared: ClassVar[tuple[str, ...]]
    baselines: ClassVar[tuple[str, ...]]
    typical: ClassVar[str]
    equipped: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType({})
    plain: ClassVar[tuple[str, ...]] = ()
    target_models: ClassVar[bool] = False
    tradeoffs: ClassVar[tuple[tuple[str, str], ...]] = (("preservation", "success"),)

    @abstractmethod
    def edits(self) -> Mapping[str, Any]:
        """Return all edits by name."""

    def find(self, name: str) -> Any:
        """Return the edit of a name ("day to night", also "day-to-night").

        Raises:
            UsageError: no such edit.
        """
        plain, known = name.strip().lower().replace("-", " ").replace("_", " "), self.edits()
        if plain not in known:
            listed = ", ".join(known)
            raise UsageError(f"no edit of the {self.name} is called {name!r}.{suggestion(plain, known)} There are: {listed}")
        return known[plain]

    def usual(self, weights: Mapping[str, tuple[str, Sequence[str]]]) -> list[Any]:
        """Return what is asked where no edit is named.

        Args:
            weights: of each method by its name, the folder of its bundled artefacts and the weights that the user gave.
        """
        return list(self.edits().values())

    @abstractmethod
    def cases(self, edit: Any, split: str, count: int, *, size: int) -> Any:
        """Return an edit of the first `count` pictures of a split, validation or test."""

    @abstractmethod
    def load_judges(self, device: Any) -> Any:
        """Load the networks that look at results.

        Raises:
            UserError: one of them is not there.
        """

    @abstractmethod
    def judged(self, judges: Any, cases: Any, where: slice, images: Tensor) -> Scores:
        """Judge edited images (B, 3, H, W) in [-1, 1], of the cases of a slice."""

    @torch.no_grad()
    def score(self, judges: Any, cases: Any, images: Tensor) -> Scores:
        """Judge edited images (N, 3, H, W) in [-1, 1], one of each case; the scores are on the CPU."""
        slices = [slice(start, start + BATCH) for start in range(0, len(images), BATCH)]
        return joined([self.judged(judges, cases, where, images[where]) for where in slices])

    def of_return(self, cases: Any, returned: Tensor) -> dict[str, Tensor]:
        """Return the figures (N,) of pictures (N, 3, H, W) that came back the way that `Cases.back` asked for."""
        return {}

    def distances(self, judges: Any, cases: Any, split: str, features: Mapping[Any, Tensor]) -> dict[Any, float]:
        """Return the Frechet distance of each set of features to real pictures, with that of the answers by ("", "")."""
        return {}


def trained_edits(edits: Mapping[str, Any], folder: str, weights: Sequence[str]) -> list[Any]:
    """Return the edits that a method's trained parts are for; none where they serve any.

    Args:
        edits: all that can be asked of faces, by name.
        folder: of the method's bundled artefacts.
        weights: what the user gave instead.

    Raises:
        UserError: they are for something else.
    """
    parts = [part for part in (choose(folder, weights) if weights else bundled(folder)) if part.target]
    found = [edit for edit in edits.values() if any(part.answers(edit.prompt) for part in parts)]
    if parts and not found:
        listed = ", ".join(repr(part.target) for part in parts)
        raise UserError(
            f"the weights are for {listed}, which is no edit of the toy faces with a known answer: name one with --edit"
        )
    return found


def pictures(render: Callable[..., Any], shown: Sequence[Any], size: int = 64) -> Tensor:
    """Return what a renderer of the toy world, whose first result is the picture, makes: (N, 3, size, size) in [-1, 1]."""
    return torch.stack([image_tensor(render(one, size)[0]) for one in shown])


@torch.no_grad()
def feature_distances(oracle: Oracle, features: Mapping[Any, Tensor], real: Tensor, answers: Tensor) -> dict[Any, float]:
    """Return the Frechet distance of each set of an oracle's features (N, D) to those of real pictures (M, 3, H, W).

    Args:
        answers: the exact answers (N, 3, H, W), whose own distance is that of ("", "").
    """
    device = next(oracle.parameters()).device
    reference, own = (oracle.features(images.to(device)).cpu() for images in (real, answers))
    return {name: frechet(found.cpu(), reference) for name, found in {**features, ("", ""): own}.items()}
