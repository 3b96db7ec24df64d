"""From a recipe's name to an editor that is ready: composed, built, with its trained parts, on its device."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from editkit.app.artefacts import Weights, check_backbone, choose
from editkit.app.device import device_of, dtype_of
from editkit.app.options import RecipeOptions
from editkit.app.stage_weights import stage_seconds, with_stages
from editkit.backbones.assets import PREFIX, bundled, card_of
from editkit.engine.precision import Precision
from editkit.errors import UsageError, UserError
from editkit.recipe import build, choices, compose
from editkit.training.editor import Editor

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from editkit.backbones.base import Backbone
    from editkit.training.method import Method


@dataclass(frozen=True)
class Loaded:
    """An editor and what the application needs to know of it.

    Attributes:
        name: the recipe, as the user typed it.
        size: (height, width) of the pictures that it edits.
        batch_size: requests at once.
        provenance: what made the results, for their files: recipe, weights, backbone, versions.
        targets: prompts that the trained parts in use were trained for; empty when they serve any.
        expected_psnr: reconstruction PSNR in dB on images like those that the backbone was trained on, if it is known.
        news: lines that the user should see.
        batch_invariant: fixed, padded batches, so that a result is the same to the bit whatever else is in its batch.
        compiled: layers are compiled when they are first used.
        training_seconds: of all trained parts in use; None where nothing was trained or nobody wrote it down.
    """

    name: str
    editor: Editor
    size: tuple[int, int]
    batch_size: int = 8
    provenance: dict[str, Any] = field(default_factory=dict)
    targets: tuple[Weights, ...] = ()
    expected_psnr: float | None = None
    news: tuple[str, ...] = ()
    batch_invariant: bool = False
    compiled: bool = False
    training_seconds: float | None = None


def compose_for(options: RecipeOptions, verb: str) -> DictConfig:
    """Return the composed configuration of a command that needs a method.

    Raises:
        UsageError: no method was named; and what `compose` raises.
    """
    if options.method is None:
        raise UsageError(f"{verb} needs --method NAME: choose from {', '.join(choices('recipe', options.conf)) or 'none'}")
    return compose(options.recipe_overrides(), conf_dirs=options.conf)


def short_name(method: str) -> str:
    """Return a method's name for file names: paper/asyrp -> asyrp, ./mine.yaml -> mine."""
    return Path(method).stem


def check_stages(cfg: DictConfig, name: str) -> None:
    """Raise a UserError if a stage of training makes the backbone, and it is asked for by a bundled name that is not bundled.

    What other stages make is not always needed: an edit takes no latent model, mixing takes no classifier.
    """
    for key in (cfg.get("stages") or {}).values():
        path = str(OmegaConf.select(cfg, key))
        if key.startswith("backbone.") and path.startswith(PREFIX) and path.removeprefix(PREFIX) not in bundled():
            raise UserError(
                f"{name} has no trained weights: train them with `editkit train recipe={name}`, then give --from "
                f"runs/{name}/edit in place of --method {name}"
            )


