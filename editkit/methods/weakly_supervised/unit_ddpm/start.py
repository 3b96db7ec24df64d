"""A training of ours before UNIT-DDPM's: translators begin as what SDEdit with a model of the other domain makes of a picture.

The paper's translators learn from the noise networks' errors alone, over hundreds of thousands of steps. In a short training they
stay what they begin as, and noise networks beside the identity learn to copy the picture that they are to translate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from editkit.backbones.pixel import PixelBackbone, load_pixel
from editkit.data.items import check_holds
from editkit.engine.guidance import Clip
from editkit.engine.rng import batch_noise
from editkit.engine.sample import sample
from editkit.errors import UsageError
from editkit.methods.weakly_supervised.unit_ddpm.networks import by_domain
from editkit.networks.translator import Translator
from editkit.training.editor import walked_levels
from editkit.training.method import Method, OptimizerFactory, SchedulerFactory

KIND = "unit-ddpm-translators"
AT_ONCE = 32  # pictures that are noised and denoised together


class TranslatorStart(Method):
    """Train the two translators on pairs of a picture and its SDEdit (arXiv 2108.01073) by the other domain's model.

    All pictures get the same noise, so that what is learned is a function of the picture. The export is a file that
    `UnitDDPM.translators_from` takes.

    Args:
        models: folders of a pixel model of each domain.
        width, blocks: of the translators, see `Translator`.
        strength: share of the noise scale from which SDEdit walks down.
        steps: of its walk.

    Raises:
        UsageError: other than two models, or models of pictures of different sizes; a strength out of range.
    """

    unused_parameters = True  # a batch may lack one of the domains

    def __init__(
        self,
        *,
        models: Sequence[str],
        width: int = 64,
        blocks: int = 6,
        strength: float = 0.55,
        steps: int = 30,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        if len(models) != 2:
            raise UsageError(f"method.models={list(models)}: give the folder of a pixel model of each of the two domains")
        self.models = nn.ModuleList(map(load_pixel, models))
        shapes = {model.sample_shape for model in self.models}
        if len(shapes) > 1:
            raise UsageError(f"method.models={list(models)} make pictures of different sizes: {sorted(shapes)}")
        [self.shape] = shapes
        self.translators = nn.ModuleList(Translator(width, blocks, self.shape[0]) for _ in models)
        self.walk = {"steps": steps, "strength": strength}
        for model in self.models:
            self._levels(model)
        self.answers: dict[str, Tensor] = {}
        self.shown: list[tuple[Tensor, int]] = []

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        """Return the parameters of both translators."""
        return {"translators": self.translators.parameters()}

    @torch.no_grad()
    def precompute(self, dataset: Any) -> None:
        """Translate all pictures of the data by SDEdit.

        Raises:
            UsageError: data without domains.
        """
        check_holds(dataset[0], ("image", "domain"), "the translators' start", "choose data=animals data.kinds=[cat,dog]")
        items = [dataset[index] for index in range(len(dataset))]
        for domain, model in enumerate(reversed(self.models)):
            own = [item for item in items if int(item["domain"]) == domain]
            for first in range(0, len(own), AT_ONCE):
                part = own[first : first + AT_ONCE]
                made = self.translated(model, torch.stack([item["image"] for item in part]).to(self.device))
                self.answers |= dict(zip((item["key"] for item in part), made.cpu(), strict=True))
        self.shown = [(item["image"], int(item["domain"])) for item in items[:8]]

    def translated(self, model: PixelBackbone, images: Tensor) -> Tensor:
        """Return what SDEdit with a model makes of images (B, 3, H, W), all with the same noise."""
        levels = self._levels(model)
        top = len(levels) - 1
        noise = batch_noise(self.shape, ["translators"], seed=0, purpose="translators", device=images.device)
        begun = levels.signal(top) * images + levels.noise(top) * noise
        return sample(model, begun, levels, guidance=Clip()).clamp(-1, 1)

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the translators' absolute error (B,)."""
        right = torch.stack([self.answers[key] for key in batch["key"]]).to(batch["image"])
        made = by_domain(self.translators, [int(own) for own in batch["domain"]], batch["image"])
        return {"translators": (made - right).abs().flatten(1).mean(1)}

    def sample_grid(self) -> Tensor | None:
        """Return some pictures and their translations, (N, 2, 3, H, W)."""
        if not self.shown:
            return None
        images = torch.stack([image for image, _ in self.shown]).to(self.device)
        made = by_domain(self.translators, [domain for _, domain in self.shown], images)
        return torch.stack([images, made.clamp(-1, 1)], 1)

    def card(self) -> dict[str, Any]:
        """Return what an exported file says about itself."""
        return {**super().card(), "kind": KIND}

    def dummy_batch(self) -> dict[str, Any]:
        """Return two images of noise, of two domains, with answers."""
        images = torch.rand(2, *self.shape, device=self.device) * 2 - 1
        keys = ["dummy/0", "dummy/1"]
        self.answers |= dict(zip(keys, -images.cpu(), strict=True))
        return {"image": images, "domain": [0, 1], "key": keys}

    def _levels(self, model: PixelBackbone) -> Any:
        return walked_levels(model.schedule, self.walk["steps"], self.walk["strength"], "translators")
