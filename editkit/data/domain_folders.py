"""Pictures of several domains, a folder each, never in pairs: as a user has them, and as AFHQ and CelebA-HQ are laid out."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from editkit.data.folder import Folder, FolderDataset
from editkit.data.listing import listing
from editkit.data.module import DataModule
from editkit.errors import UsageError, UserError

# A split's folder, the first that is there: AFHQ calls its only other one val, AFHQ v2 test.
SPLIT_FOLDERS = {"train": ("train",), "validation": ("validation", "val", "test"), "test": ("test", "val")}


class DomainFolderDataset(Dataset[dict[str, Any]]):
    """The pictures of all domains, one domain after the other; items as of `FolderDataset`, and
        domain  the place of the picture's domain among them

    Args:
        folders: a data set for each domain.
        names: what the domains are called; a picture's key begins with it.
    """

    def __init__(self, folders: Sequence[FolderDataset], names: Sequence[str]):
        self.folders, self.names = tuple(folders), tuple(names)
        self.ends = list(itertools.accumulate(len(folder) for folder in self.folders))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        index %= len(self)
        domain = bisect.bisect_right(self.ends, index)
        item = self.folders[domain][index - (self.ends[domain - 1] if domain else 0)]
        return {**item, "key": f"{self.names[domain]}/{item['key']}", "index": index, "domain": domain}


class DomainFolders(DataModule):
    """Folders of pictures, ROOT/train/DOMAIN and ROOT/val/DOMAIN as in AFHQ, or ROOT/DOMAIN, split by a hash of the paths.

    Args:
        root: the folder.
        domains: the domains' folders, in the order that numbers them.
        size: side of the items in pixels.

    Raises:
        UsageError: fewer than two domains.
        UserError: from the data sets: a domain without a folder or without pictures.
    """

    def __init__(self, root: str | Path, domains: Sequence[str], size: int = 256):
        super().__init__()
        if len(set(domains)) < max(len(domains), 2):
            raise UsageError(f"data.domains={list(domains)} needs two folders or more, each once, such as [cat,dog]")
        self.root, self.domains, self.size = Path(root), tuple(domains), size

    def dataset(self, split: str) -> DomainFolderDataset:
        return DomainFolderDataset([self._of(domain, split) for domain in self.domains], self.domains)

    def _of(self, domain: str, split: str) -> FolderDataset:
        homes = [self.root / name / domain for name in SPLIT_FOLDERS[split]]
        if own := [home for home in homes if home.is_dir()]:
            return FolderDataset(listing(own[0], validation=0.0, test=0.0).of("train"), self.size)
        if not (self.root / domain).is_dir():
            raise UserError(f"{self.root} has no pictures of {domain!r}: put them into {homes[0]}, or {self.root / domain}")
        return Folder(self.root / domain, self.size).dataset(split)
