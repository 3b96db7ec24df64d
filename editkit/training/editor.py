"""What applies a method to images: a plain class, batched, without training state."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from editkit.engine.schedule import Schedule
from editkit.errors import UsageError
from editkit.types import EditRequest, EditResult, Levels

Key = TypeVar("Key", bound=Hashable)

_OPTIONS = {"references": "--reference", "reference_masks": "--reference-mask"}


class Editor:
    """Applies a method, trained or not, to requests.

    A subclass sets `name` and `needs` and writes `edit`; it overrides `prepare` when something can be computed once and
    used for several strengths (an inversion), or must be fitted to one image (`per_image = True`).

    Attributes:
        name: the method's name as a user types it, for messages.
        needs: fields of EditRequest that must be given.
        per_image: True when `prepare` fits something to one image, so that requests come one at a time.
        whole_references: True when references without a mask come in their own shape, at most as large as the model's
            pictures; otherwise each is cropped to the model's size.
    """

    name: str = "this method"
    needs: tuple[str, ...] = ("image",)
    per_image: bool = False
    whole_references: bool = False

    def prepare(self, requests: Sequence[EditRequest]) -> Any:
        """Return what `edit` reuses for these requests at any strength (default: nothing)."""
        return None

    def edit(self, requests: Sequence[EditRequest], state: Any) -> EditResult:
        """Return the edited images of the requests, in their order."""
        raise NotImplementedError(f"{type(self).__name__}.edit")

    def check(self, requests: Sequence[EditRequest]) -> None:
        """Raise a UsageError that names the options a request lacks ("asyrp needs --image")."""
        for request in requests:
            missing = request.missing(self.needs)
            if missing:
                options = " and ".join(option(name) for name in missing)
                raise UsageError(f"{self.name} needs {options}")


def option(field: str) -> str:
    """Return the command-line option that fills a field of EditRequest: source_prompt -> --source-prompt."""
    return _OPTIONS.get(field, "--" + field.replace("_", "-"))


def requests_of(dataset: Any, count: int) -> list[EditRequest]:
    """Return requests for the first images of a data set, as many as there are at most."""
    items = [dataset[k] for k in range(min(count, len(dataset)))]
    return [EditRequest(key=item["key"], image=item["image"]) for item in items]


def images_of(requests: Sequence[EditRequest]) -> Tensor:
    """Return the images of requests, (B, 3, H, W) in [-1, 1]."""
    return torch.stack([request.image for request in requests])


def draws_of(requests: Sequence[EditRequest]) -> dict[str, Any]:
    """Return all that the noise of requests depends on, as `batch_noise` and `level_noise` take it: keys, seeds and samples."""
    return {
        "keys": [request.key for request in requests],
        "seed": [request.seed for request in requests],
        "sample": [request.sample for request in requests],
    }


def walked_levels(schedule: Schedule, steps: int, strength: float, name: str) -> Levels:
    """Return `steps` evenly spaced levels from time 0 to the share `strength` of the noise scale, for an editor of that name.

    Raises:
        UsageError: a strength out of range, or more steps than there are times.
    """
    if not 0 < strength <= 1:
        raise UsageError(f"strength {strength} is out of range: {name} starts above 0 and at most at 1, pure noise")
    last = round(strength * len(schedule)) - 1
    return schedule.levels(steps, start=max(last, 1), spacing="linspace")


def by_steps(requests: Sequence[EditRequest], default: int) -> list[tuple[int, list[int]]]:
    """Group the rows of a batch by their number of steps, `default` where a request names none."""
    return grouped(request.steps or default for request in requests)


def grouped(keys: Iterable[Key]) -> list[tuple[Key, list[int]]]:
    """Return each key with the places where it stands, in the order of their first."""
    groups: dict[Key, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    return list(groups.items())
