"""What an inversion leaves behind, and its file: one safetensors with everything else as JSON in the metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from editkit.engine.atomic import write_bytes
from editkit.engine.fingerprint import fingerprint
from editkit.engine.lanes import stack
from editkit.errors import UserError
from editkit.types import Condition, Levels

_FORMAT = 1
_EMBEDDED = ("tokens", "mask", "vector", "concat")


@dataclass
class Trajectory:
    """States and noises of an inversion along one list of levels.

    Attributes:
        levels: the levels walked; sampling back walks the same.
        start: level index where sampling begins.
        states: level index -> state (B, C, H, W), or (B, 2C, H, W) of coupled inverters; holds at least `start`.
        noises: level index i -> what the step from i to i-1 adds, for stochastic inverters.
        inverter: name in `editkit.engine.invert.INVERTERS`.
        settings: the inverter's own settings, JSON values.
        calls: network calls it took.
        report: figures by name, one number per sample.
        conds: level index -> the unconditional branch that reconstructs from there down to the next one given, with a row
            for every sample; for inverters of guided sampling.
    """

    levels: Levels
    start: int
    states: dict[int, Tensor]
    noises: dict[int, Tensor] = field(default_factory=dict)
    inverter: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    calls: int = 0
    report: dict[str, list[float]] = field(default_factory=dict)
    conds: dict[int, Condition] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.start not in self.states:
            raise ValueError(f"a trajectory needs the state of its start level {self.start}, got levels {sorted(self.states)}")

    @property
    def x(self) -> Tensor:
        """Return the state that sampling starts from."""
        return self.states[self.start]

    def to(self, device: torch.device | str) -> Trajectory:
        """Return this trajectory with its tensors on a device."""
        return self._map(lambda tensor: tensor.to(device), self.report)

    def split(self) -> list[Trajectory]:
        """Return one trajectory per sample, batch 1 each."""
        return [
            self._map(lambda tensor, n=n: tensor[n : n + 1], {name: figures[n : n + 1] for name, figures in self.report.items()})
            for n in range(len(self.x))
        ]

    @staticmethod
    def stack(parts: Sequence[Trajectory]) -> Trajectory:
        """Join trajectories of the same levels and inverter along the batch; `calls` is the largest of theirs.

        Raises:
            ValueError: trajectories that differ in levels, start, inverter or settings.
        """
        first = parts[0]
        if any(_kind(part) != _kind(first) for part in parts):
            raise ValueError("only trajectories of the same levels, inverter and settings can share a batch")
        return Trajectory(
            first.levels,
            first.start,
            {i: torch.cat([part.states[i] for part in parts]) for i in first.states},
            {i: torch.cat([part.noises[i] for part in parts]) for i in first.noises},
            first.inverter,
            first.settings,
            max(part.calls for part in parts),
            {name: [figure for part in parts for figure in part.report[name]] for name in first.report},
            {i: _stacked([part.conds[i] for part in parts], [len(part.x) for part in parts]) for i in first.conds},
        )

    def save(self, path: Path | str) -> None:
        """Write to a safetensors file, whole or not at all.

        Raises:
            ValueError: conditions with more than tokens, mask, vector and concat.
        """
        tensors = {f"state.{i}": _own(tensor) for i, tensor in self.states.items()}
        tensors |= {f"noise.{i}": _own(tensor) for i, tensor in self.noises.items()}
        for i, cond in self.conds.items():
            tensors |= {f"cond.{i}.{name}": _own(tensor) for name, tensor in _embedded(cond).items()}
        levels = {"alpha_bar": self.levels.alpha_bar, "times": self.levels.times, "entry": self.levels.entry}
        config = {
            "format": _FORMAT,
            "levels": levels,
            "levels_digest": self.levels.digest(),
            "start": self.start,
            "inverter": self.inverter,
            "settings": dict(self.settings),
            "calls": self.calls,
            "report": self.report,
            "content": fingerprint(tensors),
        }
        write_bytes(Path(path), safetensors.torch.save(tensors, {"editkit": json.dumps(config)}))

    @staticmethod
    def load(path: Path | str, *, levels: Levels | None = None) -> Trajectory:
        """Read a file that `save` wrote.

        Args:
            path: the file.
            levels: the levels that sampling will walk, if they are known already.

        Raises:
            UserError: no such file, not a trajectory, damaged, or inverted on other levels.
        """
        path = Path(path)
        try:
            found, whole = _read(path)
        except FileNotFoundError as error:
            raise UserError(f"{path} does not exist: write it with `editkit invert --image FILE -o {path}`") from error
        except (OSError, KeyError, ValueError, TypeError, safetensors.SafetensorError) as error:
            raise UserError(f"{path} is not a trajectory written by `editkit invert`, or it is damaged") from error
        if not whole:
            raise UserError(f"{path} is damaged or from another version of editkit: invert the image again")
        if levels is not None and levels.digest() != found.levels.digest():
            there, asked = (f"{len(each)} levels up to time {each.times[-1]:g}" for each in (found.levels, levels))
            raise UserError(
                f"{path} was inverted on {there}, not {asked}: use the same steps and spacing, or invert the image again"
            )
        return found

    def _map(self, fn: Any, report: dict[str, list[float]]) -> Trajectory:
        states = {i: fn(tensor) for i, tensor in self.states.items()}
        noises = {i: fn(tensor) for i, tensor in self.noises.items()}
        conds = {
            i: replace(cond, **{name: fn(tensor) for name, tensor in _embedded(cond).items()}) for i, cond in self.conds.items()
        }
        return Trajectory(self.levels, self.start, states, noises, self.inverter, self.settings, self.calls, report, conds)


def _read(path: Path) -> tuple[Trajectory, bool]:
    """Return what a file holds, and whether its digests agree with it."""
    with safetensors.safe_open(path, "pt") as file:
        config = json.loads((file.metadata() or {})["editkit"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    walked = config["levels"]
    levels = Levels(tuple(walked["alpha_bar"]), tuple(walked["times"]), walked["entry"])
    states, noises = _numbered(tensors, "state."), _numbered(tensors, "noise.")
    rest = {name: config[name] for name in ("inverter", "settings", "calls", "report")}
    digests = config["levels_digest"] == levels.digest() and config["content"] == fingerprint(tensors)
    found = Trajectory(levels, config["start"], states, noises, conds=_conditions(tensors), **rest)
    return found, config["format"] == _FORMAT and digests


def _kind(trajectory: Trajectory) -> tuple[Any, ...]:
    return (
        trajectory.levels,
        trajectory.start,
        trajectory.inverter,
        dict(trajectory.settings),
        sorted(trajectory.states),
        sorted(trajectory.noises),
        sorted(trajectory.conds),
    )


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()


def _numbered(tensors: Mapping[str, Tensor], prefix: str) -> dict[int, Tensor]:
    found = {int(name.removeprefix(prefix)): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return dict(sorted(found.items()))


def _embedded(cond: Condition) -> dict[str, Tensor]:
    """Return the tensors of a condition by field.

    Raises:
        ValueError: it has more than those.
    """
    if cond.control or cond.extra:
        raise ValueError("a trajectory keeps conditions of tokens, mask, vector and concat, not control or extra")
    return {name: getattr(cond, name) for name in _EMBEDDED if getattr(cond, name) is not None}


def _conditions(tensors: Mapping[str, Tensor]) -> dict[int, Condition]:
    found: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        if name.startswith("cond."):
            _, i, field_name = name.split(".")
            found.setdefault(int(i), {})[field_name] = tensor
    return {i: Condition(**fields) for i, fields in sorted(found.items())}


def _stacked(conds: Sequence[Condition], sizes: Sequence[int]) -> Condition:
    joined = stack(conds, sizes)
    assert joined is not None
    return joined


def settings_of(inverter: Any) -> dict[str, Any]:
    """Return an inverter's settings by name; its fields are plain values."""
    return asdict(inverter)
