"""What a person typed for `editkit submit`, as plain values (see `editkit.app.options`)."""

from __future__ import annotations

from dataclasses import dataclass

from editkit.app.options import COMPUTING, RECIPE, EditOptions, TrainOptions, option
from editkit.errors import UsageError


@dataclass(kw_only=True)
class SubmitTrain(TrainOptions):
    """The inputs of `editkit submit train`: those of train, and several values of an override.

    Attributes:
        sweep: overrides may hold several values (`seed=1,2,3`), and each combination becomes a run of its own.
    """

    sweep: bool = option("Several values (seed=1,2,3) make several runs, in one job array.", default=False, group=RECIPE)
    dry_run: bool = option("Print the job file and stop.", default=False, group=RECIPE)


@dataclass(kw_only=True)
class SubmitEdit(EditOptions):
    """The inputs of `editkit submit edit`: those of edit for a folder, and how many jobs share it.

    Attributes:
        shards: elements of the job array, at least 1.

    Raises:
        UsageError: no shards, or one of them named.
    """

    shards: int = option("Jobs that share the folder.", default=1, group=COMPUTING)
    dry_run: bool = option("Print the job file and stop.", default=False, group=RECIPE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shards < 1:
            raise UsageError(f"--shards {self.shards}: at least 1 job edits")
        if self.shard is not None:
            raise UsageError(f"--shard {self.shard} is for editkit edit; say with --shards how many jobs share the folder")
