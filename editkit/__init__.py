"""Train, run and measure diffusion image-editing methods.

    import editkit
    editkit.load("asyrp", prompt="a smiling face").edit("face.png", strength=1.0).pil().save("smiling.png")

Importing this imports nothing heavy: the names below come with their first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from editkit.api import Edited, Model, load

__all__ = ["Edited", "Model", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'editkit' has no attribute {name!r}")
    from editkit import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
