"""Data sets whose pictures have been through an autoencoder already, so that training a latent model never encodes again.

What is kept of a picture is the posterior's mean and log variance, not a sample: each epoch draws its own.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from editkit.data.items import collate
from editkit.data.module import DataModule
from editkit.engine.atomic import write_bytes
from editkit.errors import UsageError, UserError

log = logging.getLogger(__name__)

Posterior = Callable[[Tensor], tuple[Tensor, Tensor]]
BATCH = 32  # items encoded at once
BLOCK = 2048  # items of a file
PROBES = 4  # items whose content names the cache, together with the encoder


class Encoder(Protocol):
    """What encodes pictures, such as `editkit.backbones.autoencoder.Autoencoder`."""

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]: ...

    def digest(self) -> str: ...

    def to(self, device: torch.device) -> Any: ...


class EncodedDataset(Dataset[dict[str, Any]]):
    """A data set with its pictures replaced by posteriors; its texts and numbers stay, and what is named in `kept`.

    Items hold every str, int and float of the inner items, their tensors named in `kept` as float32 of half precision, and
    for each encoded name N
        N_posterior  (2, C, h, w) float32: mean and log variance, before any scaling
    What is encoded is kept in blocks, each written whole or not at all, in a folder whose name is a hash of the data and the
    encoder: later runs find it there, and one that was killed goes on.

    Args:
        inner: what to encode.
        encoder: from images (B, 3, H, W) in [-1, 1] to mean and log variance, (B, C, h, w) each.
        names: which pictures of an item to encode.
        folder: where the encoded data are kept.
        kept: tensors of an item that stay as they are, such as masks.
    """

    def __init__(
        self, inner: Dataset[dict[str, Any]], encoder: Encoder, names: Sequence[str], folder: Path, kept: Sequence[str] = ()
    ):
        self.inner, self.encoder = inner, encoder
        self.names, self.kept = tuple(names), tuple(kept)
        self.home = folder / _name(inner, (*self.names, *self.kept), encoder.digest())
        self.opened: list[Block] = []

    def __len__(self) -> int:
        return len(self.inner)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not self.opened:
            self.prepare()
        number, row = divmod(index, BLOCK)
        block = self.opened[number]
        item = json.loads(block.texts[row])
        for name, rows in block.rows.items():
            label = f"{name}_posterior" if name in self.names else name
            item[label] = torch.from_numpy(rows[row].astype(np.float32))
        return item

    def prepare(self, device: torch.device | None = None, tell: Callable[[int], None] = lambda done: None) -> None:
        """Encode what is not there yet.

        Processes that do so at once share the work without a word: each begins with another block, and leaves out what it
        finds done when it comes to it.

        Args:
            device: where to encode; the encoder waits on the processor afterwards. None leaves it where it is.
            tell: (number of items that are done), after each batch.
        """
        starts = list(range(0, len(self), BLOCK))
        if device is not None and not all(_texts(self.home, start).exists() for start in starts):
            self.encoder.to(device)
        first = int.from_bytes(os.urandom(4), "big") % max(len(starts), 1)
        for start in starts[first:] + starts[:first]:
            if not _texts(self.home, start).exists():
                log.info("encoding items %d to %d of %d into %s", start, start + BLOCK, len(self), self.home)
                self._write(range(start, min(start + BLOCK, len(self))), tell)
        if device is not None:
            self.encoder.to(torch.device("cpu"))  # the training needs the device's memory
        self.opened = [self._read(start) for start in starts]

    def _read(self, start: int) -> Block:
        with open(_texts(self.home, start), encoding="utf-8") as file:
            texts = [line.rstrip("\n") for line in file]
        names = (*self.names, *self.kept)
        return Block({name: np.load(_tensors(self.home, name, start), mmap_mode="r") for name in names}, texts)

    def _write(self, indices: range, tell: Callable[[int], None]) -> None:
        rows: dict[str, list[np.ndarray]] = {name: [] for name in (*self.names, *self.kept)}
        texts: list[str] = []
        before = BLOCK * len(list(self.home.glob("texts-*.jsonl")))
        for first in range(indices.start, indices.stop, BATCH):
            items = [self.inner[k] for k in range(first, min(first + BATCH, indices.stop))]
            for name, parts in rows.items():
                parts.append(_rows(items, name, self.encoder.posterior if name in self.names else None))
            texts += [json.dumps(_told(item), ensure_ascii=False) + "\n" for item in items]
            tell(min(before + len(texts), len(self)))
        try:
            for name, parts in rows.items():
                write_bytes(_tensors(self.home, name, indices.start), _npy(np.concatenate(parts)))
            write_bytes(_texts(self.home, indices.start), "".join(texts).encode())  # last: its being there says that all is
        except OSError as error:
            raise UserError(f"cannot keep encoded data in {self.home}: {error.strerror or error}; what is there stays") from error


@dataclass(frozen=True)
class Block:
    """Items that lie in files of their own.

    Attributes:
        rows: (N, ...) float16 by name, mapped from the disk.
        texts: an item's str, int and float as a line of JSON.
    """

    rows: dict[str, np.ndarray]
    texts: list[str]


class Encoded(DataModule):
    """A data module whose training pictures are encoded once; validation and test stay pictures.

    Args:
        inner: the data module to encode.
        encoder: makes the encoder: an `Encoder`.
        names: which pictures of an item to encode.
        cache_dir: folder that keeps what was encoded.
        kept: tensors of an item that stay as they are, such as masks.

    Raises:
        UsageError: no folder.
    """

    def __init__(
        self,
        inner: DataModule,
        encoder: Callable[[], Encoder],
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
        return EncodedDataset(pictures, self.encoder(), self.names, self.cache_dir, self.kept)


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


def _npy(rows: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, rows)
    return file.getvalue()


def _texts(home: Path, start: int) -> Path:
    return home / f"texts-{start:09d}.jsonl"


def _tensors(home: Path, name: str, start: int) -> Path:
    return home / f"{name}-{start:09d}.npy"


@torch.no_grad()
def _rows(items: Sequence[Mapping[str, Any]], name: str, posterior: Posterior | None) -> np.ndarray:
    """Return what is kept of the items' tensors of a name: posteriors (B, 2, C, h, w), or they themselves."""
    tensors = collate([{name: item[name]} for item in items])[name]
    return (tensors if posterior is None else torch.stack(posterior(tensors), 1)).cpu().numpy().astype(np.float16)
