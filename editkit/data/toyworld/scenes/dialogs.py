"""Conversations about a scene: a vague wish, a question, an answer, and the explicit instruction that follows from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from editkit.data.toyworld.scenes.edits import KINDS, SceneEdit, draw_edit, name_of
from editkit.data.toyworld.scenes.factors import Scene
from editkit.data.toyworld.scenes.words import (
    COLOUR_WORDS,
    IN_STYLE,
    SETTINGS,
    SHAPE_WORDS,
    SIDES,
    TEXTURE_WORDS,
    a,
    identity,
    noun,
    pick,
    side_of,
)

# By kind: what the user wishes and what the assistant asks; {} is the object's name.
VAGUE: dict[str, tuple[tuple[str, str], ...]] = {
    "recolour": (("I do not like the colour of {}", "which colour should it have?"), ("change {}", "what colour do you want?")),
    "reshape": (
        ("{} is the wrong thing", "what should it be instead?"),
        ("I want something else for {}", "what would you like?"),
    ),
    "retexture": (("{} looks boring", "what pattern should it have?"), ("change the pattern of {}", "to which pattern?")),
    "add": (("something is missing", "what should I add, and where?"), ("the picture is empty", "what would you like to see?")),
    "remove": (("there is too much here", "what should I remove?"), ("it is too crowded", "what should go?")),
    "move": (("{} is in the wrong place", "where should it go?"), ("can {} be somewhere else?", "where do you want it?")),
    "place": (("the background is dull", "where should the scene be?"), ("I want another background", "which one?")),
    "time": (("the light is wrong", "should it be day or night?"), ("another time of day please", "day or night?")),
    "season": (("this is the wrong time of year", "which season?"), ("another season please", "summer or winter?")),
    "restyle": (("make it more artistic", "in which style?"), ("I want another style", "which style do you like?")),
}


@dataclass(frozen=True)
class Round:
    """One change that a user talks an assistant into.

    Attributes:
        turns: (role, text) pairs, role "user" or "assistant"; the last one is the assistant's and is the instruction.
        edit: what is done; its source is the target of the round before.
    """

    turns: tuple[tuple[str, str], ...]
    edit: SceneEdit


def dialog(scene: Scene, rng: np.random.Generator, rounds: int = 3) -> tuple[Round, ...]:
    """Draw a conversation of some rounds about a scene; restyling, if it comes, comes last."""
    held = []
    for number in range(rounds):
        kinds = [kind for kind in KINDS if kind != "restyle" or number == rounds - 1]
        edit = draw_edit(scene, rng, kinds)
        if edit is None:
            break
        held.append(Round(_turns(edit, rng), edit))
        scene = edit.target
    return tuple(held)


def _turns(edit: SceneEdit, rng: np.random.Generator) -> tuple[tuple[str, str], ...]:
    if rng.random() < 0.3:  # some users say at once what they want
        return ("user", edit.instruction), ("assistant", edit.instruction)
    wish, question = pick(rng, VAGUE[edit.kind])
    name = name_of(edit.before, edit.source.things, rng) if edit.before is not None else None
    return (
        ("user", wish.format(name or "it")),
        ("assistant", question),
        ("user", _answer(edit, rng)),
        ("assistant", edit.instruction),
    )


def _answer(edit: SceneEdit, rng: np.random.Generator) -> str:
    """Say what the edit brings, in a few words."""
    target, before, after = edit.target, edit.before, edit.after
    if before is None and after is None:
        options = {
            "place": SETTINGS[target.place],
            "restyle": IN_STYLE.get(target.style, ()),
            "time": (target.time,),
            "season": (target.season,),
        }
        return pick(rng, options[edit.kind])
    if after is None:
        return str(name_of(before, edit.source.things, rng)) if before is not None else ""
    if edit.kind == "recolour":
        return pick(rng, COLOUR_WORDS[after.colour])
    if edit.kind == "retexture":
        return pick(rng, TEXTURE_WORDS[after.texture])
    if edit.kind == "reshape":
        return a(pick(rng, SHAPE_WORDS[after.shape]))
    side = SIDES[str(side_of(after))]
    return side if edit.kind == "move" else f"{a(noun(identity(after), rng))} {side}"
