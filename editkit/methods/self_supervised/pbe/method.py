"""Training a UNet and the blocks of an image encoder to paint by example."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from editkit.backbones.base import Backbone
from editkit.backbones.exemplar import ExemplarBackbone
from editkit.backbones.exemplar_folder import begin_exemplar, save_exemplar
from editkit.backbones.inpainting import exemplar_channels
from editkit.backbones.latent import LatentBackbone
from editkit.backbones.scheduler_config import for_solver
from editkit.data.encoded import drawn
from editkit.data.items import check_holds, collate
from editkit.errors import UsageError, UserError
from editkit.methods.self_supervised.pbe.editor import NAME, PaintByExampleEditor
from editkit.networks.lora import merged
from editkit.training.denoising import check_times, denoising_error
from editkit.training.editor import images_of
from editkit.training.method import Artefact, OptimizerFactory, SchedulerFactory
from editkit.training.pipeline_export import PipelineMethod
from editkit.types import Condition, EditRequest

KIND = "exemplar"
SHOWN = 8  # edits of a sample grid
CHOOSE = "choose backbone=sd14 to train, or backbone=pbe"
DATA = "choose data=scene_exemplars, or data=openimages_exemplars or data=coco_exemplars with data.inner.root=DIR"


class PaintByExample(PipelineMethod):
    """Train a UNet and the blocks of an image encoder to paint what a reference shows; items as of `BoxExemplarDataset`.

    Departures from the released code: each sample's reference is dropped by itself, not the whole batch's; the error is that
    of the network's own output, so of v where the backbone predicts v; times are stratified (`denoising_error`); edits see
    the mean of the masked image's posterior, not a sample.

    Args:
        backbone: a text-to-image model, whose UNet is widened, an inpainting model, whose channels are put in order, or a
            Paint by Example model: that one edits without trained parts too, and is trained on.
        encoder: the CLIP folder whose vision tower reads references, where the backbone brings no encoder of its own.
        steps, scale, solver, ref_resize, mask_resize: of an edit, see `PaintByExampleEditor`.
        dropped: share of the samples whose reference is replaced by the learned vector (section 3.4).
        dropped_together: one draw decides for the whole batch, as in the released code.
        inside: what the masked part weighs besides, for where masks are small; 0 in the paper.
        times: shares of the noise scale between which times are drawn; all of it in the paper.
        checkpointing: run the UNet's blocks again in the backward pass instead of keeping their activations.
        lora: see `PipelineMethod`.

    Raises:
        UsageError: a backbone of another kind, or a share that is none.
    """

    kind = KIND

    backbone: ExemplarBackbone

    def __init__(
        self,
        *,
        backbone: Backbone,
        encoder: str,
        steps: int = 50,
        scale: float = 5.0,
        solver: str = "plms",
        ref_resize: str = "squash",
        mask_resize: str = "bilinear",
        dropped: float = 0.2,
        dropped_together: bool = False,
        inside: float = 0.0,
        times: Sequence[float] = (0.0, 1.0),
        checkpointing: bool = False,
        lora: Mapping[str, Any] | None = None,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__(lora=lora, optimizer=optimizer, scheduler=scheduler)
        if not 0 <= dropped <= 1:
            raise UsageError(f"method.dropped={dropped} is out of range; give a share of the samples, 0 to 1")
        self._edits_already = isinstance(backbone, ExemplarBackbone)
        self.backbone = exemplar_backbone(backbone, encoder)
        self.new_layers = () if self._edits_already else ("conv_in.",)
        self.dropped, self.dropped_together, self.checkpointing = dropped, dropped_together, checkpointing
        self.inside, self.times = inside, check_times(times)
        self.sampling: dict[str, Any] = {"steps": steps, "scale": scale, "solver": solver}
        self.sampling |= {"ref_resize": ref_resize, "mask_resize": mask_resize}
        self.preview: list[EditRequest] = []

    @property
    def needs_trained(self) -> bool:
        """Return whether the backbone came as a text-to-image model."""
        return not self._edits_already

    # Training.

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        """Return the UNet, and the image encoder without its tower."""
        return {"painter": [*self.tuned_parameters(), *self.backbone.image_encoder.learned()]}

    def shardable(self) -> Sequence[nn.Module]:
        """Return the UNet and the image encoder."""
        return (self.backbone.unet, self.backbone.image_encoder)

    def prepare_training(self) -> None:
        """Make what is trained ready for training, in single precision."""
        super().prepare_training()
        self.backbone.image_encoder.float()
        if self.checkpointing:
            self.backbone.unet.enable_gradient_checkpointing()

    def train(self, mode: bool = True) -> PaintByExample:
        """Set the training mode of the UNet alone; nothing else of the backbone has layers that would notice."""
        super().train(mode)
        self.backbone.train(False)
        self.backbone.unet.train(mode)
        return self

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the error of the network's output over the whole latents, (B,)."""
        z, cond = self._latents(batch["image"]), self.condition(batch)
        weight = 1 + self.inside * F.adaptive_avg_pool2d(batch["mask"], z.shape[2:]) if self.inside else None
        return {"denoise": denoising_error(self.backbone, z, cond, times=self.times, weight=weight)}

    def condition(self, batch: Mapping[str, Any]) -> Condition:
        """Return the references' tokens, some of them dropped, and the masked images' channels."""
        tokens, none = self.backbone.exemplars([references[0] for references in batch["references"]])
        draws = torch.rand(1 if self.dropped_together else len(tokens), 1, 1, device=tokens.device)
        kept = torch.where(draws < self.dropped, none, tokens)
        channels = exemplar_channels(self.backbone, batch["image"], batch["mask"], encode=self._latents)
        return Condition(tokens=kept, concat=channels)

    @torch.no_grad()
    def _latents(self, images: Tensor) -> Tensor:
        """Return a sample of the images' posterior, scaled."""
        return drawn(torch.stack(self.backbone.posterior(images), 1)) * self.backbone.vae.config.scaling_factor

    def precompute(self, dataset: Any) -> None:
        """Keep a few training pairs for the sample grid.

        Raises:
            UsageError: data of something else.
        """
        items = [dataset[k] for k in range(min(SHOWN, len(dataset)))]
        check_holds(items[0], ("image", "mask", "references"), NAME, DATA)
        self.preview = [EditRequest(i["key"], image=i["image"], mask=i["mask"], references=i["references"]) for i in items]

    def sample_grid(self) -> Tensor | None:
        """Return image, hole, reference and edit of a few training pairs, (N, 4, 3, H, W)."""
        if not self.preview:
            return None
        editor = PaintByExampleEditor(self.backbone, **{**self.sampling, "steps": min(self.sampling["steps"], 25)})
        painted = editor.edit(self.preview, editor.prepare(self.preview)).images.cpu()
        images, masks = images_of(self.preview), torch.stack([request.mask for request in self.preview])  # type: ignore[misc]
        shown = torch.stack([request.references[0] for request in self.preview])
        shown = F.interpolate(shown, size=images.shape[2:], mode="bilinear", antialias=True)
        return torch.stack([images, images * (1 - masks), shown, painted], 1)

    def dummy_batch(self) -> dict[str, Any]:
        """Return two pictures of noise with a hole each, filled from themselves."""
        height, width = self.backbone.image_size
        mask = torch.zeros(1, height, width, device=self.device)
        mask[:, height // 4 : height // 2, width // 4 :] = 1
        pictures = torch.rand(2, 3, height, width, device=self.device) * 2 - 1
        return collate([{"image": p, "key": f"dummy/{k}", "mask": mask, "references": (p,)} for k, p in enumerate(pictures)])

    # What it leaves, and editing.

    def save_pipeline(self, folder: Path) -> None:
        """Write the whole model in the published layout."""
        whole = merged(self.backbone).half()
        whole.scheduler = for_solver(whole.scheduler, self.sampling["solver"])
        save_exemplar(whole, folder)

    def editor(self, artefacts: Sequence[Artefact]) -> PaintByExampleEditor:
        """Return what edits with a trained file, or with the backbone as it is."""
        return PaintByExampleEditor(self._trained(artefacts), **self.sampling)

    def _trained(self, artefacts: Sequence[Artefact]) -> ExemplarBackbone:
        if not artefacts:
            return self.backbone
        artefact = artefacts[0]
        if len(artefacts) > 1 or artefact.strength != 1:
            raise UsageError(f"{NAME} takes one trained file, as it was trained: leave out further --weights and their strengths")
        if artefact.card.get("kind") != KIND:
            maker = artefact.card.get("method", "something unknown")
            raise UserError(f"the weights {artefact.name!r} are not of {NAME} (made by {maker})")
        names, theirs = ({n: tuple(t.shape) for n, t in state.items()} for state in (self.whole_state(), artefact.tensors))
        if odd := sorted(name for name, _ in names.items() ^ theirs.items()):
            seen, here = theirs.get(odd[0], "missing"), names.get(odd[0], "unknown")
            raise UserError(
                f"the weights {artefact.name!r} do not fit this backbone and encoder: their {odd[0]} is {seen}, here {here}"
            )
        backbone = merged(self.backbone).requires_grad_(False).eval()
        own = backbone.state_dict()
        for name, tensor in artefact.tensors.items():
            own[name.removeprefix("backbone.")].copy_(tensor)
        return backbone


def exemplar_backbone(backbone: Backbone, encoder: str) -> ExemplarBackbone:
    """Return a backbone to paint by example with: itself if it is one, else a text-to-image or inpainting model made into one.

    Raises:
        UsageError: a model of pixels, or one whose UNet was made for other channels.
    """
    if isinstance(backbone, ExemplarBackbone):
        return backbone
    if not isinstance(backbone, LatentBackbone):
        raise UsageError(f"{NAME} needs a latent model, this backbone is one of pixels: {CHOOSE}")
    if backbone.extra_channels not in (0, 5):
        raise UsageError(
            f"{NAME} starts from a UNet from text to image or for inpainting; this backbone's takes "
            f"{backbone.unet.config.in_channels} channels, of another meaning: {CHOOSE}"
        )
    return begin_exemplar(backbone, encoder)
