"""The data plane of the cache daemon: mounts volumes, adopts the mounts of an earlier daemon, and reports."""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from csi_driver import telemetry
from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.cache.open_file_cache import IDLE_S
from csi_driver.daemon.keeper_sync import DescriptorKeeper, KeeperSync
from csi_driver.daemon.mount_records import MountRecord, MountRecords
from csi_driver.daemon.served_mount import ServedMount, StoreOpener, open_volume_store, reopen_volume_store
from csi_driver.daemon.view_publisher import ViewPublisher
from csi_driver.daemon.warmup_jobs import WarmupJobs
from csi_driver.event_loop.event_loop import EventLoop
from csi_driver.fuse import mounting
from csi_driver.model.errors import HayloftError, MountPointBusy, NotMounted, VolumeConflict, VolumeNotFound
from csi_driver.mounts.mount_table import MountTable, real_mount_point
from csi_driver.reading.read_through_cache import ReadThroughCache
from csi_driver.settings import CacheDaemonSettings
from csi_driver.volumes.data_plane import DaemonReport, MountRequest, VolumeReport, WarmupReport, WarmupRequest
from csi_driver.volumes.dataset_snapshots import SnapshotService
from csi_driver.volumes.parameters import VolumeParameters
from csi_driver.volumes.volume_ids import check_id

logger = logging.getLogger(__name__)

_UNMOUNT_WAIT_S = 2.0
"""How long ``unmount`` waits for the session to end. The session continues while the volume is still published."""

_COLLECT_DELAY_S = 1.0
"""From the end of a mount, when its last threads have ended, to a full garbage collection. The objects of a mount form
reference cycles, which retain a mapped manifest and its descriptor until then; automatic full collections are rare
(see wiring/cache_process.py)."""


