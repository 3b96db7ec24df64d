"""Making pairs to learn from: two captions drawn with one noise and one layout, kept where CLIP sees the edit (section 3.1)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from editkit.backbones.attention import constant_text
from editkit.backbones.attention_taps import attention_taps
from editkit.backbones.clip import ClipEncoder
from editkit.backbones.latent import LatentBackbone
from editkit.data.files import write_atomic
from editkit.data.fit import to_pil
from editkit.engine.attention import Place, attend
from editkit.engine.guidance import ClassifierFree
from editkit.engine.rng import batch_noise, generator, level_noise
from editkit.engine.sample import sample
from editkit.engine.solvers import solver_named
from editkit.errors import UserError
from editkit.types import Condition


@dataclass(frozen=True)
class Edit:
    """An instruction with what a picture shows before and after it."""

    caption: str
    instruction: str
    target_caption: str


@dataclass(frozen=True)
class PairMaker:
    """Draws many candidates of each edit and writes the best, in the layout that `data=instructpix2pix` reads.

    Attributes:
        clip: makes the CLIP that judges; ViT-L/14 in the paper.
        folder: where the pairs go; edits that are in it already are left out.
        captions: JSON lines with caption (or input), edit and output; None takes the captions of the data's training set.
        count: how many edits of them.
        candidates, keep: pairs drawn of an edit, and kept of it at most.
        steps: of Euler-ancestral sampling.
        scale, share: between which guidance scale and share of the steps with the source's self-attention are drawn.
        image, text, direction: least cosine of CLIP's features of the two pictures, of each with its caption, and of the
            change of the pictures with that of the captions. `image` is 0.7 in the released code and 0.75 in the paper.
    """

    clip: Callable[[], ClipEncoder]
    folder: str
    captions: str | None = None
    count: int = 8
    candidates: int = 100
    keep: int = 4
    steps: int = 100
    scale: Sequence[float] = (7.5, 15.0)
    share: Sequence[float] = (0.1, 0.9)
    image: float = 0.7
    text: float = 0.2
    direction: float = 0.2

    def __call__(self, backbone: LatentBackbone, data: Any) -> dict[str, int]:
        """Write pairs and return how many edits were tried and how many pairs were kept.

        Raises:
            UserError: captions that cannot be read.
        """
        edits = read_edits(Path(self.captions)) if self.captions else edits_of(data.train_dataset(), self.count)
        home, clip = Path(self.folder), self.clip().to(backbone.device)
        for number, edit in enumerate(edits[: self.count]):
            place = home / f"{number:07d}"
            if not (place / "prompt.json").is_file():
                _write(place, edit, self.best(backbone, clip, edit, str(number)))
        kept = {place.parent.name: _seeds(place.parent) for place in sorted(home.glob("*/prompt.json"))}
        listed = [[name, seeds] for name, seeds in kept.items() if seeds]
        _write_text(home / "seeds.json", json.dumps(listed))
        return {"edits": len(kept), "edits_with_pairs": len(listed), "pairs": sum(len(seeds) for _, seeds in listed)}

    def best(self, backbone: LatentBackbone, clip: ClipEncoder, edit: Edit, key: str) -> list[tuple[dict[str, Any], Tensor]]:
        """Return facts and pictures (2, 3, H, W) of the best candidates that pass, by falling directional similarity."""
        found = []
        for facts in self._plans(key):
            images = drawn_pair(
                backbone, edit, seed=facts["seed"], steps=self.steps, scale=facts["cfg_scale"], share=facts["p2p_threshold"]
            )
            facts |= similarities(clip, images, edit)
            if self.passes(facts):
                found.append((facts, images.cpu()))
                found = sorted(found, key=lambda one: -one[0]["clip_sim_dir"])[: self.keep]
        return found

    def passes(self, facts: Mapping[str, float]) -> bool:
        """Return whether a candidate is good enough."""
        shown = min(facts["clip_sim_0"], facts["clip_sim_1"]) >= self.text
        return shown and facts["clip_sim_image"] >= self.image and facts["clip_sim_dir"] >= self.direction

    def _plans(self, key: str) -> Iterator[dict[str, Any]]:
        rng = generator(seed=0, key=key, purpose="pairs")
        seeds: set[int] = set()
        while len(seeds) < self.candidates:
            seed = int(torch.randint(2**31, (), generator=rng))
            u, v = torch.rand(2, generator=rng).tolist()
            if seed not in seeds:
                seeds.add(seed)
                (low, high), (least, most) = self.scale, self.share
                yield {"seed": seed, "p2p_threshold": least + v * (most - least), "cfg_scale": low + u * (high - low)}


@torch.no_grad()
def drawn_pair(backbone: LatentBackbone, edit: Edit, *, seed: int, steps: int, scale: float, share: float) -> Tensor:
    """Return two pictures (2, 3, H, W) in [-1, 1] of an edit's captions that share their noise and their layout.

    At the steps i = 0... with i / (steps - 1) < share the self-attention maps of the second are those of the first, in the
    conditional and in the unconditional lane; values and cross-attention stay its own (section 3.1.2 and the released code).
    """
    endless = backbone.schedule.table[-1] == 0  # sigma is infinite there: the same step on DDIM's times
    solver = solver_named("ddim-eta1" if endless else "euler-ancestral")
    levels = backbone.solver_levels(solver, steps)
    held = sum(i / max(steps - 1, 1) < share for i in range(steps))
    shape, device = backbone.sample_shape, backbone.device
    x = batch_noise(shape, [""], seed=seed, purpose="start", device=device).repeat(2, 1, 1, 1)
    one = level_noise(shape, [""], seed=seed, device=device)
    guidance = ClassifierFree(scale, _told(backbone, [""]))
    walk: dict[str, Any] = {"cond": _told(backbone, [edit.caption, edit.target_caption]), "guidance": guidance}
    walk |= {"step": solver.step, "noise": lambda i: one(i).repeat(2, 1, 1, 1)}
    with constant_text(backbone):
        with attention_taps(backbone.unet, as_the_first, "*.attn1"):
            x = sample(backbone, x, levels, stop=steps - held, **walk)
        x = sample(backbone, x, levels, start=steps - held, **walk)
    return backbone.decode(x).clamp(-1, 1)


def as_the_first(q: Tensor, k: Tensor, v: Tensor, place: Place) -> Tensor:
    """Attend with each pair's first queries and keys and the row's own values; the rows are 2 n (first, second)."""
    whose = torch.arange(len(q), device=q.device) // 2 * 2
    return attend(q[whose], k[whose], v, place.rows(whose))


@torch.no_grad()
def similarities(clip: ClipEncoder, images: Tensor, edit: Edit) -> dict[str, float]:
    """Return CLIP's cosines of a pair (2, 3, H, W) in [-1, 1], by the names of the released metadata."""
    pictures, texts = clip.image(images), clip.text([edit.caption, edit.target_caption])
    own = (pictures * texts).sum(1).tolist()
    direction = F.cosine_similarity(pictures[1] - pictures[0], texts[1] - texts[0], dim=0)
    figures = {"clip_sim_0": own[0], "clip_sim_1": own[1], "clip_sim_dir": float(direction)}
    return {**figures, "clip_sim_image": float(pictures[0] @ pictures[1])}


