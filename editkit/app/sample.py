"""`editkit sample`: new pictures from noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from editkit.app.loaded import backbone_name, load_backbone
from editkit.app.numbers import check_numbers
from editkit.app.options import SampleOptions
from editkit.app.progress import Progress
from editkit.backbones.attention import constant_text
from editkit.backbones.base import Backbone
from editkit.data.files import check_replaceable, check_writable, write_png
from editkit.data.fit import to_pil
from editkit.engine.guidance import PLAIN, ClassifierFree, Clip, Guidance
from editkit.engine.lanes import stack
from editkit.engine.rng import batch_noise, level_noise
from editkit.engine.sample import sample
from editkit.engine.solvers import solver_named
from editkit.errors import UsageError
from editkit.recipe import compose
from editkit.types import EditRequest

STEPS = 50
SCALE = 5.0


def sample_images(options: SampleOptions) -> int:
    """Draw pictures and write them as one sheet (a .png) or one file each (a folder); return 0.

    Raises:
        UserError: wrong options, a backbone that is not there, an output that cannot be written.
    """
    check_numbers(steps=options.steps, samples=options.samples)
    paths = _outputs(options)
    for path in paths:
        check_replaceable(path)
    check_writable(paths[0].parent)
    cfg = compose(options.recipe_overrides(), conf_dirs=options.conf)
    backbone = load_backbone(cfg, device=options.device, dtype=options.dtype)
    request = EditRequest("", prompt=options.prompt, seed=options.seed)
    if options.prompt and backbone.condition(request) is None:
        raise UsageError(f"the backbone {backbone_name(cfg)} reads no text: leave out --prompt")
    if options.scale is not None and not options.prompt:
        raise UsageError("--scale says how strongly a prompt guides: give --prompt, or leave out --scale")
    origin = {
        "backbone": backbone_name(cfg),
        "backbone_digest": backbone.digest(),
        "seed": options.seed,
        "steps": options.steps or STEPS,
        "solver": options.solver,
        "prompt": options.prompt,
        "scale": options.scale,
    }
    steps, batch_size = options.steps or STEPS, int(cfg.engine.batch_size)
    pictures: list[Image.Image] = []
    batches = draw(
        backbone, options.samples, request, steps, options.solver, batch_size, SCALE if options.scale is None else options.scale
    )
    with Progress(total=options.samples) as progress:
        for images in batches:
            for image in images:
                pictures.append(to_pil(image))
                if len(paths) > 1:
                    write_png(paths[len(pictures) - 1], pictures[-1], {**origin, "sample": len(pictures) - 1})
                progress.advance()
        if len(paths) == 1:
            write_png(paths[0], sheet(pictures), {**origin, "samples": len(pictures)})
        progress.wrote(paths)
    return 0


@torch.no_grad()
def draw(
    backbone: Backbone, count: int, request: EditRequest, steps: int, solver: str, batch_size: int, scale: float = SCALE
) -> Iterator[Tensor]:
    """Yield batches of pictures (B, 3, h, w); picture n depends on seed and n alone, not on its batch."""
    device = backbone.device
    levels = backbone.levels(steps)
    guidance = _guidance(backbone, request, scale)
    for first in range(0, count, batch_size):
        keys = [f"sample/{n}" for n in range(first, min(first + batch_size, count))]
        x = batch_noise(backbone.sample_shape, keys, seed=request.seed, purpose="start", device=device)
        noise = level_noise(backbone.sample_shape, keys, seed=request.seed, device=device)
        cond = stack([backbone.condition(request)] * len(keys), [1] * len(keys))
        with constant_text(backbone):
            z = sample(backbone, x, cond=cond, guidance=guidance, **solver_named(solver).walk(levels, noise=noise))
        yield backbone.decode(z)


def _guidance(backbone: Backbone, request: EditRequest, scale: float) -> Guidance:
    """Return guidance towards the prompt, if there is one.

    Models of pixels have their estimates of x0 clipped to the range of pictures, which keeps colours from drifting.
    """
    inner = ClassifierFree(scale, backbone.condition(request.with_(prompt=""))) if request.prompt else PLAIN
    return Clip(inner=inner) if backbone.sample_shape[0] == 3 else inner


def sheet(pictures: list[Image.Image]) -> Image.Image:
    """Return pictures of one size in rows, as near to a square as they go."""
    width, height = pictures[0].size
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    page = Image.new("RGB", (columns * width, rows * height), (255, 255, 255))
    for n, picture in enumerate(pictures):
        page.paste(picture, (n % columns * width, n // columns * height))
    return page


def _outputs(options: SampleOptions) -> list[Path]:
    output = options.output or Path("samples.png")
    if output.suffix.lower() == ".png" and not output.is_dir():
        return [output]
    if output.suffix and not output.is_dir():
        raise UsageError(f"-o {output} must end in .png (one sheet) or be a folder (one file a picture)")
    return [output / f"{n:0{max(3, len(str(options.samples - 1)))}d}.png" for n in range(options.samples)]
