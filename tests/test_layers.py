"""Who may import whom: the layers of the house, read from the syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "editkit"
# Each layer may use those before it. Names that share a line do not use each other, except as said below.
LAYERS = [
    ("types", "errors"),
    ("engine",),
    ("networks", "losses", "data", "metrics", "backbones"),
    ("training",),
    ("methods",),
    ("app",),
    ("cli", "launch", "api"),
    ("__init__", "__main__"),
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
RECIPE = {"recipe", "recipe_changes", "recipe_checks", "recipe_files"}
# Backbones may use networks; whoever loads bundled weights may ask where they are.
SIBLINGS = {("backbones", "editkit.networks"), ("metrics", "editkit.backbones.assets"), ("losses", "editkit.backbones.assets")}


def imports(path: Path, *, top_only: bool = False) -> Iterator[str]:
    """Yield the full names of the modules that a file imports, anywhere in it or only when it is imported itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield str(node.module)
            if node.module == "editkit" or str(node.module).startswith("editkit."):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def wrong_layer(layer: str, imported: str) -> bool:
    """Say whether a file of `layer` must not import the module `imported`."""
    parts = imported.split(".")
    if parts[0] != "editkit" or len(parts) < 2:
        return False
    other = parts[1]
    if other in RECIPE:
        return layer not in RECIPE and layer not in ("app", "cli", "launch", "api")
    if layer in RECIPE:
        return other != "errors"
    if other == layer or other not in RANK:
        return False
    allowed = any(layer == a and f"{imported}.".startswith(f"{b}.") for a, b in SIBLINGS)
    return RANK[other] >= RANK[layer] and not allowed


def files() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if "conf" not in path.relative_to(ROOT).parts)


def layer_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0]


def test_the_rule_itself():
    assert wrong_layer("engine", "editkit.backbones.pixel") and wrong_layer("methods", "editkit.app.train")
    assert wrong_layer("losses", "editkit.data.faces") and wrong_layer("methods", "editkit.recipe")
    assert wrong_layer("networks", "editkit.backbones") and not wrong_layer("backbones", "editkit.networks.delta")
    assert not wrong_layer("app", "editkit.recipe") and not wrong_layer("methods", "editkit.engine.sample")


def test_every_module_belongs_to_a_layer():
    known = set(RANK) | RECIPE
    assert {layer_of(path) for path in files()} <= known


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downwards(path):
    assert not [name for name in imports(path) if wrong_layer(layer_of(path), name)]


@pytest.mark.parametrize("path", [p for p in files() if layer_of(p) == "methods"], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_method_stands_alone(path):
    own = ("editkit.methods." + ".".join(path.relative_to(ROOT / "methods").with_suffix("").parts[:2])).removesuffix(".__init__")
    for name in imports(path):
        assert name.split(".")[0] not in {"hydra", "omegaconf", "typer", "rich", "click"}, f"{path} imports {name}"
        if name.startswith("editkit.methods."):
            assert f"{name}.".startswith(f"{own}."), f"{path} imports another method, {name}"


def test_heavy_libraries_stay_where_they_belong():
    for path in files():
        roots = {name.split(".")[0] for name in imports(path)}
        layer = layer_of(path)
        if layer == "engine":
            assert not roots & {"diffusers", "transformers", "hydra", "lightning", "typer", "rich"}, path
        assert "hydra" not in roots or layer == "recipe", f"{path} imports hydra"
        assert "typer" not in roots or layer == "cli", f"{path} imports typer"


@pytest.mark.parametrize(
    "path",
    [p for p in files() if layer_of(p) in {"cli", *RECIPE, "__main__", "__init__"}],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_nothing_heavy_is_imported_with_the_command_line(path):
    heavy = {
        "torch",
        "diffusers",
        "transformers",
        "lightning",
        "hydra",
        "omegaconf",
        "numpy",
        "PIL",
        "kornia",
        "rich",
        "torchmetrics",
    }
    assert not {name.split(".")[0] for name in imports(path, top_only=True)} & heavy
