"""What a configuration may hold: keys that exist, values of the right type, targets that may be called.

Plain functions over plain dicts; each raises a `RecipeError` of one line that says what to type instead.
"""

from __future__ import annotations

import importlib
import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from editkit.errors import UsageError, suggestion


class RecipeError(UsageError):
    """A recipe, key or value that cannot be: wrong name, wrong type, missing or forbidden."""


MISSING = "???"
ALLOWED_MODULES = ("editkit", "torch.optim")
ALLOWED_CLASSES = (
    "lightning.pytorch.loggers.CSVLogger",
    "lightning.pytorch.loggers.TensorBoardLogger",
    "lightning.pytorch.loggers.WandbLogger",
    "lightning.pytorch.strategies.DDPStrategy",
    "lightning.pytorch.strategies.FSDPStrategy",
    "bitsandbytes.optim.AdamW8bit",
)
EXTRAS = {"bitsandbytes": "8bit"}  # packages of allowed targets that an extra of editkit brings
# Types of the keys whose default value cannot tell them, because it is null or one of several kinds.
KINDS: dict[str, tuple[Any, ...]] = {
    "run_dir": (str,),
    "data.root": (str,),
    "trainer.images": (int,),
    "trainer.steps": (int,),
    "trainer.clip_norm": (float,),
    "trainer.precision": (32, "bf16"),
    "trainer.ema": (float,),
    "trainer.ema_device": (str,),
    "trainer.accelerator": ("auto", "cpu", "gpu", "mps"),
    "engine.cache": (str,),
    "cluster.partition": (str,),
    "cluster.account": (str,),
    "cluster.time": (str, int),
    "cluster.memory_per_cpu": (str,),
}
WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list such as [1,2]",
    dict: "a section",
}


def check_override(key: str, value: Any, config: Mapping[str, Any], groups: Sequence[str], *, adding: bool = False) -> None:
    """Raise RecipeError unless `key` (dotted) exists in `config` and `value` is of the type that it has there.

    Args:
        groups: names of configuration groups, which a mistyped key may have meant.
        adding: the user wrote `+key`: it may be new.
    """
    node: Any = config
    parts = key.split(".")
    annotated = False  # an argument of a target: whether 3 may become 3.5 is for its annotation to say, when it is built
    for depth, part in enumerate(parts):
        annotated = annotated or (isinstance(node, Mapping) and "_target_" in node)
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, Mapping) and part in node:
            node = node[part]
        elif adding:
            return
        else:
            raise RecipeError(_unknown(parts, depth, node, config, groups))
    node = _referred(node, config)
    kinds = KINDS.get(key) or (() if node in (None, MISSING) else (type(node),))
    _check_kind(key, value, (float,) if kinds == (int,) and annotated else kinds, node)


def check_targets(node: Any, where: str = "") -> None:
    """Raise RecipeError for any `_target_` outside editkit, torch.optim and a few classes of other packages."""
    for place, section in sections(node, where):
        name = section["_target_"]
        inside = isinstance(name, str) and any(name.startswith(f"{module}.") for module in ALLOWED_MODULES)
        if not inside and name not in ALLOWED_CLASSES:
            raise RecipeError(
                f"{place or 'the recipe'}._target_={name} is not allowed: it must be in editkit or torch.optim, "
                f"or one of {', '.join(cls.rsplit('.', 1)[1] for cls in ALLOWED_CLASSES)}"
            )


def check_arguments(node: Any, where: str) -> None:
    """Raise RecipeError where a section lacks an argument of what it builds, has one too many or one of a wrong type."""
    for place, section in sections(node, where):
        target = locate(section["_target_"], place)
        parameters = inspect.signature(target).parameters
        given = {key: value for key, value in section.items() if not key.startswith("_")}
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        for key, value in given.items():
            if key in parameters:
                _check_kind(f"{place}.{key}", value, _hinted(target, key), value)
            elif not takes_any:
                hint = suggestion(key, parameters) or f" Leave it out: ~{place}.{key}"
                raise RecipeError(f"{place}.{key} is no argument of {section['_target_']}.{hint}")
        if not section.get("_partial_"):
            lacking = [f"{place}.{name}" for name, p in parameters.items() if _is_required(p) and name not in given]
            if lacking and not section.get("_args_"):
                raise RecipeError(f"{' and '.join(lacking)} must be given: {section['_target_']} needs it")


def missing(node: Any, where: str = "") -> list[str]:
    """Return the dotted keys that still hold `???`."""
    if node == MISSING:
        return [where]
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    return [key for name, value in items for key in missing(value, f"{where}.{name}".lstrip("."))]


