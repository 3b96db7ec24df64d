"""The kinds of questions that an evaluation can ask, by the value of a recipe's key `evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from editkit.app.questions.animals import Animals
from editkit.app.questions.base import Questions
from editkit.app.questions.domains import Domains
from editkit.app.questions.exemplars import Exemplars
from editkit.app.questions.faces import Faces
from editkit.app.questions.instructions import Instructions
from editkit.app.questions.maps import Maps
from editkit.app.questions.styles import Styles
from editkit.errors import UsageError, suggestion

QUESTIONS: Mapping[str, Questions] = MappingProxyType(
    {kind.name: kind for kind in (Faces(), Maps(), Styles(), Animals(), Instructions(), Exemplars(), Domains())}
)


def questions_named(name: str) -> Questions:
    """Return the questions of a name. Raises UsageError for an unknown one."""
    if name not in QUESTIONS:
        raise UsageError(f"evaluate={name} is unknown.{suggestion(name, QUESTIONS)} Choose from {', '.join(QUESTIONS)}")
    return QUESTIONS[name]
