"""What takes part in an evaluation: the methods with their weights, and the baselines that apply beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from editkit.app.artefacts import by_method
from editkit.app.loaded import Loaded, assets_folder, compose_for, load_editor, short_name
from editkit.app.options import EvaluateOptions, RecipeOptions
from editkit.app.questions import Questions, questions_named
from editkit.app.questions.base import NO_EDIT, Edit
from editkit.errors import UsageError, UserError, suggestion
from editkit.recipe import compose, sweep
from editkit.types import EditRequest

if TYPE_CHECKING:
    from omegaconf import DictConfig


def composed(options: EvaluateOptions) -> dict[str, DictConfig]:
    """Return the configuration of each method by its short name, in the order typed; of each value of a sweep.

    Raises:
        UsageError: no method, two of one name; and what `compose` raises.
    """
    asked = [(short_name(str(one.method)), one) for one in options.recipes()]
    named = [(name, compose_for(one, "evaluate")) for name, one in swept(options, asked)]
    if len(dict(named)) < len(named):
        raise UsageError(f"two methods of one name, {' '.join(options.methods)}: evaluate them one by one")
    return dict(named)


def swept(options: EvaluateOptions, asked: Sequence[tuple[str, RecipeOptions]]) -> list[tuple[str, RecipeOptions]]:
    """Return each recipe once for every value of the sweep, if there is one, with names that say the value."""
    if not options.sweep:
        return list(asked)
    found = []
    for name, one in asked:
        variants = sweep(one.overrides)
        varying = [key for key in variants[0] if len({variant[key] for variant in variants}) > 1]
        for variant in variants:
            told = " ".join(variant[key][key.rfind(".") + 1 :] for key in varying)
            found.append((f"{name} {told}", replace(one, overrides=list(variant.values()))))
    return found


def asked_of(recipes: Mapping[str, DictConfig]) -> Questions:
    """Return the questions that the recipes are evaluated by.

    Raises:
        UsageError: they are not the same, or unknown.
    """
    kinds = {name: str(cfg.evaluate) for name, cfg in recipes.items()}
    if len(set(kinds.values())) > 1:
        listed = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
        raise UsageError(
            f"the methods are asked different questions ({listed}): say which, as in evaluate={next(iter(kinds.values()))}"
        )
    return questions_named(next(iter(kinds.values())))


def weights_of(options: EvaluateOptions, names: Sequence[str]) -> dict[str, list[str]]:
    """Return the weights that the user gave each method: all of them to a single one, METHOD=PATH to several."""
    return by_method(options.weights, names) if len(options.methods) > 1 else dict.fromkeys(names, options.weights)


def chosen_edits(options: EvaluateOptions, questions: Questions, recipes: Mapping[str, DictConfig]) -> list[Any]:
    """Return the edits that the user named, or else those that the questions ask as a rule.

    Raises:
        UsageError: no such edit; UserError: see `Questions.usual`.
    """
    if options.edits:
        return list({edit.name: edit for edit in map(questions.find, options.edits)}.values())
    weights = weights_of(options, list(recipes))
    folders = {name: assets_folder(str(cfg.method.get("_target_", ""))) for name, cfg in recipes.items()}
    parts = {name: () if cfg.get("stages") else weights[name] for name, cfg in recipes.items()}  # stages are for any edit
    return questions.usual({name: (folder, parts[name]) for name, folder in folders.items()})


def check_baselines(options: EvaluateOptions, questions: Questions) -> None:
    """Raise a UsageError for a baseline that these questions do not have."""
    known = questions.baselines
    for name in options.baselines:
        if name not in (*known, "none"):
            listed = f"{', '.join(known)}; none for none"
            raise UsageError(f"no baseline {name!r} for {questions.name}.{suggestion(name, known)} There are: {listed}")


def load_method(options: EvaluateOptions, name: str, cfg: DictConfig, weights: Sequence[str], edit: Edit) -> Loaded:
    """Return one method, ready for the edit. Raises UserError if there are no weights for it."""
    return load_editor(cfg, name, weights=weights, prompt=edit.prompt, device=options.device, dtype=options.dtype)


def load_methods(options: EvaluateOptions, recipes: Mapping[str, DictConfig], edit: Edit) -> dict[str, Loaded]:
    """Return each method, ready for the edit, by name.

    Raises:
        UserError: no weights for it, named with the method and the edit; methods for pictures of different sizes.
    """
    loaded, weights = {}, weights_of(options, list(recipes))
    for name, cfg in recipes.items():
        try:
            loaded[name] = load_method(options, name, cfg, weights[name], edit)
        except UserError as error:
            whose = f"{name} for the edit {edit.name!r}" if edit.prompt else name
            raise type(error)(f"{whose}: {error}") from error
    sizes = {one.size for one in loaded.values()}
    if len(sizes) > 1:
        listed = ", ".join(f"{name} {one.size[0]} x {one.size[1]}" for name, one in loaded.items())
        raise UsageError(f"the methods edit pictures of different sizes ({listed}): evaluate them one by one")
    return loaded


def load_baselines(
    options: EvaluateOptions, questions: Questions, cfg: DictConfig, methods: Mapping[str, Loaded], edit: Edit
) -> dict[str, Loaded | None]:
    """Return the baselines that the user named, or all that apply; None is no edit at all.

    Args:
        cfg: configuration of the method whose backbone they take.

    Raises:
        UserError: the weights of one are missing.
    """
    found: dict[str, Loaded | None] = {}
    told_by_code = any(hasattr(getattr(one.editor, "backbone", None), "semantic_code") for one in methods.values())
    plain = questions.plain if told_by_code and questions.plain else None
    for name in baselines(options, questions, methods):
        own = questions.equipped.get(name, plain)
        try:
            found[name] = None if name == NO_EDIT else _load_baseline(options, own, cfg, name, edit)
        except UserError as error:
            raise type(error)(f"the baseline {name}: {error}; --baseline chooses others, or none") from error
    if options.baselines:
        return found
    size = next(iter(methods.values())).size
    return {name: one for name, one in found.items() if one is None or applies(name, one, size, edit, questions)}


def baselines(options: EvaluateOptions, questions: Questions, methods: Mapping[str, Any]) -> list[str]:
    """Return the names of the baselines that the user named, or of those of the questions, without the methods themselves."""
    typed = {str(name).partition(" ")[0] for name in methods}
    return [name for name in dict.fromkeys(options.baselines or questions.baselines) if name not in ("none", *typed)]


def applies(name: str, loaded: Loaded, size: tuple[int, int], edit: Edit, questions: Questions) -> bool:
    """Say whether a baseline makes sense: pictures of the methods' size, and a backbone that it can use as it is.

    SDEdit needs something that says what is wanted, a text or a model that knows the target alone, or else it only draws a
    picture anew; and a network that was taught to edit, or that is told by a code what it draws, is no plain diffusion
    model.
    """
    backbone = getattr(loaded.editor, "backbone", None)
    if loaded.size != size:
        return False
    if name == "sdedit":
        if backbone is None or not _plain(backbone):
            return False
        return questions.target_models or backbone.condition(EditRequest("", prompt=edit.prompt)) is not None
    return name not in ("reconstruction", "p2p", "clip-guided") or backbone is None or _plain(backbone)


def _plain(backbone: Any) -> bool:
    return getattr(backbone, "extra_channels", 0) == 0 and not hasattr(backbone, "semantic_code")


def _load_baseline(options: EvaluateOptions, own: Sequence[str] | None, cfg: DictConfig, name: str, edit: Edit) -> Loaded:
    """Return a baseline, with overrides of its own or, for None, on the backbone of a method's configuration."""
    other = compose([f"recipe={name}", *(own or ())], conf_dirs=options.conf)
    if own is None:
        other.backbone = cfg.backbone
    other.engine = cfg.engine
    return load_editor(other, name, prompt=edit.prompt, device=options.device, dtype=options.dtype)
