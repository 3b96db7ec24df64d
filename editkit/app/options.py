"""What a person typed for one command, as plain values: nothing here is read, checked on disk or composed yet.

The command line makes its options of these fields and their help texts, the functions of `editkit.app` take the filled
dataclasses, and so can any Python program. No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from editkit.errors import UsageError, suggestion

INPUTS, RECIPE, COMPUTING = "Inputs", "Recipe", "Computing"


def option(
    help: str,
    *,
    default: Any = None,
    group: str = INPUTS,
    also: str = "",
    name: str = "",
    choices: tuple[str, ...] = (),
    positional: bool = False,
) -> Any:
    """Declare a field with what the command line needs to know (`also`: another name); a list default makes it repeatable."""
    about = {"help": help, "group": group, "also": also, "name": name, "choices": choices, "positional": positional}
    return field(default_factory=list, metadata=about) if default == [] else field(default=default, metadata=about)


@dataclass(kw_only=True)
class RecipeOptions:
    """Which recipe, and what differs from it.

    Attributes:
        method: recipe name, such as `asyrp` or `paper/asyrp`, or a recipe file; None when a command can do without a method.
        overrides: `key=value` strings, without prompts; a `recipe=` among them moves to `method`, a `backbone=` to `backbone`.

    Raises:
        UsageError: the recipe or the backbone is named twice, or an option has none of the values it can have.
    """

    overrides: list[str] = option("What differs from the recipe, as key=value.", default=[], positional=True)
    method: str | None = option("Name of a recipe, the same as recipe=NAME.", group=RECIPE)
    backbone: str | None = option("Name of a backbone, the same as backbone=NAME.", group=RECIPE)
    conf: list[Path] = option("A folder of your own recipes and groups, laid out like conf/.", default=[], group=RECIPE)
    dry_run: bool = option("Print the resolved recipe and stop.", default=False, group=RECIPE)

    def __post_init__(self) -> None:
        for name, key in (("method", "recipe"), ("backbone", "backbone")):
            values = [text.partition("=")[2] for text in self.overrides if text.startswith(f"{key}=")]
            typed = getattr(self, name)
            if len(values) + (typed is not None) > 1:
                both = " and ".join([f"--{name} {typed}"] * (typed is not None) + [f"{key}={value}" for value in values])
                raise UsageError(f"{both}: give one of them")
            if values:
                setattr(self, name, values[0])
                self.overrides = [text for text in self.overrides if not text.startswith(f"{key}=")]
        _check_choices(self)

    def recipe_overrides(self) -> list[str]:
        """Return everything that `editkit.recipe.compose` needs to know, as one list of overrides."""
        recipe = [f"recipe={self.method}"] if self.method else []
        backbone = [f"backbone={self.backbone}"] if self.backbone else []
        return [*recipe, *backbone, *self.overrides]

    def texts(self) -> dict[str, str | None]:
        """Return what is set on the composed configuration as it stands, whatever characters it has (prompts, paths)."""
        return {}

    def given(self, *names: str) -> list[str]:
        """Return those of `names` that the user set to something."""
        return [name for name in names if getattr(self, name) not in (None, [], "")]


@dataclass(kw_only=True)
class DeviceOptions:
    """Where and in which numbers to compute."""

    device: str | None = option("cpu, cuda, cuda:1, mps...; the best there is if not given.", group=COMPUTING)
    dtype: str | None = option("Numbers of the networks: fp32, bf16 or fp16.", group=COMPUTING, choices=("fp32", "bf16", "fp16"))
    seed: int = option("Whole number that all noise is drawn from, with each image's name.", default=0, group=COMPUTING)


@dataclass(kw_only=True)
class TrainOptions(RecipeOptions):
    """The inputs of `editkit train`.

    Attributes:
        run_dir: folder of the run; None takes the recipe's, named after recipe, prompts and overrides, so that the same
            command continues the same run.
        source: run directory whose frozen recipe to use instead of composing one.
        fresh: move a run that the folder holds aside; not in a job that SLURM has queued again.
        accept_changes: continue a run of another recipe, with this one's settings.
        stage: of a recipe with several; None trains those that have not been.
    """

    prompt: str | None = option("What the edit should show, for methods that train one text.")
    source_prompt: str | None = option("What the images show before the edit.")
    run_dir: Path | None = option("Folder of this run; an existing one is continued.", also="-o")
    source: Path | None = option("Continue this run with its own frozen recipe.", name="--from")
    fresh: bool = option("Start anew: a run that the folder holds is moved aside, not deleted.", default=False)
    accept_changes: bool = option("Continue a run with settings that differ from its own.", default=False)
    stage: str | None = option("Of a recipe with several stages train this one; the missing ones if not given.")

    def __post_init__(self) -> None:
        super().__post_init__()
        others = self.given("method", "backbone", "overrides", "prompt", "source_prompt", "run_dir", "stage")
        others += [name for name in ("fresh", "accept_changes") if getattr(self, name)]
        if self.source and others:
            raise UsageError(f"--from {self.source} continues a run as it is frozen there; leave out {', '.join(others)}")

    def texts(self) -> dict[str, str | None]:
        """Return prompts and run directory by configuration key."""
        run_dir = None if self.run_dir is None else str(self.run_dir)
        return {"prompt": self.prompt, "source_prompt": self.source_prompt, "run_dir": run_dir}


@dataclass(kw_only=True)
class PlanOptions(RecipeOptions):
    """The inputs of `editkit plan`: what a training will take.

    Attributes:
        gpu: a name of `editkit.app.gpus.GPUS`; None leaves out what depends on one.
        gpus: takes the place of `trainer.devices`.
        price: of a GPU-hour, in any currency.
        utilisation: share of the GPU's peak that the training reaches, above 0 and up to 1.

    Raises:
        UsageError: a number out of range.
    """

    prompt: str | None = option("What the edit should show, for methods that train one text.")
    source_prompt: str | None = option("What the images show before the edit.")
    gpu: str | None = option("a100-80, h100, rtx4090...: does it fit, and how long does it take?", group=COMPUTING)
    gpus: int | None = option("GPUs that share the batch, the same as trainer.devices=N.", group=COMPUTING)
    price: float | None = option("Of a GPU for an hour, for the cost.", group=COMPUTING)
    utilisation: float = option("Share of the GPU's peak that is assumed to be reached.", default=0.35, group=COMPUTING)
    json: bool = option("Print everything as JSON.", default=False, group=COMPUTING)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.utilisation <= 1:
            raise UsageError(f"--utilisation {self.utilisation} is out of range; give a share of the peak such as 0.35")
        if self.price is not None and self.price < 0:
            raise UsageError(f"--price {self.price} is out of range; give what a GPU costs for an hour, such as 2.50")

    def texts(self) -> dict[str, str | None]:
        """Return the prompts by configuration key."""
        return {"prompt": self.prompt, "source_prompt": self.source_prompt}

    def recipe_overrides(self) -> list[str]:
        """Return everything that `editkit.recipe.compose` needs to know, with the devices."""
        return [*super().recipe_overrides(), *([] if self.gpus is None else [f"trainer.devices={self.gpus}"])]


@dataclass(kw_only=True)
class TaskOptions(RecipeOptions, DeviceOptions):
    """The inputs of `editkit task`: a step of a method that is not training."""

    method: str | None = option("Name of a recipe, such as asyrp.", positional=True)
    task: str | None = option("Name of the task; the method's tasks are listed if not given.", positional=True)
    prompt: str | None = option("What the edit should show, for methods that train one text.")
    source_prompt: str | None = option("What the images show before the edit.")

    def texts(self) -> dict[str, str | None]:
        """Return the prompts by configuration key."""
        return {"prompt": self.prompt, "source_prompt": self.source_prompt}


@dataclass(kw_only=True)
class EditOptions(RecipeOptions, DeviceOptions):
    """The inputs of `editkit edit`; the same option means the same input whatever the method.

    Paths of inputs may be one file or a folder; within folders they are paired by stem.

    Attributes:
        reference, reference_mask: one or several exemplar images and their masks, in the same order.
        box: `x0,y0,x1,y1` in pixels of the image as the user sees it.
        landmarks: ten numbers in pixels of that image, or a file as `editkit.data.align.read_landmarks` takes it.
        strength: how far to go, 1 = as trained; several values make a strip; empty is the method's default.
        weights: `[NAME=]PATH[:STRENGTH]`, each a trained artefact to use.
        output: a file for one image, a folder for several.
        source: folder whose frozen recipe to use instead of composing one (`editkit submit edit` writes it).
        shard: `I/N`, the I-th of N shares of a folder, counted from 0.
        jobs: processes that share out a folder, at least 1.
    """

    image: Path | None = option("Image to edit, or a folder of them.")
    mask: Path | None = option("Where to edit: white is edited, black stays as it is.")
    reference: list[Path] = option("Exemplar image (repeatable).", default=[])
    reference_mask: list[Path] = option("The part of the exemplar that counts (repeatable, in the same order).", default=[])
    prompt: str | None = option("What the result should show.")
    source_prompt: str | None = option("What the image shows now.")
    instruction: str | None = option("What to do: 'make it night'.")
    sketch: Path | None = option("Lines to follow, as an image.")
    segmentation: Path | None = option("Parts to follow, as an image of classes.")
    stroke: Path | None = option("Rough colours to follow, as an image.")
    box: str | None = option("x0,y0,x1,y1 in pixels of the image.")
    labels: str | None = option("Names of attributes, classes or parts, as the method's card explains.", also="--edit")
    landmarks: str | None = option(
        "Turns a face upright: x,y of left eye, right eye, nose, mouth's left and right corner; or a table of them by file name."
    )
    example_before: Path | None = option("An example of the edit: before.")
    example_after: Path | None = option("An example of the edit: after.")
    strength: list[float] = option(
        "How far to go, 1 = as trained; negative goes the other way; several make a strip.", default=[]
    )
    steps: int | None = option("Sampling steps.")
    samples: int = option("Results wanted for each image.", default=1)
    weights: list[str] = option("A trained part to use, [NAME=]PATH[:STRENGTH] (repeatable).", default=[])
    fit: str | None = option(
        "How any size becomes the model's: mask (zoom on it), crop (centre square) or resize.", choices=("mask", "crop", "resize")
    )
    output: Path | None = option("Where to write: a file for one image, a folder for several.", also="-o")
    offload: str | None = option(
        "What waits in main memory while it is not computing: none, model or layers.",
        group=COMPUTING,
        choices=("none", "model", "layers"),
    )
    source: Path | None = option("Use the recipe that is frozen in this folder.", name="--from", group=RECIPE)
    shard: str | None = option("I/N: edit only the I-th of N shares of a folder, from 0/N on.", group=COMPUTING)
    jobs: int = option("Processes that share out a folder, each with a GPU or its part of the cores.", default=1, group=COMPUTING)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.jobs < 1:
            raise UsageError(f"--jobs {self.jobs}: at least 1 process is needed")
        if self.source and (others := self.given("method", "backbone", "overrides")):
            raise UsageError(f"--from {self.source} edits by the recipe as it is frozen there; leave out {', '.join(others)}")


@dataclass(kw_only=True)
class InvertOptions(RecipeOptions, DeviceOptions):
    """The inputs of `editkit invert`: noise an image and measure the way back.

    Attributes:
        inverter: a name of `editkit.engine.invert.INVERTERS`, or "all" for a table of them.
        output: file for the trajectory (`.inv.safetensors`), or a folder when the image is one.
        update: a file such as README.md, to put the table of all inverters between <!-- inverters --> and <!-- /inverters -->.
    """

    image: Path | None = option("Image to invert, or a folder of them.")
    inverter: str = option("ddim, fixed-point, edit-friendly...; all for a table of every one.", default="ddim")
    steps: int | None = option("Noise levels.")
    prompt: str | None = option("What the image shows, for backbones that read text.")
    fit: str | None = option("How any size becomes the model's: crop (centre square) or resize.", choices=("crop", "resize"))
    output: Path | None = option("File for the trajectory, such as face.inv.safetensors.", also="-o")
    update: Path | None = option(
        "With --inverter all: file to put the table into, between <!-- inverters --> and <!-- /inverters -->."
    )


@dataclass(kw_only=True)
class SampleOptions(RecipeOptions, DeviceOptions):
    """The inputs of `editkit sample`: new images from noise."""

    prompt: str | None = option("What the images should show, for backbones that read text.")
    scale: float | None = option("Classifier-free guidance towards the prompt; 5 if not given, 1 for none.")
    samples: int = option("Images wanted.", default=16)
    steps: int | None = option("Sampling steps.")
    solver: str = option("ddim, ddim-eta1, ddpm, euler, euler-ancestral, plms, dpmpp-2m or unipc.", default="ddim")
    output: Path | None = option("A .png for one sheet, or a folder for one file an image.", also="-o")


@dataclass(kw_only=True)
class EvaluateOptions(DeviceOptions):
    """The inputs of `editkit evaluate`: edits with a known answer by one or several methods, scored beside baselines.

    Attributes:
        methods: names of recipes, or recipe files; a `recipe=` among the overrides takes the place of a single one.
        overrides: as of `RecipeOptions`, for every method.
        family: name of a family, such as `weakly_supervised`: all its methods, each on an edit that is typical of its questions.
        edits: what to score, such as `smiling` or `recolour`; empty takes all that the recipe's questions ask, of faces those
            that any of the methods has weights for.
        images: how many images of the split; None is all of them (256).
        weights: as of `EditOptions` for a single method, METHOD=PATH[:STRENGTH] for several and for a family.
        baselines: names of baselines to put beside the methods; `none` for none, empty for the standard ones.
        output: folder for metrics.json, report.html and the pictures; of a family, with a folder for each method.
        update: a file such as README.md, to put the table between its lines <!-- results --> and <!-- /results -->; for scenes
            these are <!-- results instructions --> and so on, for a family <!-- results family NAME -->.
        sweep: overrides of a single method may hold several values (`method.scale=2,4,8`), and each is evaluated.
        jobs: edits at once, at least 1.

    Raises:
        UsageError: keys of `method` or a sweep for several methods, fewer than two images, no jobs, what a family cannot have,
            an option has none of the values it can have.
    """

    overrides: list[str] = option("What differs from the recipes, as key=value.", default=[], positional=True)
    methods: list[str] = option(
        "Name of a recipe, the same as recipe=NAME (repeatable).", default=[], group=RECIPE, name="--method"
    )
    family: str | None = option("All methods of a family, such as weakly_supervised, in one table.", group=RECIPE)
    backbone: str | None = option("Name of a backbone for every method, the same as backbone=NAME.", group=RECIPE)
    conf: list[Path] = option("A folder of your own recipes and groups, laid out like conf/.", default=[], group=RECIPE)
    dry_run: bool = option("Print the resolved recipes and stop.", default=False, group=RECIPE)
    edits: list[str] = option("Edit to score, such as smiling or recolour (repeatable).", default=[], name="--edit")
    split: str = option("validation for tuning, test for reporting.", default="test", choices=("validation", "test"))
    images: int | None = option("How many images of the split; all 256 if not given.", also="-n")
    steps: int | None = option("Sampling steps.")
    weights: list[str] = option("A trained part, [NAME=]PATH[:STRENGTH]; METHOD=PATH for several methods.", default=[])
    baselines: list[str] = option("Baseline to put beside them (repeatable); none for none.", default=[], name="--baseline")
    output: Path | None = option("Folder for metrics.json, report.html and pictures.", also="-o")
    update: Path | None = option("File to put the table into, between <!-- results --> and <!-- /results -->.")
    sweep: bool = option("Evaluate a setting's values (method.scale=2,4,8) and draw their trade-off.", default=False)
    jobs: int = option("Edits at once, each in a process with its share of the cores; not on a GPU.", default=1, group=COMPUTING)

    def __post_init__(self) -> None:
        _check_choices(self)
        if self.jobs < 1:
            raise UsageError(f"--jobs {self.jobs}: at least 1 edit is made at a time")
        if self.images is not None and self.images < 2:
            raise UsageError(f"--images {self.images}: at least 2 images are needed")
        if self.family is not None:
            self._check_family()
        elif len(self.methods) < 2:
            return
        if self.sweep:
            raise UsageError("--sweep with several methods: sweep them one by one")
        for text in self.overrides:
            if text.lstrip("+~").startswith("method."):
                raise UsageError(
                    f"{text} with several methods: each has keys of its own; evaluate them one by one, or give each a recipe "
                    f"file (editkit cp NAME FILE.yaml)"
                )

    def _check_family(self) -> None:
        own = {"--method": self.methods, "--backbone": self.backbone, "--edit": self.edits, "--sweep": self.sweep}
        others = [flag for flag, value in {**own, "--jobs": self.jobs > 1}.items() if value]
        if others:
            raise UsageError(f"--family {self.family} asks each method one edit of its own: leave out {', '.join(others)}")

    def recipes(self) -> list[RecipeOptions]:
        """Return the options of each method's recipe, in the order typed.

        Raises:
            UsageError: the recipe or the backbone is named twice.
        """
        shared: dict[str, Any] = {"backbone": self.backbone, "conf": self.conf}
        names: list[str | None] = [*self.methods] or [None]
        return [RecipeOptions(method=name, overrides=[*self.overrides], **shared) for name in names]


@dataclass(kw_only=True)
class CompareOptions(DeviceOptions):
    """The inputs of `editkit compare`: several methods on the same pictures. Each gets the inputs that it can use.

    Attributes:
        methods: names of recipes, at least one.
        weights: `METHOD=PATH[:STRENGTH]`; methods without one use their bundled parts.
        output: folder for the pictures, sheet.png, table.md, metrics.json and report.html.
    """

    methods: list[str] = option("Names of recipes, such as asyrp clip-guided.", default=[], positional=True)
    image: Path | None = option("Image to edit, or a folder of them.")
    mask: Path | None = option("Where to edit: white is edited, black stays as it is.")
    reference: list[Path] = option("Exemplar image (repeatable).", default=[])
    prompt: str | None = option("What the result should show.")
    source_prompt: str | None = option("What the image shows now.")
    instruction: str | None = option("What to do: 'make it night'.")
    landmarks: str | None = option("Turns a face upright: five points, or a table of them by file name (see edit).")
    fit: str | None = option(
        "How any size becomes the model's: mask (zoom on it), crop (centre square) or resize.", choices=("mask", "crop", "resize")
    )
    strength: float | None = option("How far to go, 1 = as trained.")
    steps: int | None = option("Sampling steps.")
    weights: list[str] = option("A method's trained part, METHOD=PATH[:STRENGTH] (repeatable).", default=[])
    backbone: str | None = option("Name of a backbone for all of them.", group=RECIPE)
    conf: list[Path] = option("A folder of your own recipes and groups, laid out like conf/.", default=[], group=RECIPE)
    output: Path | None = option("Folder for the results.", also="-o")


def _check_choices(options: Any) -> None:
    """Raise a UsageError for an option that has none of the values it can have."""
    for name, about in ((f.name, f.metadata) for f in fields(options)):
        value, allowed = getattr(options, name), about.get("choices")
        if allowed and value is not None and value not in allowed:
            raise UsageError(f"--{name} is {', '.join(allowed)}, not {value!r}.{suggestion(str(value), allowed)}")
