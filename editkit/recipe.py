"""Recipes: from strings to a checked configuration, and from a configuration to objects. The only module that imports hydra.

`compose` makes a configuration of a recipe and overrides, `freeze` and `thaw` keep it in a run directory, `build` makes
the objects it names. Nothing that a configuration names is imported unless it is on a short allow-list, and every mistake
that a user can make is a `RecipeError` of one line. Reading names and cards needs neither hydra nor torch.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from editkit.errors import UserError
from editkit.recipe_changes import Change, differences
from editkit.recipe_checks import RecipeError, check_arguments, check_override, check_targets, keys, missing, one_line
from editkit.recipe_files import Card, cards, choices, groups, no_choice, recipe_file

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = [
    "Card",
    "Change",
    "RecipeError",
    "build",
    "cards",
    "changes",
    "choices",
    "compose",
    "freeze",
    "frozen",
    "groups",
    "keys",
    "recipe_file",
    "sweep",
    "thaw",
    "validate",
]

CONFIG_FILE = "config.yaml"


def compose(
    overrides: Sequence[str], *, prompts: Mapping[str, str | None] | None = None, conf_dirs: Sequence[Path | str] = ()
) -> DictConfig:
    """Return the configuration of `overrides`, such as `["recipe=asyrp", "trainer.steps=200"]`.

    Args:
        prompts: texts by key, `prompt` for short of `method.prompt`; set as they are, whatever they contain. None is left out.
        conf_dirs: folders laid out like editkit's conf/, searched after it. `recipe=` also takes the path of a yaml file.

    Raises:
        RecipeError: an unknown recipe, group or key (nested ones too), a value of another type, a forbidden `_target_`.
    """
    from omegaconf import OmegaConf

    with _with_own_recipe(overrides, conf_dirs) as (texts, folders):
        items = [_parse(text) for text in texts]
        chosen = [text for text, item in zip(texts, items, strict=True) if _is_choice(item, folders)]
        cfg = _compose(chosen, folders)
        if len(chosen) < len(texts):
            plain: Any = OmegaConf.to_container(cfg)
            for item in items:
                if not _is_choice(item, folders):
                    check_override(
                        item.key_or_group, item.value(), plain, groups(folders), adding=item.is_add() or item.is_force_add()
                    )
            cfg = _compose(texts, folders)
        typed = {item.key_or_group: item.value() for item in items}
    name = typed.get("recipe")
    if typed.get("trainer.steps") and "trainer.images" not in typed:
        cfg.trainer.images = None  # the length that was typed, not the recipe's in the other unit
    _finish(cfg, name, overrides, prompts or {})
    check_targets(OmegaConf.to_container(cfg))
    return cfg


def sweep(overrides: Sequence[str]) -> list[dict[str, str]]:
    """Return every combination of the overrides' several values (`seed=1,2`, `seed=range(1,4)`) as overrides by their key.

    Raises:
        RecipeError: an override that cannot be read, or none with several values.
    """
    items = [_parsed(text) for text in overrides]
    if not any(item.is_sweep_override() for item in items):
        raise RecipeError("a sweep needs an override with several values, such as seed=1,2,3")
    values = [
        [f"{item.get_key_element()}={value}" for value in item.sweep_string_iterator()] if item.is_sweep_override() else [text]
        for item, text in zip(items, overrides, strict=True)
    ]
    return [dict(zip((item.get_key_element() for item in items), chosen, strict=True)) for chosen in product(*values)]


def frozen(cfg: DictConfig) -> dict[str, Any]:
    """Return the configuration as plain values, all references followed: what a checkpoint keeps.

    Raises:
        RecipeError: a required value (`???`) was not given.
    """
    from omegaconf import OmegaConf

    lacking = missing(OmegaConf.to_container(cfg))
    if lacking:
        raise RecipeError(f"{' and '.join(lacking)} must be given: add {lacking[0]}=...")
    return dict(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]


def changes(cfg: DictConfig, run_dir: Path | str) -> list[Change]:
    """Return what differs between a checked configuration and the one frozen in `run_dir`, but for what may; none if none is.

    What refers to another key is compared as it is written, for the other key is compared too; but the learning rate's
    schedule by its values: it may follow from the length of the run, which may change without a word.
    """
    if not (Path(run_dir) / CONFIG_FILE).exists():
        return []
    return differences(_written(thaw(run_dir)), _written(cfg))


def _written(cfg: DictConfig) -> dict[str, Any]:
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(cfg)
    if OmegaConf.select(cfg, "method.scheduler") is not None:
        plain["method"]["scheduler"] = OmegaConf.to_container(cfg.method.scheduler, resolve=True)
    return dict(plain)


def freeze(cfg: DictConfig, run_dir: Path | str, *, accept: bool = False) -> Path:
    """Check the configuration, write it to `run_dir`/config.yaml and return that path; a run that is there is continued.

    Args:
        accept: also a run of another configuration.

    Raises:
        RecipeError: no method, arguments that do not fit, or a folder that holds a run of another configuration.
        UserError: the folder cannot be written.
    """
    import yaml
    from omegaconf import OmegaConf

    _section(cfg, "method")
    validate(cfg)
    plain = OmegaConf.to_container(cfg)  # references stay references: what follows from another key is written once
    path = Path(run_dir) / CONFIG_FILE
    found = [] if accept else changes(cfg, run_dir)
    if found:
        raise RecipeError(
            f"{run_dir} holds a run with {found[0].key}={found[0].before}, now it is {found[0].now}: "
            f"repeat that command to continue it, or start another with run_dir=NEW_FOLDER"
        )
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120), encoding="utf-8")
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise UserError(f"cannot write {path}: {error.strerror}; choose another folder with run_dir=...") from error
    return path


def thaw(run_dir: Path | str) -> DictConfig:
    """Return the configuration that `freeze` wrote to a run directory (or the path of such a file)."""
    from omegaconf import OmegaConf

    path = Path(run_dir)
    path = path / CONFIG_FILE if path.is_dir() or path.suffix != ".yaml" else path
    try:
        cfg = OmegaConf.create(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{run_dir} is not a run directory: it has no {CONFIG_FILE}") from None
    except Exception as error:
        raise RecipeError(f"cannot read {path}: {one_line(error)}") from error
    OmegaConf.set_struct(cfg, True)
    check_targets(OmegaConf.to_container(cfg))
    return cfg  # type: ignore[return-value]


def validate(cfg: DictConfig) -> None:
    """Import everything that the configuration names and hold its arguments against the signatures; build nothing.

    Raises:
        RecipeError: an argument that is missing, unknown or of a wrong type.
    """
    plain = frozen(cfg)
    check_targets(plain)
    for key, section in plain.items():
        check_arguments(section, key)


def build(cfg: DictConfig, key: str, **arguments: Any) -> Any:
    """Make the object of section `key` (`method`, `backbone`, `data`...), with `arguments` added to the section's own.

    Raises:
        RecipeError: the section is missing, or its arguments do not fit.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    plain = _section(cfg, key)
    check_targets(plain, key)
    check_arguments({**plain, **arguments}, key)
    try:
        return instantiate(plain, _convert_="all", **arguments)
    except InstantiationException as error:
        raise (error.__cause__ or error) from None


