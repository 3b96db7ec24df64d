"""What `editkit data` does: render the toy world, show what training sees; `check` says what a folder lacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from editkit.app.options import RecipeOptions, option
from editkit.errors import UsageError


@dataclass(kw_only=True)
class PreviewOptions(RecipeOptions):
    """The inputs of `editkit data preview`."""

    prompt: str | None = option("What the edit should show, for recipes that ask for it.")
    source_prompt: str | None = option("What the images show before the edit.")
    images: int = option("How many items to show.", default=16)
    output: Path = option("Picture to write.", default=Path("preview.png"), also="-o")


def render_data(
    domain: str,
    n: int,
    out: Path,
    *,
    split: str = "train",
    size: int = 64,
    layout: str = "folder",
    on_done: Callable[[int], None] | None = None,
) -> Path:
    """Render pictures of the toy world into a folder; the same call again continues (see `editkit.data.layout.render`)."""
    from editkit.data.layout import render

    return render(domain, n, out, split=split, size=size, layout=layout, on_done=on_done)


def preview(options: PreviewOptions) -> Path:
    """Write a sheet of the first items that a recipe's training reads, in its order and with its augmentation.

    Raises:
        UsageError: fewer than one item.
        RecipeError: what `compose` says.
        UserError: the data cannot be read or the picture not be written.
    """
    from editkit.app.sheet import sheet
    from editkit.data.files import write_png
    from editkit.recipe import build, compose
    from editkit.training.order import Order, Positioned

    if options.images < 1:
        raise UsageError(f"--images is {options.images}: show at least 1")
    prompts = {"prompt": options.prompt, "source_prompt": options.source_prompt}
    cfg = compose(options.recipe_overrides(), prompts=prompts, conf_dirs=options.conf)
    dataset: Any = build(cfg, "data").train_dataset()
    blocks = getattr(dataset, "blocks", ())
    order = Order(len(dataset), batch_size=min(options.images, len(dataset)), seed=cfg.seed, blocks=blocks)
    read = Positioned(dataset, cfg.seed)
    picture = sheet([read[at] for at in next(iter(order))])
    write_png(options.output, picture, {"recipe": options.method, "preview": type(dataset).__name__, "items": len(dataset)})
    return options.output
