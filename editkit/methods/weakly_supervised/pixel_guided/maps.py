"""Maps of parts: which pixels an edit concerns, and changes of a map that need no paint program."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from editkit.errors import UsageError, suggestion

IGNORED = -100  # label of pixels that training leaves out


def named_parts(text: str, classes: Sequence[str]) -> tuple[int, ...]:
    """Return the numbers of the parts that a text names, such as "mouth, brows" or "6".

    Raises:
        UsageError: nothing named, or an unknown part.
    """
    found = []
    for name in filter(None, (part.strip().lower() for part in text.split(","))):
        if name in classes:
            found.append(list(classes).index(name))
        elif name.isdecimal() and int(name) < len(classes):
            found.append(int(name))
        else:
            raise UsageError(f"--labels: there is no part {name!r}.{suggestion(name, classes)} There are: {', '.join(classes)}")
    if not found:
        raise UsageError(f"--labels names no part: give the parts that the edit concerns, of {', '.join(classes)}")
    return tuple(dict.fromkeys(found))


def region(original: Tensor, edited: Tensor, parts: Sequence[int], grow: int = 3) -> Tensor:
    """Return where an edit may act, (1, H, W): the parts as they were and as they are to be, grown by some pixels each way.

    Args:
        original, edited: maps (H, W).
        parts: numbers of the parts.
        grow: how often a 3 x 3 neighbourhood is added.
    """
    chosen = torch.tensor(list(parts), device=original.device)
    inside = (torch.isin(original, chosen) | torch.isin(edited, chosen)).float()[None]
    return F.max_pool2d(inside, 2 * grow + 1, 1, grow) if grow else inside


def moved(labels: Tensor, part: int, right: int, down: int, left_behind: int) -> Tensor:
    """Return a map (H, W) with a part moved by some pixels; where it was comes `left_behind`, what leaves the frame is gone."""
    height, width = labels.shape
    rows, columns = torch.nonzero(labels == part, as_tuple=True)
    result = torch.where(labels == part, left_behind, labels)
    rows, columns = rows + down, columns + right
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    result[rows[inside], columns[inside]] = part
    return result


def replaced(labels: Tensor, part: int, by: int) -> Tensor:
    """Return a map (H, W) with all of a part become another."""
    return torch.where(labels == part, by, labels)


def without_specks(labels: Tensor, least: int) -> Tensor:
    """Return maps (B, H, W) in which parts of fewer than `least` pixels of an image are `IGNORED`."""
    counts = F.one_hot(labels, int(labels.max()) + 1).flatten(1, 2).sum(1)
    rare = (counts > 0) & (counts < least)
    return torch.where(rare.gather(1, labels.flatten(1)).view_as(labels), IGNORED, labels)
