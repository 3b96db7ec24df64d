"""Which attributes a request asks for: by name (`--labels`), or by a text that names them (`--prompt`)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from editkit.errors import UsageError, suggestion
from editkit.types import EditRequest


def asked(request: EditRequest, known: Sequence[str]) -> dict[str, float]:
    """Return {attribute: weight} of a request, nothing if it asks for none.

    Raises:
        UsageError: an attribute that is not known, or a text that names none.
    """
    if request.labels:
        return labelled(request.labels, known)
    return named(request.prompt, known) if request.prompt else {}


def labelled(labels: str, known: Sequence[str]) -> dict[str, float]:
    """Return the attributes of a list such as "smiling, glasses=-0.5", each with its weight, 1 where none is given.

    Raises:
        UsageError: an attribute that is not known, or a weight that is no number.
    """
    plain = {_plain(name): name for name in known}
    found: dict[str, float] = {}
    for text in filter(None, (part.strip() for part in labels.split(","))):
        name, equals, weight = text.partition("=")
        if _plain(name) not in plain:
            raise UsageError(f"there is no attribute {name!r}.{suggestion(_plain(name), plain)} There are: {', '.join(known)}")
        try:
            found[plain[_plain(name)]] = float(weight) if equals else 1.0
        except ValueError:
            raise UsageError(f"--labels {text}: the weight of {name} must be a number, such as {name}=0.5") from None
    return found


def named(text: str, known: Sequence[str]) -> dict[str, float]:
    """Return the attributes whose names stand in a text: weight 1, or -1 after "without" or "no".

    Of names that overlap the longer counts.

    Raises:
        UsageError: the text names none of them.
    """
    rest, found = f" {_plain(text)} ", {}
    for name in sorted(known, key=lambda name: -len(_plain(name))):
        match = re.search(rf"(?P<no>\b(?:without|no)(?: an?)? )?\b{re.escape(_plain(name))}\b", rest)
        if match:
            found[name] = -1.0 if match["no"] else 1.0
            rest = rest[: match.start()] + " | " + rest[match.end() :]
    if not found:
        raise UsageError(f"the prompt {text!r} names no attribute that the classifier knows: {', '.join(known)}")
    return found


def _plain(text: str) -> str:
    return " ".join(text.casefold().replace("_", " ").replace("-", " ").split())
