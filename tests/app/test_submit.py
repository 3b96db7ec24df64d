"""`editkit submit` without SLURM: the file that it writes, what it freezes, and what it refuses. sbatch is a stand-in."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from editkit import cli
from editkit.app.jobfile import Cluster
from editkit.app.options import EditOptions
from editkit.app.submit import typed
from editkit.app.worklist import plan
from editkit.errors import UsageError
from tests.app.standin import picture

# A recipe that takes little to check: what it names is a dataclass.
RECIPE = """\
# @package _global_
card: {title: Tiny, family: weak, needs: [image], takes: [], summary: a test}
method:
  _target_: editkit.app.options.TrainOptions
  prompt: null
trainer: {steps: 7, batch_size: 2, accelerator: cpu}
"""

RUNS = ("run", "run.earlier-1")

GOLDEN = """\
#!/bin/bash
# Written by editkit submit. `sbatch 'my run/job.sbatch'` submits it again: what is done is not done twice.
#SBATCH --job-name=tiny
#SBATCH --partition=short
#SBATCH --time=2-12
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --signal=USR2@180
#SBATCH --cpus-per-task=1
#SBATCH --chdir=HOME
#SBATCH --output='HOME/my run/log/%j.out'
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --exclude=n7

export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"  # srun does not ask sbatch itself
export EDITKIT_REQUEUES=20
srun PYTHON -m editkit train --from 'my run'
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    (tmp_path / "conf" / "recipe").mkdir(parents=True)
    (tmp_path / "conf" / "recipe" / "tiny.yaml").write_text(RECIPE)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    program(tmp_path, "squeue", "")
    program(tmp_path, "sacct", "exit 1")
    return tmp_path


def program(home: Path, name: str, body: str) -> None:
    """Put a stand-in of a program before the real one."""
    path = home / "bin" / name
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


def train(*words: str) -> int:
    return cli.run(["submit", "train", "recipe=tiny", "--conf", "conf", "cluster=local2", *words])


def test_a_dry_run_prints_the_file_and_leaves_nothing_behind(home, capsys):
    before = sorted(home.rglob("*"))
    extra = ["cluster.partition=short", "cluster.time=2-12", "cluster.extra=['--exclude=n7']", "-o", "my run", "--dry-run"]
    assert train(*extra) == 0
    assert capsys.readouterr().out.replace(str(home), "HOME").replace(sys.executable, "PYTHON") == GOLDEN
    assert sorted(home.rglob("*")) == before


def test_what_is_submitted_is_frozen_and_the_job_is_noted(home, capsys):
    program(home, "sbatch", f'cat "${{@: -1}}" > {home}/submitted; echo 42')
    assert train("-o", "run", "--prompt", "x") == 0
    assert yaml.safe_load((home / "run" / "config.yaml").read_text())["method"]["prompt"] == "x"
    assert (home / "run" / "log").is_dir() and json.loads((home / "run" / "job.json").read_text())["id"] == "42"
    assert (home / "submitted").read_text() == (home / "run" / "job.sbatch").read_text()
    out, err = capsys.readouterr()
    assert out == "42\n" and "editkit jobs run" in err and "scancel 42" in err
    program(home, "squeue", "echo '42|PENDING'")
    assert train("-o", "run", "--prompt", "x") == 1
    assert "run is job 42 already (PENDING)" in capsys.readouterr().err


def test_a_run_is_submitted_with_other_settings_only_if_that_is_said(home, capsys):
    program(home, "sbatch", "echo 42")
    assert train("-o", "run") == 0
    assert train("-o", "run", "trainer.batch_size=4") == 2
    err = capsys.readouterr().err
    assert "  trainer.batch_size: 2 -> 4\n" in err and "--accept-changes" in err
    assert train("-o", "run", "trainer.batch_size=4", "--accept-changes") == 0
    assert yaml.safe_load((home / "run" / "config.yaml").read_text())["trainer"]["batch_size"] == 4
    assert train("-o", "run", "--fresh") == 0
    assert [yaml.safe_load((home / name / "config.yaml").read_text())["trainer"]["batch_size"] for name in RUNS] == [2, 4]


