"""Pins each file of a manifest to the version of its object that the store keeps, so that it can be read for ever.

The store lists all versions that it has. The version of a file is the one with the ETag and size of the manifest (and
the time, where the ETag does not name the bytes), whether the bucket still shows it or not. Of what was written without
versions, size and time are enough: nothing is pinned by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from csi_driver.catalog.manifest import Manifest
from csi_driver.catalog.manifest_format import (
    FORMAT_VERSION,
    PINNED_FORMAT_VERSION,
    pinned_snapshot_id,
    write_arrays,
)
from csi_driver.catalog.tree import FIRST_FILE_NODE
from csi_driver.model.entity_tags import is_strong
from csi_driver.model.errors import ObjectChanged, StoreProtocolError, VersionsNotPinned
from csi_driver.model.snapshot import NO_VERSION, VersionPage
from csi_driver.objects.store import ObjectStore
from csi_driver.objects.version_listing import version_lister

_NANOSECONDS = 10**9


def pin_versions(manifest: Manifest, store: ObjectStore | None, target: Path, *, required: bool) -> Manifest:
    """Writes the manifest of a snapshot: the same files, with the version of each. ``store`` None: no request is sent
    and nothing is pinned. Blocks for as long as the store lists; memory grows with the files, by about 100 bytes each.

    Raises ObjectChanged if the store no longer has the version of a file, VersionsNotPinned if ``required`` and one
    cannot be pinned, what ``list_versions_page`` raises, and OSError.
    """
    why, versions = "the snapshot was made with versions: off", None
    if store is not None:
        why, versions = _versions(manifest, store, required=required)
    pinned = 0 if versions is None else sum(1 for version in versions if version not in (b"", NO_VERSION.encode()))
    if required and pinned < manifest.file_count:
        raise VersionsNotPinned(
            f"{manifest.url}: {manifest.file_count - pinned} of {manifest.file_count} objects cannot be pinned by "
            f"their version ({why}); enable versioning of the bucket and write them again, or leave versions: "
            "required out of the VolumeSnapshotClass"
        )
    notes = {"pinned": pinned, "why": "" if pinned == manifest.file_count else why}
    column = None
    if pinned and versions is not None:
        ids = pa.array(versions, pa.large_binary())
        column = pa.StructArray.from_arrays([ids], names=["id"])
    arrays = dict(manifest.columns)
    arrays.pop("versions", None)
    if column is not None:
        arrays["versions"] = column
    snapshot_id = pinned_snapshot_id(manifest.snapshot_id, column, notes)
    description = {**manifest.description, "snapshot_id": snapshot_id, "pinning": notes}
    version = FORMAT_VERSION if column is None else PINNED_FORMAT_VERSION
    write_arrays(arrays, version, description, target)
    return Manifest.open(target)


def _versions(manifest: Manifest, store: ObjectStore, *, required: bool) -> tuple[str, list[bytes] | None]:
    """The id for each file, and why some have none. None: the store names none."""
    lister = version_lister(store)
    if lister is None:
        return "this kind of store has no versions that Hayloft can request", None
    pages, find = _pages(store, manifest.prefix), _Finder(manifest)
    try:
        for page in pages:
            find.add(page)
    except VersionsNotPinned as error:
        if required:
            raise
        return str(error), None
    find.require_all()
    return "the bucket kept no versions when they were written", find.version_ids


def _pages(store: ObjectStore, prefix: str) -> Iterator[VersionPage]:
    """Raises StoreProtocolError for a listing that does not advance, VersionsNotPinned, and as ``list``."""
    lister, token, seen = version_lister(store), None, set()
    while lister is not None:
        page, token = lister.list_versions_page(prefix, token)
        yield page
        if token is None:
            return
        if token in seen:
            raise StoreProtocolError(f"bucket {store.bucket!r}: the listing of versions has no end")
        seen.add(token)


class _Finder:
    """Finds the version of each file. Used by one thread."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest, self._tree = manifest, manifest.tree
        self._prefix = manifest.prefix
        renamed = manifest.columns["renamed"]
        keys, rows = renamed.field("key").to_pylist(), renamed.field("row").to_pylist()
        self._renamed: dict[bytes, int] = dict(zip(keys, rows, strict=True))
        self.version_ids: list[bytes] = [b""] * manifest.file_count

    def add(self, page: VersionPage) -> None:
        objects = page.objects
        for position, key in enumerate(objects.keys):
            row = self._row(key)
            if row is None or self.version_ids[row] not in (b"", NO_VERSION.encode()):
                continue
            etag, size_bytes = objects.etags[position], objects.sizes_bytes[position]
            version_id = page.version_ids[position]
            if self._is_version(row, etag, size_bytes, objects.mtimes_ns[position], version_id):
                self.version_ids[row] = version_id.encode()

    def require_all(self) -> None:
        """Raises ObjectChanged, which names a file whose version the store no longer has."""
        missing = [row for row, version_id in enumerate(self.version_ids) if not version_id]
        if not missing:
            return
        key = self._tree.key(missing[0] + FIRST_FILE_NODE)
        more = f" (and those of {len(missing) - 1} other objects)" if len(missing) > 1 else ""
        raise ObjectChanged(
            f"{key}: the store no longer has the version that the volume shows{more}, so no snapshot can be made of "
            "it; make a new volume of the dataset, and the snapshot of that"
        )

    def _row(self, key: str) -> int | None:
        """Of the file that has this key."""
        if not key.startswith(self._prefix):
            return None
        below = key[len(self._prefix) :].encode("utf-8", "surrogateescape")
        row = self._renamed.get(below)
        if row is not None:
            return row
        node = self._tree.resolve(below) if below else None
        if node is None or self._tree.is_directory(node) or self._tree.key(node) != key:
            return None
        return node - FIRST_FILE_NODE

    def _is_version(self, row: int, etag: str | None, size_bytes: int, mtime_ns: int, version_id: str) -> bool:
        file = self._tree.file(row + FIRST_FILE_NODE)
        same_time = file.mtime_ns // _NANOSECONDS == mtime_ns // _NANOSECONDS
        if file.size_bytes != size_bytes:
            return False
        if version_id == NO_VERSION and same_time:
            # SeaweedFS gives large objects of a bucket without versions another ETag here than in any other answer.
            # Nothing is pinned by this id: reads ask for the ETag of the manifest.
            return True
        return file.etag == etag and (is_strong(etag) or same_time)


def pinning_of(manifest: Manifest) -> tuple[int, str]:
    """How many files are pinned by a version, and why others are not; for a manifest of ``pin_versions``."""
    found: Any = manifest.pinning or {}
    return int(found.get("pinned", 0)), str(found.get("why", ""))
