"""Shares of a work in processes: order, threads, and that no process outlives the call, whatever ends it."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from editkit.app.processes import spread
from editkit.errors import UsageError, UserError

ROOT = Path(__file__).parents[2]
PATIENCE = 30  # seconds until a process that should start or end is given up


# What the processes do: found by name in this file, for they share nothing with the test.


def counting(start, count):
    for number in range(start, start + count):
        yield number, os.getpid(), torch.get_num_threads()


def many_tensors(count):
    yield [torch.full((3,), float(number)) for number in range(count)]


def sleeping(folder, number):
    (Path(folder) / str(number)).write_text(str(os.getpid()))
    time.sleep(3 * PATIENCE)
    yield number


def ending(folder, number, how):
    if number == 0:
        yield from sleeping(folder, number)
    wait_for(lambda: read(folder, 1), "the other process")
    how()


def refuse():
    raise UsageError("no such thing")


def divide():
    return 1 / 0


def die():
    os.kill(os.getpid(), signal.SIGKILL)


# Helpers of the tests


def read(folder, count):
    """Return the process ids that were written, once there are `count`."""
    found = [file.read_text() for file in Path(folder).iterdir()]
    return [int(text) for text in found] if len(found) == count and all(found) else None


def wait_for(look, what):
    began = time.monotonic()
    while not (found := look()):
        assert time.monotonic() - began < PATIENCE, f"waited in vain for {what}"
        time.sleep(0.05)
    return found


def gone(process):
    """Say whether a process ended; one that nobody has fetched the exit code of has."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")


def test_results_come_in_order_from_other_processes_that_split_the_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    ticks = []
    first, second = spread(counting, [(0, 3), (10, 2)], tick=lambda: ticks.append(1))
    assert [number for number, _, _ in first] == [0, 1, 2] and [number for number, _, _ in second] == [10, 11]
    pids = {pid for _, pid, _ in (*first, *second)}
    assert len(pids) == 2 and os.getpid() not in pids and len(ticks) == 5
    assert {threads for _, _, threads in (*first, *second)} == {1}
    assert all(gone(pid) for pid in pids)


def test_many_tensors_need_no_open_files(monkeypatch):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
    try:
        ((tensors,),) = spread(many_tensors, [(500,)])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(tensors) == 500 and tensors[7].tolist() == [7.0] * 3


@pytest.mark.parametrize(
    ("how", "kind", "expected"),
    [(refuse, UsageError, "^no such thing$"), (divide, UserError, "failed"), (die, UserError, "killed by signal 9")],
)
def test_one_that_fails_ends_the_others(tmp_path, capfd, how, kind, expected):
    began = time.monotonic()
    with pytest.raises(kind, match=expected):
        spread(ending, [(tmp_path, 0, how), (tmp_path, 1, how)])
    (other,) = read(tmp_path, 1)
    assert gone(other) and time.monotonic() - began < 2 * PATIENCE, "nobody waits until it has slept"
    assert ("ZeroDivisionError" in capfd.readouterr().err) is (how is divide), "a bug keeps its traceback, nothing else has one"


@pytest.fixture
def asleep(tmp_path):
    """A program whose two processes sleep, in a session of its own, and their ids."""
    code = f"""if True:
        from editkit.app.processes import spread
        from tests.app.test_processes import sleeping
        try:
            spread(sleeping, [({str(tmp_path)!r}, 0), ({str(tmp_path)!r}, 1)])
        except KeyboardInterrupt:
            print("interrupted")"""
    listening = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  # a shell's background jobs ignore Ctrl-C
    how: dict[str, Any] = {"cwd": ROOT, "start_new_session": True, "stdout": -1, "stderr": -1, "text": True}
    program = subprocess.Popen([sys.executable, "-c", code], preexec_fn=listening, **how)
    try:
        yield program, wait_for(lambda: read(tmp_path, 2), "the processes to start")
    finally:
        os.killpg(program.pid, signal.SIGKILL)  # until it is waited for, the number is not given away
        program.communicate()


def test_ctrl_c_ends_all_without_a_word_of_theirs(asleep):
    program, others = asleep
    os.killpg(program.pid, signal.SIGINT)  # as a terminal does: to all of them
    assert program.communicate(timeout=PATIENCE) == ("interrupted\n", "")
    assert all(gone(other) for other in others)


def test_they_end_with_a_parent_that_is_killed(asleep):
    program, others = asleep
    program.kill()
    wait_for(lambda: all(gone(other) for other in others), "the processes to end")
