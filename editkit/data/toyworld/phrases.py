"""The words for what a face shows, topic by topic; `captions` joins them into captions."""

from __future__ import annotations

from dataclasses import dataclass

from editkit.data.toyworld.claims import Claims, age_group, unclear
from editkit.data.toyworld.faces import Face

LINKS = ("with", "without", "wearing", "in", "on", "against")


@dataclass(frozen=True)
class Phrase:
    """One way to say one thing.

    Attributes:
        slot: where it stands: "before" the noun, "after" it, or "does" (the verb phrase of a sentence).
        text: an adjective, an object such as "a beard", or a verb phrase such as "is smiling".
        claims: what it asserts.
        link: the word that joins an "after" phrase to the noun, one of LINKS.
    """

    slot: str
    text: str
    claims: Claims
    link: str = ""


def _say(claims: Claims, before: str = "", after: str = "", does: str = "") -> tuple[Phrase, ...]:
    """Make phrases from lists separated by "|"; the first word of an "after" phrase is its link."""
    phrases = [Phrase("before", text, claims) for text in before.split("|") if text]
    for text in filter(None, after.split("|")):
        link, thing = text.split(" ", 1)
        phrases.append(Phrase("after", thing, claims, link))
    phrases += [Phrase("does", text, claims) for text in does.split("|") if text]
    return tuple(phrases)


EXPRESSIONS = {
    "smiling": _say(
        {"expression": ("smiling",)},
        "smiling|happy|smiling|cheerful|grinning|joyful",
        "with a smile|with a big smile|with a happy expression|with a smiling mouth",
        "is smiling|smiles|looks happy|is happy|is grinning",
    ),
    "neutral": _say(
        {"expression": ("neutral",)},
        "neutral|calm|serious|expressionless",
        "with a neutral expression|with a straight mouth|with a calm expression|with no expression",
        "looks neutral|looks calm|looks serious|has a neutral expression",
    ),
    "sad": _say(
        {"expression": ("sad",)},
        "sad|unhappy|sad|gloomy|sorrowful",
        "with a sad expression|with a sad look|with a sad mouth",
        "is sad|looks sad|looks unhappy|has a sad expression",
    ),
    "angry": _say(
        {"expression": ("angry",)},
        "angry|furious|angry|mad|cross",
        "with an angry expression|with an angry look|with angry eyebrows",
        "is angry|looks angry|looks furious|has an angry expression",
    ),
}
AGE_WORDS = {
    "old": _say({"age": ("old",)}, "old|elderly|aged|old", "with wrinkles|with wrinkled skin", "is old|looks old|has wrinkles"),
    "middle-aged": _say({"age": ("middle-aged",)}, "middle-aged", "", "is middle-aged|looks middle-aged"),
    "young": _say(
        {"age": ("young",)}, "young|youthful|young", "with young skin|with smooth skin", "is young|looks young|looks youthful"
    ),
}
GLASSES_WORDS = {
    True: _say(
        {"glasses": (True,)},
        "bespectacled",
        "with glasses|wearing glasses|with glasses|with eyeglasses|with spectacles|wearing black glasses|with round glasses",
        "wears glasses|is wearing glasses|has glasses|wears spectacles",
    ),
    False: _say(
        {"glasses": (False,)},
        "",
        "without glasses|with no glasses|without glasses|without spectacles",
        "wears no glasses|has no glasses",
    ),
}
NO_BEARD = _say({"beard": (False,)}, "clean-shaven|beardless", "without a beard|with no beard", "has no beard")
BROW_WORDS = {
    kind: _say(
        {"brow": (kind,)},
        "",
        f"with {kind} eyebrows|with {kind} brows|with {more} eyebrows",
        f"has {kind} eyebrows|has {more} brows",
    )
    for kind, more in (("thin", "narrow"), ("thick", "bushy"))
}
SKIN_WORDS = {
    "pale": ("pale", "pale-skinned", "very fair"),
    "light": ("light", "light-skinned", "fair-skinned"),
    "tan": ("tan", "tanned", "light brown"),
    "brown": ("brown", "brown-skinned", "medium brown"),
    "dark": ("dark", "dark-skinned", "deep brown"),
}
SHADES = {"grey": ("grey", "grey", "gray", "silver"), "blond": ("blond", "blonde", "blond"), "red": ("red", "red", "ginger")}
HAIRY: Claims = {"hair_style": ("short", "long")}


