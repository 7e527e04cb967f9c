"""The work of a ``DatasetLister``, on the calling thread. Imports Arrow, which its callers do without."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from csi_driver.catalog.builder import build_from_store
from csi_driver.catalog.file_selection import matching_rows
from csi_driver.catalog.manifest import Manifest
from csi_driver.catalog.manifest_notes import notes_of
from csi_driver.objects.store import ObjectStore
from csi_driver.settings import ListingSettings
from csi_driver.volumes.dataset_lister import ListingFacts, ListingRequest, SelectionRequest
from csi_driver.volumes.parameters import VolumeParameters

OpenStore = Callable[[VolumeParameters, Mapping[str, str]], ObjectStore]
"""Opens the store of a volume, with the secrets of the CSI request. The caller closes it."""


def list_dataset(open_store: OpenStore, request: ListingRequest, target: Path, limits: ListingSettings) -> ListingFacts:
    """The listing itself, on this thread. Raises as ``list_into``, and MemoryError."""
    parameters = request.parameters
    store = open_store(parameters, request.secrets)
    try:
        manifest = build_from_store(store, parameters.dataset, target, most_objects=limits.objects)
        notes = tuple(notes_of(manifest, store))
    finally:
        store.close()
    return ListingFacts(manifest.snapshot_id, manifest.total_bytes, manifest.file_count, notes)


def select_files(request: SelectionRequest, target: Path) -> None:
    """The matching itself, on this thread. Raises as ``select_into``, and MemoryError."""
    with target.open("wb") as file:
        matching_rows(Manifest.open(request.manifest_path).tree, request.globs).tofile(file)
