"""The cache daemon's use of everything below it: mounts volumes, adopts those of an earlier daemon, and reports."""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.daemon.keeper_sync import DescriptorKeeper, KeeperSync
from csi_driver.daemon.mount_records import MountRecord, MountRecords
from csi_driver.daemon.served_mount import ServedMount, StoreOpener, open_volume_store, reopen_volume_store
from csi_driver.daemon.view_publisher import ViewPublisher
from csi_driver.daemon.warmup_jobs import WarmupJobs
from csi_driver.event_loop.event_loop import EventLoop
from csi_driver.filesystem.open_file_cache import LINGER_S
from csi_driver.fuse import mounting as device
from csi_driver.model.errors import HayloftError, MountPointBusy, NotMounted, VolumeConflict, VolumeNotFound
from csi_driver.mounts.mount_table import MountTable, real_mount_point
from csi_driver.reading.read_through_cache import ReadThroughCache
from csi_driver.settings import CacheDaemonSettings
from csi_driver.volumes.data_plane import DaemonReport, MountRequest, VolumeReport, WarmupReport, WarmupRequest
from csi_driver.volumes.parameters import VolumeParameters
from csi_driver.volumes.snapshots import SnapshotService
from csi_driver.volumes.volume_ids import check_id

logger = logging.getLogger(__name__)

_UNMOUNT_WAIT_S = 2.0
"""How long ``unmount`` waits for the session to end. It goes on longer if the volume is published somewhere still."""


_LAST_THREADS_S = 1.0
"""After the end of a mount. Its parts refer to each other in circles, and with them a mapped manifest and its
descriptor stay until a full collection, which comes seldom by itself (see wiring/cache_process.py)."""