def keys(node: Any, where: str = "") -> list[str]:
    """Return the dotted names of all values, without hydra's own `_..._` keys."""
    if not isinstance(node, Mapping) or (not node and where):
        return [where]
    return [
        key for name, value in node.items() if not str(name).startswith("_") for key in keys(value, f"{where}.{name}".lstrip("."))
    ]


def sections(node: Any, where: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (dotted key, section) of everything in `node` that has a `_target_`."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield where, node
        for key, value in node.items():
            yield from sections(value, f"{where}.{key}".lstrip("."))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from sections(value, f"{where}.{index}")


def locate(name: str, where: str) -> Any:
    """Import what a checked `_target_` names: a class, a function or a class method that an allowed module itself defines.

    A name that leads through an allowed module to another one (`editkit.x.os.system`) is refused.
    """
    parts = name.split(".")
    for split in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:split])
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name and module_name.startswith(error.name):
                continue
            raise
        break
    else:
        if parts[0] in EXTRAS:
            raise RecipeError(f"{where} needs {parts[0]}, which is not installed: pip install 'editkit[{EXTRAS[parts[0]]}]'")
        raise RecipeError(f"{where}._target_={name}: there is no such module")
    for part in parts[split:]:
        if not hasattr(found, part):
            raise RecipeError(f"{where}._target_={name}: {module_name} has no {part!r}.{suggestion(part, dir(found))}")
        found = getattr(found, part)
    home = str(getattr(found, "__module__", ""))
    allowed = (*ALLOWED_MODULES, "lightning.pytorch", "bitsandbytes.optim")
    if not callable(found) or not any(home == module or home.startswith(f"{module}.") for module in allowed):
        raise RecipeError(f"{where}._target_={name} is not a class or function of {' or '.join(ALLOWED_MODULES)}")
    return found


def one_line(error: BaseException) -> str:
    """Return an exception's message on one line."""
    return re.sub(r"\s+", " ", str(error)).strip()


def _unknown(parts: list[str], depth: int, node: Any, config: Mapping[str, Any], groups: Sequence[str]) -> str:
    key = ".".join(parts)
    known = [str(name) for name in node if not str(name).startswith("_")] if isinstance(node, Mapping) else []
    if depth == 0:
        known += groups
    parent = ".".join(parts[:depth])
    hint = suggestion(parts[depth], known)
    if hint:
        near = hint.split("'")[1]
        hint = f" Did you mean '{'.'.join([*parts[:depth], near, *parts[depth + 1 :]])}'?"
    else:
        hint = suggestion(key, keys(config)) or (f" {parent} has {', '.join(known)}." if parent and known else "")
    return f"there is no key {key!r} here.{hint} (+{key}=... adds a new one)"


def _referred(node: Any, config: Mapping[str, Any]) -> Any:
    """Return what an entry such as ${trainer.steps} stands for, None where that is not an entry of `config`."""
    seen: set[str] = set()
    while isinstance(node, str) and (reference := re.fullmatch(r"\$\{([\w.]+)\}", node)):
        if node in seen:
            return None
        seen.add(node)
        node = config
        for part in reference[1].split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _check_kind(key: str, value: Any, kinds: Sequence[Any], default: Any) -> None:
    """Raise RecipeError unless `value` is null or fits one of `kinds` (types, or the values allowed); without kinds all fit."""
    if value is None or value == MISSING or not kinds or any(_fits(value, kind) for kind in kinds):
        return
    if isinstance(default, Mapping) and not isinstance(value, Mapping):
        inner = [name for name in default if not str(name).startswith("_")]
        raise RecipeError(
            f"{key} is a section; set one of its keys, such as {key}.{inner[0] if inner else 'name'}=..., not {value!r}"
        )
    wanted = " or ".join(WORDS.get(kind, getattr(kind, "__name__", str(kind))) for kind in kinds)
    raise RecipeError(f"{key} must be {wanted}, not {value!r}")


def _fits(value: Any, kind: Any) -> bool:
    if not isinstance(kind, type):
        return bool(value == kind)
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, (int, float))
    if isinstance(value, str) and "${" in value:
        return True
    return isinstance(value, kind) or (kind is dict and isinstance(value, Mapping))


def _hinted(target: Any, name: str) -> tuple[type, ...]:
    """Return the plain types that an argument's annotation allows; empty when the annotation says more than that."""
    owner = target.__init__ if inspect.isclass(target) else target
    try:
        hint = typing.get_type_hints(owner).get(name)
    except (NameError, TypeError):
        return ()
    parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    plain = tuple(part for part in parts if part in (bool, int, float, str))
    return plain if len(plain) == len([part for part in parts if part is not type(None)]) else ()


def _is_required(parameter: inspect.Parameter) -> bool:
    return parameter.default is inspect.Parameter.empty and parameter.kind in (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )
