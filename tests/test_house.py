"""The house as a whole: every configuration composes, the wheel holds what it must, the README tells the truth, help is fast."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import typer.main
from omegaconf import OmegaConf

from editkit import recipe
from editkit.app.catalogue import END, START, markdown_table
from editkit.cli import app
from editkit.recipe_checks import missing

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
GROUPS = [(group, name) for group in recipe.groups() for name in recipe.choices(group)]


def composed(group: str, name: str):
    """Return the configuration with this choice, and a text for every value that a user must give."""
    cfg = recipe.compose([f"{group}={name}"])
    for key in missing(OmegaConf.to_container(cfg)):
        OmegaConf.update(cfg, key, "given")
    return cfg


def test_every_file_is_a_choice_of_a_group():
    files = {path.resolve() for root in ("conf", "recipes") for path in (ROOT / root).rglob("*.yaml")} - {
        ROOT / "conf" / "train.yaml"
    }
    assert len(files) == len(GROUPS) > 10


def test_no_bundled_file_tells_where_it_was_made():
    texts = [path for path in (ROOT / "editkit" / "assets").rglob("*") if path.suffix in (".json", ".yaml", ".txt")]
    assert len(texts) > 10
    for path in texts:
        assert not re.search(r'"(/|\w:\\)\w', path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize(("group", "name"), GROUPS, ids=lambda part: part)
def test_every_configuration_composes_and_fits_what_it_builds(group, name):
    recipe.validate(composed(group, name))


@pytest.mark.parametrize("name", recipe.choices("recipe"))
def test_a_recipe_says_what_it_is(name):
    card = next(card for card in recipe.cards() if card.recipe == name)
    text = recipe.recipe_file(name).read_text(encoding="utf-8")
    assert text.startswith("# @package _global_\n#"), "its first lines are the commands to run it"
    assert f"recipe={name}" in text.partition("\ndefaults:")[0] or f"--method {name}" in text.partition("\ndefaults:")[0]
    assert card.family and card.summary and card.licence, "its card says family, summary and licence"


def test_the_table_of_methods_is_in_step():
    table = START + README.partition(START)[2].partition(END)[0] + END
    assert table == markdown_table(), "run: make table"


def readme_commands() -> list[str]:
    return re.findall(r"^(editkit .*?)\s*(?:#.*)?$", README, flags=re.MULTILINE)


def test_the_readme_has_commands():
    assert len(readme_commands()) >= 5


@pytest.mark.parametrize("line", readme_commands())
def test_the_commands_of_the_readme_can_be_typed(line):
    name, verb, *words = shlex.split(line)
    command = typer.main.get_command(app).commands[verb]
    if hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    typed = command.make_context(f"{name} {verb}", words).params
    overrides = [text for text in typed.get("overrides") or [] if "=" in text]
    variants = [list(one.values()) for one in recipe.sweep(overrides)] if typed.get("sweep") else [overrides]
    for method in typed.get("methods") or [typed.get("method")]:
        for variant in variants:
            recipe.compose([*([f"recipe={method}"] if method else []), *variant])


def test_the_make_targets_of_the_readme_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert {"demo", "test"} <= set(re.findall(r"^`?make ([a-z-]+)", README, flags=re.MULTILINE)) <= targets
    assert set(re.findall(r"`make ([a-z-]+)`", README)) <= targets


def survivals() -> list[str]:
    """Return the tests that the README's table of what survives what names."""
    section = README.partition("## What survives what\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    found = [re.search(r"`(tests/[\w/]+\.py::\w+)` \|$", row) for row in rows]
    assert all(found), [row for row, name in zip(rows, found, strict=True) if not name]
    return [name[1] for name in found if name]


def test_much_survives():
    assert len(survivals()) > 20


@pytest.mark.parametrize("name", survivals())
def test_what_survives_what_is_tested(name):
    path, _, function = name.partition("::")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def modules_after(*arguments: str) -> set[str]:
    """Return the top-level modules that a command has imported when it ends."""
    report = "print('|'.join(name for name in sys.modules if '.' not in name), file=sys.stderr)"
    code = f"import sys\nfrom editkit.cli import run\nrun({list(arguments)!r})\n{report}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(done.stderr.splitlines()[-1].split("|"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("edit", "--help"),
        ("data", "--help"),
        ("submit", "train", "--help"),
        ("methods",),
        ("methods", "--markdown"),
        ("show", recipe.choices("recipe")[0]),
        ("show", "no-such"),
    ],
    ids=" ".join,
)
def test_light_commands_import_nothing_heavy(arguments):
    heavy = {
        "torch",
        "diffusers",
        "transformers",
        "lightning",
        "pytorch_lightning",
        "hydra",
        "omegaconf",
        "numpy",
        "PIL",
        "kornia",
        "torchmetrics",
        "scipy",
    }
    assert not modules_after(*arguments) & heavy


def test_help_costs_what_typer_costs():
    """Beside the smallest Typer program of about as many commands, in processor time: a busy machine slows both."""
    smallest = "import typer\napp = typer.Typer()\nfor n in range(16):\n    app.command(f'c{n}')(lambda: None)\napp(['--help'])"

    def cost(*arguments: str) -> float:
        before = os.times()
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True, cwd=ROOT)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    pairs = [(cost("-m", "editkit", "--help"), cost("-c", smallest)) for _ in range(3)]
    ratio = min(own for own, _ in pairs) / min(other for _, other in pairs)
    assert ratio < 2, f"editkit --help costs {ratio:.1f} times what a program of empty commands does: it imports too much"


@pytest.mark.slow
def test_the_wheel_holds_configurations_recipes_and_weights(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    skip = shutil.ignore_patterns("__pycache__")
    for name in ("editkit", "conf", "recipes"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    held = {path.relative_to(tmp_path / "installed").as_posix() for path in (tmp_path / "installed").rglob("*") if path.is_file()}
    wanted = {f"editkit/conf/{path.relative_to(ROOT / 'conf').as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
    wanted |= {
        f"editkit/conf/recipe/{path.relative_to(ROOT / 'recipes').as_posix()}" for path in (ROOT / "recipes").rglob("*.yaml")
    }
    package = [path for path in (ROOT / "editkit").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    wanted |= {path.relative_to(ROOT).as_posix() for path in package}
    assert not wanted - held
    assert not [name for name in held if not name.startswith("editkit")], "nothing else leaks into site-packages"

    alone = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    name = recipe.choices("recipe")[0]
    command = [sys.executable, "-m", "editkit", "train", f"recipe={name}", "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=alone, check=True)
    assert f"recipe: {name}\n" in done.stdout
