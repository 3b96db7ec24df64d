"""Looks at this machine: does everything that editkit needs work here?"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from editkit.app import slurm
from editkit.errors import UserError

NEEDED = (
    "torch",
    "diffusers",
    "transformers",
    "lightning",
    "hydra-core",
    "omegaconf",
    "typer",
    "safetensors",
    "kornia",
    "torchmetrics",
)
PLENTY_GB = 5.0
ASSETS = Path(__file__).parent.parent / "assets"


def examine(say: Callable[[str], object]) -> int:
    """Tell what there is, line by line; return 0 if all that editkit needs works, else 1."""
    problems: list[str] = []
    parts = (("software", software), ("hardware", hardware), ("SLURM", cluster), ("disk", disk), ("bundled weights", weights))
    for title, part in parts:
        say(f"{title}:")
        for line, problem in part():
            say(f"  {'!' if problem else ' '} {line}")
            problems += [problem] if problem else []
    for problem in problems:
        say(f"problem: {problem}")
    say("everything that editkit needs works here" if not problems else f"{len(problems)} problem(s), see above")
    return 1 if problems else 0


def software() -> Iterator[tuple[str, str]]:
    """Yield (line, problem or nothing) for Python and the packages that editkit stands on."""
    yield f"Python {platform.python_version()} on {platform.platform(terse=True)}", ""
    for name in ("editkit", *NEEDED):
        try:
            yield f"{name} {importlib.metadata.version(name)}", ""
        except importlib.metadata.PackageNotFoundError:
            how = "" if name == "editkit" else f"{name} is not installed: pip install {name}"
            yield f"{name} not installed as a package", how
    for module in ("torch", "diffusers", "transformers", "lightning.pytorch", "hydra", "kornia", "torchmetrics"):
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever a broken package raises is what we look for
            yield f"{module} does not import", f"import {module} fails: {' '.join(str(error).split())[:150]}"


def hardware() -> Iterator[tuple[str, str]]:
    """Yield lines on processors, memory and GPUs."""
    import torch

    from editkit.engine.precision import computes_bf16

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9 if hasattr(os, "sysconf") else 0.0
    yield f"{os.cpu_count()} processors, {torch.get_num_threads()} threads for torch, {memory:.0f} GB of memory", ""
    yield "processors compute in bf16" if computes_bf16("cpu") else "processors would imitate bf16: fp32 is taken instead", ""
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        free = torch.cuda.mem_get_info(index)[0] / 1e9
        yield f"cuda:{index} {about.name}, {about.total_memory / 1e9:.0f} GB, {free:.0f} GB of it free", ""
    if torch.backends.mps.is_available():
        yield "mps: Apple GPU", ""
    elif not torch.cuda.is_available():
        yield "no GPU: the toy recipes run on the processor, the paper recipes need one", ""


def cluster() -> Iterator[tuple[str, str]]:
    """Yield SLURM's partitions. That it is absent or not running is no problem: only `editkit submit` needs it."""
    try:
        lines = slurm.partitions()
    except UserError as error:
        yield f"installed but not running, so editkit submit cannot be used: {error}", ""
        return
    yield from ((line, "") for line in (["not here: editkit submit needs it"] if lines is None else lines))


def disk() -> Iterator[tuple[str, str]]:
    """Yield the free space where runs are written."""
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    writable = os.access(Path.cwd(), os.W_OK)
    yield f"{free:.0f} GB free in {Path.cwd()}" + ("" if free > PLENTY_GB else " (paper recipes need more)"), ""
    if not writable:
        yield "this folder cannot be written", f"runs cannot be written to {Path.cwd()}: go elsewhere or give run_dir=..."


def weights() -> Iterator[tuple[str, str]]:
    """Yield the bundled weights with their size and what their cards say."""
    folders = sorted(path for path in ASSETS.glob("*") if path.is_dir()) if ASSETS.is_dir() else []
    if not folders:
        yield "none", f"no bundled weights in {ASSETS}: install editkit again"
    for folder in folders:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
        broken = [path.name for path in folder.rglob("*.safetensors") if not _opens(path)]
        problem = f"{folder / broken[0]} cannot be read: install editkit again" if broken else ""
        yield f"editkit:{folder.name} {size:.1f} MB {_card(folder)}".rstrip(), problem


def _opens(path: Path) -> bool:
    """Say whether a safetensors file is whole; reads its header alone."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return bool(list(file.keys()))
    except (SafetensorError, OSError):
        return False


def _card(folder: Path) -> str:
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    told = [f"{key} {card[key]}" for key in ("summary", "recipe", "steps", "licence") if key in card]
    return ", ".join(told)
