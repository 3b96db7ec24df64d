"""What a second process brings: training and the editing of a folder on one core and on two, each process held to a core.

    python -m tests.benchmarks.scaling --update README.md

Everything runs as a user would type it, `editkit train ... trainer.devices=N` and `editkit edit --jobs N`, with one thread a
process. What it takes to start is left out: of a training the first readings, of a folder the seconds of an empty one.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tests.benchmarks.measuring import machine, positive, publish

# By the name in the table: steps of a batch, and what is typed after `editkit train`.
TRAININGS = {
    "asyrp, on inversions that were kept": (20, ("recipe=asyrp", "--prompt", "a smiling face", "data.train=32")),
    "instructpix2pix, on latents that were kept": (
        1,
        ("recipe=instructpix2pix", "data.inner.train=256", "trainer.batch_size=16"),
    ),
    "pbe, on pictures drawn while it trains": (1, ("recipe=pbe", "trainer.batch_size=16")),
}
LEFT_OUT = 2  # readings at the start of a training


def command(*words: str, processes: int) -> None:
    """Run the command line on as many cores as processes, one thread each.

    Raises:
        SystemExit: it failed.
    """
    cores = sorted(os.sched_getaffinity(0))[:processes]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    hold = partial(os.sched_setaffinity, 0, cores)
    done = subprocess.run(
        [sys.executable, "-m", "editkit", *words], env=environment, preexec_fn=hold, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"editkit {' '.join(words)} failed:\n{done.stderr[-2000:]}")


def training(words: Sequence[str], steps: int, processes: int, folder: Path) -> tuple[float, float]:
    """Return images a second and the share of time spent waiting for data, both as medians of the readings."""
    run = folder / f"{words[0].partition('=')[2]}-{processes}"
    length = [f"trainer.steps={steps}", f"trainer.log_every={max(1, steps // 12)}", "trainer.accelerator=cpu"]
    quiet = ["trainer.sample_every=0", "trainer.save_every_s=3600", f"trainer.devices={processes}"]
    cache = [f"data.cache_dir={folder / 'encoded'}"] if "instructpix2pix" in words[0] else []
    command("train", *words, *cache, *length, *quiet, "-o", str(run), processes=processes)
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[LEFT_OUT:]
    return tuple(statistics.median(float(row[name]) for row in rows) for name in ("images_per_s", "data_wait"))  # type: ignore[return-value]


def editing(processes: int, images: int, folder: Path) -> float:
    """Return the images a second of a folder, without the start of the processes."""
    faces, few = folder / "faces", folder / f"few-{processes}"
    for path, count in ((faces, images), (few, processes)):
        if not path.exists():
            command("data", "render", "-o", str(path), "--split", "test", "-n", str(count), processes=1)
    seconds = []
    for source, count in ((few, processes), (faces, images)):
        began = time.perf_counter()
        out = folder / f"{source.name}-{processes}"
        command(
            "edit",
            "--method",
            "reconstruction",
            "--image",
            str(source),
            "-o",
            str(out),
            "--jobs",
            str(processes),
            processes=processes,
        )
        seconds.append(time.perf_counter() - began)
        made = len(list(out.glob("*.png")))
        if made != count:
            raise SystemExit(f"{made} of {count} pictures were edited in {out}")
    return (images - processes) / (seconds[1] - seconds[0])


def table(options: argparse.Namespace) -> str:
    """Measure and return the table in Markdown."""
    lines = ["| work | 1 process, images/s | 2 processes, images/s | times | waiting for data |", "|---|---:|---:|---:|---:|"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for title, (each, words) in TRAININGS.items():
            (one, waited), (two, waited_two) = (training(words, each * options.batches, count, folder) for count in (1, 2))
            lines.append(f"| {title} | {one:.1f} | {two:.1f} | **{two / one:.2f}** | {waited:.1%}, {waited_two:.1%} |")
            print(lines[-1], flush=True)
        one, two = (editing(count, options.images, folder) for count in (1, 2))
        lines.append(f"| editing a folder (`--jobs`) | {one:.1f} | {two:.1f} | **{two / one:.2f}** | |")
    what = f"{options.batches} batches, a folder of {options.images} faces; each process on a core of its own with one thread"
    return "\n".join([*lines, "", f"{what}; {machine()}"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=positive, default=48, help="of each training")
    parser.add_argument("--images", type=positive, default=64, help="of the folder")
    parser.add_argument("--update", type=Path, help="Markdown file with the marks of scaling")
    options = parser.parse_args(arguments)
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("this needs two cores")
    publish(parser, "scaling", options.update, partial(table, options))


if __name__ == "__main__":
    main()
