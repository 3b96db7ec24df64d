"""Tokenizers of the bundled CLIPs: byte-pair merges learned from the world's own words, in CLIP's layout."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer


def train_tokenizer(texts: Iterable[str], size: int) -> CLIPTokenizer:
    """Learn byte-pair merges (Sennrich et al. 2016) in CLIP's layout, the two special tokens with the highest ids.

    The most frequent pair is merged first and ties go by the alphabet, so the same texts give the same ids every time.
    """
    reading = CLIPTokenizer().backend_tokenizer
    pieces = (reading.pre_tokenizer.pre_tokenize_str(reading.normalizer.normalize_str(text)) for text in texts)
    words = Counter(word for piece in pieces for word, _ in piece)
    spelled = {word: [*word[:-1], f"{word[-1]}</w>"] for word in words}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{character}</w>" for character in alphabet)]
    merges: list[tuple[str, str]] = []
    while len(tokens) + len(merges) + 2 < size:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in spelled.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            break
        merges.append(min(pairs, key=lambda pair: (-pairs[pair], pair)))
        spelled = {word: _merged(parts, merges[-1]) for word, parts in spelled.items()}
    learned = ["".join(pair) for pair in merges]
    vocabulary = {token: index for index, token in enumerate([*tokens, *learned, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges)


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    joined: list[str] = []
    for part in parts:
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def save_bpe(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write vocab.json and merges.txt, which older readers of CLIP folders look for."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(state["vocab"], ensure_ascii=False))
    lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in state["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]) + "\n")
