"""`editkit invert`: noise pictures so that sampling brings them back, and measure how well it does."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from editkit.app.inputs import check_fit
from editkit.app.loaded import backbone_name, image_size, load_backbone
from editkit.app.manifest import Manifest, fingerprint
from editkit.app.numbers import check_numbers
from editkit.app.options import InvertOptions
from editkit.app.progress import Progress
from editkit.backbones.attention import constant_text
from editkit.backbones.base import Backbone
from editkit.data.files import check_replaceable, check_writable, write_png
from editkit.data.fit import fit, to_pil
from editkit.data.listing import listing
from editkit.data.photo import read_photo
from editkit.engine.count import count_calls
from editkit.engine.denoiser import Denoiser
from editkit.engine.guidance import ClassifierFree, Guided
from editkit.engine.invert import GUIDED, INVERTERS, Inverter, replay
from editkit.engine.lanes import stack
from editkit.engine.rng import level_noise
from editkit.engine.sample import sample
from editkit.engine.stream import stream
from editkit.engine.trajectory import Trajectory
from editkit.errors import UsageError, UserError, suggestion
from editkit.metrics.images import psnr
from editkit.recipe import compose
from editkit.types import Condition, EditRequest, Levels

if TYPE_CHECKING:
    from omegaconf import DictConfig

STEPS = 50
SCALE = 7.5  # of the guidance that null-text and negative-prompt inversion make reconstruct


@dataclass(frozen=True)
class Inverted:
    """What an inversion of one picture left: its trajectory, the way back from it, its error and its cost.

    Attributes:
        reconstruction: (3, h, w) in [-1, 1].
        psnr: of the reconstruction in dB.
        up, down: network calls of the inversion and of the way back.
    """

    trajectory: Trajectory
    reconstruction: Tensor
    psnr: float
    up: int
    down: int


@dataclass(frozen=True)
class Way:
    """How pictures are inverted: by which inverter, along which levels, under which condition."""

    backbone: Backbone
    inverter: Inverter
    levels: Levels
    request: EditRequest

    @torch.no_grad()
    def invert(self, images: Sequence[Tensor], keys: Sequence[str]) -> list[Inverted]:
        """Return the inversions of images (3, h, w); their noise, if the inverter draws any, depends on seed and key alone."""
        device = self.backbone.device
        pixels = torch.stack(list(images)).to(device)
        x0 = self.backbone.encode(pixels)
        noise = level_noise(x0.shape[1:], keys, seed=self.request.seed, purpose="invert", device=device)
        cond: Condition | None = stack([self.backbone.condition(self.request)] * len(keys), [1] * len(keys))
        with count_calls(self.backbone, flops=False) as up, constant_text(self.backbone):
            trajectory = self.inverter.invert(self._denoiser(), x0, self.levels, cond, noise=noise)
        with count_calls(self.backbone, flops=False) as down, constant_text(self.backbone):
            latents = sample(self.backbone, cond=cond, **replay(trajectory))
        back = self.backbone.decode(latents).clamp(-1, 1)
        figures = psnr(back, pixels).tolist()
        trajectory = replace(trajectory, report={**trajectory.report, "reconstruction_psnr": figures})
        return [
            Inverted(one, image.cpu(), figure, up.evaluations // len(keys), down.evaluations // len(keys))
            for one, image, figure in zip(trajectory.split(), back, figures, strict=True)
        ]

    def _denoiser(self) -> Denoiser:
        """Return what is inverted through: the backbone, under guidance for inverters of guided sampling."""
        if self.inverter.name not in GUIDED:
            return self.backbone
        return Guided(self.backbone, ClassifierFree(SCALE, self.backbone.condition(self.request.with_(prompt=""))))


def invert_images(options: InvertOptions) -> int:
    """Invert a picture or a folder of them, print the figures of each, and return 0, or 1 if some of a folder failed.

    A file name that ends in .png keeps the reconstruction, one that ends in .safetensors the trajectory, a folder both.
    Pictures of a folder that were inverted before with the same settings are left out.

    Raises:
        UserError: an unknown inverter, an unreadable picture, an output that cannot be written.
    """
    _check_inverter(options)
    pictures, bad = checked(options)
    outputs = {key: _outputs(options, key) for key in pictures}
    _check_outputs(pictures, outputs)
    cfg = compose(options.recipe_overrides(), conf_dirs=options.conf)
    way = _way(cfg, options)
    size = image_size(way.backbone)
    origin = {"inverter": options.inverter, "backbone": backbone_name(cfg), "seed": options.seed, "steps": options.steps or STEPS}
    failed = dict(bad)
    finished = None if _single(options) else Manifest(_folder(options))
    settings = {**origin, "prompt": options.prompt, "fit": options.fit, "digest": way.backbone.digest()}
    jobs = {key: fingerprint(settings, [picture]) for key, picture in pictures.items()} if finished else {}
    missing = [key for key in pictures if finished is None or not finished.done(key, jobs[key], outputs[key])]
    with Progress(total=len(missing)) as progress:

        def read(key: str) -> tuple[str, Tensor]:
            photo = read_photo(pictures[key])
            return key, fit(photo.size, size, options.fit).image(photo)

        def work(samples: list[tuple[str, Tensor]]) -> list[Inverted]:
            with warnings.catch_warnings(record=True) as remarks:
                warnings.simplefilter("always", UserWarning)
                found = way.invert([image for _, image in samples], [key for key, _ in samples])
            for message in dict.fromkeys(str(remark.message) for remark in remarks):
                progress.note(f"{', '.join(key for key, _ in samples)}: {message}")
            return found

        def write(key: str, found: Inverted) -> None:
            calls = f"{found.up} network calls up and {found.down} down"
            progress.results.print(f"{pictures[key]}: reconstruction {found.psnr:.2f} dB, {calls}")
            _write(outputs[key], found, {**origin, "key": key})
            if finished is not None:
                finished.add(key, jobs[key], outputs[key])
            progress.wrote(outputs[key])

        size_of = {"batch_size": int(cfg.engine.batch_size), "batch_invariant": bool(cfg.engine.batch_invariant)}
        for key, error in stream(missing, decode=read, work=work, write=write, **size_of):
            progress.advance()
            if error is not None and (_single(options) or isinstance(error, UsageError)):
                raise error
            if error is not None:
                failed[key] = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    for key, reason in failed.items():
        progress.note(f"failed: {key}: {reason}")
    return 1 if failed else 0


def _single(options: InvertOptions) -> bool:
    return options.image is not None and options.image.is_file()


def _check_inverter(options: InvertOptions) -> None:
    if options.update is not None:
        raise UsageError("--update takes the table of all inverters: give --inverter all with it")
    if options.inverter not in INVERTERS:
        known = f"Choose from {', '.join(INVERTERS)}, or all for a table of them"
        raise UsageError(f"there is no inverter {options.inverter!r}.{suggestion(options.inverter, INVERTERS)} {known}")


def checked(options: InvertOptions) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the pictures to invert and the unreadable ones of a folder, by key.

    Raises:
        UserError: wrong options, no picture, an unreadable one.
    """
    check_numbers(steps=options.steps)
    check_fit(options.fit, has_mask=False)
    source = options.image
    if source is None:
        raise UsageError("invert needs --image FILE (or a folder)")
    if not source.exists():
        raise UserError(f"there is no file or folder {source} (--image)")
    if source.is_file():
        read_photo(source)  # a bad picture costs no loading of models
        return {source.name: source}, {}
    found = listing(source)
    return {entry.key: entry.image for entry in found.entries}, dict(found.bad)


