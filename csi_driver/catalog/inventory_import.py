"""Builds the manifest of a dataset from an inventory instead of a listing.

No request is sent for any of its objects. A read asks the store for the ETag of the inventory, so an object that was
overwritten since then is noticed as one that was overwritten after a listing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from csi_driver.catalog.builder import Progress, build_manifest
from csi_driver.catalog.inventory_files import FetchedFiles, Inventory, find_inventory
from csi_driver.catalog.inventory_tables import pages_of
from csi_driver.catalog.listing_bounds import bounded
from csi_driver.catalog.manifest import Manifest
from csi_driver.catalog.plain_batches import ColumnPage
from csi_driver.model.dataset import Dataset
from csi_driver.model.errors import EmptyDataset
from csi_driver.model.inventory_url import InventoryUrl
from csi_driver.model.snapshot import ObjectPage
from csi_driver.objects.store import ObjectStore

logger = logging.getLogger(__name__)


def build_from_inventory(
    store: ObjectStore,
    location: InventoryUrl,
    dataset: Dataset,
    target: Path,
    *,
    progress: Progress | None = None,
    most_objects: int | None = None,
    most_bytes: int | None = None,
) -> Manifest:
    """As ``build_from_store``, from the inventory, whose files ``store`` has. Blocks while these are fetched and read.

    Raises InventoryUnusable, EmptyDataset, BudgetExceeded, InvalidParameter (a glob), OSError (the disk of the target),
    and what ``list`` and ``read_range`` of the store raise.
    """
    inventory = find_inventory(store, location, dataset)
    pages: Iterator[ColumnPage | ObjectPage] = _pages(store, inventory, dataset, target.parent, most_bytes)
    if most_objects is not None:
        pages = bounded(pages, dataset, most_objects)
    imported = {"url": inventory.url, "format": inventory.file_format, "date": inventory.date}
    try:
        return build_manifest(pages, dataset, target, progress=progress, most_bytes=most_bytes, imported=imported)
    except EmptyDataset as error:
        raise EmptyDataset(f"{error} (by the inventory {inventory.url} of {inventory.date})") from None


def _pages(
    store: ObjectStore, inventory: Inventory, dataset: Dataset, directory: Path, most_bytes: int | None
) -> Iterator[ColumnPage | ObjectPage]:
    logger.info("importing the inventory %s of %s, %d files", inventory.url, inventory.date, len(inventory.files))
    for file, content in FetchedFiles(store, inventory, directory, most_bytes):
        yield from pages_of(inventory, file, content, dataset.url.prefix)
