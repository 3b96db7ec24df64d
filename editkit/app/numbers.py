"""Numbers that no method can work with."""

from __future__ import annotations

import math
from collections.abc import Sequence

from editkit.errors import UsageError


def check_numbers(*, strength: Sequence[float] = (), steps: int | None = None, samples: int = 1) -> None:
    """Raise a UsageError for a number of results, steps or a strength that makes no sense."""
    if samples < 1:
        raise UsageError(f"--samples {samples}: at least 1 result is needed")
    if steps is not None and steps < 1:
        raise UsageError(f"--steps {steps}: at least 1 step is needed")
    if not all(math.isfinite(value) for value in strength):
        raise UsageError("--strength must be a finite number")
    if len(set(strength)) < len(strength):
        raise UsageError(f"--strength is given twice with the same value: {', '.join(f'{value:g}' for value in strength)}")
