"""Finds the files of an inventory in a store, and brings them to this machine one by one, each checked before it is
read.

S3 Inventory writes ``PREFIX/SOURCE-BUCKET/CONFIGURATION/2026-11-28T01-00Z/manifest.json``, with ``manifest.checksum``
beside it, and the data files that the manifest names in ``PREFIX/SOURCE-BUCKET/CONFIGURATION/data/``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from csi_driver.catalog.spilled_rows import MOST_OF_FREE
from csi_driver.model.chunk import ByteRange
from csi_driver.model.dataset import Dataset
from csi_driver.model.errors import AccessDenied, BudgetExceeded, InventoryUnusable, ObjectNotFound
from csi_driver.model.inventory_url import MANIFEST_NAME, InventoryUrl
from csi_driver.objects.store import ObjectStore

FORMATS = ("CSV", "ORC", "Parquet")
"""As the field ``fileFormat`` of a manifest spells them."""

MOST_MANIFEST_BYTES = 64 << 20
"""A data file takes 200 bytes of a manifest, and has some million objects."""

_DATED = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}-[0-9]{2}Z/manifest\.json\Z")
_FIRST_DIGIT = "2"
"""Dated folders begin with it, and the folders ``data`` and ``hive`` beside them, with all their files, do not."""

_MD5 = re.compile(r"[0-9a-f]{32}\Z")


@dataclass(frozen=True, slots=True)
class InventoryFile:
    """One data file. ``md5`` in hexadecimal digits; None: not known."""

    key: str
    size_bytes: int | None = None
    md5: str | None = None


@dataclass(frozen=True, slots=True)
class Inventory:
    """An inventory that was found, and what its manifest says."""

    url: str
    """Of the manifest, or of the one file."""
    file_format: str
    files: Sequence[InventoryFile]
    created_ns: int
    """The date that it has of itself; of a list of one file, when that was written."""
    source_bucket: str | None = None
    """None: it does not say of which bucket it is."""
    column_names: Sequence[str] | None = None
    """Of CSV files without a header. None: the files say them."""

    @property
    def is_of_s3(self) -> bool:
        """False: a list of the user's own."""
        return self.source_bucket is not None

    @property
    def date(self) -> str:
        return datetime.fromtimestamp(self.created_ns / 1e9, UTC).strftime("%Y-%m-%dT%H:%MZ")


def find_inventory(store: ObjectStore, location: InventoryUrl, dataset: Dataset) -> Inventory:
    """``store`` has the files. Raises InventoryUnusable, and what ``list`` and ``read_range`` of the store raise."""
    if location.list_format is not None:
        with _named(location, location.key):
            info = store.stat(location.key)
        file = InventoryFile(location.key, info.size_bytes)
        return Inventory(str(location), location.list_format, (file,), info.mtime_ns)
    key = _newest(store, location) if location.key.endswith("/") else location.key
    content = _small_object(store, location, key)
    _check_manifest(store, location, key, content)
    return _inventory(f"{location.scheme}://{location.bucket}/{key}", location.folder, content, dataset)


def _newest(store: ObjectStore, location: InventoryUrl) -> str:
    """The key of the newest manifest below the folder. Names of dated folders sort as their dates."""
    found = [
        key
        for page in store.list(location.key + _FIRST_DIGIT)
        for key in page.keys
        if _DATED.match(key.removeprefix(location.key))
    ]
    if not found:
        raise InventoryUnusable(
            f"inventory: {location} has no folder such as 2026-11-28T01-00Z/ with a {MANIFEST_NAME}; name the folder "
            "of the inventory's configuration, PREFIX/SOURCE-BUCKET/CONFIGURATION/, and wait for its first delivery"
        )
    return max(found)


@contextlib.contextmanager
def _named(location: InventoryUrl, key: str) -> Iterator[None]:
    try:
        yield
    except ObjectNotFound as error:
        raise InventoryUnusable(
            f"inventory: there is no object {key!r} in bucket {location.bucket!r}; name a complete inventory, whose "
            "files were not deleted"
        ) from error


def _small_object(store: ObjectStore, location: InventoryUrl, key: str) -> bytes:
    with _named(location, key):
        info = store.stat(key)
        if info.size_bytes > MOST_MANIFEST_BYTES:
            raise InventoryUnusable(f"inventory: {key!r} has {info.size_bytes} bytes, too many for a manifest")
        return b"".join(store.read_range(key, ByteRange(0, info.size_bytes), if_match=info.etag))


def _check_manifest(store: ObjectStore, location: InventoryUrl, key: str, content: bytes) -> None:
    """By the file beside it, where there is one."""
    try:
        written = _small_object(store, location, key.removesuffix("json") + "checksum")
    except (InventoryUnusable, AccessDenied):
        # Without permission to list, S3 answers 403 for a missing object; the manifest itself was read.
        return
    expected = written.strip().decode("ascii", "replace").lower()
    if expected != hashlib.md5(content, usedforsecurity=False).hexdigest():
        raise InventoryUnusable(
            f"inventory: {key!r} does not have the MD5 of its manifest.checksum ({expected[:32]!r}): it was damaged, "
            "or is being replaced; retry, or name another inventory"
        )


