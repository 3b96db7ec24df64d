"""A training command in a folder that holds a run: continue it, with other settings if that is asked for, or start anew."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from editkit import recipe
from editkit.app.progress import remark
from editkit.errors import UserError
from editkit.recipe_changes import listed
from editkit.training.checkpoint import saved
from editkit.training.fitting import DoesNotFit
from editkit.training.rundir import RunDir, is_first_process

if TYPE_CHECKING:
    from omegaconf import DictConfig

FORMER = ".config.yaml.former"  # the run's configuration, until it is seen that its checkpoint takes an accepted one


def settle(cfg: DictConfig, folder: Path | str, *, fresh: bool = False, accept: bool = False) -> None:
    """Freeze a configuration in the folder of its run.

    Args:
        fresh: move a run that is there aside, whatever its configuration.
        accept: continue a run of another configuration, with this one.

    Raises:
        RecipeError: a configuration that cannot be, or another one than the run's that is not accepted.
        UserError: the folder cannot be written, or a process holds the run.
    """
    run = RunDir(Path(folder))
    recipe.validate(cfg)
    if fresh:
        move_aside(run)
    changes = recipe.changes(cfg, run.path)
    if not changes:
        recipe.freeze(cfg, run.path)
        return
    if not accept:
        _show(f"{run.path} holds a run with other settings:", changes)
        rest = f" and {len(changes) - 1} more" if len(changes) > 1 else ""
        raise recipe.RecipeError(
            f"{run.path} holds a run with other settings ({changes[0]}{rest}): add --accept-changes to continue it with these, "
            f"--fresh to start anew (the run is kept aside), or -o ANOTHER_FOLDER"
        )
    with run.locked():
        former = run.config.read_bytes()
        recipe.freeze(cfg, run.path, accept=True)
        (run.path / FORMER).write_bytes(former)
    _show(f"{run.path} continues with changed settings:", changes)


def _show(title: str, changes: list[recipe.Change]) -> None:
    for line in (title, *(f"  {line}" for line in listed(changes))):
        remark(line)


def move_aside(run: RunDir) -> None:
    """Rename the folder of a run, if it holds one, to the first free NAME.earlier-N beside it, and say so.

    Raises:
        UserError: a process holds the run, or the folder cannot be renamed.
    """
    if not run.config.exists() and not saved(run.checkpoints):
        return
    place = run.path.resolve()  # where a link leads to, so that the new run is on the same disk
    aside = next(path for n in count(1) if not (path := place.with_name(f"{place.name}.earlier-{n}")).exists())
    with run.locked():
        try:
            place.rename(aside)
            place.mkdir()
        except OSError as error:
            raise UserError(f"cannot move {place} aside ({error.strerror}); start in another folder with -o") from error
    remark(f"the earlier run is kept in {aside}")


@contextlib.contextmanager
def taken_back_unless_it_fits(run: RunDir) -> Iterator[None]:
    """Give a run its former configuration back if its checkpoint does not take the one that was accepted."""
    former, first = run.path / FORMER, is_first_process()
    try:
        yield
    except DoesNotFit:
        if first and former.exists():
            former.replace(run.config)
        raise
    finally:
        if first:
            with contextlib.suppress(OSError):
                former.unlink(missing_ok=True)
