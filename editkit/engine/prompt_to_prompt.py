"""Prompt-to-prompt: an edit prompt's attention maps take over from the source prompt's (Hertz et al., arXiv 2208.01626).

Rows of a batch belong together in groups: the first row of a group is its source, the others are edits of it, whatever
lies between them; rows outside all groups, the unconditional branch's above all, are left alone. Groups travel in the
condition (`in_groups`), so they stay right however branches are stacked.

    control = PromptToPrompt(CrossEdit.stack([replace(source, target, 0.8)]), self_window=0.4)
    with attention_taps(unet, control):
        sample(Controlled(denoiser, control, levels, start), x, levels, in_groups(cond, [0, 0]), on_step=control.on_step, ...)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editkit.engine.attention import Place, attend, attention_map
from editkit.engine.denoiser import Denoiser, Wrapper
from editkit.engine.local_blend import LocalBlend
from editkit.engine.taps import recomputing
from editkit.engine.words import Window, Words, interval, refinement, replacement, windows
from editkit.types import Condition, Levels, Prediction

_SLACK = 1e-9  # 0.29 * 100 is 28.999... in floating point


@dataclass(frozen=True)
class CrossEdit:
    """What becomes of cross-attention maps (heads, pixels, L): M = M_source @ matrix + M_own * keep, while in its window.

    Replacement, refinement and reweighting are all of this form. A leading axis holds one edit per row.

    Attributes:
        matrix: (..., L, L).
        keep: (..., L).
        bounds: (..., L, 2), shares of the steps between which a column is controlled (see `words.windows`).
    """

    matrix: Tensor
    keep: Tensor
    bounds: Tensor

    @staticmethod
    def stack(edits: Sequence[CrossEdit]) -> CrossEdit:
        """Join the edits of several rows."""
        return CrossEdit(*(torch.stack([getattr(edit, f.name) for edit in edits]) for f in dataclasses.fields(CrossEdit)))

    def at(self, step: int, steps: int) -> tuple[Tensor, Tensor] | None:
        """Return (matrix, keep) as they hold at a step, 0 the first, with columns outside their window left alone.

        None if no column is controlled. As in the official code a window ends at int(share (steps + 1)).
        """
        start, end = (self.bounds * (steps + 1) + _SLACK).long().unbind(-1)
        active = ((start <= step) & (step < end)).to(self.matrix)
        if not active.any():
            return None
        return self.matrix * active[..., None, :], self.keep * active + 1 - active


def replace(source: Words, target: Words, window: Window = 0.8, per_word: Mapping[str, Window] | None = None) -> CrossEdit:
    """Swap words one by one: the target's maps are the source's, carried to the words that replace them (section 3.2).

    Raises:
        UsageError: prompts of different numbers of words; a wrong window.
    """
    return CrossEdit(replacement(source, target), torch.zeros(target.length), windows(target, window, per_word))


def refine(source: Words, target: Words, window: Window = 0.8, per_word: Mapping[str, Window] | None = None) -> CrossEdit:
    """Add words: tokens that both prompts share have the source's maps, new ones their own (section 3.2).

    Raises:
        UsageError: a wrong window.
    """
    index, share = refinement(source, target)
    matrix = torch.zeros(source.length, target.length).scatter_(0, index[None], share[None])
    return CrossEdit(matrix, 1 - share, windows(target, window, per_word))


def reweight(edit: CrossEdit, factors: Tensor) -> CrossEdit:
    """Multiply the columns of an edit by factors (L,), see `words.equalizer` (section 3.2)."""
    return CrossEdit(edit.matrix * factors, edit.keep * factors, edit.bounds)


class PromptToPrompt:
    """The attention tap of prompt-to-prompt; `Controlled` tells it the step and the rows before each query.

    A source's own computation stays what it is. An edit under the identity (same prompt, all steps) computes what its
    source does, bit for bit. Backward under activation checkpointing asks the tap again, at the step it is at by then:
    do it before the next query.

    Args:
        edits: of every edited row, in the order of the rows.
        self_window: steps during which the edits' self-attention maps are their source's.
        self_share: largest grid whose self-attention is controlled, a share of the latent's sides; 1/4 is 16 x 16 for
            latents of 64 x 64.
        blend: keep the edits local.

    Raises:
        UsageError: a wrong window.
    """

    def __init__(
        self, edits: CrossEdit, *, self_window: Window = 0.4, self_share: float = 0.25, blend: LocalBlend | None = None
    ) -> None:
        self.edits, self.self_share, self.blend = edits, self_share, blend
        self.self_window = interval(self_window)
        self.rows = Rows.of([])

    def begin(self, step: int, steps: int, groups: Sequence[int], x: Tensor) -> None:
        """Set the step of `steps`, 0 the first, the group of each row (-1 for none), and what is denoised, (B, C, H, W).

        Raises:
            ValueError: other than one edit per edited row.
        """
        self.rows, self.step, self.steps = Rows.of(groups).to(x.device), step, steps
        if len(self.rows.edits) not in (0, len(self.edits.matrix)):
            raise ValueError(f"{len(self.edits.matrix)} cross-attention edits for {len(self.rows.edits)} edited rows")
        self.latent = (x.shape[-2], x.shape[-1])
        now = self.edits.at(step, steps)
        self.now = None if now is None else (now[0].to(x.device)[:, None], now[1].to(x.device)[:, None, None])
        if self.blend is not None and step == 0:
            self.blend.reset()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, place: Place) -> Tensor | None:
        """Return the attention's output (B, heads, h w, d), or None where nothing is to be done."""
        if not len(self.rows.edits):
            return None
        return self._self(q, k, v, place) if place.kind == "self" else self._cross(q, k, v, place)

    def on_step(self, i: int, j: int, x: Tensor, pred: Prediction) -> Tensor | None:
        """Blend the state after a step; every row of x (R, C, H, W) is a source or an edit, in the order of the branch."""
        if self.blend is None or not len(self.rows.edits) or self.step + 1 <= int(self.blend.start * self.steps + _SLACK):
            return None
        return self.blend(x, self.rows.sources_of_all)

    def _self(self, q: Tensor, k: Tensor, v: Tensor, place: Place) -> Tensor | None:
        start, end = (int(share * self.steps + _SLACK) for share in self.self_window)
        small = all(side <= -(-whole * self.self_share // 1) for side, whole in zip(place.size, self.latent, strict=True))
        if not (start <= self.step < end and small):
            return None
        whose = torch.arange(len(q), device=q.device).index_copy(0, self.rows.edits, self.rows.sources)
        return attend(q[whose], k[whose], v, place.rows(whose))

    def _cross(self, q: Tensor, k: Tensor, v: Tensor, place: Place) -> Tensor | None:
        watched = self.blend is not None and place.size == self.blend.grid(self.latent)
        if self.now is None and not watched:
            return None
        rows = self.rows.all
        maps = attention_map(q[rows], k[rows], place.rows(rows))
        if self.now is not None:
            matrix, keep = (part.to(maps.dtype) for part in self.now)
            edited = maps[self.rows.sources_within] @ matrix + maps[self.rows.edits_within] * keep
            maps = maps.index_copy(0, self.rows.edits_within, edited)
        if self.blend is not None and watched and not recomputing():
            self.blend.add(maps, place.size)
        return attend(q, k, v, place).index_copy(0, rows, maps @ v[rows])


@dataclass(frozen=True)
class Rows:
    """The rows of a batch that are controlled, as indices into the batch and "within" the controlled rows alone.

    Attributes:
        all: sources and edits, rising, (R,).
        edits: (E,).
        sources: of each edit, (E,).
        edits_within: (E,).
        sources_within: of each edit, (E,).
        sources_of_all: of each controlled row, a source's being its own, R numbers.
    """

    all: Tensor
    edits: Tensor
    sources: Tensor
    edits_within: Tensor
    sources_within: Tensor
    sources_of_all: list[int]

    @staticmethod
    def of(groups: Sequence[int]) -> Rows:
        """Read the group of each row of a batch; negative for none."""
        controlled = [row for row, group in enumerate(groups) if group >= 0]
        first: dict[int, int] = {}
        owners = [first.setdefault(groups[row], n) for n, row in enumerate(controlled)]
        edits = [n for n, owner in enumerate(owners) if owner != n]
        sources = [owners[n] for n in edits]
        batch = torch.tensor(controlled, dtype=torch.int64)
        e, s = (torch.tensor(each, dtype=torch.int64) for each in (edits, sources))
        return Rows(batch, batch[e], batch[s], e, s, owners)

    def to(self, device: torch.device) -> Rows:
        """Return these rows with their indices on a device."""
        moved = {f.name: getattr(self, f.name).to(device) for f in dataclasses.fields(self) if f.name != "sources_of_all"}
        return dataclasses.replace(self, **moved)


@dataclass(frozen=True)
class Controlled(Wrapper):
    """A denoiser that tells its attention control where sampling stands, before each query.

    Attributes:
        denoiser: whose attentions `control` is tapped into.
        control: the tap.
        levels: what is walked.
        start: level that sampling begins at.
    """

    denoiser: Denoiser
    control: PromptToPrompt
    levels: Levels
    start: int

    def __call__(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> Prediction:
        """Predict for x (B, C, H, W) at one time t of the levels.

        Raises:
            ValueError: a condition without groups (see `in_groups`), or a time that is not one of the levels'.
        """
        if cond is None or "group" not in cond.extra:
            raise ValueError("attention control needs to know the rows: condition every branch by in_groups(cond, groups)")
        if float(t) not in self.levels.times:
            raise ValueError(f"time {float(t):g} is none of the levels that attention control was told of")
        step = self.start - self.levels.times.index(float(t))
        self.control.begin(step, self.start, cond.extra["group"].expand(len(x)).tolist(), x)
        return self.denoiser(x, t, cond)


def in_groups(cond: Condition, groups: Sequence[int]) -> Condition:
    """Return a condition that says which group each row belongs to: the first row of a group is its source.

    An unconditional branch is in_groups(cond, [-1]).
    """
    return dataclasses.replace(cond, extra={**cond.extra, "group": torch.tensor(groups)})
