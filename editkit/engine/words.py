"""Prompts as words and token positions, and how those of one prompt correspond to those of another.

A tokenizer is any callable from a text to its token strings, without begin and end tokens. Positions count the begin
token as 0, as the columns of a cross-attention map do; the end token follows the text, and padding follows it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editkit.errors import UsageError, suggestion

Tokenize = Callable[[str], Sequence[str]]
Window = float | Sequence[float]

_WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]+")


@dataclass(frozen=True)
class Words:
    """A prompt as its words and their tokens.

    Attributes:
        words: lower-case words; a run of punctuation is one too.
        spans: positions of each word's tokens, in the order of the words.
        tokens: the text's token strings; the first one is at position 1.
        length: number of positions, padding included.
    """

    words: tuple[str, ...]
    spans: tuple[range, ...]
    tokens: tuple[str, ...]
    length: int

    def positions(self, phrase: str) -> list[int]:
        """Return the positions of a word or of neighbouring words, wherever they occur.

        Raises:
            UsageError: a phrase that is not in the prompt, or in its cut-off end.
        """
        wanted = tuple(_split(phrase))
        starts = [n for n in range(len(self.words)) if wanted and self.words[n : n + len(wanted)] == wanted]
        found = [position for n in starts for span in self.spans[n : n + len(wanted)] for position in span]
        if not found:
            raise UsageError(
                f"{phrase!r} is not in the prompt {' '.join(self.words)!r}.{suggestion(phrase, self.words)} "
                "Name words that are in it"
            )
        return found

    @property
    def end(self) -> int:
        """Return the position of the end token."""
        return len(self.tokens) + 1


def split_words(text: str, tokenize: Tokenize, length: int = 77) -> Words:
    """Split a prompt into words and find their tokens; what does not fit into `length` - 2 tokens is cut off.

    Raises:
        UsageError: a tokenizer that joins words, so that no token belongs to one word.
    """
    words, room = _split(text), length - 2
    counts = [len(tokenize(word)) for word in words]
    tokens = tuple(tokenize(text))
    if sum(counts) != len(tokens):
        raise UsageError(f"the tokens of {text!r} cannot be told apart by words: {' '.join(tokens)}. Use simpler words")
    ends = [min(sum(counts[: n + 1]), room) for n in range(len(counts))]
    spans = [range(start + 1, end + 1) for start, end in zip([0, *ends], ends, strict=False)]
    return Words(tuple(words), tuple(spans), tokens[:room], length)


def replacement(source: Words, target: Words) -> Tensor:
    """Return the matrix (L, L) that carries a source map to a target prompt of as many words, M = M_source @ matrix.

    Word n goes to word n, token by token if both have as many, else evenly. What follows the text keeps its distance from
    the end token. Every row sums to 1, so the rows of M do too.

    Raises:
        UsageError: prompts of different numbers of words, or of different lengths.
    """
    if len(source.words) != len(target.words):
        counts = f"{len(source.words)} words in {' '.join(source.words)!r} and {len(target.words)} in {' '.join(target.words)!r}"
        raise UsageError(f"words can be replaced one by one only if there are as many: got {counts}. Use refinement instead")
    matrix = torch.zeros(source.length, _same_length(source, target))
    matrix[0, 0] = 1
    for ours, theirs in zip(source.spans, target.spans, strict=True):
        if len(ours) == len(theirs):
            matrix[list(ours), list(theirs)] = 1
        elif ours:
            matrix[ours.start : ours.stop, theirs.start : theirs.stop] = 1 / max(len(theirs), 1)
    for position in range(source.end, source.length):
        matrix[position, min(position - source.end + target.end, target.length - 1)] = 1
    return matrix


def refinement(source: Words, target: Words) -> tuple[Tensor, Tensor]:
    """Return, for each position of the target, that of the source token that it continues, and 1, or 0 if it is new.

    The tokens are aligned by Needleman and Wunsch's algorithm (match 1, mismatch -1, gap 0); what follows the text keeps
    its distance from the end token.

    Returns:
        index (L,), int64, and share (L,), float32.

    Raises:
        UsageError: prompts of different lengths.
    """
    index, share = torch.zeros(_same_length(source, target), dtype=torch.int64), torch.ones(target.length)
    for position, partner in enumerate(_aligned(source.tokens, target.tokens), start=1):
        if partner is None:
            share[position] = 0
        else:
            index[position] = partner + 1
    for position in range(target.end, target.length):
        index[position] = min(position - target.end + source.end, source.length - 1)
    return index, share


def equalizer(words: Words, weights: Mapping[str, float]) -> Tensor:
    """Return the factors (L,) of a prompt's columns: those given for words, else 1.

    Raises:
        UsageError: a word that is not in the prompt.
    """
    factors = torch.ones(words.length)
    for phrase, weight in weights.items():
        factors[words.positions(phrase)] = weight
    return factors


def indicator(words: Words, phrases: Sequence[str]) -> Tensor:
    """Return (L,) with 1 at the positions of the phrases and 0 elsewhere.

    Raises:
        UsageError: a phrase that is not in the prompt.
    """
    chosen = torch.zeros(words.length)
    for phrase in phrases:
        chosen[words.positions(phrase)] = 1
    return chosen


def windows(words: Words, default: Window, per_word: Mapping[str, Window] | None = None) -> Tensor:
    """Return for each position (L, 2) the shares of the steps between which its column is controlled.

    Raises:
        UsageError: a word that is not in the prompt, or a window outside 0 to 1.
    """
    bounds = torch.tensor(interval(default), dtype=torch.float64).repeat(words.length, 1)
    for phrase, window in (per_word or {}).items():
        bounds[words.positions(phrase)] = torch.tensor(interval(window), dtype=torch.float64)
    return bounds


def interval(window: Window) -> tuple[float, float]:
    """Return a window, (start, end) or an end alone, as (start, end), shares of the steps.

    Raises:
        UsageError: a window outside 0 to 1.
    """
    start, end = (0.0, window) if isinstance(window, float | int) else window
    if not 0 <= start <= end <= 1:
        raise UsageError(f"a window of steps lies between 0 and 1, got {start} to {end}")
    return start, end


def _split(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _same_length(source: Words, target: Words) -> int:
    if source.length != target.length:
        raise UsageError(f"both prompts need as many positions, got {source.length} and {target.length}")
    return target.length


def _aligned(source: Sequence[str], target: Sequence[str]) -> list[int | None]:
    """Return the index of the source token that each target token is aligned with, None for a gap."""
    score = [[0] * (len(target) + 1) for _ in range(len(source) + 1)]
    for i, ours in enumerate(source, start=1):
        for j, theirs in enumerate(target, start=1):
            score[i][j] = max(score[i][j - 1], score[i - 1][j], score[i - 1][j - 1] + (1 if ours == theirs else -1))
    partners: list[int | None] = [None] * len(target)
    i, j = len(source), len(target)
    while i and j:
        if score[i][j] == score[i][j - 1]:
            j -= 1
        elif score[i][j] == score[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            partners[j] = i
    return partners
