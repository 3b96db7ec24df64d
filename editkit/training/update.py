"""One optimiser step, as a method asks for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Update:
    """One backward pass and optimiser step.

    Attributes:
        group: the parameter group of `Method.trainable()` to step.
        losses: named terms, each a scalar or one value per sample; their means are summed and differentiated.
            A method applies its own weights before it yields them.
        report: further named values to log that are not part of the objective.
    """

    group: str
    losses: dict[str, Tensor]
    report: dict[str, Tensor] = field(default_factory=dict)

    def total(self) -> Tensor:
        """Return the scalar to differentiate: the sum of the terms' means, in float32."""
        terms = [loss.float().mean() for loss in self.losses.values()]
        if not terms:
            raise ValueError(f"the update of group {self.group!r} has no losses")
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total
