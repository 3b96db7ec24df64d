"""The command line: one file per verb, and one place where errors become a line and an exit code.

Nothing heavy is imported before a verb runs, so that help and completion answer at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import typer

from editkit.cli import (
    compare,
    convert,
    cp,
    data,
    doctor,
    edit,
    evaluate,
    invert,
    jobs,
    methods,
    plan,
    sample,
    show,
    submit,
    task,
    train,
    weights,
)
from editkit.errors import UsageError, UserError

INTERRUPTED = 130  # what typer makes of Ctrl-C

app = typer.Typer(
    name="editkit",
    help="Train, run and measure diffusion image-editing methods.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (train, plan, edit, invert, sample, evaluate, compare, methods, show, cp, task, convert, jobs, doctor):
    verb.register(app)
app.add_typer(submit.app, name="submit")
app.add_typer(data.app, name="data")
app.add_typer(weights.app, name="weights")


@app.callback(invoke_without_command=True)
def root(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    """Train, run and measure diffusion image-editing methods."""
    if version:
        typer.echo(f"editkit {_version()}")
        raise typer.Exit


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave the process: 0 all done, 2 wrong usage, 1 anything else, 130 interrupted."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; a mistake of the user is one line on stderr, and so is a warning."""
    try:
        with _warnings_in_a_line():
            code = int(app(arguments, prog_name="editkit", standalone_mode=False) or 0)
        return code if code != INTERRUPTED else _refuse("interrupted; the same command again continues", code)
    except UserError as error:
        return _refuse(str(error), error.exit_code)
    except typer.TyperException as error:
        return _refuse(_with_help(error), getattr(error, "exit_code", UsageError.exit_code))
    except typer.Abort:
        return _refuse("stopped", 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads the output any more
        return 1
    except MemoryError:
        return _refuse("out of memory; try a smaller engine.batch_size or trainer.batch_size", 1)


def _refuse(message: str, code: int) -> int:
    if message:  # none when the help was shown instead
        typer.secho("editkit: " + " ".join(message.split()), fg=typer.colors.RED, err=True)
    return code


@contextlib.contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    """Show what editkit itself warns of without Python's file, line and source."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], filename: str, *more: Any, **named: Any) -> None:
            if category is UserWarning and f"{os.sep}editkit{os.sep}" in filename:
                typer.secho("editkit: " + " ".join(str(message).split()), fg=typer.colors.YELLOW, err=True)
            else:
                usual(message, category, filename, *more, **named)

        warnings.showwarning = show
        yield


def _with_help(error: typer.TyperException) -> str:
    message, context = error.format_message(), getattr(error, "ctx", None)
    return f"{message.rstrip('.')}; see {context.command_path} --help" if message and context else message


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("editkit")
    except PackageNotFoundError:
        return "from a checkout that is not installed"
