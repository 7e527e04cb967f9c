"""One mount: snapshot, store, file system, open table and FUSE session put together."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from csi_driver.catalog.manifest import Manifest
from csi_driver.daemon.mount_records import MountRecord, MountRecords
from csi_driver.daemon.read_errors import ReadErrors
from csi_driver.event_loop.event_loop import EventLoop
from csi_driver.filesystem.dataset_filesystem import DatasetFilesystem, Presentation
from csi_driver.filesystem.open_table import OpenTable
from csi_driver.fuse import mounting as device
from csi_driver.fuse.session import FuseSession
from csi_driver.model.chunk import CHUNK_BYTES
from csi_driver.model.dataset import DatasetUrl
from csi_driver.model.errors import HayloftError, StoreError
from csi_driver.model.snapshot import CacheScope
from csi_driver.objects.credentials import access_domain, parse_secret
from csi_driver.objects.factory import open_store, open_store_late
from csi_driver.objects.obstore.obstore_factory import with_region
from csi_driver.objects.store import ObjectStore
from csi_driver.reading.read_through_cache import ReadThroughCache
from csi_driver.settings import FuseSettings
from csi_driver.volumes.data_plane import VolumeReport
from csi_driver.volumes.parameters import VolumeParameters

logger = logging.getLogger(__name__)

_CACHED_BYTES_AGE_S = 30.0
"""How old the count of cached bytes may be: kubelet asks once a minute, and counting asks about every file."""

_COUNT_AT_ONCE = 20_000
"""With more files than this the cached bytes are counted by a thread of their own."""


class StoreOpener(Protocol):
    """How the daemon opens stores; tests give their own."""

    def __call__(self, parameters: VolumeParameters, secrets: Mapping[str, str]) -> VolumeStore:
        """Raises StoreError, RequestError."""


class VolumeStore(NamedTuple):
    """The store of a volume, and what was found out to open it."""

    store: ObjectStore
    access_domain: str
    region: str | None = None


def open_volume_store(parameters: VolumeParameters, secrets: Mapping[str, str]) -> VolumeStore:
    """The real one. Does not ask the store anything yet, but may ask where credentials come from, and AWS for a
    bucket's region."""
    credentials = parse_secret(secrets)
    domain = access_domain(parameters.url, parameters.store_options, credentials)
    options = with_region(parameters.url, parameters.store_options)
    return VolumeStore(open_store(parameters.url, options, credentials), domain, options.region)


def reopen_volume_store(
    record: MountRecord, parameters: VolumeParameters, secrets: Mapping[str, str], opener: StoreOpener
) -> VolumeStore:
    """For a mount that is adopted: does not fail because the network does, since what is cached is readable without
    it. May take the seconds that an identity service does not answer. Raises as the opener if the record is of a
    daemon that noted nothing."""
    noted = parameters.model_copy(update={"region": parameters.region or record.region})
    try:
        return opener(noted, secrets)
    except StoreError as error:
        if not record.access_domain:
            raise
        logger.warning("volume %s: its store cannot be opened yet: %s", record.volume_id, error)
    late = open_store_late(parameters.url, noted.store_options, parse_secret(secrets))
    return VolumeStore(late, record.access_domain, record.region)


class ServedMount:
    """A FUSE mount that this daemon serves, from ``begin`` or ``adopt`` until ``close``."""

    def __init__(
        self,
        record: MountRecord,
        records: MountRecords,
        library: ReadThroughCache,
        event_loop: EventLoop,
        store: ObjectStore,
        domain: str,
    ) -> None:
        """Opens the manifest that the records hold for the mount. Raises ManifestInvalid."""
        self.record = record
        self._records = records
        self._library = library
        self._event_loop = event_loop
        self._store = store
        self.parameters = VolumeParameters.parse(record.attributes)
        self._manifest = Manifest.open(records.manifest_path(record.mount_id), snapshot_id=record.snapshot_id)
        self.tree = self._manifest.tree
        self.cache_scope = CacheScope(domain, store.endpoint, store.bucket, CHUNK_BYTES)
        """How the object files of the volume are named."""
        self.filesystem = DatasetFilesystem(
            self._manifest.tree,
            library,
            store,
            access_domain=domain,
            url_base=_url_base(self.parameters.url),
            dataset_name=str(self.parameters.url),
            presentation=Presentation(
                self.parameters.uid, self.parameters.gid, self.parameters.file_mode, self.parameters.dir_mode
            ),
        )
        self.troubles = ReadErrors()
        self.session: FuseSession | None = None
        self.descriptor = -1
        self._opens: OpenTable | None = None
        self._cached_bytes = 0
        self._counted_at = 0.0
        self._counting = threading.Lock()

    def begin(self, settings: FuseSettings) -> None:
        """Mounts and serves. Raises MountError; leaves nothing mounted then."""
        record = self.record
        self._opens = OpenTable.create(self._records.opens_path(record.mount_id), record.snapshot_id)
        options = self.parameters.mount_options
        self.descriptor = device.mount(Path(record.mount_point), str(self.parameters.url), no_exec=options.no_exec)
        try:
            self._serve(settings, adopted=False)
            read_ahead_kib = options.read_ahead_kib or settings.read_ahead_kib
            device.set_read_ahead(Path(record.mount_point), read_ahead_kib)
        except BaseException:
            device.unmount(Path(record.mount_point), lazy=True)
            raise

    def adopt(self, settings: FuseSettings, descriptor: int) -> None:
        """Serves a mount that an earlier daemon made. Takes over the descriptor."""
        self.descriptor = descriptor
        self._opens = OpenTable.load(self._records.opens_path(self.record.mount_id), self.record.snapshot_id)
        self._serve(settings, adopted=True)

    def watch(self, ended: Callable[[ServedMount], None]) -> None:
        """Calls back, on a thread of its own, when the mount is gone."""

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
        """Stops serving and frees everything; the mount, if it is still there, stays for the next daemon."""
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
        """State of the volume. Does not touch the mount."""
        tree = self._manifest.tree
        wrong = self._what_is_wrong()
        return VolumeReport(
            volume_id=self.record.volume_id,
            mount_point=self.record.mount_point,
            snapshot_id=self.record.snapshot_id,
            total_bytes=tree.total_bytes,
            cached_bytes=self._count_cached_bytes(),
            file_count=tree.file_count,
            abnormal=bool(wrong),
            message="; ".join(wrong),
        )

    def _what_is_wrong(self) -> list[str]:
        disk = self._library.disk_condition(self.filesystem.dataset)
        return [
            *(["the mount is gone"] if self.ended else []),
            *self.troubles.messages(),
            *([disk] if disk else []),
        ]

    def _note_failure(self, node: int, error: HayloftError) -> None:
        self.troubles.note(self._manifest.tree.file(node).key, error)

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
        self.session.tell_failures(self._note_failure)
        self.session.start()

    def _count_cached_bytes(self) -> int:
        if time.monotonic() - self._counted_at > _CACHED_BYTES_AGE_S or not self._counted_at:
            if self._manifest.file_count <= _COUNT_AT_ONCE:
                self._count()
            elif self._counting.acquire(blocking=False):
                threading.Thread(target=self._count_and_release, name="count-cached", daemon=True).start()
        return self._cached_bytes

    def _count(self) -> None:
        self._cached_bytes = self.filesystem.cached_bytes()
        self._counted_at = time.monotonic()

    def _count_and_release(self) -> None:
        try:
            self._count()
        finally:
            self._counting.release()


def _url_base(url: DatasetUrl) -> str:
    return f"{url.scheme}://{url.bucket}/"
