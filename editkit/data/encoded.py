"""Data sets whose pictures have been through an autoencoder already, so that training a latent model never encodes again.

What is kept of a picture is the posterior's mean and log variance, not a sample: each epoch draws its own.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from editkit.data.items import collate
from editkit.data.module import DataModule
from editkit.errors import UsageError

log = logging.getLogger(__name__)

Posterior = Callable[[Tensor], tuple[Tensor, Tensor]]
BATCH = 32
PROBES = 4  # items whose content names the cache, together with the encoder


class EncodedDataset(Dataset[dict[str, Any]]):
    """A data set with its pictures replaced by posteriors; its texts and numbers stay, and what is named in `kept`.

    Items hold every str, int and float of the inner items, their tensors named in `kept` as float32 of half precision, and
    for each encoded name N
        N_posterior  (2, C, h, w) float32: mean and log variance, before any scaling
    The files are written whole or not at all, and made anew when the data or the encoder change.

    Args:
        inner: what to encode.
        posterior: from images (B, 3, H, W) in [-1, 1] to mean and log variance, (B, C, h, w) each.
        names: which pictures of an item to encode.
        folder: where the encoded data are kept.
        encoder: hash of the encoder's weights.
        kept: tensors of an item that stay as they are, such as masks.
    """

    def __init__(
        self,
        inner: Dataset[dict[str, Any]],
        posterior: Posterior,
        names: Sequence[str],
        folder: Path,
        encoder: str,
        kept: Sequence[str] = (),
    ):
        self.names, self.kept = tuple(names), tuple(kept)
        home = folder / _name(inner, (*self.names, *self.kept), encoder)
        if not (home / "texts.jsonl").exists():
            log.info("encoding %d items into %s", len(inner), home)  # type: ignore[arg-type]
            _write(inner, posterior, self.names, self.kept, home)
        self.rows = {name: np.load(home / f"{name}.npy", mmap_mode="r") for name in (*self.names, *self.kept)}
        with open(home / "texts.jsonl", encoding="utf-8") as file:
            self.texts = [line.rstrip("\n") for line in file]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = json.loads(self.texts[index])
        for name, rows in self.rows.items():
            label = f"{name}_posterior" if name in self.names else name
            item[label] = torch.from_numpy(rows[index].astype(np.float32))
        return item


class Encoded(DataModule):
    """A data module whose training pictures are encoded once; validation and test stay pictures.

    Args:
        inner: the data module to encode.
        encoder: makes the encoder: something with `posterior(images) -> (mean, logvar)` and `digest()`.
        names: which pictures of an item to encode.
        cache_dir: folder that keeps what was encoded.
        kept: tensors of an item that stay as they are, such as masks.

    Raises:
        UsageError: no folder.
    """

    def __init__(
        self,
        inner: DataModule,
        encoder: Callable[[], Any],
        names: Sequence[str] = ("image",),
        cache_dir: str | None = None,
        kept: Sequence[str] = (),
    ):
        super().__init__()
        if cache_dir is None:
            raise UsageError("encoded data need a folder: set data.cache_dir=FOLDER")
        self.inner, self.encoder, self.names, self.kept = inner, encoder, tuple(names), tuple(kept)
        self.cache_dir = Path(cache_dir)

    def dataset(self, split: str) -> Dataset[dict[str, Any]]:
        pictures = self.inner.dataset(split)
        if split != "train":
            return pictures
        encoder = self.encoder()
        return EncodedDataset(pictures, encoder.posterior, self.names, self.cache_dir, encoder.digest(), self.kept)


def drawn(posterior: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return a sample of posteriors (B, 2, C, h, w): mean + deviation x noise, (B, C, h, w)."""
    mean, logvar = posterior.unbind(1)
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    return (mean + (0.5 * logvar).exp() * noise).contiguous()  # noise like it must not depend on how an encoder lays it out


def _name(inner: Dataset[dict[str, Any]], names: Sequence[str], encoder: str) -> str:
    count = len(inner)  # type: ignore[arg-type]
    sha = hashlib.sha256(f"{encoder} {count} {names}".encode())
    for index in sorted({count * probe // PROBES for probe in range(PROBES)} | {count - 1}):
        item = inner[index]
        sha.update(json.dumps(_told(item), sort_keys=True).encode())
        for name in names:
            sha.update(item[name].numpy().tobytes())
    return f"encoded-{count}-{sha.hexdigest()[:12]}"


def _told(item: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if isinstance(value, (str, int, float))}


def _write(inner: Dataset[dict[str, Any]], posterior: Posterior, names: Sequence[str], kept: Sequence[str], home: Path) -> None:
    count = len(inner)  # type: ignore[arg-type]
    home.mkdir(parents=True, exist_ok=True)
    drafts = {name: home / f".{name}.{os.getpid()}.npy" for name in (*names, *kept, "texts")}
    files: dict[str, np.memmap] = {}
    with open(drafts["texts"], "w", encoding="utf-8") as texts:
        for first in range(0, count, BATCH):
            items = [inner[k] for k in range(first, min(first + BATCH, count))]
            for name in (*names, *kept):
                rows = _rows(items, name, posterior if name in names else None)
                if name not in files:
                    shape = (count, *rows.shape[1:])
                    files[name] = np.lib.format.open_memmap(drafts[name], mode="w+", dtype=np.float16, shape=shape)
                files[name][first : first + len(items)] = rows
            texts.writelines(json.dumps(_told(item), ensure_ascii=False) + "\n" for item in items)
    for name, file in files.items():
        file.flush()
        drafts[name].replace(home / f"{name}.npy")
    drafts["texts"].replace(home / "texts.jsonl")  # last: its being there says that all is


@torch.no_grad()
def _rows(items: Sequence[Mapping[str, Any]], name: str, posterior: Posterior | None) -> np.ndarray:
    """Return what is kept of the items' tensors of a name: posteriors (B, 2, C, h, w), or they themselves."""
    tensors = collate([{name: item[name]} for item in items])[name]
    return (tensors if posterior is None else torch.stack(posterior(tensors), 1)).cpu().numpy()
