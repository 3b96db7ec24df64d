"""What a source layout is, and what converting a checkpoint of it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from editkit.errors import UsageError, UserError


@dataclass(frozen=True)
class Source:
    """A checkpoint to convert.

    Attributes:
        path: its file.
        tensors: by the names of its layout.
        settings: what the user gave as KEY=VALUE; only keys of the layout's `settings`.
        prompt, source_prompt: texts of the edit that it was trained for, if it was for one.
        companions: other files that were needed, for the card.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    settings: Mapping[str, str] = field(default_factory=dict)
    prompt: str | None = None
    source_prompt: str | None = None
    companions: list[Path] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    def number(self, key: str) -> int | None:
        """Return a setting that is a whole number from 0; None if it was not given.

        Raises:
            UsageError: it is something else.
        """
        text = self.settings.get(key)
        if text is None:
            return None
        if not text.isdecimal():
            raise UsageError(f"{key}={text} is not a whole number")
        return int(text)

    def companion(self, key: str, pattern: str, about: str) -> Path:
        """Return another file that the conversion needs: what a setting names, else the one beside it that fits a pattern.

        Raises:
            UserError: there is none, or the setting names none; `about` says what it would hold.
        """
        given = self.settings.get(key)
        found = [Path(given).expanduser()] if given else sorted(self.path.parent.glob(pattern))[:1]
        if not found or not found[0].is_file():
            raise UserError(f"{given or self.name} {'is not there' if given else 'needs a second file'}: add {key}=FILE, {about}")
        self.companions.append(found[0])
        return found[0]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape.

        Raises:
            UserError: there is no such tensor.
        """
        if name not in self.tensors:
            raise UserError(f"{self.name} lacks {name}: it is cut off, or a variant that cannot be converted")
        return tuple(self.tensors[name].shape)


@dataclass(frozen=True)
class Converted:
    """A checkpoint in the layout that editkit reads: a folder that `write` fills, or the `tensors` of one file.

    Attributes:
        card: what is known of it, for card.json or the file's own card.
        use: how it is used, with {path} for where it lies.
        news: what the user should know.
    """

    card: dict[str, Any]
    use: str
    write: Callable[[Path], None] | None = None
    tensors: dict[str, Tensor] | None = None
    news: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """A layout that checkpoints are published in.

    Attributes:
        name: what --layout calls it.
        summary: whose files look so.
        marks: sets of tensor names; a file that has all of one set is recognised.
        convert: what makes it ours.
        settings: KEY=VALUE that it takes: what no shape tells, by key with an explanation.
        asked: it looks like another layout, and is taken only if --layout says so.
    """

    name: str
    summary: str
    marks: tuple[tuple[str, ...], ...]
    convert: Callable[[Source], Converted]
    settings: Mapping[str, str] = field(default_factory=dict)
    asked: bool = False

    def fits(self, tensors: Mapping[str, Tensor]) -> bool:
        """Say whether tensors of these names are in this layout."""
        return any(all(name in tensors for name in marks) for marks in self.marks)
