"""The work of a ``DatasetLister``, on the calling thread. Imports Arrow, which its callers do without."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from csi_driver.catalog.builder import build_from_store
from csi_driver.catalog.file_selection import matching_rows
from csi_driver.catalog.inventory_import import build_from_inventory
from csi_driver.catalog.manifest import Manifest
from csi_driver.catalog.manifest_notes import remarks_of
from csi_driver.catalog.version_pinning import pin_versions, pinning_of
from csi_driver.model.inventory_url import InventoryUrl
from csi_driver.objects.store import ObjectStore
from csi_driver.settings import ListingSettings
from csi_driver.volumes.dataset_lister import ListingFacts, ListingRequest, PinFacts, PinRequest, SelectionRequest
from csi_driver.volumes.parameters import VolumeParameters

OpenStore = Callable[[VolumeParameters, Mapping[str, str]], ObjectStore]
"""Opens the store of a volume, with the secrets of the CSI request. The caller closes it."""


def list_dataset(
    open_store: OpenStore,
    request: ListingRequest,
    target: Path,
    limits: ListingSettings,
    progress: Callable[[int], None] | None = None,
) -> ListingFacts:
    """The listing itself, on this thread. ``progress`` is called after each page with the number of objects so far.
    Raises as ``list_into``, and MemoryError."""
    parameters = request.parameters
    store = open_store(parameters, request.secrets)
    try:
        bounds = {"most_objects": limits.objects, "most_bytes": limits.memory_bytes}  # of memory or of the disk
        if parameters.inventory is None:
            kept = request.journal_path
            dataset = parameters.dataset
            manifest = build_from_store(store, dataset, target, progress=progress, journal_path=kept, **bounds)
        else:
            manifest = _import(open_store, request, parameters.inventory, target, progress, bounds)
        remarks = tuple(remarks_of(manifest, store))
    finally:
        store.close()
    return ListingFacts(manifest.snapshot_id, manifest.total_bytes, manifest.file_count, remarks)


def _import(
    open_store: OpenStore,
    request: ListingRequest,
    inventory: InventoryUrl,
    target: Path,
    progress: Callable[[int], None] | None,
    bounds: Mapping[str, int],
) -> Manifest:
    """By a store of its own: an inventory lies in another bucket, as a rule."""
    parameters = replace(request.parameters, url=inventory.root, inventory=None)
    store = open_store(parameters, request.secrets)
    try:
        dataset = request.parameters.dataset
        return build_from_inventory(store, inventory, dataset, target, progress=progress, **bounds)
    finally:
        store.close()


def pin_dataset(open_store: OpenStore, request: PinRequest, target: Path) -> PinFacts:
    """The pinning itself, on this thread. Raises as ``pin_into``, and MemoryError."""
    manifest = Manifest.open(request.manifest_path)
    store = None if request.mode == "off" else open_store(request.dataset.parameters, request.dataset.secrets)
    try:
        pinned = pin_versions(manifest, store, target, required=request.mode == "required")
    finally:
        if store is not None:
            store.close()
    return PinFacts(pinned.snapshot_id, *pinning_of(pinned))


def select_files(request: SelectionRequest, target: Path) -> None:
    """The matching itself, on this thread. Raises as ``select_into``, and MemoryError."""
    with target.open("wb") as file:
        matching_rows(Manifest.open(request.manifest_path).tree, request.globs).tofile(file)
