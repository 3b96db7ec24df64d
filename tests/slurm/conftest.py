"""One SLURM for all tests of this folder, and the tiny networks that they train."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, lacking, running
from tests.tiny import write_all

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """The cluster itself."""
    reason = lacking()
    if reason:
        pytest.skip(reason)
    with running() as cluster:
        yield cluster


@pytest.fixture
def cluster(slurm: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The same, with this process on one of its login nodes."""
    for name, value in {**slurm.environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(ROOT)
    return slurm


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("tiny"))