def _inventory(url: str, folder: str, content: bytes, dataset: Dataset) -> Inventory:
    """From the text of a manifest. Raises InventoryUnusable."""
    try:
        fields: Mapping[str, Any] = json.loads(content)
        form, bucket, schema = (str(fields[name]) for name in ("fileFormat", "sourceBucket", "fileSchema"))
        created_ns = int(fields["creationTimestamp"]) * 1_000_000
        files = [_file(each, folder, url) for each in fields["files"]]
        names = [name.strip() for name in schema.split(",")] if form == "CSV" else None
        found = Inventory(url, form, files, created_ns, bucket, names)
        _ = found.date
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, OSError, RecursionError) as error:
        # The last three: Infinity, a date that no calendar has, a hundred thousand lists within each other.
        raise InventoryUnusable(
            f"inventory: {url} is no manifest of S3 Inventory ({type(error).__name__}); allowed: JSON with "
            "sourceBucket, fileFormat, fileSchema, creationTimestamp and files, each with key, size and MD5checksum"
        ) from None
    if form not in FORMATS:
        raise InventoryUnusable(f"inventory: {url} has fileFormat {form!r}; allowed: {', '.join(FORMATS)}")
    if bucket != dataset.url.bucket:
        raise InventoryUnusable(
            f"inventory: {url} is of bucket {bucket!r}, and the volume's url names bucket {dataset.url.bucket!r}; name "
            "an inventory of the same bucket"
        )
    if not files:
        raise InventoryUnusable(f"inventory: {url} names no data file: S3 has not filled it, or it was of nothing")
    return found


def _file(entry: Mapping[str, Any], folder: str, url: str) -> InventoryFile:
    """The keys of a manifest are not trusted: what lies elsewhere may be a list that the volume must not read."""
    key, md5 = str(entry["key"]), str(entry.get("MD5checksum", "")).lower()
    if not key.startswith(folder) or ".." in key.split("/"):
        # Also where the destination's prefix ends with a slash, of which S3 drops one in the manifest.
        key = f"{folder}data/{key.rpartition('/')[2]}"
    if md5 and not _MD5.match(md5):
        raise ValueError(f"{url}: MD5checksum of {key!r}")
    return InventoryFile(key, int(entry["size"]), md5 or None)


class FetchedFiles:
    """The data files on this machine, one after the other: the next one is fetched while the caller reads one. They
    have no name, and end with the caller."""

    def __init__(self, store: ObjectStore, inventory: Inventory, directory: Path, most_bytes: int | None) -> None:
        """``most_bytes``: of one file; and never more than ``MOST_OF_FREE`` of the disk."""
        self._store, self._inventory = store, inventory
        self._directory, self._most_bytes = directory, most_bytes

    def __iter__(self) -> Iterator[tuple[InventoryFile, BinaryIO]]:
        """Raises InventoryUnusable (missing, another size or checksum), BudgetExceeded, OSError (the disk), and what
        ``read_range`` raises."""
        waiting = list(self._inventory.files)
        with ThreadPoolExecutor(1, "inventory") as executor:
            in_flight: list[tuple[InventoryFile, Future[BinaryIO]]] = []
            try:
                while waiting or in_flight:
                    if not in_flight:
                        in_flight.append(self._begin(executor, waiting.pop(0)))
                    file, future = in_flight.pop()
                    with future.result() as content:
                        if waiting:
                            in_flight.append(self._begin(executor, waiting.pop(0)))
                        yield file, content
            finally:
                for _, future in in_flight:
                    with contextlib.suppress(Exception):
                        future.result().close()

    def _begin(self, executor: ThreadPoolExecutor, file: InventoryFile) -> tuple[InventoryFile, Future[BinaryIO]]:
        return file, executor.submit(self._fetch, file)

    def _fetch(self, file: InventoryFile) -> BinaryIO:
        try:
            info = self._store.stat(file.key)
        except ObjectNotFound as error:
            raise InventoryUnusable(
                f"inventory: {self._inventory.url} names the data file {file.key!r}, which does not exist; S3 or a "
                "lifecycle rule may have deleted it: name a newer inventory"
            ) from error
        if file.size_bytes is not None and info.size_bytes != file.size_bytes:
            raise InventoryUnusable(
                f"inventory: the data file {file.key!r} has {info.size_bytes} bytes, and the manifest says "
                f"{file.size_bytes}; name another inventory"
            )
        self._require_space(file, info.size_bytes)
        content: BinaryIO = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115  # closed by the caller
        try:
            digest = hashlib.md5(usedforsecurity=False)
            for piece in self._store.read_range(file.key, ByteRange(0, info.size_bytes), if_match=info.etag):
                content.write(piece)
                digest.update(piece)
            content.flush()
        except BaseException:
            content.close()
            raise
        if file.md5 is not None and digest.hexdigest() != file.md5:
            content.close()
            raise InventoryUnusable(
                f"inventory: the data file {file.key!r} does not have the MD5 of the manifest ({file.md5}): it was "
                "damaged or replaced; name another inventory"
            )
        return content

    def _require_space(self, file: InventoryFile, size_bytes: int) -> None:
        found = os.statvfs(self._directory)
        most_bytes = int(found.f_bavail * found.f_frsize * MOST_OF_FREE)
        if self._most_bytes is not None:
            most_bytes = min(most_bytes, self._most_bytes)
        if size_bytes > most_bytes:
            raise BudgetExceeded(
                f"inventory: the data file {file.key!r} has {size_bytes} bytes, and may have {most_bytes} on the disk "
                "of the manifests; have the operator give listings more, or use an inventory of more and smaller files"
            )
