"""From a frozen configuration to the text of a file for sbatch. Nothing here touches the disk or SLURM."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from editkit.app.slurm import REQUEUES
from editkit.errors import UsageError, suggestion
from editkit.training.plan import Plan

TIME = r"\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d+(:\d\d){0,2}"  # minutes, min:s, h:min:s, days-h[:min[:s]]
NAMES = r"[\w.-]+(,[\w.-]+)*"
MEMORY = r"\d+[KMGT]?"


@dataclass(frozen=True)
class Cluster:
    """The `cluster` keys: what a site's jobs ask for (see conf/cluster/slurm.yaml).

    Raises:
        UsageError: a value that sbatch would not understand, named as it is typed (cluster.time=...).
    """

    partition: str | None = None
    account: str | None = None
    time: str | int = "24:00:00"
    gpus_per_node: int = 1
    cpus_per_task: int = 8
    memory_per_cpu: str | None = None
    warn_s: int = 180
    requeues: int = 20
    extra: Sequence[str] = field(default_factory=list)

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> Cluster:
        """Return the section of a configuration, whose keys may be a user's own."""
        known = [one.name for one in fields(cls)]
        for key in section:
            if key not in known:
                raise UsageError(f"cluster.{key} is unknown; there are {', '.join(known)}.{suggestion(key, known)}")
        return cls(**section)

    def __post_init__(self) -> None:
        for key, pattern, example in (
            ("partition", NAMES, "the name of one, see sinfo"),
            ("account", NAMES, "the name of one"),
            ("time", TIME, "minutes, hours:minutes:seconds or days-hours, such as 24:00:00"),
            ("memory_per_cpu", MEMORY, "a number and a unit, such as 8G"),
        ):
            value = getattr(self, key)
            if value is not None and not re.fullmatch(pattern, str(value), re.ASCII):
                raise UsageError(f"cluster.{key}={value} is malformed; give {example}")
        for key, least in (("gpus_per_node", 0), ("cpus_per_task", 1), ("warn_s", 1), ("requeues", 0)):
            value = getattr(self, key)
            if not isinstance(value, int) or value < least:
                raise UsageError(f"cluster.{key}={value} is not possible; give a whole number of {least} or more")
        for text in self.extra:
            if not str(text).startswith("-") or "\n" in str(text):
                raise UsageError(f"cluster.extra holds {text!r}; give options of sbatch, such as --constraint=a100")

    def gpus(self, devices: int, accelerator: str) -> int:
        """Return how many GPUs of a node a job takes.

        Raises:
            UsageError: more than a node has.
        """
        if accelerator == "cpu" or (accelerator != "gpu" and not self.gpus_per_node):
            return 0
        if devices > self.gpus_per_node:
            raise UsageError(
                f"trainer.devices={devices} GPUs, but a node has {self.gpus_per_node} (cluster.gpus_per_node); use more nodes "
                f"with trainer.num_nodes, or trainer.accelerator=cpu"
            )
        return devices


def training(cluster: Cluster, plan: Plan, runs: Sequence[Path], *, name: str, folder: Path, home: Path) -> str:
    """Return the file of a job that trains frozen runs: one by itself, several as an array.

    Args:
        name: of the job.
        folder: where its logs go.
        home: the directory that relative paths start from.
    """
    need = {
        "nodes": plan.num_nodes,
        "ntasks-per-node": plan.devices,
        "gpus-per-node": cluster.gpus(plan.devices, plan.accelerator) or None,
        "array": f"0-{len(runs) - 1}" if len(runs) > 1 else None,
        "signal": f"USR2@{cluster.warn_s}",
    }
    train = [sys.executable, "-m", "editkit", "train", "--from"]
    body = [f"export {REQUEUES}={cluster.requeues}"]
    if len(runs) == 1:
        body.append(shlex.join(["srun", *train, str(runs[0])]))
    else:
        body += ["runs=(", *(f"  {shlex.quote(str(run))}" for run in runs), ")"]
        body.append(shlex.join(["srun", *train]) + ' "${runs[$SLURM_ARRAY_TASK_ID]}"')
    return _file(cluster, need, body, name=name, folder=folder, home=home)


def editing(cluster: Cluster, typed: Sequence[str], shards: int, *, accelerator: str, name: str, folder: Path, home: Path) -> str:
    """Return the file of a job array that edits a folder, each element its share.

    Args:
        typed: the command after `editkit`, without its `--shard`.
    """
    need = {
        "nodes": 1,
        "ntasks-per-node": 1,
        "gpus-per-node": cluster.gpus(1, accelerator) or None,
        "array": f"0-{shards - 1}",
    }
    command = shlex.join(["srun", sys.executable, "-m", "editkit", *typed, "--shard"]) + f' "$SLURM_ARRAY_TASK_ID/{shards}"'
    return _file(cluster, need, [command], name=name, folder=folder, home=home)


def _file(cluster: Cluster, need: Mapping[str, Any], body: Iterable[str], *, name: str, folder: Path, home: Path) -> str:
    log = str(home / folder / "log").replace("%", "%%") + ("/%A_%a.out" if need.get("array") else "/%j.out")
    again = shlex.quote(str(folder / "job.sbatch"))
    asked = {
        "job-name": re.sub(r"[^\w.-]+", "-", name),
        "partition": cluster.partition,
        "account": cluster.account,
        "time": cluster.time,
        **need,
        "cpus-per-task": cluster.cpus_per_task,
        "mem-per-cpu": cluster.memory_per_cpu,
        "chdir": str(home),
        "output": log,
        "open-mode": "append",
    }
    directives = [f"--{key}={shlex.quote(str(value))}" for key, value in asked.items() if value is not None]
    lines = [
        "#!/bin/bash",
        f"# Written by editkit submit. `sbatch {again}` submits it again: what is done is not done twice.",
        *(f"#SBATCH {text}" for text in [*directives, "--requeue", *cluster.extra]),
        "",
        'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"  # srun does not ask sbatch itself',
        *body,
    ]
    return "\n".join(lines) + "\n"
