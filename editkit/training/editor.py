"""What applies a method to images: a plain class, batched, without training state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from editkit.errors import UsageError
from editkit.types import EditRequest, EditResult

_OPTIONS = {"references": "--reference", "reference_masks": "--reference-mask"}


class Editor:
    """Applies a method, trained or not, to requests.

    A subclass sets `name` and `needs` and writes `edit`; it overrides `prepare` when something can be computed once and
    used for several strengths (an inversion), or must be fitted to one image (`per_image = True`).

    Attributes:
        name: the method's name as a user types it, for messages.
        needs: fields of EditRequest that must be given.
        per_image: True when `prepare` fits something to one image, so that requests come one at a time.
    """

    name: str = "this method"
    needs: tuple[str, ...] = ("image",)
    per_image: bool = False

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
