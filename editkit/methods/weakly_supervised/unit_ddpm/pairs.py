"""A second training of ours for UNIT-DDPM's noise networks: SDEdit's pictures take the place of the translators'.

The paper's translators learn from the noise networks' errors alone, over hundreds of thousands of steps. In a short training
they stay the identity that they begin as, and the noise networks, which see a picture beside itself, learn to copy it. SDEdit by
a model of the other domain gives them a picture of that domain at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from editkit.backbones.pixel import PixelBackbone, load_pixel
from editkit.engine.guidance import Clip
from editkit.engine.rng import batch_noise
from editkit.engine.sample import sample
from editkit.errors import UsageError
from editkit.methods.weakly_supervised.unit_ddpm.method import UnitDDPM
from editkit.methods.weakly_supervised.unit_ddpm.networks import by_domain
from editkit.training.editor import walked_levels
from editkit.training.method import Update
from editkit.training.share import computed_once


class PairedUnitDDPM(UnitDDPM):
    """Train the two noise networks, each beside what SDEdit (arXiv 2108.01073) makes of its pictures; there are no translators.

    The export is that of `UnitDDPM`, and edits as it does.

    Args:
        models: folders of a pixel model of each domain, which SDEdit walks with.
        pair_strength: share of the noise scale from which SDEdit walks down.
        pair_steps: of its walk.
        arguments: further ones of `UnitDDPM`.

    Raises:
        UsageError: other than two models, or models of other pictures than the networks'; a strength out of range.
    """

    def __init__(self, *, models: Sequence[str], pair_strength: float = 0.55, pair_steps: int = 30, **arguments: Any) -> None:
        super().__init__(**arguments)
        if len(models) != 2:
            raise UsageError(f"method.models={list(models)}: give the folder of a pixel model of each of the two domains")
        self.translators = nn.ModuleList()
        self.models = nn.ModuleList(map(load_pixel, models))
        self.walk = {"steps": pair_steps, "strength": pair_strength}
        for path, model in zip(models, self.models, strict=True):
            self._walked(model)
            if model.sample_shape != self.backbone.sample_shape:
                ours, theirs = self.backbone.sample_shape, model.sample_shape
                raise UsageError(f"method.models: {path} makes pictures of {theirs}, where the noise networks' are of {ours}")
        self.answers: dict[str, Tensor] = {}

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        """Return the parameters of both noise networks."""
        return {"noise": self.noise.parameters()}

    @torch.no_grad()
    def precompute(self, dataset: Any) -> None:
        """Translate all pictures of the data by SDEdit, and keep a few for the sample grid.

        Raises:
            UsageError: data without domains.
        """
        super().precompute(dataset)
        domain = {item["key"]: int(item["domain"]) for item in map(dataset.__getitem__, range(len(dataset)))}
        across = [partial(self.translated, model) for model in reversed(self.models)]

        def made(images: Tensor, keys: list[str]) -> dict[str, Tensor]:
            images = images.to(self.device)
            noise = batch_noise(images.shape[1:], keys, seed=0, purpose="pairs", device=images.device)
            return {"image": by_domain(across, [domain[key] for key in keys], images, noise)}

        self.answers = {key: row["image"] for key, row in computed_once(dataset, made).items()}

    def translated(self, model: PixelBackbone, images: Tensor, noise: Tensor) -> Tensor:
        """Return what SDEdit with a model makes of images (B, 3, H, W), given their noise."""
        levels = self._walked(model)
        top = len(levels) - 1
        begun = levels.signal(top) * images + levels.noise(top) * noise
        return sample(model, begun, levels, guidance=Clip()).clamp(-1, 1)

    def updates(self, batch: Mapping[str, Any]) -> Iterator[Update]:
        """Yield a step of the noise networks, each picture beside its translation."""
        fake = torch.stack([self.answers[key] for key in batch["key"]]).to(batch["image"])
        yield Update("noise", {"noise": self.noise_error(self.drawn(batch), fake)})

    def dummy_batch(self) -> dict[str, Any]:
        """Return two images of noise, of two domains, with translations."""
        batch = super().dummy_batch()
        self.answers |= dict(zip(batch["key"], -batch["image"].cpu(), strict=True))
        return batch

    def _walked(self, model: PixelBackbone) -> Any:
        return walked_levels(model.schedule, self.walk["steps"], self.walk["strength"], "SDEdit of the pairs")