def load_editor(
    cfg: DictConfig,
    name: str,
    *,
    weights: Sequence[str] = (),
    prompt: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> Loaded:
    """Build the method and its editor.

    Args:
        cfg: from `compose_for`.
        weights: see `editkit.app.artefacts.choose`; of a recipe with stages the folder of its training.
        prompt: chooses a trained part where the method has one per text.

    Raises:
        UserError: no trained parts for this prompt or backbone, or parts that do not fit.
    """
    folder = assets_folder(str(cfg.method.get("_target_", "")))
    if weights and cfg.get("stages"):
        cfg, weights = with_stages(cfg, name, weights), ()
    if weights:
        chosen = choose(folder, weights, prompt=prompt)  # a mistake here shows before anything large is read
    check_stages(cfg, name)
    method: Method = build(cfg, "method")
    backbone: Backbone = method.backbone  # type: ignore[assignment]
    model, digest = backbone_name(cfg), backbone.digest()
    default = cfg.method.get("prompt")
    if not weights:  # a method that needs nothing trained takes any prompt, whatever lies in its folder
        chosen = choose(folder, prompt=prompt, default=default, backbone=digest) if method.needs_trained else []
    if not chosen and method.needs_trained:
        raise UserError(
            f"{name} has no trained weights for the backbone {model}: train them with `editkit train recipe={name}`, or "
            f"give --weights PATH"
        )
    check_backbone(chosen, backbone, model)
    method.to(place := device_of(device))
    _accelerate(backbone.to(dtype=dtype_of(dtype, place)), cfg)
    editor = _editor(method, chosen, name)
    return Loaded(
        name,
        editor,
        image_size(backbone),
        int(cfg.engine.batch_size),
        {
            "method": name,
            "backbone": model,
            "backbone_digest": digest,
            "weights": {str(one.name or one.path.name): [file_hash(one.path), one.strength] for one in chosen},
            "config": json.loads(json.dumps(_plain(cfg), default=str)),
            "versions": {package: _version(package) for package in ("editkit", "torch", "diffusers")},
        },
        tuple(one for one in chosen if one.target),
        reconstruction_psnr(cfg),
        _news(chosen, prompt, weights),
        bool(cfg.engine.batch_invariant),
        bool(cfg.engine.compile),
        training_seconds(chosen) if chosen else stage_seconds(cfg),
    )


def training_seconds(parts: Sequence[Weights]) -> float | None:
    """Return the seconds that trained parts took together, as their cards say; None if one does not say, or there is none."""
    times = [part.card.get("training_seconds") for part in parts]
    return None if not times or None in times else float(sum(times))


def load_backbone(cfg: DictConfig, *, device: str | None = None, dtype: str | None = None) -> Backbone:
    """Build the backbone of a configuration alone, on its device."""
    backbone: Backbone = build(cfg, "backbone")
    place = device_of(device)
    return _accelerate(backbone.to(device=place, dtype=dtype_of(dtype, place)), cfg)


def _accelerate(backbone: Backbone, cfg: DictConfig) -> Backbone:
    """Apply the memory layout and the compilation that the engine's settings ask for, in place."""
    Precision(channels_last=bool(cfg.engine.channels_last), compile=bool(cfg.engine.compile)).prepare(backbone)
    return backbone


def backbone_name(cfg: DictConfig) -> str:
    """Return what messages and files call the backbone: where its weights are from."""
    return str(cfg.backbone.get("path") or cfg.backbone.get("_target_"))


def image_size(backbone: Backbone) -> tuple[int, int]:
    """Return (height, width) of a backbone's pictures; one with latents says so itself."""
    size = getattr(backbone, "image_size", None)
    return tuple(size) if size is not None else backbone.sample_shape[1:]  # type: ignore[return-value]


def assets_folder(target: str) -> str:
    """Return the folder of a method's bundled artefacts: editkit.methods.weakly_supervised.asyrp.Asyrp -> asyrp."""
    parts = target.split(".")
    return parts[3] if parts[:2] == ["editkit", "methods"] and len(parts) > 4 else parts[-1].lower()


def reconstruction_psnr(cfg: DictConfig) -> float | None:
    """Return what the backbone's card says its plain DDIM reconstructions reach, in dB."""
    card = card_of(str(cfg.backbone.get("path")))
    figure = (card.get("figures") or card).get("reconstruction_psnr")
    return None if figure is None else float(figure)  # not every backbone has a card


def file_hash(path: Path) -> str:
    """Return the first 16 hex digits of a file's SHA-256."""
    import hashlib

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _editor(method: Method, chosen: Sequence[Weights], name: str) -> Editor:
    try:
        editor = method.editor([one.load() for one in chosen])
    except (ValueError, KeyError, RuntimeError) as error:
        files = ", ".join(str(one.path) for one in chosen)
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the weights {files} do not fit {name} on this backbone: {reason}") from error
    if editor is None:
        raise UsageError(f"{name} makes no edits")
    return editor


def _news(chosen: Sequence[Weights], prompt: str | None, weights: Sequence[str]) -> tuple[str, ...]:
    if prompt is not None or weights or not any(one.target for one in chosen):
        return ()
    return (f"no --prompt given: {' and '.join(one.target for one in chosen if one.target)}",)


def _plain(cfg: DictConfig) -> dict[str, Any]:
    sections = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(sections, dict)
    return {key: sections.get(key) for key in ("method", "engine")}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
