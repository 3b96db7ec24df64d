"""The tiny networks that every recipe is built on here, written once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import write_all


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("tiny"))