def test_nodes_tasks_and_gpus_follow_the_trainer(home, capsys):
    words = ["cluster=h100x8", "trainer.accelerator=gpu", "trainer.num_nodes=2", "trainer.batch_size=32"]
    assert cli.run(["submit", "train", "recipe=tiny", "--conf", "conf", *words, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert all(f"#SBATCH --{line}\n" in text for line in ("nodes=2", "ntasks-per-node=8", "gpus-per-node=8"))
    assert cli.run(["submit", "train", "recipe=tiny", "--conf", "conf", *words, "trainer.devices=4", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert all(f"#SBATCH --{line}\n" in text for line in ("nodes=2", "ntasks-per-node=4", "gpus-per-node=4"))


def test_without_slurm_there_is_one_line_and_nothing_is_written(home, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(home / "bin"))
    assert train("-o", "run") == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "no sbatch on this machine" in err and "--dry-run" in err
    assert not (home / "run").exists()


def test_sbatch_is_heard_when_it_refuses(home, capsys):
    program(home, "sbatch", "echo 'sbatch: error: invalid partition specified: nowhere' >&2; exit 1")
    assert train("-o", "run", "cluster.partition=nowhere") == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "sbatch refused run/job.sbatch: invalid partition specified: nowhere" in err
    assert not (home / "run" / "job.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cluster.time=1h"], "cluster.time=1h is malformed"),
        (["cluster.partition='a b'"], "cluster.partition=a b is malformed"),
        (["cluster.memory_per_cpu=much"], "cluster.memory_per_cpu=much is malformed"),
        (["cluster.requeues=-1"], "cluster.requeues=-1 is not possible"),
        (["cluster.extra=[constraint]"], "cluster.extra holds 'constraint'"),
        (["+cluster.patition=x"], "Did you mean 'partition'?"),
        (["trainer.devices=3"], "trainer.batch_size=2 is shared by 6 devices"),
        (["trainer.accelerator=gpu"], "a node has 0 (cluster.gpus_per_node)"),
        (["--sweep"], "several values"),
        (["--sweep", "trainer.devices=1,2", "trainer.batch_size=4"], "share one job file"),
    ],
)
def test_what_cannot_be_submitted_is_one_line(home, capsys, words, said):
    assert train(*words, "--dry-run") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and said in err


@pytest.mark.parametrize("time", ["30", 30, "30:00", "24:00:00", "2-12", "2-12:30", "2-12:30:00"])
def test_times_as_sbatch_takes_them(time):
    assert Cluster(time=time).time == time


@pytest.mark.parametrize("time", ["", "1h", "24:00:00:00", "1-", "-1", "10\n#SBATCH --wrap=x", "٣"])
def test_other_times_are_refused(time):
    with pytest.raises(UsageError, match="cluster.time"):
        Cluster(time=time)


def test_a_sweep_is_the_product_of_its_values(home, capsys):
    program(home, "sbatch", "echo 42")
    assert train("--sweep", "seed=1,2", "trainer.steps=5,6", "-o", "sweep") == 0
    names = ["seed=1,steps=5", "seed=1,steps=6", "seed=2,steps=5", "seed=2,steps=6"]
    for index, name in enumerate(names):
        frozen = yaml.safe_load((home / "sweep" / name / "config.yaml").read_text())
        values = f"seed={frozen['seed']},steps={frozen['trainer']['steps']}"
        assert values == name and frozen["run_dir"] == f"sweep/{name}"
        assert json.loads((home / "sweep" / name / "job.json").read_text())["id"] == f"42_{index}"
    text = (home / "sweep" / "job.sbatch").read_text()
    assert "#SBATCH --array=0-3\n" in text and "/sweep/log/%A_%a.out\n" in text
    assert text.index(names[0]) < text.index(names[1]) < text.index(names[2]) < text.index(names[3])


def test_an_edit_is_an_array_that_shares_the_folder(home, capsys):
    program(home, "sbatch", "echo 42")
    for index in range(3):
        picture(home / "in" / f"{index}.png", seed=index)
    words = ["--method", "tiny", "--conf", "conf", "--image", "in", "--strength", "-0.5", "-o", "out", "cluster=local2"]
    assert cli.run(["submit", "edit", *words, "--shards", "8"]) == 0
    text = (home / "out" / "job.sbatch").read_text()
    assert "#SBATCH --array=0-2\n" in text, "no more shares than pictures"
    assert "#SBATCH --nodes=1\n" in text and "#SBATCH --ntasks-per-node=1\n" in text
    assert text.splitlines()[-1] == (
        f"srun {sys.executable} -m editkit edit --from=out --image=in --strength=-0.5 --output=out "
        '--shard "$SLURM_ARRAY_TASK_ID/3"'
    )
    assert yaml.safe_load((home / "out" / "config.yaml").read_text())["engine"]["batch_invariant"] is True
    assert json.loads((home / "out" / "job.json").read_text()) == {"id": "42", "pictures": 3}
    assert cli.run(["submit", "edit", *words[:5], "in/0.png"]) == 2
    assert "edit a single picture with editkit edit" in capsys.readouterr().err


def test_options_are_written_as_they_were_typed():
    options = EditOptions(image=Path("a b"), strength=[0.5, -1.0], seed=3, prompt="an 'old' face", method="asyrp")
    assert shlex.split(shlex.join(typed(options))) == [
        "--seed=3",
        "--image=a b",
        "--prompt=an 'old' face",
        "--strength=0.5",
        "--strength=-1.0",
    ]


def test_shares_are_disjoint_and_complete(tmp_path):
    for index in range(7):
        picture(tmp_path / "in" / f"{index}.png", seed=index)
    (tmp_path / "in" / "bad.png.tif").write_text("no picture")
    whole = plan(EditOptions(method="tiny", image=tmp_path / "in"), name="tiny")
    for count in (1, 3, 10):
        shares = [whole.share(f"{index}/{count}") for index in range(count)]
        assert sorted(job.key for share in shares for job in share.jobs) == sorted(job.key for job in whole.jobs)
        assert {key for share in shares for key in share.broken} == set(whole.broken)
    for wrong in ("3/3", "1", "a/b", "-1/3", "0/0"):
        with pytest.raises(UsageError, match="--shard"):
            whole.share(wrong)
