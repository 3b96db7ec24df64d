"""Training UNIT-DDPM: two noise networks and two translators, in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from editkit.backbones.assets import resolve
from editkit.backbones.base import Backbone
from editkit.backbones.pixel import PixelBackbone, load_pixel
from editkit.data.items import check_holds
from editkit.errors import UsageError, suggestion
from editkit.methods.weakly_supervised.unit_ddpm.editor import UnitDDPMEditor
from editkit.methods.weakly_supervised.unit_ddpm.networks import NoiseNetwork, by_domain
from editkit.networks.constant import as_constant
from editkit.networks.translator import Translator
from editkit.training.denoising import drawn_times
from editkit.training.editor import requests_of
from editkit.training.method import Artefact, Method, OptimizerFactory, SchedulerFactory, Update
from editkit.training.one_file import take
from editkit.types import Condition, EditRequest, Prediction

KIND = "unit-ddpm"
SHOWN = 8  # translations of a sample grid
DATA = "choose data=animals data.kinds=[cat,dog], or data=domain_folders with data.root=DIR"
DISTANCES: dict[str, Callable[[Tensor], Tensor]] = {"l1": torch.abs, "l2": torch.square}


@dataclass(frozen=True)
class Drawn:
    """A batch and what is drawn for it, the same for the step of the noise networks and for that of the translators.

    Attributes:
        x: pictures of both domains, (B, 3, H, W).
        domain: 0 or 1 of each.
        t: one time a picture, at which its fake is noised too, (B,).
        noise, other: of the picture and of its fake, like x.
    """

    x: Tensor
    domain: list[int]
    t: Tensor
    noise: Tensor
    other: Tensor

    @property
    def across(self) -> list[int]:
        """Return the other domain of each picture."""
        return [1 - own for own in self.domain]


class UnitDDPM(Method):
    """Train two noise networks and two translators on pictures of two domains, without pairs; items hold image and domain.

    A batch holds pictures of both domains, as they come. Every picture's terms are its own, so that a batch of each domain, as
    in the paper, has the same mean. Departures: the noise networks begin from a backbone, where the paper's begin at random;
    times are stratified; translators are as said at `Translator`. Networks that predict v learn by the error of v, which is that
    of eps over alpha_bar; the translators' terms are of eps, as in the paper, whatever the networks predict.

    Args:
        backbone: a model of pixels, for layout, noise and the first weights of both noise networks.
        init_from: folders of a pixel model of each domain, whose weights training begins with instead; one file of an earlier
            training to go on with, whose translators, which no file holds, begin anew; none: the backbone's.
        domains: names of the two domains, in the data's order.
        target: the domain that an edit translates into; None: the second.
        width, blocks: of the translators, see `Translator`.
        cycle: weight of the cycle term.
        cycle_norm: its distance, "l1" or "l2".
        steps, release, strength: of an edit, see `UnitDDPMEditor`.

    Raises:
        UsageError: a model of latents, other than two domains, an unknown target or distance, more than two models to
            begin from.
    """

    unused_parameters = True  # a batch may lack one of the domains

    def __init__(
        self,
        *,
        backbone: Backbone,
        init_from: Sequence[str] = (),
        domains: Sequence[str] = ("source", "target"),
        target: str | None = None,
        width: int = 64,
        blocks: int = 6,
        cycle: float = 10.0,
        cycle_norm: str = "l1",
        steps: int = 1000,
        release: int = 1,
        strength: float = 1.0,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        if not isinstance(backbone, PixelBackbone):
            raise UsageError("unit-ddpm needs a model of pixels: choose backbone=toy_faces or unit_ddpm64")
        if cycle_norm not in DISTANCES:
            raise UsageError(f"method.cycle_norm={cycle_norm} is unknown: choose from {', '.join(DISTANCES)}")
        if len(init_from) > 2:
            raise UsageError(f"method.init_from={list(init_from)}: give a model for each domain, one trained file, or []")
        self.init_from, self.domains, self.target = tuple(init_from), tuple(domains), target_of(domains, target)
        self.backbone, self.cycle, self.distance = backbone, cycle, DISTANCES[cycle_norm]
        self.noise = nn.ModuleList(NoiseNetwork(backbone) for _ in domains)
        self.translators = nn.ModuleList(Translator(width, blocks, backbone.sample_shape[0]) for _ in domains)
        self.sampling: dict[str, Any] = {"steps": steps, "release": release, "strength": strength}
        self._editor(self.target)
        self.preview: list[tuple[int, EditRequest]] = []

    # Training.

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        """Return the parameters of both noise networks, and of both translators."""
        return {"noise": self.noise.parameters(), "translators": self.translators.parameters()}

    def prepare_training(self) -> None:
        """Begin from models of the domains, or from what an earlier training exported.

        Raises:
            UserError: no such model or file, or one of another method.
            UsageError: one of another layout, or a model for one of the domains alone.
        """
        if len(self.init_from) == 1:
            file = resolve(self.init_from[0])
            if file.is_dir():
                raise UsageError(f"method.init_from=[{file}] is a folder: give a model for each domain, or one trained file")
            take(self, [Artefact.load(file)], KIND, UnitDDPMEditor.name, self._load)
        else:
            for network, path in zip(self.noise, self.init_from, strict=False):
                network.begin_from(load_pixel(path))  # type: ignore[operator]

    def precompute(self, dataset: Any) -> None:
        """Keep a few images for the sample grid.

        Raises:
            UsageError: data without domains.
        """
        check_holds(dataset[0], ("image", "domain"), "unit-ddpm", DATA)
        shown = requests_of(dataset, SHOWN)
        self.preview = [(int(dataset[k]["domain"]), request) for k, request in enumerate(shown)]

    def updates(self, batch: Mapping[str, Any]) -> Iterator[Update]:
        """Yield a step of the noise networks, then one of the translators, on the same draws."""
        drawn = self.drawn(batch)
        fake = by_domain(self.translators, drawn.domain, drawn.x)
        yield Update("noise", {"noise": self.noise_error(drawn, fake.detach())})
        yield Update("translators", self.translator_terms(drawn, fake))

    def drawn(self, batch: Mapping[str, Any]) -> Drawn:
        """Return a batch with a time and the noises of each picture."""
        x = batch["image"]
        t = drawn_times(len(x), len(self.backbone.schedule), x.device)
        return Drawn(x, [int(own) for own in batch["domain"]], t, torch.randn_like(x), torch.randn_like(x))

    def noise_error(self, drawn: Drawn, fake: Tensor) -> Tensor:
        """Return the squared error (B,) of what each picture's network puts out beside its fake, which is a constant."""
        schedule, kind = self.backbone.schedule, self.backbone.parameterization
        x, other = schedule.add_noise(drawn.x, drawn.t, drawn.noise), schedule.add_noise(fake, drawn.t, drawn.other)
        output = by_domain([partial(self._output, one, kind) for one in self.noise], drawn.domain, x, other, drawn.t)
        right = schedule.output(Prediction(drawn.x, drawn.noise), drawn.t, kind)
        return _mean(torch.square(output - right))

    def translator_terms(self, drawn: Drawn, fake: Tensor) -> dict[str, Tensor]:
        """Return the translators' terms, (B,) each, in which the noise networks are constants.

        beside      |eps_A(x_t, fake_t, t) - noise|^2: the fake tells of the picture
        translated  |eps_B(fake_t, x_t, t) - other noise|^2: the fake is a picture of the other domain
        cycle       weight * |g_BA(fake) - x|
        """
        schedule = self.backbone.schedule
        x, other = schedule.add_noise(drawn.x, drawn.t, drawn.noise), schedule.add_noise(fake, drawn.t, drawn.other)
        constants = [partial(self._output, partial(as_constant, one), "eps") for one in self.noise]
        pairs = torch.cat([x, other]), torch.cat([other, x]), drawn.t.repeat(2)
        eps = by_domain(constants, drawn.domain + drawn.across, *pairs)
        beside, translated = _mean(torch.square(eps - torch.cat([drawn.noise, drawn.other]))).chunk(2)
        back = by_domain(self.translators, drawn.across, fake)
        cycle = self.cycle * _mean(self.distance(back - drawn.x))
        return {"beside": beside, "translated": translated, "cycle": cycle}

    def _output(self, network: Callable[..., Any], kind: str, x: Tensor, other: Tensor, t: Tensor) -> Tensor:
        """Return what a noise network predicts of x beside other, as eps or as what it puts out."""
        return self.backbone.schedule.output(network(x, t, Condition(concat=other)), t, kind)

    def sample_grid(self) -> Tensor | None:
        """Return some training images and their translations into the other domain, (N, 2, 3, H, W)."""
        if not self.preview:
            return None
        steps = min(self.sampling["steps"], 50)
        editors = [self._editor(1 - own, steps=steps) for own in (0, 1)]
        rows = [(one.image, editors[own].edit([one]).images[0].cpu()) for own, one in self.preview]
        return torch.stack([torch.stack(row) for row in rows])  # type: ignore[arg-type]

    def dummy_batch(self) -> dict[str, Any]:
        """Return two images of noise, of two domains."""
        images = torch.rand(2, *self.backbone.sample_shape, device=self.device) * 2 - 1
        return {"image": images, "domain": [0, 1], "key": ["dummy/0", "dummy/1"]}

    # What training leaves behind.

    def artefacts(self) -> list[Artefact]:
        """Return the noise networks in half precision; translators are for training alone."""
        [whole] = super().artefacts()
        kept = {name: tensor for name, tensor in whole.tensors.items() if edits(name)}
        return [Artefact(whole.name, kept, card=whole.card).halved()]

    def card(self) -> dict[str, Any]:
        """Return what an exported file says about itself."""
        return {**super().card(), "kind": KIND, "domains": list(self.domains)}

    def editor(self, artefacts: Sequence[Artefact]) -> UnitDDPMEditor:
        """Return what translates into the target with trained noise networks.

        Raises:
            UsageError, UserError: several files, or one that does not fit.
        """
        take(self, artefacts, KIND, UnitDDPMEditor.name, self._load)
        for network in self.noise:
            nn.Module.to(network, self.backbone.unet.dtype)
        return self._editor(self.target)

    def _editor(self, target: int, **changes: Any) -> UnitDDPMEditor:
        return UnitDDPMEditor(self.noise[target], self.noise[1 - target], **(self.sampling | changes))  # type: ignore[arg-type]

    def _load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the networks of a file, all of them or the translators, and leave the others as they are."""
        given = {name.partition(".")[0] for name in tensors}
        kept = {name: one for name, one in self.trained_state().items() if name.partition(".")[0] not in given}
        self.load_trained(kept | dict(tensors))


def edits(name: str) -> bool:
    """Say whether a trained tensor of this name is one that an edit needs."""
    return name.startswith("noise.")


def target_of(domains: Sequence[str], target: str | None) -> int:
    """Return the number of the domain that is translated into.

    Raises:
        UsageError: other than two domains, or a target that is none of them.
    """
    if len(domains) != 2:
        raise UsageError(f"method.domains={list(domains)}: unit-ddpm learns two domains, such as data.kinds=[cat,dog]")
    if target is None:
        return 1
    if target not in domains:
        raise UsageError(f"method.target={target} is unknown.{suggestion(target, domains)} Choose from {', '.join(domains)}")
    return list(domains).index(target)


def _mean(error: Tensor) -> Tensor:
    return error.mean((1, 2, 3))
