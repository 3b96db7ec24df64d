"""How fast latent editing is, beside diffusers' own pipelines, in one run on the same machine.

    python -m tests.benchmarks.latent_sampling --update README.md
    python -m tests.benchmarks.latent_sampling --size sd15 --device cuda --dtype float16 --steps 50

Both sides share the very networks, on random weights, and get the same texts, pictures, noise, steps, scales and solver
(DDIM). Each makes images out of texts and pictures: encoding and decoding count. Before anything is timed the images of both
must agree, in float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.pipelines.deprecated.paint_by_example import PaintByExamplePipeline
from torch import Tensor
from transformers import CLIPImageProcessorPil

from editkit.app.sample import draw
from editkit.backbones.attention import constant_text
from editkit.backbones.clip import Preprocess
from editkit.backbones.controlnet import Controlled, hint
from editkit.backbones.exemplar import ExemplarBackbone, PaintByExampleImageEncoder
from editkit.backbones.latent import LatentBackbone
from editkit.backbones.unet import DTYPES
from editkit.engine.guidance import ClassifierFree
from editkit.engine.rng import batch_noise
from editkit.engine.sample import sample
from editkit.methods.baselines.inpaint import InpaintEditor
from editkit.methods.self_supervised.pbe.editor import PaintByExampleEditor
from editkit.training.editor import Editor
from editkit.training.instructed import InstructedEditor
from editkit.types import Condition, EditRequest
from tests.benchmarks.measuring import in_turn, machine, positive, publish
from tests.benchmarks.sizes import SIZES, Size

TEXTS = ("make it a smiling face", "make it old", "a red star on the beach", "make the cup blue")
SCALE, IMAGE_SCALE, NEAR = 7.5, 1.5, 1e-3
QUIET = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


@dataclass
class Contest:
    """One pipeline and what does the same here, on shared networks.

    Attributes:
        model: our network.
        pipeline: theirs.
        ours, theirs: from a batch of requests to images (B, 3, H, W) in [-1, 1].
    """

    model: torch.nn.Module
    pipeline: Any
    ours: Callable[[Sequence[EditRequest]], Tensor]
    theirs: Callable[[Sequence[EditRequest]], Tensor]

    def to(self, device: str, dtype: torch.dtype) -> None:
        """Move both sides and set the precision of their networks."""
        self.model.to(device=device, dtype=dtype)
        self.pipeline.to(device, dtype)


def text_to_image(size: Size, steps: int) -> Contest:
    """`editkit sample` beside StableDiffusionPipeline: one text, many pictures."""
    parts = size.parts()
    backbone, pipeline = _backbone(parts), diffusers.StableDiffusionPipeline(**parts, **QUIET)

    def ours(asked: Sequence[EditRequest]) -> Tensor:
        return next(draw(backbone, len(asked), asked[0], steps, "ddim", len(asked), SCALE)).clamp(-1, 1)

    def theirs(asked: Sequence[EditRequest]) -> Tensor:
        given = {"prompt": asked[0].prompt, "num_images_per_prompt": len(asked), "guidance_scale": SCALE}
        return _images(pipeline, backbone, asked, steps, **given)

    return Contest(backbone, pipeline, ours, theirs)


def inpainting(size: Size, steps: int) -> Contest:
    """The baseline `inpaint` beside StableDiffusionInpaintPipeline."""
    parts = size.parts(9)
    backbone, pipeline = _backbone(parts), diffusers.StableDiffusionInpaintPipeline(**parts, **QUIET)
    editor = InpaintEditor(backbone, negative="", steps=steps, scale=SCALE, solver="ddim")

    def theirs(asked: Sequence[EditRequest]) -> Tensor:
        given = {"prompt": _told(asked, "prompt"), "image": _pictures(asked), "mask_image": _stacked(asked, "mask")}
        given |= {"height": size.pixels, "width": size.pixels, "strength": 1.0, "guidance_scale": SCALE}
        return _images(pipeline, backbone, asked, steps, **given)

    return Contest(backbone, pipeline, partial(_edited, editor), theirs)


def editing_by_instruction(size: Size, steps: int) -> Contest:
    """InstructPix2Pix beside StableDiffusionInstructPix2PixPipeline."""
    parts = size.parts(8)
    backbone, pipeline = _backbone(parts), diffusers.StableDiffusionInstructPix2PixPipeline(**parts, **QUIET)
    editor = InstructedEditor(backbone, name="instructpix2pix", steps=steps, text_scale=SCALE, image_scale=IMAGE_SCALE)

    def theirs(asked: Sequence[EditRequest]) -> Tensor:
        given = {"prompt": _told(asked, "instruction"), "image": _pictures(asked), "guidance_scale": SCALE}
        return _images(pipeline, backbone, asked, steps, **given, image_guidance_scale=IMAGE_SCALE)

    return Contest(backbone, pipeline, partial(_edited, editor), theirs)


def painting_by_example(size: Size, steps: int) -> Contest:
    """Paint by Example beside PaintByExamplePipeline."""
    parts, encoder = size.parts(9), size.image_encoder()
    side = encoder.model.config.image_size
    mine = PaintByExampleImageEncoder(encoder.model.config, size.width)
    mine.load_published(encoder.state_dict())
    backbone = ExemplarBackbone(parts["unet"], parts["vae"], parts["scheduler"].config, mine, Preprocess(side, side))
    shared = {name: parts[name] for name in ("unet", "vae", "scheduler")}
    pipeline = PaintByExamplePipeline(
        **shared, image_encoder=encoder, safety_checker=None, feature_extractor=CLIPImageProcessorPil()
    )
    settings: dict[str, Any] = {"steps": steps, "scale": SCALE, "solver": "ddim"}
    editor = PaintByExampleEditor(backbone, ref_resize="squash", mask_resize="nearest", **settings)

    def theirs(asked: Sequence[EditRequest]) -> Tensor:
        shown = [backbone.preprocess(_resized(request.references[0][None], side)) for request in asked]
        given = {"example_image": torch.cat(shown), "image": _stacked(asked, "image"), "mask_image": _stacked(asked, "mask")}
        return _images(pipeline, backbone, asked, steps, **given, guidance_scale=SCALE)

    return Contest(backbone, pipeline, partial(_edited, editor), theirs)


def controlnet(size: Size, steps: int) -> Contest:
    """A ControlNet around the backbone beside StableDiffusionControlNetPipeline."""
    parts, net = size.parts(), size.controlnet()
    backbone = _backbone(parts)
    controlled = Controlled(backbone, {"edges": net})
    pipeline = diffusers.StableDiffusionControlNetPipeline(**parts, controlnet=net, **QUIET)

    @torch.no_grad()
    def ours(asked: Sequence[EditRequest]) -> Tensor:
        control = {"edges": hint(_pictures(asked).to(backbone.device))}
        cond = Condition(tokens=backbone.tokens(_told(asked, "prompt")), control=control)
        guidance = ClassifierFree(SCALE, Condition(tokens=backbone.tokens([""]), control=control))
        with constant_text(controlled):
            z = sample(controlled, _noise(backbone, asked), backbone.levels(steps), cond, guidance=guidance)
        return backbone.decode(z).clamp(-1, 1)

    def theirs(asked: Sequence[EditRequest]) -> Tensor:
        given = {"prompt": _told(asked, "prompt"), "image": _pictures(asked), "guidance_scale": SCALE}
        return _images(pipeline, backbone, asked, steps, **given)

    return Contest(controlled, pipeline, ours, theirs)


CONTESTS: dict[str, Callable[[Size, int], Contest]] = {
    "StableDiffusionPipeline": text_to_image,
    "StableDiffusionInpaintPipeline": inpainting,
    "StableDiffusionInstructPix2PixPipeline": editing_by_instruction,
    "PaintByExamplePipeline": painting_by_example,
    "StableDiffusionControlNetPipeline": controlnet,
}


def _backbone(parts: dict[str, Any]) -> LatentBackbone:
    return LatentBackbone(parts["unet"], parts["vae"], parts["scheduler"].config, parts["text_encoder"], parts["tokenizer"])


def _edited(editor: Editor, asked: Sequence[EditRequest]) -> Tensor:
    return editor.edit(asked, editor.prepare(asked)).images


def _images(pipeline: Any, backbone: LatentBackbone, asked: Sequence[EditRequest], steps: int, **given: Any) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    latents = _noise(backbone, asked).to(backbone.unet.dtype)
    return torch.as_tensor(pipeline(**given, num_inference_steps=steps, latents=latents, output_type="pt").images) * 2 - 1


def _noise(backbone: LatentBackbone, asked: Sequence[EditRequest]) -> Tensor:
    """Return the noise that our editors begin with for these requests."""
    keys = [request.key for request in asked]
    return batch_noise(backbone.sample_shape, keys, seed=0, purpose="start", device=backbone.device)


def _told(asked: Sequence[EditRequest], name: str) -> list[str]:
    return [getattr(request, name) for request in asked]


def _stacked(asked: Sequence[EditRequest], name: str) -> Tensor:
    return torch.stack([getattr(request, name) for request in asked])


def _pictures(asked: Sequence[EditRequest]) -> Tensor:
    return _stacked(asked, "image") / 2 + 0.5


def _resized(picture: Tensor, side: int) -> Tensor:
    if picture.shape[-1] == side:
        return picture
    return torch.nn.functional.interpolate(picture, size=(side, side), mode="bicubic", antialias=True).clamp(-1, 1)


def requests(size: Size, batch: int) -> list[EditRequest]:
    """Return requests that say all that any of the pipelines asks for; keys are those of `editkit sample`."""
    images, masks = size.images(batch), size.masks(batch)
    texts = [TEXTS[k % len(TEXTS)] for k in range(batch)]
    return [
        EditRequest(f"sample/{k}", image, mask, references=(image.flip(2),), prompt=text, instruction=text)
        for k, (image, mask, text) in enumerate(zip(images, masks, texts, strict=True))
    ]


# Measuring.


@contextmanager
def counted(unet: torch.nn.Module):
    """Yield a list to which each call of a network adds the number of its samples."""
    calls: list[int] = []
    with ExitStack() as stack:
        stack.callback(unet.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0]))).remove)
        yield calls


def checked(name: str, contest: Contest, asked: Sequence[EditRequest]) -> str:
    """Compare both sides' images and return the UNet's passes for one image, ours / theirs where they differ.

    Raises:
        SystemExit: the images differ by more than NEAR, or say nothing.
    """
    passes, images = [], []
    for side in (contest.ours, contest.theirs):
        whole = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # in TF32 they were .0023 apart on an H100
        with whole, counted(contest.pipeline.unet) as calls:
            images.append(side(asked).float().cpu())
        passes.append(f"{sum(calls) / len(asked):g}")
    apart = float((images[0] - images[1]).abs().max())
    if not apart <= NEAR or images[0].std() < 0.01:
        seen = f"the images are {apart:.2g} apart and deviate by {images[0].std():.2g}"
        raise SystemExit(f"{name}, batch {len(asked)}: {seen}, so nothing is timed; mend one side first")
    return " / ".join(dict.fromkeys(passes))


def rows(name: str, options: argparse.Namespace) -> list[str]:
    """Return the rows of one pipeline, one for each batch size."""
    size = SIZES[options.size]
    contest = CONTESTS[name](size, options.steps)
    contest.to(options.device, torch.float32)
    batches = [requests(size, batch) for batch in options.batch]
    passes = [checked(name, contest, asked) for asked in batches]
    contest.to(options.device, DTYPES[options.dtype])
    found = []
    for asked, count in zip(batches, passes, strict=True):
        sides = (partial(contest.ours, asked), partial(contest.theirs, asked))
        ours, theirs = in_turn(sides, options.repeats, options.device)
        found.append(f"| {name} | {len(asked)} | {ours:.3f} | {theirs:.3f} | **{theirs / ours:.2f}** | {count} |")
    return found


def table(options: argparse.Namespace) -> str:
    """Measure and return the table in Markdown."""
    lines = ["| pipeline | batch | editkit, s | diffusers, s | times faster | UNet passes/image |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for name in options.only:
        lines += rows(name, options)
    note = f"{options.size} networks, {options.steps} steps of DDIM, {options.dtype}, medians of {options.repeats}"
    return "\n".join([*lines, "", f"{note}; {machine(options.device)}"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="medium", help="sd15 is the true architecture, for GPUs")
    parser.add_argument("--only", nargs="+", choices=list(CONTESTS), default=list(CONTESTS), metavar="PIPELINE")
    parser.add_argument("--batch", nargs="+", type=positive, default=[1, 8])
    parser.add_argument("--steps", type=positive, default=10)
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--update", type=Path, help="Markdown file with the lines <!-- sampling --> and <!-- /sampling -->")
    options = parser.parse_args(arguments)
    diffusers.utils.logging.set_verbosity_error()
    publish(parser, "sampling", options.update, partial(table, options))


if __name__ == "__main__":
    main()