def _outputs(options: InvertOptions, key: str) -> list[Path]:
    output, folder = options.output, options.image is not None and options.image.is_dir()
    name = Path(key).with_suffix("")
    both = [Path(f"{name}.inv.safetensors"), Path(f"{name}.inv.png")]
    if folder:
        return [_folder(options) / path for path in both]
    if output is None:
        return both[:1]
    if output.is_dir() or not output.suffix:
        return [output / path for path in both]
    if output.suffix not in (".safetensors", ".png"):
        raise UsageError(f"-o {output} must end in .safetensors (the trajectory) or .png (the reconstruction), or be a folder")
    return [output]


def _folder(options: InvertOptions) -> Path:
    """Return where the results of a folder of pictures go."""
    assert options.image is not None
    return options.output or Path(f"{options.image.resolve().name}.inv")


def _check_outputs(pictures: Mapping[str, Path], outputs: Mapping[str, Sequence[Path]]) -> None:
    for key, paths in outputs.items():
        for path in paths:
            check_replaceable(path, pictures[key])
    for folder in {path.parent for paths in outputs.values() for path in paths}:
        check_writable(folder)


def _way(cfg: DictConfig, options: InvertOptions) -> Way:
    backbone = load_backbone(cfg, device=options.device, dtype=options.dtype)
    request = EditRequest("", prompt=options.prompt, seed=options.seed)
    if options.prompt and backbone.condition(request) is None:
        raise UsageError(f"the backbone {backbone_name(cfg)} reads no text: leave out --prompt")
    if options.inverter in GUIDED and backbone.condition(request) is None:
        others = ", ".join(name for name in INVERTERS if name not in GUIDED)
        raise UsageError(
            f"{options.inverter} inversion needs a backbone that reads text, which {backbone_name(cfg)} does not: use {others}"
        )
    return Way(backbone, INVERTERS[options.inverter](), backbone.inversion_levels(options.steps or STEPS), request)


def _write(paths: Sequence[Path], found: Inverted, provenance: dict[str, Any]) -> None:
    for path in paths:
        if path.suffix == ".png":
            figures = {"reconstruction_psnr": round(found.psnr, 3), "network_calls": found.up + found.down}
            write_png(path, to_pil(found.reconstruction), provenance | {"scores": figures})
        else:
            try:
                found.trajectory.save(path)
            except OSError as error:
                raise UserError(f"cannot write {path}: {error.strerror or error}") from error
