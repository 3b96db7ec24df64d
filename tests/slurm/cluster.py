"""A real SLURM on this machine: munge, the controller and two nodes, in a folder of its own and on ports of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp

NODES = ("n1", "n2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "sinfo")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
MARK = "EDITKIT_TEST_NODE"  # in the environment of a node's daemon and of all that it starts
PATIENCE = 600.0

# FirstJobId: Lightning makes a port of a job's number, and there may be other clusters on this machine. cred_expire: a job that
# is queued again waits as long. Jobs of the partition `urgent` preempt those of `normal`.
CONFIGURATION = """\
ClusterName=tiny
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
FirstJobId={first}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SlurmdTimeout=300
KillWait=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=0,sched_interval=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=1000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=1000
PartitionName=normal Nodes=n[1-2] Default=YES MaxTime=60 PriorityTier=1 GraceTime=60 State=UP
PartitionName=urgent Nodes=n[1-2] MaxTime=60 PriorityTier=9 PreemptMode=OFF State=UP
"""


def lacking() -> str:
    """Return why there can be no cluster here, or nothing."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if absent:
        return f"no {', '.join(absent)}: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "SLURM's daemons are started by root here"


@dataclass
class Cluster:
    """The daemons that run.

    Attributes:
        environment: what SLURM's commands and the jobs need.
    """

    folder: Path
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        # The nodes' names are SLURM's alone: no resolver knows them, so the processes of a job meet at an address.
        return {"PATH": PATH, "SLURM_CONF": str(self.folder / "slurm.conf"), "MASTER_ADDR": "127.0.0.1"}

    def call(self, *command: str) -> str:
        """Return what one of SLURM's commands prints."""
        environment = {**os.environ, **self.environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """Return a job's state, such as RUNNING."""
        return self.call("squeue", "-h", "-t", "all", "-j", job, "-o", "%T").partition("\n")[0]

    def wait(self, job: str) -> str:
        """Wait until a job is over and return its state."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        until(lambda: self.call("squeue", "-h", "-j", job) == "" and self.state(job) in over, f"job {job} does not end")
        return self.state(job)

    def start(self, node: str) -> None:
        """Start a node's daemon."""
        self._spawn(node, "slurmd", "-D", "-N", node)

    def kill(self, node: str, *, tell: bool = True) -> None:
        """Kill a node: its daemon and everything on it, at once; the controller learns it now, not after SlurmdTimeout."""
        self.daemons.pop(node).kill()
        for process in self._of(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        if tell:
            self.call("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=killed")

    def boot(self) -> None:
        """Start everything and wait until both nodes are idle."""
        folder, host = self.folder, socket.gethostname().partition(".")[0]
        (folder / "munge.key").write_bytes(secrets.token_bytes(128))
        (folder / "munge.key").chmod(0o600)
        (folder / "state").mkdir()
        ports, first = _free_ports(3), 1000 + secrets.randbelow(8000)
        (folder / "slurm.conf").write_text(CONFIGURATION.format(host=host, folder=folder, ports=ports, first=first))
        own = {"socket": "munge.socket", "key-file": "munge.key", "log-file": "munge.log", "pid-file": "munge.pid"}
        own |= {"seed-file": "munge.seed"}
        self._spawn("munged", "munged", "-F", *(f"--{name}={folder / file}" for name, file in own.items()))
        until((folder / "munge.socket").exists, "munged makes no socket")
        self._spawn("slurmctld", "slurmctld", "-D", "-c")
        for node in NODES:
            self.start(node)
        until(lambda: self._answer() == ["idle"] * len(NODES), f"the nodes do not come up, see {folder}")

    def shut_down(self) -> None:
        """End all jobs and all daemons."""
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            self.call("scancel", "--user=root", "--signal=KILL", "--full")
        for node in NODES:
            if node in self.daemons:
                self.kill(node, tell=False)
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
        for daemon in self.daemons.values():
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def _answer(self) -> list[str]:
        command = ("sinfo", "-h", "-N", "-p", "normal", "-o", "%T")
        done = subprocess.run(command, env={**os.environ, **self.environment}, capture_output=True, text=True, check=False)
        return done.stdout.split()

    def _of(self, node: str) -> Iterator[int]:
        """Yield the processes that a node's daemon has started, directly or not: SLURM's own and those of jobs."""
        own = {f"{MARK}={self.folder}/{node}".encode()}
        jobs = {f"SLURMD_NODENAME={node}".encode(), f"SLURM_CONF={self.environment['SLURM_CONF']}".encode()}
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                variables = set(path.read_bytes().split(b"\0"))
                if own <= variables or jobs <= variables:
                    yield int(path.parent.name)

    def _spawn(self, name: str, *command: str) -> None:
        environment = {**os.environ, **self.environment, MARK: f"{self.folder}/{name}"}
        with (self.folder / f"{name}.said").open("ab") as said:
            self.daemons[name] = subprocess.Popen(command, env=environment, stdout=said, stderr=said, start_new_session=True)


@contextlib.contextmanager
def running() -> Iterator[Cluster]:
    """Have a cluster for a while; its folder is short-named, for the paths of sockets are limited."""
    folder = Path(mkdtemp(prefix="editkit-slurm-"))
    folder.chmod(0o755)
    cluster = Cluster(folder)
    try:
        cluster.boot()
        yield cluster
    finally:
        cluster.shut_down()
        shutil.rmtree(folder, ignore_errors=True)


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that a cluster does.

    Raises:
        AssertionError: in vain.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.3)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
