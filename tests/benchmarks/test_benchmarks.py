"""The benchmarks run from end to end at tiny sizes, compare before they time, and refuse nonsense before the long work."""

from __future__ import annotations

import argparse
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks import instruction_training, latent_sampling, pixel_training
from tests.benchmarks.measuring import in_turn, publish
from tests.benchmarks.sizes import SIZES

TINY = SIZES["tiny"]
MODULES = {"sampling": latent_sampling, "instruction-speed": instruction_training, "speed": pixel_training}


def marked(tmp_path, mark):
    file = tmp_path / "table.md"
    file.write_text(f"# Speed\n\n<!-- {mark} -->\nold\n<!-- /{mark} -->\n\nEnd.\n")
    return file


def test_every_pipeline_is_raced_and_the_table_goes_between_its_marks(tmp_path):
    file = marked(tmp_path, "sampling")
    latent_sampling.main(f"--size tiny --steps 2 --repeats 1 --batch 2 --update {file}".split())
    lines = file.read_text().splitlines()
    assert lines[0] == "# Speed" and lines[-1] == "End." and "old" not in lines
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")][1:]
    assert [row[0] for row in cells] == list(latent_sampling.CONTESTS)
    assert [row[-1] for row in cells] == ["4", "4", "6", "4", "4"], "both sides ask the network as often"
    assert all(row[1] == "2" and float(row[4].strip("*")) > 0 for row in cells)
    assert "thread" in lines[-4] and "torch" in lines[-4] and "diffusers" in lines[-4]


def test_sides_that_draw_other_images_are_not_timed():
    contest = latent_sampling.inpainting(TINY, 2)
    asked = latent_sampling.requests(TINY, 1)
    assert latent_sampling.checked("inpainting", contest, asked) == "4"
    other = [request.with_(prompt="a red cup") for request in asked]
    wrong = replace(contest, theirs=lambda _: contest.theirs(other))
    with pytest.raises(SystemExit, match="inpainting, batch 1: the images are .* apart .*so nothing is timed"):
        latent_sampling.checked("inpainting", wrong, asked)
    with pytest.raises(SystemExit, match="deviate by 0"):
        flat = torch.zeros(1, 3, TINY.pixels, TINY.pixels)
        latent_sampling.checked("flat", replace(contest, ours=lambda _: flat, theirs=lambda _: flat), asked)


class Operations(TorchDispatchMode):
    """Counts what is asked of the tensors."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.slow
@pytest.mark.parametrize("name", latent_sampling.CONTESTS)
def test_a_step_asks_less_of_the_tensors_than_theirs(name):
    """Seconds depend on what else runs on a machine; this does not."""
    asked, counts = latent_sampling.requests(TINY, 1), {}
    for steps in (1, 3):
        contest = latent_sampling.CONTESTS[name](TINY, steps)
        for side in ("ours", "theirs"):
            with Operations() as operations:
                getattr(contest, side)(asked)
            counts[side, steps] = operations.count
    mine, other = ((counts[side, 3] - counts[side, 1]) / 2 for side in ("ours", "theirs"))
    assert 0 < mine < other


def test_training_on_what_is_kept_beside_encoding_at_every_step(tmp_path):
    file = marked(tmp_path, "instruction-speed")
    instruction_training.main(f"--size tiny --batch 2 --repeats 1 --update {file}".split())
    (row,) = [line.split("|")[1:-1] for line in file.read_text().splitlines() if line.startswith("| 2 ")]
    assert all(float(cell.strip(" *")) > 0 for cell in row)


def test_training_on_another_batch_is_not_timed(tmp_path):
    job = instruction_training.work("tiny", 2, "cpu", tmp_path)
    instruction_training.check(job)
    before = job.method.backbone.unet.conv_in.weight.clone()
    instruction_training.ours(job)
    assert not torch.equal(job.method.backbone.unet.conv_in.weight, before)
    for wrong in ({"target": job.pairs[1]["image"]}, {"image": job.pairs[1]["image"]}, {"instruction": "make it night"}):
        other = replace(job, pairs=[{**job.pairs[0], **wrong}, job.pairs[1]])
        with pytest.raises(SystemExit, match="apart, so nothing is timed"):
            instruction_training.check(other)


def test_the_medium_networks_stand_to_each_other_as_those_of_stable_diffusion():
    """An image of 256 pixels, as InstructPix2Pix is trained on, costs there 1.51 of the UNet's passes, a text 0.074."""
    size = SIZES["medium"]
    with torch.device("meta"):
        parts = size.parts(8)
        latents, text = torch.empty(1, 8, size.latent, size.latent), torch.empty(1, size.length, size.width)
        unet = flops(lambda: parts["unet"](latents, 1, text))
        image = flops(lambda: parts["vae"].encode(torch.empty(1, 3, size.pixels, size.pixels)))
        words = flops(lambda: parts["text_encoder"](torch.zeros(1, size.length, dtype=torch.long)))
    assert image / unet == pytest.approx(1.51, rel=0.25) and words / unet == pytest.approx(0.074, rel=0.25)


def flops(run) -> float:
    with FlopCounterMode(display=False) as mode:
        run()
    return float(mode.get_total_flops())


def test_sides_take_turns_and_the_first_round_does_not_count(monkeypatch):
    now, log = [0.0], []
    monkeypatch.setattr("tests.benchmarks.measuring.time.perf_counter", lambda: now[0])

    def side(name, *seconds):
        left = list(seconds)

        def run():
            log.append(name)
            now[0] += left.pop(0)

        return run

    assert in_turn([side("a", 100, 1, 9, 2), side("b", 100, 4, 4, 4)], 3) == [2, 4]
    assert log == ["a", "b"] * 4


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ("--batch 0", "0 is too few: give 1 or more"),
        ("--repeats many", "invalid positive value: 'many'"),
        ("--only Nonsense", "invalid choice: 'Nonsense'"),
        ("--size huge", "invalid choice: 'huge'"),
        ("--dtype float8", "invalid choice: 'float8'"),
    ],
)
def test_nonsense_is_refused_in_a_line(arguments, answer, capsys):
    with pytest.raises(SystemExit) as refusal:
        latent_sampling.main(arguments.split())
    assert refusal.value.code == 2 and answer in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("mark", MODULES)
def test_a_file_without_marks_is_refused_before_anything_is_measured(mark, tmp_path, capsys, monkeypatch):
    module, file = MODULES[mark], tmp_path / "README.md"
    monkeypatch.setattr(module, "table", lambda *_: pytest.fail("measured in vain"))
    file.write_text(f"<!-- {mark} -->\nno end")
    for path, answer in ((file, f"has no lines <!-- {mark} -->"), (tmp_path / "absent.md", "cannot read")):
        with pytest.raises(SystemExit):
            module.main(["--update", str(path)])
        assert answer in capsys.readouterr().err.splitlines()[-1]


def test_a_table_can_be_printed_alone(capsys):
    publish(argparse.ArgumentParser(), "speed", None, lambda: "| a table |")
    assert capsys.readouterr().out == "| a table |\n"
