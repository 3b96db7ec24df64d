"""Write toy scenes in the layouts of published data sets, so that a method meets on a laptop what it will meet at scale."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from editkit.data.faces import FaceDataset
from editkit.data.files import write_atomic
from editkit.data.items import image_array
from editkit.data.published import coco, magicbrush, openimages
from editkit.data.published.rle import encode
from editkit.data.published.tables import pyarrow_parquet
from editkit.data.scene_pairs import SceneEdits
from editkit.data.scenes import SceneDataset
from editkit.errors import UsageError, suggestion

SHARD, GROUP = 1000, 100  # samples of a file, rows of a row group
THREE = {split: split for split in ("train", "validation", "test")}


@dataclass(frozen=True)
class Writer:
    """How one layout is written.

    Attributes:
        domains: of each domain of the toy world that it can hold, the data set whose items are written.
        parts: what it calls the splits; {} where it has none, and a folder holds one split.
        write: called with the folder, the part, the items and their number.
    """

    domains: Mapping[str, Callable[[str, int, int], Any]]
    parts: Mapping[str, str]
    write: Callable[[Path, str, Iterator[dict[str, Any]]], None]


def find_writer(layout: str, domain: str, split: str) -> Writer:
    """Return the writer of a layout.

    Raises:
        UsageError: an unknown layout, or one that cannot hold the domain or the split.
    """
    if layout not in WRITERS:
        there = ["folder", *WRITERS]
        raise UsageError(f"there is no layout {layout!r} to write.{suggestion(layout, there)} There are: {', '.join(there)}")
    writer = WRITERS[layout]
    if domain not in writer.domains:
        raise UsageError(f"the layout {layout} cannot hold {domain}: use --domain {' or '.join(writer.domains)}")
    if writer.parts and split not in writer.parts:
        raise UsageError(f"the layout {layout} has no split {split}: use --split {', '.join(writer.parts)}")
    return writer


def write(
    writer: Writer, folder: Path, domain: str, split: str, n: int, size: int, on_done: Callable[[int], None] | None = None
) -> None:
    """Write the first n samples of a split; files that are there are written anew, the tables last.

    Raises:
        UserError: the folder cannot be written, or a library is missing.
    """

    def items() -> Iterator[dict[str, Any]]:
        dataset = writer.domains[domain](split, n, size)
        for index in range(n):
            yield dataset[index]
            if on_done is not None:
                on_done(index + 1)

    writer.write(folder, writer.parts.get(split, split), items())


def _coco(folder: Path, part: str, items: Iterator[dict[str, Any]]) -> None:
    part, images, objects, captions = f"{part}2017", [], [], []
    for item in items:
        number, (_, height, width) = item["index"], item["image"].shape
        name = f"{number:012d}.jpg"
        _write(folder / part / name, _encoded(image_array(item["image"]), "JPEG"))
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        captions.append({"id": number, "image_id": number, "caption": item["caption"]})
        objects += [(number, *thing) for thing in _things(item)]
    labels = sorted({label for _, label, _, _ in objects})
    annotations = [
        {
            "id": k,
            "image_id": number,
            "category_id": labels.index(label) + 1,
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "segmentation": encode(mask),
            "area": int(mask.sum()),
            "iscrowd": 0,
        }
        for k, (number, label, box, mask) in enumerate(objects)
    ]
    categories = [{"id": k, "name": label} for k, label in enumerate(labels, start=1)]
    instances = {"images": images, "annotations": annotations, "categories": categories}
    _write(folder / f"annotations/captions_{part}.json", _json({"images": images, "annotations": captions}))
    _write(folder / f"annotations/instances_{part}.json", _json(instances))


def _openimages(folder: Path, split: str, items: Iterator[dict[str, Any]]) -> None:
    captions, rows, names = [], [], {}
    for item in items:
        name, (_, height, width) = f"{item['index']:016x}", item["image"].shape
        _write(folder / split / f"{name}.jpg", _encoded(image_array(item["image"]), "JPEG"))
        captions.append({"dataset_id": "toy", "image_id": name, "caption": item["caption"]})
        for label, (x0, y0, x1, y1), _ in _things(item):
            code = f"/t/{hashlib.sha256(label.encode()).hexdigest()[:8]}"
            names[code] = label
            sides = [f"{side:.6f}" for side in (x0 / width, x1 / width, y0 / height, y1 / height)]
            rows.append([name, "toy", code, 1, *sides, 0, 0, 0, 0, 0])
    described = folder / "class-descriptions-boxable.csv"
    if described.is_file():  # of another split
        names = {**openimages.class_names(described), **names}
    head = ["ImageID", "Source", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax"]
    head += ["IsOccluded", "IsTruncated", "IsGroupOf", "IsDepiction", "IsInside"]
    _write(folder / f"open_images_{split}_captions.jsonl", b"".join(_json(line) + b"\n" for line in captions))
    _write(described, _csv(sorted(names.items())))
    _write(folder / f"{split}-annotations-bbox.csv", _csv([head, *rows]))


def _instructpix2pix(folder: Path, split: str, items: Iterator[dict[str, Any]]) -> None:
    seeds = []
    for item in items:
        name, seed = f"{item['index']:07d}", str(1000 + item["index"])
        _write(folder / name / f"{seed}_0.jpg", _encoded(image_array(item["image"]), "JPEG"))
        _write(folder / name / f"{seed}_1.jpg", _encoded(image_array(item["target"]), "JPEG"))
        prompt = {"input": item["caption"], "edit": item["instruction"], "output": item["target_caption"]}
        _write(folder / name / "prompt.json", _json(prompt))
        seeds.append([name, [seed]])
    _write(folder / "seeds.json", _json(seeds))


def _instructpix2pix_parquet(folder: Path, split: str, items: Iterator[dict[str, Any]]) -> None:
    rows = (
        {
            "original_prompt": item["caption"],
            "original_image": _cell(image_array(item["image"])),
            "edit_prompt": item["instruction"],
            "edited_prompt": item["target_caption"],
            "edited_image": _cell(image_array(item["target"])),
        }
        for item in items
    )
    _tables(folder, split, rows)


def _magicbrush(folder: Path, part: str, items: Iterator[dict[str, Any]]) -> None:
    def row(item: dict[str, Any]) -> dict[str, Any]:
        source = image_array(item["image"])
        opaque = 255 - 255 * item["mask"][0].numpy().astype(np.uint8)
        return {
            "img_id": str(item["index"]),
            "turn_index": 1,
            "source_img": _cell(source),
            "mask_img": _cell(np.dstack([source, opaque])),
            "instruction": item["instruction"],
            "target_img": _cell(image_array(item["target"])),
        }

    _tables(folder, part, map(row, items))


def _webdataset(folder: Path, split: str, items: Iterator[dict[str, Any]]) -> None:
    for number, samples in enumerate(_chunks(items)):
        _write(folder / f"{number:05d}.tar", _tar(member for item in samples for member in _members(item)))


def _members(item: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    key = f"{item['index']:06d}"
    yield f"{key}.png", _encoded(image_array(item["image"]), "PNG")
    if "target" in item:
        yield f"{key}.target.png", _encoded(image_array(item["target"]), "PNG")
    if "mask" in item:
        yield f"{key}.mask.png", _encoded(255 * item["mask"][0].numpy().astype(np.uint8), "PNG")
    yield f"{key}.json", _json({kind: item[kind] for kind in ("caption", "target_caption", "instruction") if kind in item})


def _tar(files: Iterable[tuple[str, bytes]]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return data.getvalue()


def _tables(folder: Path, part: str, rows: Iterator[dict[str, Any]]) -> None:
    parquet = pyarrow_parquet()
    import pyarrow

    for number, some in enumerate(_chunks(rows)):
        table = pyarrow.Table.from_pylist(some)
        data = io.BytesIO()
        parquet.write_table(table, data, row_group_size=GROUP)
        _write(folder / "data" / f"{part}-{number:05d}.parquet", data.getvalue())


def _chunks(things: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    some: list[dict[str, Any]] = []
    for thing in things:
        some.append(thing)
        if len(some) == SHARD:
            yield some
            some = []
    if some:
        yield some


def _things(item: Mapping[str, Any]) -> Iterator[tuple[str, list[int], np.ndarray]]:
    """Yield label, box and mask of the objects that a scene shows."""
    for label, box, mask in zip(item["object_captions"], item["boxes"].tolist(), item["object_masks"].numpy() > 0, strict=False):
        if mask.any():
            yield label, box, mask


def _cell(pixels: np.ndarray) -> dict[str, Any]:
    return {"bytes": _encoded(pixels, "PNG"), "path": None}


def _encoded(pixels: np.ndarray, kind: str) -> bytes:
    data = io.BytesIO()
    how = {"quality": 97, "subsampling": 0} if kind == "JPEG" else {}
    Image.fromarray(pixels).save(data, kind, **how)
    return data.getvalue()


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _csv(rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _write(path: Path, data: bytes) -> None:
    write_atomic(path, lambda file: file.write(data))


WRITERS: Mapping[str, Writer] = {
    "coco": Writer({"scenes": SceneDataset}, coco.PARTS, _coco),
    "openimages": Writer({"scenes": SceneDataset}, THREE, _openimages),
    "instructpix2pix": Writer({"scenes": SceneEdits}, {}, _instructpix2pix),
    "instructpix2pix-parquet": Writer({"scenes": SceneEdits}, THREE, _instructpix2pix_parquet),
    "magicbrush": Writer({"scenes": SceneEdits}, magicbrush.PARTS, _magicbrush),
    "webdataset": Writer({"scenes": SceneEdits, "faces": FaceDataset}, {}, _webdataset),
}
