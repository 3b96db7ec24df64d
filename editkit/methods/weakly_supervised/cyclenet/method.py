"""Training CycleNet: a ControlNet whose hint is the image, and the decoder of the UNet that it steers."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import ControlNetModel
from torch import Tensor, nn

from editkit.backbones.attention import trained_on_cpu
from editkit.backbones.base import Backbone
from editkit.backbones.controlnet import Controlled, load_controlnet
from editkit.backbones.latent import LatentBackbone
from editkit.backbones.latent_folder import save_latent
from editkit.data.encoded import drawn
from editkit.errors import UsageError, UserError
from editkit.methods.weakly_supervised.cyclenet.editor import CycleNetEditor
from editkit.methods.weakly_supervised.cyclenet.terms import NET, Batch, Weights, terms
from editkit.networks.lora import merged
from editkit.training.editor import images_of
from editkit.training.method import Artefact, OptimizerFactory, SchedulerFactory
from editkit.training.pipeline_export import PipelineMethod
from editkit.training.share import Rows, computed_once, looked_up
from editkit.types import EditRequest

NAME = "cyclenet"
HINT = (16, 32, 96, 256)  # channels of Stable Diffusion's hint encoder, which halves the image between any two
SHOWN = 4  # images of a sample grid


class CycleNet(PipelineMethod):
    """Train a ControlNet and the UNet's decoder on unpaired images; items hold image, caption and target_caption.

    An export is the trained parts in half precision, as one file, and beside it a pipeline folder that diffusers opens;
    diffusers gives both networks the same text, where editing here gives them source and target.

    Departures from the released code: where the backbone predicts v, the terms compare the eps that follows from it; the
    pairs of passes with the same inputs are computed once; editing starts at the level it denoises first (but `parity`).

    Args:
        backbone: a text-to-image model; its decoder is trained in place.
        controlnet: folder of a ControlNet to begin with, such as a converted one: editing then needs no trained file, and
            training goes on from it. None makes one from the UNet's encoder.
        terms: weights of the terms, fields of `Weights`; FastCycleNet has consistency 0 and cycle 0.
        clamp_hint: keep translated images in [0, 1] where they become hints.
        checkpointing: run each pass again in the backward pass instead of keeping its activations.
        lora: see `PipelineMethod`; of the decoder, the ControlNet learns as a whole.
        steps, strength, eta, scale, parity: of an edit, see `CycleNetEditor`.
        control: scale of what the ControlNet adds in an edit; 0 leaves it out.

    Raises:
        UsageError: a backbone of another kind, or a ControlNet of another UNet or image size.
    """

    kind = NAME
    strip: ClassVar[str] = "backbone."
    tuned_layers: ClassVar[tuple[str, ...]] = ("up_blocks.", "conv_norm_out.", "conv_out.")

    def __init__(
        self,
        *,
        backbone: Backbone,
        controlnet: str | None = None,
        terms: Mapping[str, float] | None = None,
        clamp_hint: bool = False,
        checkpointing: bool = False,
        lora: Mapping[str, Any] | None = None,
        steps: int = 100,
        strength: float = 0.5,
        eta: float = 1.0,
        scale: float = 9.0,
        control: float = 1.0,
        parity: bool = False,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__(lora=lora, optimizer=optimizer, scheduler=scheduler)
        self.backbone = checked(backbone)
        self._given = controlnet is not None
        self.controlnet = new_controlnet(self.backbone) if controlnet is None else fitting(self.backbone, controlnet)
        self.weights, self.clamp_hint, self.checkpointing = Weights(**(terms or {})), clamp_hint, checkpointing
        self.sampling: dict[str, Any] = {"steps": steps, "strength": strength, "eta": eta, "scale": scale, "parity": parity}
        self.control = control
        self.kept: Rows = {}
        self.preview: list[EditRequest] = []

    @property
    def unused_parameters(self) -> bool:  # type: ignore[override]
        """Return whether no term trains the UNet's decoder."""
        return not (self.weights.reconstruction or self.weights.consistency or self.weights.cycle)

    @property
    def needs_trained(self) -> bool:
        """Return whether no ControlNet was given."""
        return not self._given

    # Training.

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        """Return the ControlNet and the UNet's decoder: its up blocks and what follows them."""
        return {NAME: [*self.controlnet.parameters(), *self.tuned_parameters()]}

    def prepare_training(self) -> None:
        """Make what is trained ready for training, in single precision."""
        super().prepare_training()
        self.controlnet.float()

    def train(self, mode: bool = True) -> CycleNet:
        """Set the training mode of the ControlNet; the backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def precompute(self, dataset: Any) -> None:
        """Keep what the autoencoder makes of each image, if each is shown more than once, and images for the sample grid.

        Raises:
            UsageError: data without target texts.
        """
        items = [dataset[k] for k in range(min(SHOWN, len(dataset)))]
        if items and not items[0].get("target_caption"):
            raise UsageError(
                f"{NAME} needs a text of what each image should become, which these data lack: "
                "choose data=scene_domains, or data=prompted_folder data.root=DIR for your own"
            )
        self.preview = [
            EditRequest(item["key"], image=item["image"], source_prompt=item["caption"], prompt=item["target_caption"])
            for item in items
        ]
        if self.stepper is None or self.stepper.plan.shown() > len(dataset):
            self.kept = computed_once(dataset, lambda images, keys: {"posterior": self._posterior(images)})

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the terms of a batch, (B,) each."""
        found = looked_up(self.kept, batch["key"], self.device)
        posterior = self._posterior(batch["image"]) if found is None else found["posterior"]
        z = drawn(posterior) * self.backbone.vae.config.scaling_factor
        source, target = self._tokens(batch["caption"], batch["target_caption"])
        t = torch.randint(len(self.backbone.schedule), (len(z),), device=z.device)
        given = Batch(z, batch["image"] / 2 + 0.5, source, target, t, torch.randn_like(z), torch.randn_like(z))
        network = self.network()
        with nullcontext() if self.checkpointing else trained_on_cpu(network):
            return terms(network, given, self.weights, clamp_hint=self.clamp_hint, recompute=self.checkpointing)

    def network(self, scale: float = 1.0) -> Controlled:
        """Return backbone and ControlNet as one denoiser, the ControlNet in the precision of the UNet."""
        return Controlled(self.backbone, {NET: nn.Module.to(self.controlnet, self.backbone.unet.dtype)}, {NET: scale})

    @torch.no_grad()
    def _posterior(self, images: Tensor) -> Tensor:
        images = images.to(self.backbone.device)
        with torch.autocast(images.device.type, enabled=False):  # what is kept serves runs of any precision
            return torch.stack(self.backbone.posterior(images), 1)

    @torch.no_grad()
    def _tokens(self, sources: Sequence[str], targets: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the tokens (B, L, D) of both lists, each different text read once."""
        texts = list(dict.fromkeys([*sources, *targets]))
        tokens = self.backbone.tokens(texts)
        return tokens[[texts.index(text) for text in sources]], tokens[[texts.index(text) for text in targets]]

    # What training leaves behind.

    def save_pipeline(self, folder: Path) -> None:
        """Write the pipeline with the tuned UNet and the ControlNet."""
        unet, net = (merged(part).half() for part in (self.backbone.unet, self.controlnet))
        save_latent(with_unet(self.backbone, unet), folder, net)

    def editor(self, artefacts: Sequence[Artefact]) -> CycleNetEditor:
        """Return what edits with a trained file, or without one with the ControlNet and backbone as they are.

        Raises:
            UsageError, UserError: several files, or one that does not fit.
        """
        if len(artefacts) > 1:
            names = ", ".join(repr(one.name) for one in artefacts)
            raise UsageError(f"{NAME} uses one trained file at a time, got {len(artefacts)}: {names}")
        return CycleNetEditor(self._trained(artefacts[0]) if artefacts else self.network(self.control), **self.sampling)

    def _trained(self, artefact: Artefact) -> Controlled:
        """Return networks with the weights of a file, of which its strength is the share: 0 is the backbone alone."""
        if artefact.card.get("kind") != NAME:
            maker = artefact.card.get("method", "something unknown")
            raise UserError(f"the weights {artefact.name!r} are not of {NAME} (made by {maker})")
        shared = {id(p): p for name, p in self.backbone.unet.named_parameters() if not name.startswith(self.tuned_layers)}
        backbone = with_unet(self.backbone, merged(self.backbone.unet, dict(shared)))
        net = nn.Module.to(copy.deepcopy(self.controlnet), backbone.unet.dtype).requires_grad_(False)
        own = {f"unet.{name}": p for name, p in backbone.unet.named_parameters() if id(p) not in shared}
        own |= {f"controlnet.{name}": p for name, p in net.named_parameters()}
        check_same(artefact, own)
        with torch.no_grad():
            for name, parameter in own.items():
                given = artefact.tensors[name].to(parameter)
                whole = artefact.strength == 1 or name.startswith("controlnet.")
                parameter.copy_(given if whole else parameter.lerp(given, artefact.strength))
        return Controlled(backbone, {NET: net}, {NET: self.control * artefact.strength})

    @torch.no_grad()
    def sample_grid(self) -> Tensor | None:
        """Return a few training images and their translations, (4, 2, 3, H, W)."""
        if not self.preview:
            return None
        editor = CycleNetEditor(self.network(self.control), **self.sampling)
        edited = editor.edit(self.preview, editor.prepare(self.preview)).images
        return torch.stack([images_of(self.preview), edited.cpu()], 1)

    def dummy_batch(self) -> dict[str, Any]:
        """Return two random images with their texts."""
        shape = (2, 3, *self.backbone.image_size)
        texts = {"caption": ["by day", "at night"], "target_caption": ["at night", "by day"]}
        return {"image": torch.rand(shape, device=self.device) * 2 - 1, "key": ["dummy/0", "dummy/1"], **texts}


def checked(backbone: Backbone) -> LatentBackbone:
    """Return a backbone that reads text and takes latents alone.

    Raises:
        UsageError: another one.
    """
    if not isinstance(backbone, LatentBackbone):
        raise UsageError(f"{NAME} needs a latent model, this backbone is one of pixels: choose backbone=sd21_base")
    if backbone.text_encoder is None or backbone.extra_channels:
        odd = f"takes {backbone.unet.config.in_channels} channels" if backbone.extra_channels else "reads no text"
        raise UsageError(f"{NAME} needs a model from text to image, this backbone {odd}: choose backbone=sd21_base")
    return backbone


def hint_channels(downscale: int) -> tuple[int, ...]:
    """Return the channels of a hint encoder that brings images to the size of latents."""
    halvings = downscale.bit_length() - 1
    return (*HINT, *HINT[-1:] * halvings)[: halvings + 1]


def new_controlnet(backbone: LatentBackbone) -> ControlNetModel:
    """Return a ControlNet of the UNet's encoder, whose outputs are zero and whose hint encoder is random."""
    channels = hint_channels(backbone.downscale)
    return ControlNetModel.from_unet(backbone.unet, conditioning_embedding_out_channels=channels).eval()


def fitting(backbone: LatentBackbone, folder: str) -> ControlNetModel:
    """Return the ControlNet of a folder.

    Raises:
        UserError: from `load_controlnet`.
        UsageError: one of another UNet or image size.
    """
    net, unet = load_controlnet(folder), backbone.unet
    for name in ("block_out_channels", "cross_attention_dim", "in_channels", "down_block_types"):
        ours, theirs = (list(c[name]) if isinstance(c[name], (list, tuple)) else c[name] for c in (unet.config, net.config))
        if ours != theirs:
            raise UsageError(f"the ControlNet in {folder} is of another UNet: its {name} is {theirs}, here it is {ours}")
    halvings = len(net.config.conditioning_embedding_out_channels) - 1
    if 2**halvings != backbone.downscale:
        raise UsageError(
            f"the ControlNet in {folder} takes hints {2**halvings} times the size of latents, here it is {backbone.downscale}"
        )
    return net


def with_unet(backbone: LatentBackbone, unet: nn.Module) -> LatentBackbone:
    """Return a model of another UNet, which it freezes, and the same other parts."""
    return LatentBackbone(unet, backbone.vae, backbone.scheduler, backbone.text_encoder, backbone.tokenizer)  # type: ignore[arg-type]


def check_same(artefact: Artefact, own: Mapping[str, Tensor]) -> None:
    """Raise UserError unless the file holds tensors of these names and shapes."""
    ours, theirs = ({name: tuple(tensor.shape) for name, tensor in state.items()} for state in (own, artefact.tensors))
    if ours != theirs:
        odd = min(name for name, _ in theirs.items() ^ ours.items())
        seen, here = theirs.get(odd, "missing"), ours.get(odd, "unknown")
        raise UserError(f"the weights {artefact.name!r} belong to another backbone: their {odd} is {seen}, here it is {here}")
