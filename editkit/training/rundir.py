"""The folder of one run, and who may write to it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from editkit.engine.atomic import write_bytes
from editkit.errors import UserError

VARIABLE = "EDITKIT_RUN_DIR"  # tells the other processes of a run where it is


@dataclass(frozen=True)
class RunDir:
    """Layout: config.yaml, checkpoints/, metrics.csv, seconds, samples/, export/, and not-finite-step-*.json if ever."""

    path: Path

    @property
    def config(self) -> Path:
        """The frozen recipe."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """The logged figures."""
        return self.path / "metrics.csv"

    @property
    def seconds(self) -> float:
        """How long training took up to the newest checkpoint, interrupted parts together (the file `seconds`)."""
        file = self.path / "seconds"
        return float(file.read_text()) if file.exists() else 0.0

    def note_seconds(self, seconds: float) -> None:
        """Write that figure."""
        write_bytes(self.path / "seconds", f"{seconds:.1f}\n".encode())

    @property
    def samples(self) -> Path:
        """Folder of sample grids."""
        return self.path / "samples"

    @property
    def export(self) -> Path:
        """Folder of what training made, to be used elsewhere."""
        return self.path / "export"

    def not_finite(self, step: int) -> Path:
        """What is known of the batch that a step was refused for."""
        return self.path / f"not-finite-step-{step:08d}.json"

    @property
    def lock(self) -> Path:
        """The file that the run's first process holds; it stays behind."""
        return self.path / ".lock"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run; the lock goes with the process, however it ends.

        Raises:
            UserError: the folder cannot be written, or another process holds the run.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = self.lock.open("a+")
        except OSError as error:
            raise UserError(f"cannot write to the run folder {self.path} ({error.strerror}); give another run_dir=...") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise UserError(
                    f"{self.path} is in use by process {file.read().strip()}; wait for it or give another run_dir=..."
                ) from None
            with contextlib.suppress(OSError):  # the number is for people; a full disk does not unlock the run
                file.truncate(0)
                file.write(str(os.getpid()))
                file.flush()
            yield


@contextlib.contextmanager
def announced(run: RunDir) -> Iterator[None]:
    """Let processes started inside the context find the run by the environment variable."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(run.path.resolve())
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def is_first_process() -> bool:
    """True in the process that owns the run directory: rank 0 of a local launch, of torchrun and of srun."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
