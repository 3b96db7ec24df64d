"""Methods whose trained part is one file that is loaded into the method as a whole, at no other strength than as trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from editkit.errors import UsageError, UserError
from editkit.training.artefact import Artefact
from editkit.training.method import Method

Load = Callable[[Mapping[str, Tensor]], None]


def take(method: Method, artefacts: Sequence[Artefact], kind: str, name: str, load: Load | None = None) -> None:
    """Load a method's trained part from a file, if there is one, and make the method ready to edit.

    Args:
        method: what is loaded into.
        artefacts: one file at most.
        kind: what its card has to say that it is.
        name: the method's, for messages.
        load: copies the file's tensors into the method, and raises ValueError where they do not fit; None: all that is trained.

    Raises:
        UsageError: several files, or a strength.
        UserError: a file of another kind, or one that does not fit.
    """
    if len(artefacts) > 1 or any(artefact.strength != 1 for artefact in artefacts):
        raise UsageError(f"{name} takes one trained file, as it was trained: leave out further --weights and their strengths")
    for artefact in artefacts:
        if artefact.card.get("kind") != kind:
            raise UserError(f"the weights {artefact.name!r} are not of {name} (made by {artefact.card.get('method', 'unknown')})")
        try:
            (load or method.load_trained)(artefact.tensors)
        except ValueError as error:
            raise UserError(f"the weights {artefact.name!r} do not fit this recipe: {error}") from error
    method.requires_grad_(False).eval()
