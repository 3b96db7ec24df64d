"""WebDataset shards: tar files in which the files of a sample lie side by side, read in place.

    ROOT/00000.tar ...      or ROOT/train/*.tar, ROOT/validation/*.tar, ROOT/test/*.tar
A file's name up to its first dot is the sample's key, the rest says what it is (`NAMES`).
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from editkit.data.photo import Photo, mask_of, photo_from_bytes
from editkit.data.published.records import Pair, Pairs, Published, Source, share
from editkit.errors import UsageError, UserError, suggestion

PICTURE = ("jpg", "jpeg", "png", "webp")
# What the files of a sample are, by what follows the key. In KEY.json: "caption", "target_caption", "instruction".
NAMES: Mapping[str, tuple[str, ...]] = {
    "image": PICTURE,
    "target": tuple(f"target.{suffix}" for suffix in PICTURE),
    "mask": ("mask.png",),
    "reference": tuple(f"reference.{suffix}" for suffix in PICTURE),
    "caption": ("txt", "caption.txt"),
    "target_caption": ("target.txt",),
    "instruction": ("instruction.txt",),
    "json": ("json",),
}
Places = dict[str, tuple[int, int]]  # of each file of a sample: where its bytes begin in the shard, and how many there are


class ShardSource(Source):
    """The samples of the shards of a split, in the shards' order; those without a picture are left out.

    Args:
        root: the folder.
        split: train, validation or test: sub-folders, else shares of the list.
        validation, test: the shares.
        names: see `NAMES`.
        listed: what `members` said of shards before; those of this split are added.

    Raises:
        UserError: no shard that can be read, or no sample in this split.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        validation: float,
        test: float,
        names: Mapping[str, tuple[str, ...]],
        listed: dict[Path, tuple[dict[str, Places], str]],
    ):
        self.root, self.names = root, names
        parted = (root / "train").is_dir()
        shards = sorted((root / split).glob("*.tar") if parted else (*root.glob("*.tar"), *root.glob("*/*.tar")))
        if not shards:
            raise UserError(f"there are no shards of {split} in {root}: expected {root / split / '*.tar'}")
        new = [shard for shard in shards if shard not in listed]
        with ThreadPoolExecutor() as pool:
            listed.update(zip(new, pool.map(members, new), strict=True))
        found = [(shard, *sample) for shard in shards for sample in listed[shard][0].items()]
        good = [sample for sample in found if _first(sample[2], names["image"])]
        self.samples = [good[k] for k in (range(len(good)) if parted else share(len(good), split, validation, test))]
        self.bad = tuple(listed[shard][1] for shard in shards if listed[shard][1])
        if len(good) < len(found):
            self.notes = (f"{len(found) - len(good)} samples without a picture are left out",)
        if not self.samples:
            why = f"none of its {len(good)} samples falls to {split}" if good else (*self.bad, *self.notes, "they are empty")[0]
            raise UserError(f"{root} has no samples for {split}: {why}")

    def __len__(self) -> int:
        return len(self.samples)

    def key(self, index: int) -> str:
        shard, key, _ = self.samples[index]
        return f"{shard.relative_to(self.root).as_posix()}/{key}"

    def record(self, index: int) -> Pair:
        shard, _, places = self.samples[index]
        texts = self._texts(shard, places, self.key(index))
        image = self._picture(shard, places, "image", index)
        mask = self._picture(shard, places, "mask", index)
        reference = self._picture(shard, places, "reference", index)
        assert image is not None
        return Pair(
            image=image,
            target=self._picture(shard, places, "target", index),
            mask=None if mask is None else mask_of(mask),
            references=() if reference is None else (reference,),
            **texts,
        )

    def _texts(self, shard: Path, places: Places, key: str) -> dict[str, str]:
        about = _json(_bytes(shard, places, self.names["json"]), key)
        texts = {}
        for kind in ("caption", "target_caption", "instruction"):
            data = _bytes(shard, places, self.names[kind])
            texts[kind] = str(about.get(kind) or "") if data is None else data.decode("utf-8", errors="replace").strip()
        return texts

    def _picture(self, shard: Path, places: Places, kind: str, index: int) -> Photo | None:
        data = _bytes(shard, places, self.names[kind])
        return None if data is None else photo_from_bytes(data, f"{self.key(index)}.{_first(places, self.names[kind])}")


class WebDataset(Published):
    """WebDataset shards as items of `Pairs`.

    Args:
        root: the folder.
        size: side of the items in pixels.
        validation, test: shares, taken from the end of the list, where the folder has no train, validation and test.
        names: what the files are called where it is not as in `NAMES`, such as {"target": "edited.jpg"}.
        fit: `crop` or `resize`.

    Raises:
        UsageError, UserError: as `Published`; a name that is none of `NAMES`.
    """

    layout = "webdataset"

    def __init__(
        self,
        root: str | Path,
        size: int = 256,
        validation: float = 0.05,
        test: float = 0.05,
        names: Mapping[str, str] | None = None,
        fit: str = "crop",
    ):
        super().__init__(root, size, fit)
        self.shares = (validation, test)
        for name in names or {}:
            if name not in NAMES:
                raise UsageError(f"data.names has no {name!r}.{suggestion(name, NAMES)} There are: {', '.join(NAMES)}")
        self._listed: dict[Path, tuple[dict[str, Places], str]] = {}
        self.names = {**NAMES, **{name: (suffix,) for name, suffix in (names or {}).items()}}

    def open(self, split: str) -> Pairs:
        return Pairs(ShardSource(self.root, split, *self.shares, self.names, self._listed), self.size, self.fit)


def members(shard: Path) -> tuple[dict[str, Places], str]:
    """Return where the files of each sample of a shard are, and what is wrong with the shard, "" if nothing is.

    Of a shard that is cut off, the samples before the cut are there.
    """
    samples: dict[str, Places] = {}
    try:
        with tarfile.open(shard, "r:") as tar:  # no compression: only then can a file be read where it lies
            for member in tar:
                folder, slash, name = member.name.rpartition("/")
                stem, dot, kind = name.partition(".")
                if member.isfile() and stem and dot:
                    samples.setdefault(f"{folder}{slash}{stem}", {})[kind.lower()] = (member.offset_data, member.size)
    except (OSError, tarfile.TarError) as error:
        what = f"is no plain tar or is cut off after {len(samples)} samples ({error})"
        return samples, f"{shard} {what}: unpack it if it is compressed, else fetch it again"
    return samples, ""


def _first(places: Places, kinds: tuple[str, ...]) -> str:
    return next((kind for kind in kinds if kind in places), "")


def _bytes(shard: Path, places: Places, kinds: tuple[str, ...]) -> bytes | None:
    kind = _first(places, kinds)
    if not kind:
        return None
    start, length = places[kind]
    try:
        with shard.open("rb") as file:
            file.seek(start)
            data = file.read(length)
    except OSError as error:
        raise UserError(f"cannot read {shard}: {error.strerror or error}") from error
    if len(data) < length:
        raise UserError(f"{shard} is cut off: fetch it again")
    return data


def _json(data: bytes | None, key: str) -> dict[str, Any]:
    try:
        found = json.loads(data) if data is not None else {}
    except ValueError as error:
        raise UserError(f"{key}.json is not JSON: {error}") from error
    return found if isinstance(found, dict) else {}
