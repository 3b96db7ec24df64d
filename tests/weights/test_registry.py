"""The registry itself: every entry is complete, and nothing in it is made up."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import pytest

from editkit.backbones.convert.layouts import LAYOUTS
from editkit.backbones.registry import SHORTEST, entries, select
from editkit.recipe import choices

ENTRIES = entries()
FILES = [(entry, file) for entry in ENTRIES.values() for file in entry.files]


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_an_entry_says_what_where_and_under_which_licence(entry):
    assert entry.summary and entry.licence and urlsplit(entry.page).scheme == "https"
    assert bool(entry.hub) != bool(entry.files)
    assert entry.layout is None or entry.layout in LAYOUTS
    assert entry.hub or entry.layout
    assert set(entry.methods) <= {name.rpartition("/")[2] for name in choices("recipe")} | {"diffusionclip", "effdiff"}


@pytest.mark.parametrize(("entry", "file"), FILES, ids=lambda part: getattr(part, "name", ""))
def test_a_file_has_whole_addresses_and_hashes(entry, file):
    for url in file.sources:
        assert urlsplit(url).scheme == "https" and urlsplit(url).hostname and "{" not in url and "None" not in url
    if file.sha256:
        assert re.fullmatch(r"[0-9a-f]+", file.sha256) and len(file.sha256) in (SHORTEST, 64)
        if len(file.sha256) == SHORTEST:
            assert file.sha256 in file.name, "torch's own file names state the first digits"
    assert file.md5 is None or re.fullmatch(r"[0-9a-f]{32}", file.md5)
    assert file.bytes is None or file.bytes > 0


def test_what_lies_at_a_fixed_revision_is_pinned():
    for entry, file in FILES:
        if any("raw.githubusercontent.com" in url for url in file.sources):
            assert re.fullmatch(r"[0-9a-f]{40}", entry.revision) and len(file.sha256) == 64 and file.bytes


def test_clips_hashes_are_those_of_their_addresses():
    for _, file in FILES:
        for url in file.sources:
            if "openaipublic.azureedge.net" in url:
                assert file.sha256 == url.split("/")[-2]


def test_selecting():
    ((entry, files),) = select(["asyrp-deltas/smiling*"])
    assert entry.name == "asyrp-deltas" and [file.name for file in files] == ["smiling_LC_CelebA_HQ_t999_ninv40_ngen40_0.pth"]
    assert len(select(["asyrp-deltas"])[0][1]) == 35
    assert select(["google/ddpm-ema-cat-256"])[0][0].hub == "google/ddpm-ema-cat-256"