class LocalDataPlane:
    """See ``volumes.data_plane.DataPlane``.

    ``_lock`` guards ``_mounts``; it is not held across disk, network or mount(2). The daemon's server lets only one
    call for a volume in at a time.
    """

    def __init__(
        self,
        settings: CacheDaemonSettings,
        chunk_store: ChunkStore,
        library: ReadThroughCache,
        event_loop: EventLoop,
        snapshots: SnapshotService,
        keeper: DescriptorKeeper | None,
        version: str,
        open_volume: StoreOpener = open_volume_store,
    ) -> None:
        self._settings = settings
        self._chunk_store = chunk_store
        self._library = library
        self._event_loop = event_loop
        self._snapshots = snapshots
        self._keeping = KeeperSync(keeper)
        self._version = version
        self._open_volume = open_volume
        self._records = MountRecords(settings.state_directory)
        self._lock = threading.Lock()
        self._mounts: dict[str, ServedMount] = {}
        """By mount id. A mount whose volume was unmounted stays until its last bind mount is gone."""
        self._ended_s: float | None = None
        self._publishing = ViewPublisher(chunk_store.views, self)
        most_fetches = settings.reading.warmup_fetches
        self._warmups = WarmupJobs(library, chunk_store, self._records, self._all_served, most_fetches)
        chunk_store.before_evicting(lambda: self.tidy(-1.0))

    # -- the protocol --

    def mount(self, wish: MountRequest) -> VolumeReport:
        """See DataPlane."""
        check_id("volume_id", wish.volume_id)
        parameters = VolumeParameters.parse(wish.attributes, self._settings.policy)
        served = self._at(wish.mount_point)
        if served is not None:
            return self._already_mounted(served, wish, parameters)
        self._clear_dead_mount(Path(wish.mount_point))
        return self._mount_anew(wish, parameters).report()

    def unmount(self, volume_id: str, mount_point: str) -> None:
        """See DataPlane."""
        served = self._at(mount_point)
        if served is not None and served.record.volume_id != volume_id:
            raise VolumeConflict(
                f"{mount_point}: volume {served.record.volume_id} is mounted there, not {volume_id}; nothing was done"
            )
        device.unmount(Path(mount_point))
        if served is not None and served.session is not None and served.session.wait(_UNMOUNT_WAIT_S):
            self._end(served)

    def publish(self, volume_id: str, target: str) -> bool:
        """See DataPlane."""
        return self._publishing.publish(self._served(volume_id), real_mount_point(target))

    def unpublish(self, volume_id: str, target: str) -> None:
        """See DataPlane."""
        self._publishing.unpublish(volume_id, real_mount_point(target))

    def volume(self, volume_id: str) -> VolumeReport:
        """See DataPlane."""
        return self._served(volume_id).report()

    def report(self) -> DaemonReport:
        """See DataPlane."""
        with self._lock:
            sessions = [mount.session for mount in self._mounts.values()]
        return DaemonReport(
            version=self._version,
            process_id=os.getpid(),
            mounts=len(sessions),
            passthrough=all(session.passthrough for session in sessions if session is not None),
            cache_limit_bytes=self._chunk_store.limit_bytes,
            cache_used_bytes=self._chunk_store.used_bytes,
            origin_bytes=self._library.origin_bytes,
            origin_requests=self._library.origin_requests,
            resident_bytes=_resident_bytes(),
            warmups=self._warmups.running(),
            warmup_bytes=self._warmups.fetched_bytes(),
            cache_bad_chunks=self._chunk_store.bad_chunks,
            cache_disk_failures=self._chunk_store.health.failures,
            cache_disk_in_use=self._chunk_store.health.in_use,
            scrubbed_bytes=self._chunk_store.scrubber.scrubbed_bytes,
            checksum_mismatches=self._library.integrity.counts.mismatches,
        )

    def start_warmup(self, wish: WarmupRequest) -> WarmupReport:
        """See DataPlane."""
        return self._warmups.start(self._served(wish.volume_id), wish)

    def warmup(self, volume_id: str) -> WarmupReport:
        """See DataPlane."""
        return self._warmups.report(self._served(volume_id))

    def cancel_warmup(self, volume_id: str) -> WarmupReport:
        """See DataPlane."""
        return self._warmups.cancel(self._served(volume_id))

    # -- life --

    def tidy(self, age_s: float = LINGER_S) -> None:
        """Closes files that nobody opened again for so long. Called every second or so."""
        with self._lock:
            mounts = list(self._mounts.values())
        for served in mounts:
            served.filesystem.close_lingering(age_s)

    def sweep(self) -> None:
        """Removes views whose mounts went away unseen, and what ended mounts have left in memory. Called every second
        or so."""
        self._publishing.sweep_now_and_then()
        ended_s = self._ended_s
        if ended_s is not None and time.monotonic() - ended_s > _LAST_THREADS_S:
            self._ended_s = None
            gc.collect()

    def adopt(self) -> None:
        """Takes over the mounts of an earlier daemon. One that cannot be adopted is unmounted: nothing shall hang."""
        records = list(self._records.load())
        known = {record.mount_id for record in records}
        held = self._keeping.held() if records else self._keeping.held(patience_s=0.0)
        for record in records:
            try:
                self._adopt(record, held)
            except Exception as error:  # one mount must not keep the daemon, and with it all others, from starting
                logger.error(
                    "volume %s could not be adopted and is unmounted: %s",
                    record.volume_id,
                    error,
                    exc_info=not isinstance(error, HayloftError),
                )
                self._give_up(record)
        self._records.remove_strays(known)
        for name in held - known:
            self._keeping.forget(name)

    def hand_over(self) -> None:
        """Lets the keeper have what it lacks, as after its restart. Called every few seconds."""
        self._keeping.hand_over_missing()

    def close(self) -> None:
        """Stops serving. With a keeper the mounts stay for the next daemon; without one they would be dead, and are
        unmounted."""
        self._keeping.let_go()
        self._warmups.close()
        with self._lock:
            mounts = list(self._mounts.values())
            self._mounts.clear()
        for served in mounts:
            if not self._keeping.exists:
                with suppress(HayloftError):
                    device.unmount(Path(served.record.mount_point), lazy=True)
                self._records.remove(served.record.mount_id)
            served.close()

    # -- mounting --

    def _mount_anew(self, wish: MountRequest, parameters: VolumeParameters) -> ServedMount:
        snapshot = self._snapshots.ensure(wish.volume_id, parameters, wish.secrets)
        store, domain, region = self._open_volume(parameters, wish.secrets)
        record = MountRecord(
            MountRecord.new_id(),
            wish.volume_id,
            wish.mount_point,
            parameters.to_context(),
            snapshot.snapshot_id,
            access_domain=domain,
            region=region,
        )
        try:
            self._records.keep_manifest(record.mount_id, snapshot.manifest_path)
            served = ServedMount(record, self._records, self._library, self._event_loop, store, domain)
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
        self._keeping.hold(record.mount_id, served.descriptor, wish.secrets)
        self._enter(served)
        logger.info("mounted volume %s (%s) at %s", record.volume_id, parameters.url, record.mount_point)
        return served

    def _already_mounted(self, served: ServedMount, wish: MountRequest, parameters: VolumeParameters) -> VolumeReport:
        record = served.record
        if record.volume_id != wish.volume_id or record.attributes != parameters.to_context():
            raise VolumeConflict(
                f"{wish.mount_point}: volume {record.volume_id} is mounted there with other attributes; unstage it"
            )
        self._warmups.asked_again(served)
        return served.report()

    def _clear_dead_mount(self, mount_point: Path) -> None:
        """Takes away a mount of ours that nobody serves any more. Raises MountPointBusy for anybody else's."""
        entry = MountTable.read().at(mount_point)
        if entry is None:
            return
        if entry.fs_type != device.FS_TYPE:
            raise MountPointBusy(
                f"{mount_point}: {entry.source} ({entry.fs_type}) is mounted there; unmount it or choose another path"
            )
        logger.warning("%s: taking away a mount that no daemon serves", mount_point)
        device.unmount(mount_point, lazy=True)

    def _at(self, mount_point: str) -> ServedMount | None:
        """The mount that this daemon serves at exactly this path, if the host's mount table has it still."""
        with self._lock:
            found = [mount for mount in self._mounts.values() if mount.record.mount_point == mount_point]
        for served in found:
            if not served.ended and device.find(Path(mount_point)) is not None:
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
        """Raises CacheOvercommitted, but not for a mount that was granted its bytes before."""
        count_bytes = served.parameters.cache_reservation_bytes
        holder, dataset = served.record.mount_id, served.filesystem.dataset
        self._chunk_store.reservations.reserve(holder, dataset, count_bytes, adopted=adopted)
        self._chunk_store.note_dataset(dataset, served.tree.total_bytes)

    def _enter(self, served: ServedMount) -> None:
        with self._lock:
            self._mounts[served.record.mount_id] = served
        served.watch(self._end)
        self._warmups.mounted(served)

    def _end(self, served: ServedMount) -> None:
        """Frees a mount that is gone, once."""
        mount_id = served.record.mount_id
        with self._lock:
            if self._mounts.pop(mount_id, None) is None:
                return
        self._chunk_store.reservations.end(mount_id)
        self._warmups.forget(mount_id)
        self._keeping.forget(mount_id)
        self._records.remove(mount_id)
        served.close()
        self._ended_s = self._ended_s or time.monotonic()
        logger.info("volume %s is no longer mounted at %s", served.record.volume_id, served.record.mount_point)

    # -- adoption --

    def _adopt(self, record: MountRecord, held: set[str]) -> None:
        """Raises whatever is wrong; the descriptor is closed then."""
        taken = self._keeping.take(record.mount_id) if record.mount_id in held else None
        if taken is None:
            raise NotMounted("nobody held its connection: the keeper was not there, or died as well")
        descriptor, secrets = taken
        try:
            parameters = VolumeParameters.parse(record.attributes)
            store, domain, _ = reopen_volume_store(record, parameters, secrets, self._open_volume)
            served = ServedMount(record, self._records, self._library, self._event_loop, store, domain)
        except BaseException:
            os.close(descriptor)  # a copy that nobody serves would let readers wait for ever
            raise
        try:
            served.adopt(self._settings.fuse, descriptor)
        except BaseException:
            served.close()
            raise
        self._keeping.adopted(record.mount_id, served.descriptor, secrets)
        self._reserve(served, adopted=True)
        self._enter(served)
        logger.info("adopted volume %s at %s", record.volume_id, record.mount_point)

    def _give_up(self, record: MountRecord) -> None:
        with suppress(HayloftError):
            device.unmount(Path(record.mount_point), lazy=True)
        self._keeping.forget(record.mount_id)
        self._records.remove(record.mount_id)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")