@contextmanager
def _with_own_recipe(overrides: Sequence[str], conf_dirs: Sequence[Path | str]) -> Iterator[tuple[list[str], list[Path]]]:
    """Check the folders, and let `recipe=some/file.yaml` be found by its stem while composing."""
    folders = [Path(folder).resolve() for folder in conf_dirs]
    for folder in folders:
        if not folder.is_dir():
            raise RecipeError(f"--conf {folder} is not a folder")
    texts = list(overrides)
    with TemporaryDirectory(prefix="editkit-recipe-") as own:
        for index, text in enumerate(texts):
            key, _, value = text.partition("=")
            if key == "recipe" and value.endswith((".yaml", ".yml")):
                file = Path(value).expanduser().resolve()
                if not file.is_file():
                    raise RecipeError(f"there is no recipe file {value}")
                (Path(own) / "recipe").mkdir(exist_ok=True)
                (Path(own) / "recipe" / f"{file.stem}.yaml").symlink_to(file)
                texts[index] = f"recipe={file.stem}"
                folders.append(Path(own))
        yield texts, folders


def _parse(text: str) -> Any:
    item = _parsed(text)
    if item.is_sweep_override():
        key = item.key_or_group
        raise RecipeError(f"{text!r} reads as several values; a list is written {key}=[...], a text with a comma \"{key}='...'\"")
    return item


