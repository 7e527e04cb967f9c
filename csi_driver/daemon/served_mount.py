"""One mount: assembles snapshot, store, file system, open table and FUSE session."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from csi_driver import telemetry
from csi_driver.cache.disk import state_errors
from csi_driver.catalog.arrow_alone import import_arrow
from csi_driver.catalog.manifest_notes import notes_of
from csi_driver.catalog.tree import FIRST_FILE_NODE
from csi_driver.daemon.cached_bytes_count import CachedBytesCount
from csi_driver.daemon.mirrors_of_mounts import begin_mirrors
from csi_driver.daemon.mount_records import MountRecord, MountRecords
from csi_driver.daemon.pod_sessions import PodSession
from csi_driver.daemon.read_errors import ReadErrorCounts, ReadErrors
from csi_driver.daemon.trace_recording import TraceRecording
from csi_driver.daemon.trace_source import load_trace
from csi_driver.daemon.volume_stores import VolumeStore
from csi_driver.event_loop.event_loop import EventLoop
from csi_driver.filesystem.dataset_filesystem import DatasetFilesystem, Presentation
from csi_driver.filesystem.descriptor_budget import DescriptorBudget
from csi_driver.filesystem.fetching import Fetching
from csi_driver.filesystem.open_table import OpenTable
from csi_driver.fuse import mounting
from csi_driver.fuse.request_timeout import RequestTimeouts
from csi_driver.fuse.session import FuseSession
from csi_driver.model import conditions
from csi_driver.model.access_trace import AccessTrace
from csi_driver.model.chunk import CHUNK_BYTES
from csi_driver.model.conditions import Condition
from csi_driver.model.errors import CacheError, HayloftError, VolumeConflict
from csi_driver.model.read_counts import ReadCounts
from csi_driver.model.snapshot import CacheScope
from csi_driver.objects.store import ObjectStore
from csi_driver.objects.tier.tiered_hooks import note_dataset_bytes
from csi_driver.reading.access import UNNAMED, Credential
from csi_driver.reading.fair_shares import Share
from csi_driver.reading.read_through_cache import ReadThroughCache
from csi_driver.settings import FuseSettings
from csi_driver.volumes.data_plane import MountHealth, VolumeReport
from csi_driver.volumes.parameters import VolumeParameters

logger = logging.getLogger(__name__)

SLOW_S = 10.0
"""A request that has received no byte for so long, or for half of the volume's ``requestTimeout``, shows that the store
is slow: stores that work send one within a second."""


class ServedMount:
    """A FUSE mount that this daemon serves, from ``begin`` or ``adopt`` until ``close``."""

    def __init__(
        self,
        record: MountRecord,
        parameters: VolumeParameters,
        records: MountRecords,
        read_through_cache: ReadThroughCache,
        event_loop: EventLoop,
        opened: VolumeStore,
        descriptors: DescriptorBudget,
        credential: Credential = UNNAMED,
        error_counts: ReadErrorCounts | None = None,
        counts: ReadCounts | None = None,
    ) -> None:
        """Opens the manifest that the records have for the mount. ``parameters`` are the record's attributes, parsed.
        Owns and closes the store, also when it raises. Raises ManifestInvalid."""
        self.record = record
        """With the device of the mount from ``begin`` on, or ``adopt``."""
        self.parameters = parameters
        self._records = records
        self._read_through_cache = read_through_cache
        self._event_loop = event_loop
        store, domain = opened.store, record.domain or opened.access_domain
        self._store, self._domain, self._mirrors = store, domain, opened.mirrors
        self._store_user = opened.user
        import_arrow()  # a daemon without a volume does without Arrow
        from csi_driver.catalog.manifest import Manifest

        try:
            self._manifest = Manifest.open(records.manifest_path(record.mount_id), snapshot_id=record.snapshot_id)
        except BaseException:
            store.close()
            raise
        self.tree = self._manifest.tree
        note_dataset_bytes(store, self.tree.total_bytes)
        if opened.mirrors is not None:
            begin_mirrors(opened.mirrors, self.tree, parameters.url, record.volume_id)
        self.credential = credential
        self.cache_scope = CacheScope(domain, store.endpoint, store.bucket, CHUNK_BYTES)
        """Determines the names of the volume's object files in the cache."""
        self.counts = counts or ReadCounts()
        """What its readers did."""
        self.share = Share(record.namespace, store.endpoint, record.volume_id)
        self._end_limit = read_through_cache.fetcher.limit(self.share, parameters.bandwidth_bytes)
        self.filesystem = DatasetFilesystem(
            self._manifest.tree,
            read_through_cache,
            store,
            access_domain=domain,
            url_base=f"{parameters.url.scheme}://{parameters.url.bucket}/",
            dataset_name=str(parameters.url),
            presentation=Presentation(
                parameters.uid, parameters.gid or record.mount_group, parameters.file_mode, parameters.dir_mode
            ),
            share=self.share,
            descriptors=descriptors.share(self.share),
            credential=credential,
            opens=parameters.opens,
            fetching=Fetching(parameters.read_ahead_bytes, parameters.whole_files),
            counts=self.counts,
        )
        self.tracing = TraceRecording(self.filesystem, self.tree, parameters.url)
        self._read_errors = ReadErrors(
            record.volume_id, lambda: self.filesystem.access, error_counts or ReadErrorCounts()
        )
        self._notes = notes_of(self._manifest)
        self._is_kernel_timeout_short = bool(self.request_timeout_warning())
        self.unmounted = False
        """It was unmounted at its mount point, by a call or before it was adopted. Its end is then no loss."""
        self.pod_session: PodSession | None = None
        """Of the keys that it reads with, if they are of the pod's identity."""
        self.session: FuseSession | None = None
        self.descriptor = -1
        self._opens: OpenTable | None = None
        self._cached_bytes = CachedBytesCount(self.tree.file_count, self.filesystem.cached_bytes)

    def notes(self) -> list[str]:
        """What is to be said of the snapshot at the mount. May ask the store, once."""
        self._notes = notes_of(self._manifest, self._store)
        return self._notes

    def load_trace(self, path: str) -> AccessTrace:
        """As ``trace_source.load_trace``."""
        return load_trace(self._store, self.parameters.url, path)

    def renew(self, opened: VolumeStore, credential: Credential) -> None:
        """Reads with other credentials of the same user from now on. What is cached stays, and is read once the store
        has let the new credential read it. Owns the store, also when it raises. Raises VolumeConflict for another user,
        whose files may be others under the same names."""
        if opened.user != self._store_user:
            opened.store.close()
            raise VolumeConflict(
                f"volume {self.record.volume_id}: the Secret is of another user or account of the store than the one "
                "that the volume is mounted with, which may see other files; delete the pods of this node that use the "
                "volume, so that it is mounted anew"
            )
        note_dataset_bytes(opened.store, self.tree.total_bytes)
        if opened.mirrors is not None:
            begin_mirrors(opened.mirrors, self.tree, self.parameters.url, self.record.volume_id)
        earlier, self._store, self._mirrors = self._store, opened.store, opened.mirrors
        self.credential = credential
        self.filesystem.renew(opened.store, credential)
        earlier.close()  # of what is idle; its requests in flight end by themselves
        self.record = replace(self.record, credential=credential.own.hex(), domain=self._domain)
        try:
            self._records.save(self.record)
        except CacheError as error:  # the next daemon knows the earlier credential, until kubelet brings this one again
            facts = telemetry.fields(volume_id=self.record.volume_id, error=str(error))
            logger.warning("the renewed credentials of a volume were not recorded", extra=facts)

    def begin(self, settings: FuseSettings) -> None:
        """Mounts and serves. Raises MountError, CacheError, with nothing left mounted."""
        record = self.record
        opens_path = self._records.opens_path(record.mount_id)
        with state_errors(opens_path, "the open files of mounts"):
            self._opens = OpenTable.create(opens_path, record.snapshot_id)
        options = self.parameters.mount_options
        self.descriptor = mounting.mount(Path(record.mount_point), str(self.parameters.url), no_exec=options.no_exec)
        self._identify()
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
        if not self.record.device:  # the daemon died between mounting and recording it, or was of an earlier version
            self._identify()
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
        self._cached_bytes.close()
        self.filesystem.close()
        self._end_limit()
        if self._opens is not None:
            self._opens.close()
        self._store.close()
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    @property
    def requested_bytes(self) -> int:
        """Of the cache, that the volume asks for or has been given since."""
        return max(self.parameters.cache_reservation_bytes, self.record.reserved_bytes)

    @property
    def reserved_bytes(self) -> int:
        """The same, or all bytes of the volume if it is pinned."""
        return max(self.requested_bytes, self.tree.total_bytes if self.record.pinned else 0)

    def note_reserved(self, count_bytes: int) -> None:
        """For the next daemon. Raises CacheDiskFailed, DescriptorsExhausted; the record is then as before."""
        self._save(replace(self.record, reserved_bytes=count_bytes))

    def note_pinned(self, pinned: bool) -> None:
        """As ``note_reserved``."""
        self._save(replace(self.record, pinned=pinned))

    def _save(self, record: MountRecord) -> None:
        self._records.save(record)
        self.record = record

    @property
    def cached_bytes_are_known(self) -> bool:
        """Whether ``report`` has counted them."""
        return self._cached_bytes.is_known

    @property
    def store(self) -> ObjectStore:
        """What is read from at this moment: ``renew`` replaces it."""
        return self._store

    @property
    def store_wait_s(self) -> float:
        """As of ``ReadThroughCache.store_wait_s``, of this volume."""
        return self._read_through_cache.store_wait_s(self.share)

    def open_files(self) -> Iterator[tuple[int, bool]]:
        """The inode number of each open that the kernel has, and whether the kernel reads it by itself. Reads the open
        table: some microseconds for each slot."""
        if self._opens is not None:
            for record in self._opens.records():
                yield record.node, bool(record.backing_id)

    def report(self, found: tuple[Condition, ...] = ()) -> VolumeReport:
        """The state of the volume, whose conditions the caller has found. Does not access the mount. May count cached
        bytes."""
        tree = self._manifest.tree
        return VolumeReport(
            volume_id=self.record.volume_id,
            mount_point=self.record.mount_point,
            snapshot_id=self.record.snapshot_id,
            total_bytes=tree.total_bytes,
            cached_bytes=self._cached_bytes.value(),
            file_count=tree.file_count,
            conditions=found,
            notes=tuple(self._notes),
            attributes=self.record.attributes,
            reserved_bytes=self.requested_bytes,
            mount_group=self.record.mount_group,
        )

    def health(self, found: tuple[Condition, ...] = ()) -> MountHealth:
        """From memory, at once."""
        return MountHealth(
            volume_id=self.record.volume_id,
            device=self.record.device,
            total_bytes=self.tree.total_bytes,
            file_count=self.tree.file_count,
            conditions=found,
            notes=tuple(self._notes),
        )

    def cached_bytes(self) -> int:
        """Of the dataset; as ``CachedBytesCount.estimate``."""
        return self._cached_bytes.estimate()

    def conditions(self) -> Iterator[Condition]:
        """What is wrong with this volume, but for the warmup and the cache disk. From memory, at once."""
        if self.ended:
            yield conditions.MOUNT_DEAD
        yield from self._read_errors.conditions()
        if self._mirrors is not None:
            yield from self._mirrors.conditions()
        patience_s = min(SLOW_S, self.parameters.request_timeout_s / 2)
        if self.store_wait_s > patience_s:
            yield conditions.STORE_SLOW
        if self._is_kernel_timeout_short:
            yield conditions.KERNEL_TIMEOUT_SHORT
        if self.filesystem.descriptors_exhausted():
            yield conditions.TOO_MANY_OPEN_FILES

    def request_timeout_warning(self) -> str:
        """A sentence if the kernel aborts the mount when a read takes as long as the volume allows; else empty."""
        return RequestTimeouts.read().warning(self.parameters.deadline_s + self.parameters.request_timeout_s)

    def _identify(self) -> None:
        entry = mounting.find(Path(self.record.mount_point))
        self.record = replace(self.record, device=entry.device if entry is not None else "")

    def _note_failure(self, node: int, error: HayloftError) -> None:
        self._read_errors.note(node - FIRST_FILE_NODE, self._manifest.tree.file(node).key, error)

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
        self.session.count_opens(self.counts)
        self.session.start()
