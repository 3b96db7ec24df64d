"""Words and tokens: how the positions of one prompt correspond to those of another."""

from __future__ import annotations

import itertools

import pytest
import torch

from editkit.engine.words import equalizer, indicator, interval, refinement, replacement, split_words, windows
from editkit.errors import UsageError

L = 12


def pairs(text):
    """A tokenizer that cuts words into pieces of at most four letters, as byte pair encoding would cut long words."""
    words = text.lower().replace(",", " , ").split()
    return [word[n : n + 4] + ("</w>" if n + 4 >= len(word) else "") for word in words for n in range(0, len(word), 4)]


def words(text, length=L):
    return split_words(text, pairs, length)


def moved(source, target):
    """Return the source position of every target position under refinement, None where the target is new."""
    index, share = refinement(source, target)
    return [int(i) if s else None for i, s in zip(index, share, strict=True)]


def test_words_know_their_tokens():
    found = words("A squirrel, on grass")
    assert found.words == ("a", "squirrel", ",", "on", "grass")
    assert found.spans == (range(1, 2), range(2, 4), range(4, 5), range(5, 6), range(6, 8))
    assert found.positions("Squirrel") == [2, 3] and found.positions("on grass") == [5, 6, 7] and found.end == 8
    assert words("a cat and a dog").positions("a") == [1, 4]
    with pytest.raises(UsageError, match="Did you mean 'squirrel'"):
        found.positions("squirel")
    with pytest.raises(UsageError, match="is not in the prompt"):
        found.positions("grass on")


def test_what_does_not_fit_is_cut_off():
    found = words("one two three four five six", length=7)
    assert found.end == 6 and found.tokens == ("one</w>", "two</w>", "thre", "e</w>", "four</w>")
    with pytest.raises(UsageError):
        found.positions("six")
    matrix = replacement(found, words("one two three four five ten", length=7))
    assert torch.equal(matrix, torch.eye(7))


def test_a_tokenizer_that_joins_words_is_refused():
    with pytest.raises(UsageError, match="cannot be told apart"):
        split_words("a cat", lambda text: [text])


def test_the_same_prompt_is_replaced_by_the_identity():
    same = words("a squirrel on grass")
    assert torch.equal(replacement(same, same), torch.eye(L))
    assert moved(same, same) == list(range(L))


def test_replacement_carries_words_of_equal_and_unequal_tokens():
    source, target = words("a cat on grass"), words("a squirrel on grass")  # cat: 1 token, squirrel: 2
    matrix = replacement(source, target)
    assert matrix[2].tolist() == [0, 0, 0.5, 0.5] + [0] * (L - 4)
    assert [int(matrix[row].argmax()) for row in (0, 1, 3, 4, 5)] == [0, 1, 4, 5, 6]
    assert matrix[source.end].argmax() == target.end, "the end token goes to the end token"
    back = replacement(target, source)
    assert back[[2, 3], 2].tolist() == [1, 1] and back[target.end].argmax() == source.end
    for one in (matrix, back):
        assert torch.equal(one.sum(1), torch.ones(L)), "rows of the replaced maps still sum to 1"
    equal = replacement(words("a squirrel runs"), words("a elephant runs"))
    assert torch.equal(equal, torch.eye(L)), "words of as many tokens go token by token"


def test_replacement_needs_as_many_words_and_positions():
    with pytest.raises(UsageError, match="4 words in 'a cat on grass' and 3"):
        replacement(words("a cat on grass"), words("a cat sits"))
    with pytest.raises(UsageError, match="12 and 9"):
        replacement(words("a cat"), words("a dog", length=9))


def test_refinement_aligns_what_both_have():
    source, target = words("a cat on grass"), words("a black cat lies on grass")
    assert moved(source, target) == [0, 1, None, None, 2, None, 3, 4, 5, 6, 7, 8]  # black: 2 tokens; 6: the end token
    assert moved(target, source)[:7] == [0, 1, 4, 6, 7, 8, 9]


def test_refinement_finds_as_many_partners_as_any_alignment_could():
    vocabulary = ["a", "b", "c"]

    def longest(x, y):
        if not x or not y:
            return 0
        return 1 + longest(x[1:], y[1:]) if x[0] == y[0] else max(longest(x[1:], y), longest(x, y[1:]))

    generator = torch.Generator().manual_seed(0)
    for n, m in itertools.product(range(1, 6), range(1, 6)):
        one, other = ([vocabulary[int(i)] for i in torch.randint(3, (size,), generator=generator)] for size in (n, m))
        source, target = words(" ".join(one)), words(" ".join(other))
        partners = moved(source, target)[1 : target.end]
        found = [i for i in partners if i is not None]
        assert found == sorted(set(found)) and len(found) == longest(one, other)
        assert all(i is None or one[i - 1] == other[j] for j, i in enumerate(partners))


def test_equalizer_indicator_and_windows_act_on_the_words_tokens():
    prompt = words("a squirrel on grass")
    assert equalizer(prompt, {"squirrel": 2.0, "on": -1.0}).tolist() == [1, 1, 2, 2, -1, *[1] * (L - 5)]
    assert torch.equal(equalizer(prompt, {}), torch.ones(L))
    assert indicator(prompt, ["grass", "a"]).nonzero().flatten().tolist() == [1, 5, 6]
    bounds = windows(prompt, 0.8, {"squirrel": (0.1, 0.4)})
    assert bounds[2].tolist() == bounds[3].tolist() == [0.1, 0.4] and bounds[4].tolist() == [0, 0.8]
    for wrong in ({"dog": 0.4}, {"on": 1.4}):
        with pytest.raises(UsageError):
            windows(prompt, 0.8, wrong)
    assert interval(1) == interval(1.0) == interval([0, 1]) == (0, 1), "a list comes from YAML"
    with pytest.raises(UsageError, match=r"0.6 to 0.2"):
        interval((0.6, 0.2))