def phrases(topic: str, face: Face) -> tuple[Phrase, ...]:
    """Return every way to speak of a topic that is true of the face; empty where there is nothing to say.

    Args:
        topic: one of TOPICS.
    """
    return TOPICS[topic](face)


def _hair(face: Face) -> tuple[Phrase, ...]:
    style = face.hair_style
    only_style: Claims = {"hair_style": (style,)}
    if style == "bald":
        return _say(
            only_style, "bald|bald-headed", "with a bald head|with no hair|without hair", "is bald|has no hair|has a bald head"
        )
    said = _say(only_style, f"{style}-haired", f"with {style} hair", f"has {style} hair")
    if "shown_hair" in unclear(face):
        return said
    colour: Claims = {**HAIRY, "shown_hair": (face.shown_hair,)}
    both: Claims = {**only_style, "shown_hair": (face.shown_hair,)}
    for word in SHADES.get(face.shown_hair, (face.shown_hair,)):
        said += _say(colour, f"{word}-haired", f"with {word} hair", f"has {word} hair")
        said += _say(both, "", f"with {style} {word} hair", f"has {style} {word} hair")
    return said


def _beard(face: Face) -> tuple[Phrase, ...]:
    if not face.beard:
        return NO_BEARD
    claims: Claims = {"beard": (True,)}
    said = _say(claims, "bearded", "with a beard|with a full beard|with a beard", "has a beard|is bearded")
    if "shown_hair" not in unclear(face):
        word = SHADES.get(face.shown_hair, (face.shown_hair,))[0]
        said += _say({**claims, "shown_hair": (face.shown_hair,)}, "", f"with a {word} beard", f"has a {word} beard")
    return said


def _eyes(face: Face) -> tuple[Phrase, ...]:
    colour = face.eye_colour
    return _say({"eye_colour": (colour,)}, f"{colour}-eyed", f"with {colour} eyes|with {colour} eyes", f"has {colour} eyes")


def _skin(face: Face) -> tuple[Phrase, ...]:
    word, adjective, other = SKIN_WORDS[face.skin]
    return _say({"skin": (face.skin,)}, adjective, f"with {word} skin|with {other} skin", f"has {word} skin")


def _shirt(face: Face) -> tuple[Phrase, ...]:
    shirt = f"{article(face.shirt)} {face.shirt}"
    after = f"in {shirt} shirt|wearing {shirt} shirt|with {shirt} shirt|in {shirt} sweater"
    return _say({"shirt": (face.shirt,)}, "", after, f"wears {shirt} shirt|is wearing {shirt} shirt")


def _background(face: Face) -> tuple[Phrase, ...]:
    ground = f"{article(face.background)} {face.background}"
    after = f"on {ground} background|with {ground} background|on {ground} backdrop|against {ground} wall"
    return _say({"background": (face.background,)}, "", after)


def article(words: str) -> str:
    """Return "an" before a vowel, else "a"."""
    return "an" if words[0] in "aeiou" else "a"


TOPICS = {
    "expression": lambda face: EXPRESSIONS[face.expression],
    "age": lambda face: () if "age" in unclear(face) else AGE_WORDS[age_group(face.age)],
    "glasses": lambda face: GLASSES_WORDS[face.glasses],
    "hair": _hair,
    "beard": _beard,
    "eyes": _eyes,
    "skin": _skin,
    "brow": lambda face: BROW_WORDS[face.brow],
    "shirt": _shirt,
    "background": _background,
}
