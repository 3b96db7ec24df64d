"""`editkit evaluate --family`: every method of a family on an edit of its own questions, and one table of them all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from editkit.app import family_files, verdict
from editkit.app.artefacts import by_method
from editkit.app.catalogue import of_family
from editkit.app.entrants import asked_of, check_baselines, composed, load_method
from editkit.app.evaluate import conditions, results_of, trials_of
from editkit.app.markdown import check_marks, insert
from editkit.app.options import EvaluateOptions
from editkit.app.outcomes import lasting
from editkit.app.progress import remark
from editkit.app.questions import Questions
from editkit.app.questions.base import Edit
from editkit.app.standings import markdown_table, standing, terminal_table
from editkit.data.files import check_writable
from editkit.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass(frozen=True)
class Member:
    """One method of a family and the one edit that it is asked.

    Attributes:
        options: of an evaluation of this method alone.
        folder: where that is written.
    """

    name: str
    options: EvaluateOptions
    folder: Path
    cfg: DictConfig
    questions: Questions
    edit: Edit


def evaluate_family(options: EvaluateOptions) -> int:
    """Run the command; return 0 if all methods of the family are in the table, 1 if some are not, which are named at the end.

    Each method is evaluated into a folder of its own, unless the same results lie there; what baselines made is kept in the
    folder baselines for the methods after it. Then come metrics.json, table.md, report.html and sheet.png of them all.

    Raises:
        UserError: no such family, weights for a method that is not of it, a folder that cannot be written.
    """
    family = str(options.family)
    output = options.output or Path("runs") / f"evaluate-{family}-{options.split}"
    mark = f"results family {family}"
    if options.update is not None:
        check_marks(options.update, mark)
    members = members_of(options, output)
    check_writable(output)
    missing: dict[str, str] = {}
    earlier, results = {}, {}
    for member in members:
        with noted(missing, member):  # what is missing is known before anything is evaluated, and stops no other method
            earlier[member.name] = kept(member)
    for member in members:
        if member.name in earlier:
            with noted(missing, member):
                results[member.name] = earlier[member.name] or made(member)
    if results:
        standings = {name: standing(found) for name, found in results.items()}
        table = {"family": family, **conditions(options), "methods": standings, "missing": missing}
        paths = family_files.write(output, table)
        if options.update is not None:
            insert(options.update, mark, markdown_table(table))
        Console(soft_wrap=True).print(terminal_table(table))
        for path in paths:
            print(path)
    for name, reason in missing.items():
        remark(f"{name} is not in the table: {reason}")
    return 1 if missing else 0


def members_of(options: EvaluateOptions, output: Path) -> list[Member]:
    """Return the methods of the family that the options name.

    Raises:
        UsageError: no such family, weights of another method, a baseline that one of the questions does not have.
    """
    names = of_family(str(options.family), options.conf)
    weights, found = by_method(options.weights, names), []
    for name in names:
        own = replace(options, family=None, methods=[name], weights=weights[name])
        recipes = composed(own)
        questions = asked_of(recipes)
        check_baselines(own, questions)
        found.append(Member(name, own, output / name, recipes[name], questions, questions.find(questions.typical)))
    return found


@contextmanager
def noted(missing: dict[str, str], member: Member) -> Iterator[None]:
    """Note why a method could not be evaluated, and go on."""
    try:
        yield
    except UserError as error:
        missing[member.name] = str(error)


def kept(member: Member) -> dict[str, Any] | None:
    """Return the results in a method's folder, if they are of the same recipe, weights and conditions; None if they are not.

    Raises:
        UserError: there are no weights for the method.
    """
    loaded = load_method(member.options, member.name, member.cfg, member.options.weights, member.edit)
    try:
        found = json.loads((member.folder / "metrics.json").read_text(encoding="utf-8"))
        settings = found["edits"][member.edit.name]["settings"][member.name]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    wanted = {"evaluate": member.questions.name, **conditions(member.options)}
    same = {key: found.get(key) for key in wanted} == wanted and lasting(settings) == lasting(loaded.provenance)
    whole = len(found["edits"]) == 1 and (member.folder / family_files.STRIP).exists()
    return found if same and whole else None


def made(member: Member) -> dict[str, Any]:
    """Evaluate a method into its folder and return the results."""
    remark(f"{member.name}: {member.questions.name}, {member.edit.name}")
    check_writable(member.folder)
    asked = member.options, member.questions, {member.name: member.cfg}, [member.edit]
    [trial] = trials_of(*asked, baselines=member.folder.parent / "baselines")
    results = results_of(member.options, [trial])
    family_files.save_pictures(member.folder, trial)
    verdict.write(member.folder, results, [trial])
    return results