def read_edits(path: Path) -> list[Edit]:
    """Return the edits of a file of JSON lines, without those whose captions are equal.

    Raises:
        UserError: it cannot be read, or a line lacks one of the three texts.
    """
    edits = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the captions {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            found = json.loads(line)
            edit = Edit(found.get("caption") or found["input"], found["edit"], found["output"])
        except (ValueError, KeyError, AttributeError) as error:
            raise UserError(f'{path}, line {number}, is not {{"caption": ..., "edit": ..., "output": ...}} in JSON') from error
        if edit.caption.strip() != edit.target_caption.strip():
            edits.append(edit)
    return edits


def edits_of(dataset: Any, count: int) -> list[Edit]:
    """Return the edits of the first items of a data set.

    Raises:
        UserError: items without captions of both pictures.
    """
    items = [dataset[k] for k in range(min(count, len(dataset)))]
    if not all(item.get("caption") and item.get("target_caption") for item in items):
        raise UserError("these data have no captions of both pictures: give method.pairs.captions=FILE.jsonl or data=scene_edits")
    return [Edit(item["caption"], item["instruction"], item["target_caption"]) for item in items]


def _told(backbone: LatentBackbone, texts: Sequence[str]) -> Condition:
    """Return tokens, and zeros for the image's channels of a widened UNet, which does not hear them yet."""
    tokens, extra = backbone.tokens(texts), backbone.extra_channels
    size = backbone.sample_shape[1:]
    return Condition(tokens=tokens, concat=tokens.new_zeros(1, extra, *size) if extra else None)


def _write(folder: Path, edit: Edit, kept: Sequence[tuple[Mapping[str, Any], Tensor]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for facts, images in kept:
        for n, image in enumerate(images):
            to_pil(image).save(folder / f"{facts['seed']}_{n}.jpg", quality=100)
    _write_text(folder / "metadata.jsonl", "".join(json.dumps(facts) + "\n" for facts, _ in kept))
    prompt = {"caption": edit.caption, "edit": edit.instruction, "output": edit.target_caption}
    _write_text(folder / "prompt.json", json.dumps(prompt, ensure_ascii=False))  # last: its being there says that all is


def _write_text(path: Path, text: str) -> None:
    write_atomic(path, lambda file: file.write(text.encode()))


def _seeds(folder: Path) -> list[str]:
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return [str(json.loads(line)["seed"]) for line in lines]
