"""What every data module has in common: three data sets, and the loaders that Lightning's own Trainer asks for."""

from __future__ import annotations

from typing import Any

import lightning
from torch.utils.data import DataLoader, Dataset

from editkit.data.items import collate


class DataModule(lightning.LightningDataModule):
    """Base of data modules; a subclass returns the data set of each split, of items (see `items`).

    The training loop of editkit makes its own loaders; those here serve a plain Lightning Trainer.

    Attributes:
        batch_size: items a batch of those loaders.
        num_workers: processes a loader.
    """

    batch_size = 8
    num_workers = 0

    def dataset(self, split: str) -> Dataset[dict[str, Any]]:
        """Return the data set of a split: train, validation or test."""
        raise NotImplementedError(f"{type(self).__name__}.dataset")

    def train_dataset(self) -> Dataset[dict[str, Any]]:
        """Return what is trained on."""
        return self.dataset("train")

    def validation_dataset(self) -> Dataset[dict[str, Any]]:
        """Return what settings are chosen on."""
        return self.dataset("validation")

    def test_dataset(self) -> Dataset[dict[str, Any]]:
        """Return what is reported."""
        return self.dataset("test")

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        return self._loader(self.train_dataset(), shuffle=True)

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        return self._loader(self.validation_dataset())

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        return self._loader(self.test_dataset())

    def _loader(self, dataset: Dataset[dict[str, Any]], *, shuffle: bool = False) -> DataLoader[dict[str, Any]]:
        return DataLoader(dataset, self.batch_size, shuffle=shuffle, num_workers=self.num_workers, collate_fn=collate)
