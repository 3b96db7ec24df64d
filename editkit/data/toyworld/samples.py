"""What every domain of the toy world shares: splits by seed, and samples with everything that is known about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from editkit.data.toyworld.captions import Caption
from editkit.errors import UsageError, suggestion

# The number of a split seeds its pictures: never renumber, or the bundled models will have seen the test pictures.
SPLITS: Mapping[str, int] = MappingProxyType({"train": 0, "validation": 1, "test": 2, "heldout": 3})


@dataclass(frozen=True)
class Sample:
    """One picture and all that is known about it.

    Attributes:
        key: names the sample: "faces/test/000012".
        image: uint8 HWC RGB.
        caption: a text that is true of it, with its claims.
        factors: the measured factors; age in years, lengths as `Face` and `Thing` have them.
        visibility: for each measured factor whether the picture shows it.
        labels: uint8 HW part labels, indices into the domain's parts.
        rendered_from: the `Face` or `Scene` that it shows.
        layers: further uint8 HW maps by name, such as "instances".
        notes: what else its domain says of it, fit for JSON.
    """

    key: str
    image: np.ndarray
    caption: Caption
    factors: dict[str, object]
    visibility: dict[str, bool]
    labels: np.ndarray
    rendered_from: Any
    layers: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Domain:
    """One kind of picture in the toy world: how to draw a sample and what its labels mean."""

    name: str
    parts: tuple[str, ...]
    sample: Callable[[str, int, int], Sample]


def seed(split: str, *numbers: int) -> np.random.SeedSequence:
    """Return the seed of a picture of a split.

    Raises:
        UsageError: an unknown split.
        ValueError: a negative number.
    """
    if split not in SPLITS:
        raise UsageError(f"the toy world has no split {split!r}.{suggestion(split, SPLITS)} There are: {', '.join(SPLITS)}")
    return np.random.SeedSequence([SPLITS[split], *numbers])
