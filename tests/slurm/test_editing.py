"""A folder edited by an array of jobs of a real SLURM."""

from __future__ import annotations

from editkit import cli
from tests.slurm.cluster import Cluster
from tests.tiny import shrink

BASE = "reconstruction"


def test_the_shares_of_a_folder_are_the_whole(cluster: Cluster, assets, tmp_path, capsys):
    changes = [text for text in shrink(BASE, assets) if not text.startswith("trainer.")]
    out, pictures = tmp_path / "out", assets / "images"
    edit = ["--image", str(pictures), "--steps", "2", "cluster=local2", *changes]
    assert cli.run(["submit", "edit", *edit, "-o", str(out), "--shards", "2"]) == 0
    job = capsys.readouterr().out.split()[0]
    assert cluster.wait(job) == "COMPLETED", [path.read_text() for path in (out / "log").iterdir()]
    assert len(list((out / "log").iterdir())) == 2

    names = sorted(path.name for path in pictures.glob("*.png"))
    assert sorted(path.name for path in out.glob("*.png")) == names
    lists = [path.read_text().count('"done"') for path in sorted(out.glob("editkit.*-of-2.jsonl"))]
    assert lists == [len(names) // 2] * 2, "each share edits its own pictures"
    alone = tmp_path / "alone"
    assert cli.run(["edit", *edit, "engine.batch_invariant=true", "-o", str(alone)]) == 0
    assert all((out / name).read_bytes() == (alone / name).read_bytes() for name in names)
