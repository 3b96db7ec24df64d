"""Lists every verb and option, for the frozen list beside this file.

After a change that is meant:   python tests/cli/listing.py > tests/cli/options.txt
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer.main

from editkit.cli import app


def listing() -> str:
    """Return one line for each verb, argument and option."""
    return "\n".join(_lines(typer.main.get_command(app), "editkit")) + "\n"


def _lines(command: Any, name: str) -> Iterator[str]:
    yield name
    for parameter in sorted(command.params, key=lambda p: (p.param_type_name, p.name)):
        flags = " ".join(parameter.opts) if parameter.param_type_name == "option" else f"<{parameter.name}>"
        yield f"  {flags}{' ...' if parameter.multiple or parameter.nargs == -1 else ''}"
    for verb, inner in sorted(getattr(command, "commands", {}).items()):
        yield from _lines(inner, f"{name} {verb}")


if __name__ == "__main__":
    print(listing(), end="")
