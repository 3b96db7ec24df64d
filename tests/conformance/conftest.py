"""The tiny networks that every recipe is built on here, written once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.shares import Pair
from tests.tiny import write_all


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="package")
def pair() -> Iterator[Pair]:
    """Two processes, started once: they import all libraries."""
    pair = Pair()
    yield pair
    pair.close()
