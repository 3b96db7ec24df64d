"""Pictures of two domains that are never seen in pairs: each has a text that is true of it and one of what it should become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from editkit.data.folder import Folder, FolderDataset
from editkit.data.items import image_tensor
from editkit.data.listing import Entry
from editkit.data.scenes import SceneDataset, Scenes
from editkit.data.toyworld.scenes.captions import full_caption
from editkit.data.toyworld.scenes.drawing import render
from editkit.data.toyworld.scenes.factors import SEASONAL, SEASONS, TIMES, Scene, measured, visible
from editkit.data.toyworld.scenes.world import key_of, scene_at
from editkit.errors import UsageError, UserError, suggestion

FACTORS = {"time": TIMES, "season": SEASONS}


class SceneDomains(SceneDataset):
    """The first `count` scenes of a split, in turn of the first and of the second domain: no scene is shown in both.

    Items hold image, key, index, caption, factors and visible (see `editkit.data.items`), and
        target_caption  a text that would be true of the scene in the other domain
        domain          the value of the factor that the picture shows

    Args:
        split, count, size: as for `SceneDataset`.
        factor: what the domains differ in, "time" (day, night) or "season" (summer, winter).
        prompts: a text for all pictures of each domain, in the order of its values; none = what each picture shows.

    Raises:
        UsageError: as for `SceneDataset`, another factor, or prompts that are not two.
    """

    def __init__(self, split: str, count: int, size: int = 64, factor: str = "time", prompts: Sequence[str] = ()):
        super().__init__(split, count, size)
        if factor not in FACTORS:
            raise UsageError(f"data.factor={factor} is unknown.{suggestion(factor, FACTORS)} Choose from {', '.join(FACTORS)}")
        if len(prompts) not in (0, 2):
            values = " and ".join(FACTORS[factor])
            raise UsageError(f"data.prompts takes two texts, for {values}, or none: got {len(prompts)}")
        self.factor, self.prompts = factor, tuple(prompts)

    def item(self, index: int) -> dict[str, Any]:
        own, other = self.scene(index, index % 2), self.scene(index, 1 - index % 2)
        domain = FACTORS[self.factor][index % 2]
        return {
            "image": image_tensor(render(own, self.size)),
            "key": f"{key_of(self.split, index)}-{domain}",
            "index": index,
            "caption": self._text(own, index % 2),
            "target_caption": self._text(other, 1 - index % 2),
            "domain": domain,
            "factors": measured(own),
            "visible": visible(own),
        }

    def scene(self, index: int, domain: int) -> Scene:
        """Return the scene of an index as a domain, 0 or 1, has it; only that of index % 2 is ever an item's picture."""
        scene = scene_at(self.split, index)
        if self.factor == "season" and scene.place not in SEASONAL:
            scene = replace(scene, place=SEASONAL[index // 2 % len(SEASONAL)])
        shown: dict[str, Any] = {self.factor: FACTORS[self.factor][domain]}
        return replace(scene, **shown)

    def _text(self, scene: Scene, domain: int) -> str:
        return self.prompts[domain] if self.prompts else full_caption(scene).text


class SceneDomainsData(Scenes):
    """Toy scenes of two domains in three splits.

    Args:
        size: side of the pictures in pixels.
        train, validation, test: how many scenes of each split, half of each domain.
        factor, prompts: as for `SceneDomains`.
    """

    def __init__(
        self,
        size: int = 64,
        train: int = 2000,
        validation: int = 256,
        test: int = 256,
        factor: str = "time",
        prompts: Sequence[str] = (),
    ) -> None:
        super().__init__(size, train, validation, test)
        self.factor, self.prompts = factor, tuple(prompts)

    def dataset(self, split: str) -> SceneDomains:
        return SceneDomains(split, self.counts[split], self.size, self.factor, self.prompts)


class PromptedDataset(FolderDataset):
    """Pictures of a folder with the two texts of each line of its metadata.jsonl; items as of `FolderDataset`, and

    target_caption  a text of what the picture should become; `caption` is one of what it shows
    """

    def read(self, index: int) -> dict[str, Any]:
        source, target = texts_of(self.entries[index])
        return super().read(index) | {"caption": source, "target_caption": target}


class PromptedFolder(Folder):
    """A folder of pictures, of two domains or more, with a source and a target text each, in three splits.

    FOLDER/metadata.jsonl has a line {"file_name": "images/a.png", "source": "summer", "target": "winter"} for each; lines of
    CycleNet's own prompt.json, with "image" in place of "file_name", do as well. Arguments and errors as for `Folder`, and

    Raises:
        UserError: from the data sets: a picture without both texts.
    """

    def dataset(self, split: str) -> PromptedDataset:
        entries = super().dataset(split).entries
        without = [entry.key for entry in entries if not all(texts_of(entry))]
        if without:
            raise UserError(
                f"{len(without)} of {len(entries)} {split} pictures in {self.root} lack a text, the first is {without[0]}: "
                'give each a line {"file_name": "a.png", "source": "summer", "target": "winter"} in metadata.jsonl'
            )
        return PromptedDataset(entries, self.size)


def texts_of(entry: Entry) -> tuple[str, str]:
    """Return source and target text of a picture, "" where there is none."""
    source, target = (entry.line.get(name) for name in ("source", "target"))
    return (source if isinstance(source, str) else entry.text), (target if isinstance(target, str) else "")