def _parsed(text: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if "=" not in text and not text.startswith("~"):
        known = [f"recipe={name}" for name in choices("recipe")]
        hint = f" Did you mean 'recipe={text}'?" if f"recipe={text}" in known else ""
        raise RecipeError(f"{text!r} is not of the form key=value.{hint}")
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:
        key, _, value = text.partition("=")
        quoted = value.replace("'", "\\'")
        raise RecipeError(f"cannot read {text!r}; if the value is one text, quote it: \"{key}='{quoted}'\"") from None


def _is_choice(item: Any, folders: Sequence[Path]) -> bool:
    """Say whether an override chooses a file of a group, and that the file exists."""
    if item.key_or_group not in groups(folders):
        return False
    value = item.value()
    if item.is_delete() or value is None:
        return True
    if not isinstance(value, str) or value not in choices(item.key_or_group, folders):
        raise RecipeError(no_choice(item.key_or_group, str(value), folders))
    return True


def _compose(overrides: Sequence[str], folders: Sequence[Path]) -> DictConfig:
    import hydra
    import yaml
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    extra = [f"hydra.searchpath=[{','.join(repr(f'file://{folder}') for folder in folders)}]"] if folders else []
    try:
        with hydra.initialize_config_module("editkit.conf", version_base="1.3"):
            return hydra.compose("train", overrides=[*extra, *overrides])
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise RecipeError(f"cannot compose {' '.join(overrides) or 'the configuration'}: {one_line(error)}") from error


def _finish(cfg: DictConfig, name: str | None, overrides: Sequence[str], prompts: Mapping[str, str | None]) -> None:
    """Set what strings cannot carry: the recipe's name, the prompts, the run directory."""
    from omegaconf import OmegaConf, open_dict

    given = {key if key in cfg or "." in key else f"method.{key}": text for key, text in prompts.items() if text is not None}
    for key, text in given.items():
        section, _, last = key.rpartition(".")
        if last not in (OmegaConf.select(cfg, section) if section else cfg):
            raise RecipeError(f"recipe {name or '(none)'} takes no --{last.replace('_', '-')}: it has no {key}")
        OmegaConf.update(cfg, key, _escaped(text))
    with open_dict(cfg):
        cfg.recipe = name
    if cfg.get("run_dir") is None:
        cfg.run_dir = _run_dir(name, overrides, given)


def _run_dir(name: str | None, overrides: Sequence[str], prompts: Mapping[str, str]) -> str:
    """Name a run after its recipe, prompts and overrides: the same command finds its own folder again, on every rank."""
    words = [re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-") for text in prompts.values()]
    others = sorted(text for text in overrides if not text.startswith("recipe="))
    digest = [hashlib.sha256("\n".join(others).encode()).hexdigest()[:6]] if others else []
    return str(Path("runs") / "-".join([(name or "no-recipe").replace("/", "-"), *filter(None, words), *digest]))


def _escaped(text: str) -> str:
    """Return the text with `${` made literal, for otherwise it would be a reference."""
    return re.sub(r"(\\*)\$\{", lambda found: f"{found[1]}{found[1]}\\${{", text)


def _section(cfg: DictConfig, key: str) -> dict[str, Any]:
    """Return a section that names what to build, as plain values; what other sections lack does not matter.

    Raises:
        RecipeError: there is no such section, or it lacks a required value (`???`), its own or one that it refers to.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationToMissingValueError

    node = OmegaConf.select(cfg, key)
    if "_target_" not in (node or {}):
        raise RecipeError(f"this configuration has no {key}: choose a recipe with recipe=NAME ({', '.join(choices('recipe'))})")
    lacking = missing(OmegaConf.to_container(node), key)
    try:
        return frozen(cfg) if lacking else dict(OmegaConf.to_container(node, resolve=True))  # type: ignore[arg-type]
    except InterpolationToMissingValueError:
        return frozen(cfg)  # says which value it is
