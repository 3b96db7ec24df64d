"""What a person typed for one command, as plain values: nothing here is read, checked on disk or composed yet.

The command line fills these in, the functions of `editkit.app` take them, and so can any Python program. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(kw_only=True)
class RecipeOptions:
    """Which recipe, and what differs from it.

    Attributes:
        method: recipe name, such as `asyrp` or `paper/asyrp`; None when a command can do without a method.
        backbone: name of a file of conf/backbone, or None for the recipe's own.
        overrides: `key=value` strings, without `recipe=` and without prompts.
        conf: folders of the user's own recipes and groups, searched after editkit's.
    """

    method: str | None = None
    backbone: str | None = None
    overrides: list[str] = field(default_factory=list)
    conf: list[Path] = field(default_factory=list)

    def recipe_overrides(self) -> list[str]:
        """Return everything that `editkit.recipe.compose` needs to know, as one list of overrides."""
        recipe = [f"recipe={self.method}"] if self.method else []
        backbone = [f"backbone={self.backbone}"] if self.backbone else []
        return [*recipe, *backbone, *self.overrides]


@dataclass(kw_only=True)
class DeviceOptions:
    """Where and in which numbers to compute.

    Attributes:
        device: `cpu`, `cuda`, `cuda:1`, `mps`...; None takes the best one there is.
        dtype: `fp32`, `bf16` or `fp16` for the networks; None is the device's default.
        seed: whole number that all noise is drawn from, together with each image's name.
    """

    device: str | None = None
    dtype: str | None = None
    seed: int = 0


@dataclass(kw_only=True)
class EditOptions(RecipeOptions, DeviceOptions):
    """The inputs of `editkit edit`; the same option means the same input whatever the method.

    Paths of inputs may be one file or a folder; within folders they are paired by stem.

    Attributes:
        reference, reference_mask: one or several exemplar images and their masks, in the same order.
        box: `x0,y0,x1,y1` in pixels of the image as the user sees it.
        labels: names of classes or parts, as the method's card explains them.
        strength: how far to go, 1 = as trained; several values make a strip; empty is the method's default.
        samples: results wanted for each image.
        weights: `[NAME=]PATH[:STRENGTH]`, each a trained artefact to use.
        offload: `none`, `model` or `layers`: what waits in main memory while it is not computing.
        fit: `mask`, `crop` or `resize`: how any size becomes the model's; None zooms on the mask if there is one.
        output: a file for one image, a folder for several.
    """

    image: Path | None = None
    mask: Path | None = None
    reference: list[Path] = field(default_factory=list)
    reference_mask: list[Path] = field(default_factory=list)
    prompt: str | None = None
    source_prompt: str | None = None
    instruction: str | None = None
    sketch: Path | None = None
    segmentation: Path | None = None
    stroke: Path | None = None
    box: str | None = None
    labels: str | None = None
    example_before: Path | None = None
    example_after: Path | None = None
    strength: list[float] = field(default_factory=list)
    steps: int | None = None
    samples: int = 1
    weights: list[str] = field(default_factory=list)
    offload: str | None = None
    fit: str | None = None
    output: Path | None = None


@dataclass(kw_only=True)
class InvertOptions(RecipeOptions, DeviceOptions):
    """The inputs of `editkit invert`: noise an image deterministically and measure the way back.

    Attributes:
        inverter: a name of `editkit.engine.invert.INVERTERS`.
        steps: noise levels; None is the recipe's.
        output: file for the trajectory (`.inv.safetensors`), or a folder when the image is one.
    """

    image: Path | None = None
    inverter: str = "ddim"
    steps: int | None = None
    prompt: str | None = None
    fit: str | None = None
    output: Path | None = None


@dataclass(kw_only=True)
class SampleOptions(RecipeOptions, DeviceOptions):
    """The inputs of `editkit sample`: new images from noise.

    Attributes:
        samples: images wanted.
        weights: `[NAME=]PATH[:STRENGTH]`, each a trained artefact to use.
        output: a file for a contact sheet, or a folder for one file an image.
    """

    prompt: str | None = None
    samples: int = 16
    steps: int | None = None
    weights: list[str] = field(default_factory=list)
    output: Path | None = None


@dataclass(kw_only=True)
class EvaluateOptions(RecipeOptions, DeviceOptions):
    """The inputs of `editkit evaluate`: edits with a known answer, scored beside baselines.

    Attributes:
        edits: targets to score, such as `smiling`; empty takes all that the method has weights for.
        split: `validation` for tuning or `test` for reporting.
        images: how many images of the split; None is all 256.
        weights: `[NAME=]PATH[:STRENGTH]`, each a trained artefact to use.
        baselines: names of baselines to put beside the method; `none` for none, empty for the standard ones.
        output: folder for metrics.json, report.html and the pictures.
    """

    edits: list[str] = field(default_factory=list)
    split: str = "test"
    images: int | None = None
    steps: int | None = None
    weights: list[str] = field(default_factory=list)
    baselines: list[str] = field(default_factory=list)
    output: Path | None = None


def given(options: RecipeOptions, names: Sequence[str]) -> list[str]:
    """Return those of `names` that the user set to something."""
    return [name for name in names if getattr(options, name) not in (None, [], "")]