class LocalDataPlane:
    """A ``DataPlane``. The daemon's server allows only one call for a volume at a time."""

    def __init__(
        self,
        settings: CacheDaemonSettings,
        chunk_store: ChunkStore,
        read_through_cache: ReadThroughCache,
        event_loop: EventLoop,
        snapshots: SnapshotService,
        keeper: DescriptorKeeper | None,
        version: str,
        open_volume: StoreOpener = open_volume_store,
    ) -> None:
        self._settings = settings
        self._chunk_store = chunk_store
        self._read_through_cache = read_through_cache
        self._event_loop = event_loop
        self._snapshots = snapshots
        self._keeper_sync = KeeperSync(keeper)
        self._version = version
        self._open_volume = open_volume
        self._records = MountRecords(settings.state_directory)
        self._lock = threading.Lock()  # guards _mounts; not held across disk, network or mount(2)
        self._mounts: dict[str, ServedMount] = {}
        """By mount id. A mount whose volume was unmounted stays until its last bind mount is gone."""
        self._mount_ended_s: float | None = None
        """When a mount ended after the last full garbage collection, on the clock of ``time.monotonic``."""
        self._view_publisher = ViewPublisher(chunk_store.views, self)
        most_fetches = settings.reading.warmup_fetches
        self._warmups = WarmupJobs(read_through_cache, chunk_store, self._records, self._all_served, most_fetches)

    # -- DataPlane --

    def mount(self, request: MountRequest) -> VolumeReport:
        check_id("volume_id", request.volume_id)
        parameters = VolumeParameters.parse(request.attributes, self._settings.policy)
        served = self._at(request.mount_point)
        if served is not None:
            return self._already_mounted(served, request, parameters)
        self._remove_dead_mount(Path(request.mount_point))
        return self._mount_new(request, parameters).report()

    def unmount(self, volume_id: str, mount_point: str) -> None:
        served = self._at(mount_point)
        if served is not None and served.record.volume_id != volume_id:
            raise VolumeConflict(
                f"{mount_point}: volume {served.record.volume_id} is mounted there, not {volume_id}; nothing was done"
            )
        mounting.unmount(Path(mount_point))
        if served is not None and served.session is not None and served.session.wait(_UNMOUNT_WAIT_S):
            self._end(served)

    def publish(self, volume_id: str, target: str) -> bool:
        return self._view_publisher.publish(self._served(volume_id), real_mount_point(target))

    def unpublish(self, volume_id: str, target: str) -> None:
        self._view_publisher.unpublish(volume_id, real_mount_point(target))

    def volume(self, volume_id: str) -> VolumeReport:
        return self._served(volume_id).report()

    def report(self) -> DaemonReport:
        with self._lock:
            sessions = [mount.session for mount in self._mounts.values()]
        return DaemonReport(
            version=self._version,
            process_id=os.getpid(),
            mounts=len(sessions),
            passthrough=all(session.passthrough for session in sessions if session is not None),
            cache_limit_bytes=self._chunk_store.limit_bytes,
            cache_used_bytes=self._chunk_store.used_bytes,
            origin_bytes=self._read_through_cache.origin_bytes,
            origin_requests=self._read_through_cache.origin_requests,
            resident_bytes=_resident_bytes(),
            warmups=self._warmups.running(),
            warmup_bytes=self._warmups.fetched_bytes(),
            cache_bad_chunks=self._chunk_store.bad_chunks,
            cache_disk_failures=self._chunk_store.health.failures,
            cache_disk_in_use=self._chunk_store.health.in_use,
            scrubbed_bytes=self._chunk_store.scrubber.scrubbed_bytes,
            checksum_mismatches=self._read_through_cache.integrity.counts.mismatches,
        )

    def start_warmup(self, request: WarmupRequest) -> WarmupReport:
        return self._warmups.start(self._served(request.volume_id), request)

    def warmup(self, volume_id: str) -> WarmupReport:
        return self._warmups.report(self._served(volume_id))

    def cancel_warmup(self, volume_id: str) -> WarmupReport:
        return self._warmups.cancel(self._served(volume_id))

    # -- lifecycle --

    def tidy(self, age_s: float = IDLE_S) -> None:
        """Closes files in the open-file caches that were not reopened for ``age_s``. Called about every second."""
        with self._lock:
            mounts = list(self._mounts.values())
        for served in mounts:
            served.filesystem.close_idle(age_s)

    def sweep(self) -> None:
        """Removes views that are no longer mounted, and frees the memory of ended mounts. Called about every second."""
        self._view_publisher.sweep_if_due()
        ended_s = self._mount_ended_s
        if ended_s is not None and time.monotonic() - ended_s > _COLLECT_DELAY_S:
            self._mount_ended_s = None
            gc.collect()

    def adopt(self) -> None:
        """Adopts the mounts of an earlier daemon. Those that cannot be adopted are unmounted: no reader may hang."""
        records = list(self._records.load())
        known = {record.mount_id for record in records}
        held = self._keeper_sync.held_ids() if records else self._keeper_sync.held_ids(timeout_s=0.0)
        for record in records:
            try:
                self._adopt(record, held)
            except Exception as error:  # one mount must not prevent the start of the daemon and all other mounts
                facts = telemetry.fields(
                    volume_id=record.volume_id, mount_point=record.mount_point, error=str(error) or type(error).__name__
                )
                unexpected = not isinstance(error, HayloftError)
                logger.error(
                    "a mount could not be adopted and is unmounted; its pods have to be restarted",
                    extra=facts,
                    exc_info=unexpected,
                )
                self._abandon(record)
        # After a crash while mounting, or an unmount that did not reach the keeper.
        self._records.remove_unknown(known)
        for mount_id in held - known:
            self._keeper_sync.remove(mount_id)

    def resync_keeper(self) -> None:
        """Passes the keeper the mounts that it lacks, as after its restart. Called every few seconds."""
        self._keeper_sync.resync()

    def close(self) -> None:
        """Stops serving. With a keeper the mounts stay for the next daemon; without one they would be dead, and are
        unmounted."""
        self._keeper_sync.stop()  # first: it needs the descriptors that are closed below
        self._warmups.close()
        with self._lock:
            mounts = list(self._mounts.values())
            self._mounts.clear()  # from now on ``_end`` does nothing, so each mount is closed once, below
        for served in mounts:
            if not self._keeper_sync.exists:
                with suppress(HayloftError):
                    mounting.unmount(Path(served.record.mount_point), lazy=True)
                self._records.remove(served.record.mount_id)
            served.close()

    # -- mounting --

    def _mount_new(self, request: MountRequest, parameters: VolumeParameters) -> ServedMount:
        snapshot = self._snapshots.ensure(request.volume_id, parameters, request.secrets)
        store, domain, region = self._open_volume(parameters, request.secrets)
        record = MountRecord(
            MountRecord.new_id(),
            request.volume_id,
            request.mount_point,
            parameters.to_context(),
            snapshot.snapshot_id,
            access_domain=domain,
            region=region,
        )
        try:
            self._records.store_manifest(record.mount_id, snapshot.manifest_path)
            served = ServedMount(
                record, parameters, self._records, self._read_through_cache, self._event_loop, store, domain
            )
            # Before the mount exists: a daemon that dies after mount(2) leaves a record by which it is found.
            self._records.save(record)
            try:
                self._reserve(served, adopted=False)
                served.begin(self._settings.fuse)
            except BaseException:
                served.close()
                raise
        except BaseException:
            self._chunk_store.reservations.end(record.mount_id)
            self._records.remove(record.mount_id)
            raise
        self._keeper_sync.add(record.mount_id, served.descriptor, request.secrets)
        self._register(served)
        facts = telemetry.fields(volume_id=record.volume_id, url=str(parameters.url), mount_point=record.mount_point)
        logger.info("volume mounted", extra=facts)
        return served

    def _already_mounted(
        self, served: ServedMount, request: MountRequest, parameters: VolumeParameters
    ) -> VolumeReport:
        record = served.record
        if record.volume_id != request.volume_id or record.attributes != parameters.to_context():
            raise VolumeConflict(
                f"{request.mount_point}: volume {record.volume_id} is mounted there with other attributes; unstage it"
            )
        self._warmups.retry_if_failed(served)
        return served.report()

    def _remove_dead_mount(self, mount_point: Path) -> None:
        """Unmounts a FUSE mount of this driver that no daemon serves. Raises MountPointBusy for a foreign mount."""
        entry = MountTable.read().at(mount_point)
        if entry is None:
            return
        if entry.fs_type != mounting.FS_TYPE:
            raise MountPointBusy(
                f"{mount_point}: {entry.source} ({entry.fs_type}) is mounted there; unmount it or choose another path"
            )
        facts = telemetry.fields(mount_point=str(mount_point))
        logger.warning(
            "no daemon serves the mount at the staging path; unmounting it before mounting anew", extra=facts
        )
        mounting.unmount(mount_point, lazy=True)

    def _at(self, mount_point: str) -> ServedMount | None:
        """The mount that this daemon serves at exactly this path, if the host's mount table still has it."""
        with self._lock:
            found = [mount for mount in self._mounts.values() if mount.record.mount_point == mount_point]
        for served in found:
            if not served.ended and mounting.find(Path(mount_point)) is not None:
                return served
        return None

    def _all_served(self) -> list[ServedMount]:
        with self._lock:
            return list(self._mounts.values())

    def _served(self, volume_id: str) -> ServedMount:
        """Raises VolumeNotFound."""
        with self._lock:
            found = [mount for mount in self._mounts.values() if mount.record.volume_id == volume_id]
        if not found:
            raise VolumeNotFound(f"volume {volume_id} is not mounted on this node")
        return found[-1]

    def _reserve(self, served: ServedMount, *, adopted: bool) -> None:
        """Raises CacheOvercommitted, but not for an adopted mount, whose reservation was granted before."""
        count_bytes = served.parameters.cache_reservation_bytes
        mount_id, dataset = served.record.mount_id, served.filesystem.dataset
        self._chunk_store.reservations.reserve(mount_id, dataset, count_bytes, adopted=adopted)
        self._chunk_store.note_dataset(dataset, served.tree.total_bytes)

    def _register(self, served: ServedMount) -> None:
        with self._lock:
            self._mounts[served.record.mount_id] = served
        served.watch(self._end)  # after it is in _mounts: ``_end`` does nothing for a mount that is not
        self._warmups.mounted(served)

    def _end(self, served: ServedMount) -> None:
        """Frees a mount that has ended. Called by ``unmount`` and by the watching thread, in any order."""
        mount_id = served.record.mount_id
        with self._lock:
            if self._mounts.pop(mount_id, None) is None:  # the pop decides which of the two frees it
                return
        self._chunk_store.reservations.end(mount_id)
        self._warmups.remove(mount_id)
        # Before ``close``: a resync duplicates the descriptor of every mount that KeeperSync knows, and after ``close``
        # its number may belong to another file.
        self._keeper_sync.remove(mount_id)
        self._records.remove(mount_id)
        served.close()
        self._mount_ended_s = self._mount_ended_s or time.monotonic()
        facts = telemetry.fields(volume_id=served.record.volume_id, mount_point=served.record.mount_point)
        logger.info("volume unmounted", extra=facts)

    # -- adoption --

    def _adopt(self, record: MountRecord, held: set[str]) -> None:
        """Closes the descriptor when it raises."""
        fetched = self._keeper_sync.fetch(record.mount_id) if record.mount_id in held else None
        if fetched is None:
            raise NotMounted("the keeper does not hold its connection: it is not running, or was restarted as well")
        descriptor, secrets = fetched
        try:
            parameters = VolumeParameters.parse(record.attributes)
            store, domain, _ = reopen_volume_store(record, parameters, secrets, self._open_volume)
            served = ServedMount(
                record, parameters, self._records, self._read_through_cache, self._event_loop, store, domain
            )
        except BaseException:
            os.close(descriptor)  # an open copy that no daemon serves lets readers hang for ever
            raise
        try:
            served.adopt(self._settings.fuse, descriptor)
        except BaseException:
            served.close()  # closes the descriptor as well, which it owns by now
            raise
        self._keeper_sync.adopted(record.mount_id, served.descriptor, secrets)
        self._reserve(served, adopted=True)
        self._register(served)
        facts = telemetry.fields(volume_id=record.volume_id, mount_point=record.mount_point)
        logger.info("volume adopted from an earlier daemon", extra=facts)

    def _abandon(self, record: MountRecord) -> None:
        with suppress(HayloftError):
            mounting.unmount(Path(record.mount_point), lazy=True)
        self._keeper_sync.remove(record.mount_id)
        self._records.remove(record.mount_id)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")
