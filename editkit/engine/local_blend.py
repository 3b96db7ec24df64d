"""Local blend: keep an edit where the cross-attention of some words lies (prompt-to-prompt, arXiv 2208.01626, section 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from editkit.errors import UsageError


class LocalBlend:
    """Outside a mask found from cross-attention maps an edit's latents become its source's.

    The maps of the layers at one resolution are summed over heads, layers and all steps so far; the mask of a row is
    where the sum over its words, max-pooled and divided by its largest value, is above the threshold, and an edit's mask
    takes in its source's.

    Args:
        words: (R, L), 1 at the columns of the words to look for in each row's prompt, sources included.
        avoid: (R, L) alike, words whose mask (not pooled) is cut out; None for none.
        threshold: of `words`, a share of the largest value.
        avoid_threshold: of `avoid`.
        start: share of the steps after which blending begins.
        shrink: the layers used are those at 1/shrink of the latent's side; 4 is 16 x 16 for latents of 64 x 64.

    Raises:
        UsageError: a row without words.
    """

    def __init__(
        self,
        words: Tensor,
        avoid: Tensor | None = None,
        *,
        threshold: float = 0.3,
        avoid_threshold: float = 0.3,
        start: float = 0.2,
        shrink: int = 4,
    ) -> None:
        if not (words > 0).any(1).all():
            raise UsageError("local blend needs a word in every prompt, the source prompts included")
        self.columns = words[None] if avoid is None else torch.stack([words, avoid])
        self.threshold, self.avoid_threshold, self.start, self.shrink = threshold, avoid_threshold, start, shrink
        self.sums: Tensor | None = None

    def grid(self, latent: tuple[int, int]) -> tuple[int, int]:
        """Return the size of the maps to use for latents of a size."""
        return -(-latent[0] // self.shrink), -(-latent[1] // self.shrink)

    def reset(self) -> None:
        """Forget all maps."""
        self.sums = None

    def add(self, maps: Tensor, size: tuple[int, int]) -> None:
        """Add the maps (R, heads, h w, L) of one layer, as the network used them, edits included."""
        added = torch.einsum("rhnl,crl->crn", maps.detach().float(), self.columns.to(maps.device)).unflatten(-1, size)
        self.sums = added if self.sums is None else self.sums + added

    def mask(self, sources: Sequence[int], size: tuple[int, int]) -> Tensor:
        """Return where to keep the edits, (R, 1, H, W) bool, for latents of a size.

        Args:
            sources: for each row that of its source; a source's is its own.
            size: (H, W) of the latents.

        Raises:
            UsageError: no maps came from any layer.
        """
        if self.sums is None:
            grid = " x ".join(map(str, self.grid(size)))
            raise UsageError(f"local blend found no cross-attention at {grid} (1/{self.shrink} of the latent): change shrink")
        kept = self._above(F.max_pool2d(self.sums[0][:, None], 3, 1, 1), self.threshold, sources, size)
        for cut in self.sums[1:]:
            kept = kept & ~self._above(cut[:, None], self.avoid_threshold, sources, size)
        return kept

    def __call__(self, x: Tensor, sources: Sequence[int]) -> Tensor:
        """Return the latents x (R, C, H, W) with each row as its source outside its mask."""
        height, width = x.shape[-2:]
        return torch.where(self.mask(sources, (height, width)), x, x[list(sources)])

    @staticmethod
    def _above(values: Tensor, threshold: float, sources: Sequence[int], size: tuple[int, int]) -> Tensor:
        large = F.interpolate(values, size, mode="nearest")
        above = large / large.amax((2, 3), keepdim=True) > threshold
        return above | above[list(sources)]
