"""One mount: assembles snapshot, store, file system, open table and FUSE session."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from csi_driver import telemetry
from csi_driver.catalog.manifest import Manifest
from csi_driver.daemon.mount_records import MountRecord, MountRecords
from csi_driver.daemon.read_errors import ReadErrors
from csi_driver.event_loop.event_loop import EventLoop
from csi_driver.filesystem.dataset_filesystem import DatasetFilesystem, Presentation
from csi_driver.filesystem.open_table import OpenTable
from csi_driver.fuse import mounting
from csi_driver.fuse.session import FuseSession
from csi_driver.model.chunk import CHUNK_BYTES
from csi_driver.model.errors import HayloftError, StoreError
from csi_driver.model.snapshot import CacheScope
from csi_driver.objects.credentials import access_domain, parse_secret
from csi_driver.objects.s3.region import with_region
from csi_driver.objects.store import ObjectStore
from csi_driver.objects.store_factory import open_store, open_store_late
from csi_driver.reading.read_through_cache import ReadThroughCache
from csi_driver.settings import FuseSettings
from csi_driver.volumes.data_plane import VolumeReport
from csi_driver.volumes.parameters import VolumeParameters

logger = logging.getLogger(__name__)

_CACHED_BYTES_AGE_S = 30.0
"""Maximum age of the count of cached bytes: kubelet polls once a minute, and a count looks at every file."""

_COUNT_INLINE_FILES = 20_000
"""With more files than this a background thread counts the cached bytes."""


class StoreOpener(Protocol):
    """Opens the store of a volume; tests replace it."""

    def __call__(self, parameters: VolumeParameters, secrets: Mapping[str, str]) -> VolumeStore:
        """Raises StoreError, RequestError."""


class VolumeStore(NamedTuple):
    """The store of a volume, with the access domain and region that were determined to open it."""

    store: ObjectStore
    access_domain: str
    region: str | None = None


def open_volume_store(parameters: VolumeParameters, secrets: Mapping[str, str]) -> VolumeStore:
    """The default StoreOpener. Sends no request to the store yet, but may send requests to a source of credentials, and
    to AWS for the region of a bucket."""
    credentials = parse_secret(secrets)
    domain = access_domain(parameters.url, parameters.store_options, credentials)
    options = with_region(parameters.url, parameters.store_options)
    return VolumeStore(open_store(parameters.url, options, credentials), domain, options.region)


def reopen_volume_store(
    record: MountRecord, parameters: VolumeParameters, secrets: Mapping[str, str], opener: StoreOpener
) -> VolumeStore:
    """For the adoption of a mount: a failure of the network is not an error, since cached data is readable without it.
    Blocks up to the time-out of an identity service. Raises as the opener if the record has no access domain (from a
    daemon of an older version)."""
    recorded = parameters.model_copy(update={"region": parameters.region or record.region})
    try:
        return opener(recorded, secrets)
    except StoreError as error:
        if not record.access_domain:
            raise
        facts = telemetry.fields(volume_id=record.volume_id, url=str(parameters.url), error=str(error))
        logger.warning("the store of an adopted volume is not available; it is opened at the next fetch", extra=facts)
    lazy_store = open_store_late(parameters.url, recorded.store_options, parse_secret(secrets))
    return VolumeStore(lazy_store, record.access_domain, record.region)


class ServedMount:
    """A FUSE mount that this daemon serves, from ``begin`` or ``adopt`` until ``close``."""

    def __init__(
        self,
        record: MountRecord,
        parameters: VolumeParameters,
        records: MountRecords,
        read_through_cache: ReadThroughCache,
        event_loop: EventLoop,
        store: ObjectStore,
        domain: str,
    ) -> None:
        """Opens the manifest that the records have for the mount. ``parameters`` are the record's attributes, parsed.
        Owns and closes the store. Raises ManifestInvalid."""
        self.record = record
        self.parameters = parameters
        self._records = records
        self._read_through_cache = read_through_cache
        self._event_loop = event_loop
        self._store = store
        self._manifest = Manifest.open(records.manifest_path(record.mount_id), snapshot_id=record.snapshot_id)
        self.tree = self._manifest.tree
        self.cache_scope = CacheScope(domain, store.endpoint, store.bucket, CHUNK_BYTES)
        """Determines the names of the volume's object files in the cache."""
        self.filesystem = DatasetFilesystem(
            self._manifest.tree,
            read_through_cache,
            store,
            access_domain=domain,
            url_base=f"{parameters.url.scheme}://{parameters.url.bucket}/",
            dataset_name=str(parameters.url),
            presentation=Presentation(parameters.uid, parameters.gid, parameters.file_mode, parameters.dir_mode),
        )
        self._read_errors = ReadErrors()
        self.session: FuseSession | None = None
        self.descriptor = -1
        self._opens: OpenTable | None = None
        self._cached_bytes = 0
        self._counted_at = 0.0
        self._counting = threading.Lock()  # held by the one background thread that counts cached bytes

    def begin(self, settings: FuseSettings) -> None:
        """Mounts and serves. Raises MountError, with nothing left mounted."""
        record = self.record
        self._opens = OpenTable.create(self._records.opens_path(record.mount_id), record.snapshot_id)
        options = self.parameters.mount_options
        self.descriptor = mounting.mount(Path(record.mount_point), str(self.parameters.url), no_exec=options.no_exec)
        try:
            self._serve(settings, adopted=False)
            read_ahead_kib = options.read_ahead_kib or settings.read_ahead_kib
            mounting.set_read_ahead(Path(record.mount_point), read_ahead_kib)
        except BaseException:
            mounting.unmount(Path(record.mount_point), lazy=True)
            raise

    def adopt(self, settings: FuseSettings, descriptor: int) -> None:
        """Serves a mount of an earlier daemon. Owns the descriptor from now on, also when it raises."""
        self.descriptor = descriptor
        self._opens = OpenTable.load(self._records.opens_path(self.record.mount_id), self.record.snapshot_id)
        self._serve(settings, adopted=True)

    def watch(self, ended: Callable[[ServedMount], None]) -> None:
        """Calls ``ended`` once on a separate thread when the mount has ended."""

        def wait() -> None:
            if self.session is not None:
                self.session.wait()
            ended(self)

        threading.Thread(target=wait, name=f"watch-{self.record.mount_id}", daemon=True).start()

    @property
    def ended(self) -> bool:
        """True when the last mount point of the file system is gone."""
        return self.session is None or self.session.closed.is_set()

    def close(self) -> None:
        """Stops serving and frees all resources. The mount itself, if it still exists, stays for the next daemon."""
        # In this order: the session's threads use the file system and the open table, and read the descriptor.
        if self.session is not None:
            self.session.stop()
        self.filesystem.close()
        if self._opens is not None:
            self._opens.close()
        self._store.close()
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def report(self) -> VolumeReport:
        """The state of the volume. Does not access the mount. Counts cached bytes, at most once in 30 s."""
        tree = self._manifest.tree
        disk = self._read_through_cache.disk_condition(self.filesystem.dataset)
        problems = [
            *(["the mount is gone"] if self.ended else []),
            *self._read_errors.messages(),
            *([disk] if disk else []),
        ]
        return VolumeReport(
            volume_id=self.record.volume_id,
            mount_point=self.record.mount_point,
            snapshot_id=self.record.snapshot_id,
            total_bytes=tree.total_bytes,
            cached_bytes=self._count_cached_bytes(),
            file_count=tree.file_count,
            abnormal=bool(problems),
            message="; ".join(problems),
        )

    def _note_failure(self, node: int, error: HayloftError) -> None:
        self._read_errors.note(self._manifest.tree.file(node).key, error)

    def _serve(self, settings: FuseSettings, *, adopted: bool) -> None:
        if self._opens is None:
            raise RuntimeError("no open table")
        self.session = FuseSession(
            self.descriptor,
            self.filesystem,
            self._opens,
            settings,
            adopted=adopted,
            name=self.record.volume_id[:40],
            loop=self._event_loop,
        )
        self.session.on_failure(self._note_failure)
        self.session.start()

    def _count_cached_bytes(self) -> int:
        if time.monotonic() - self._counted_at > _CACHED_BYTES_AGE_S or not self._counted_at:
            if self._manifest.file_count <= _COUNT_INLINE_FILES:
                self._count()
            elif self._counting.acquire(blocking=False):  # released by the thread that is started here
                threading.Thread(target=self._count_and_release, name="count-cached", daemon=True).start()
        return self._cached_bytes

    def _count(self) -> None:
        # Without a lock: two concurrent counts cost time, and the last one wins. The count comes first, so that a
        # reader of a recent ``_counted_at`` finds a recent count.
        self._cached_bytes = self.filesystem.cached_bytes()
        self._counted_at = time.monotonic()

    def _count_and_release(self) -> None:
        try:
            self._count()
        finally:
            self._counting.release()
