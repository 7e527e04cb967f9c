"""The data plane of the cache daemon: mounts volumes, adopts the mounts of an earlier daemon, and reports."""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from csi_driver import telemetry
from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.cache.disk import NO_DESCRIPTOR
from csi_driver.cache.open_file_cache import IDLE_S
from csi_driver.daemon.keeper_sync import DescriptorKeeper, KeeperSync
from csi_driver.daemon.mount_credentials import MountCredentials
from csi_driver.daemon.mount_records import MountRecord, MountRecords
from csi_driver.daemon.namespace_budget import NamespaceBudget
from csi_driver.daemon.read_errors import ReadErrorCounts
from csi_driver.daemon.served_mount import (
    ServedMount,
    StoreOpener,
    VolumeStore,
    open_volume_store,
    reopen_volume_store,
)
from csi_driver.daemon.view_publisher import ViewPublisher
from csi_driver.daemon.warmup_jobs import WarmupJobs
from csi_driver.event_loop.event_loop import EventLoop
from csi_driver.filesystem.descriptor_budget import DescriptorBudget
from csi_driver.fuse import mounting
from csi_driver.model.errors import (
    BudgetExceeded,
    HayloftError,
    MountPointBusy,
    NotMounted,
    VolumeConflict,
    VolumeNotFound,
)
from csi_driver.model.tenant import Tenant
from csi_driver.model.tracebacks import summary
from csi_driver.mounts.mount_table import MountTable
from csi_driver.reading.access import Credential
from csi_driver.reading.read_through_cache import ReadThroughCache
from csi_driver.settings import CacheDaemonSettings
from csi_driver.volumes.admission import admit
from csi_driver.volumes.attribute_conflict import require_equal
from csi_driver.volumes.data_plane import (
    DaemonReport,
    KnownMount,
    MountRequest,
    VolumeReport,
    WarmupReport,
    WarmupRequest,
)
from csi_driver.volumes.dataset_snapshots import Snapshot, SnapshotService
from csi_driver.volumes.parameters import VolumeParameters
from csi_driver.volumes.volume_ids import check_id

logger = logging.getLogger(__name__)

_UNMOUNT_WAIT_S = 2.0
"""How long ``unmount`` waits for the session to end. The session continues while the volume is still published."""

_COLLECT_DELAY_S = 1.0
"""From the end of a mount, when its last threads have ended, to a full garbage collection. The objects of a mount form
reference cycles, which retain a mapped manifest and its descriptor until then; automatic full collections are rare
(see wiring/cache_process.py)."""


@dataclass(frozen=True, slots=True)
class _LostMount:
    record: MountRecord
    secrets: Mapping[str, str] = field(repr=False)
    """Empty also if they were lost with the process that had them."""


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
        self._policy = settings.volume_policy
        self._chunk_store = chunk_store
        self._read_through_cache = read_through_cache
        self._event_loop = event_loop
        self._snapshots = snapshots
        self._keeper_sync = KeeperSync(keeper)
        self._version = version
        self._open_volume = open_volume
        self._credentials = MountCredentials(settings.policy, chunk_store.credential_key)
        self._records = MountRecords(settings.state_directory)
        self._lock = threading.Lock()  # guards _mounts and _lost; not held across disk, network or mount(2)
        self._mounts: dict[str, ServedMount] = {}
        """By mount id. A mount whose volume was unmounted stays until its last bind mount is gone."""
        self._lost: dict[str, _LostMount] = {}
        """By mount point: mounts that died, and were not mounted again nor unmounted since."""
        self._ending = threading.Lock()
        """Guards ``ServedMount.unmounted``. A mount that has died is unmounted while it is held, so that a new one at
        its mount point, whose device may have the same number, is not taken for it. Not held across the network."""
        self._mount_ended_s: float | None = None
        """When a mount ended after the last full garbage collection, on the clock of ``time.monotonic``."""
        self._view_publisher = ViewPublisher(chunk_store.views, self)
        self._descriptors = DescriptorBudget.of_this_process()
        self._error_counts = ReadErrorCounts()
        policy = settings.policy
        self._reservation_budget = NamespaceBudget(
            policy, policy.inline_reservation_bytes, "cacheReservation (--inline-reservation)"
        )
        self._manifest_budget = NamespaceBudget(policy, policy.inline_manifest_bytes, "the list of its objects")
        most_fetches = settings.reading.warmup_fetches
        self._warmups = WarmupJobs(
            read_through_cache, chunk_store, self._records, self._all_served, most_fetches, snapshots.select
        )

    # -- DataPlane --

    def mount(self, request: MountRequest) -> VolumeReport:
        try:
            return self._mount(request)
        except OSError as error:
            if error.errno not in NO_DESCRIPTOR:
                raise
            raise BudgetExceeded(
                f"{request.volume_id}: the daemon has no descriptor left for a mount; raise its limit of open files "
                "(RLIMIT_NOFILE)"
            ) from error

    def _mount(self, request: MountRequest) -> VolumeReport:
        check_id("volume_id", request.volume_id)
        parameters = VolumeParameters.parse(request.attributes, self._policy, request.tenant)
        admit(parameters, request.secrets, self._policy, request.tenant)
        served = self._at(request.mount_point)
        if served is not None:
            return self._already_mounted(served, request, parameters)
        self._require_one_volume(request, parameters)
        self._end_dead(request.mount_point)
        self._note_unmounted(request.mount_point)
        self._remove_dead_mount(Path(request.mount_point))
        report = self._mount_new(self._with_secret_of_lost(request), parameters).report()
        self._forget_lost(request.mount_point)
        return report

    def unmount(self, volume_id: str, mount_point: str) -> None:
        served = self._at(mount_point)
        if served is not None and served.record.volume_id != volume_id:
            raise VolumeConflict(
                f"{mount_point}: volume {served.record.volume_id} is mounted there, not {volume_id}; nothing was done"
            )
        self._note_unmounted(mount_point)  # before its end can be noticed
        try:
            mounting.unmount(Path(mount_point))
        except HayloftError:
            if served is not None:
                served.unmounted = False
            raise
        self._forget_lost(mount_point)
        if served is not None and served.session is not None and served.session.wait(_UNMOUNT_WAIT_S):
            self._end(served)

    def publish(self, volume_id: str, target: str) -> bool:
        served = self._served(volume_id)
        # With CAP_DAC_READ_SEARCH, a process in a pod opens every file of the file system that a view is on, by its
        # handle (open_by_handle_at): all of the cache. That of a FUSE mount holds the volume alone.
        if not self._settings.policy.trusts(served.record.tenant):
            return False
        return self._view_publisher.publish(served, Path(target))

    def unpublish(self, volume_id: str, target: str) -> None:
        self._view_publisher.unpublish(volume_id, Path(target))

    def volume(self, volume_id: str) -> VolumeReport:
        return self._served(volume_id).report()

    def mounts(self) -> tuple[KnownMount, ...]:
        with self._lock:
            records = [*(served.record for served in self._mounts.values() if served.record.device)]
            records += (lost.record for lost in self._lost.values())
        return tuple(KnownMount(record.volume_id, record.mount_point, record.device) for record in records)

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
            read_errors=self._error_counts.by_errno(),
            cache_evicted_objects=self._chunk_store.evicted_objects,
            cache_free_bytes=self._chunk_store.space.free_bytes,
            cache_free_floor_bytes=self._chunk_store.floor.count_bytes,
            cache_inodes=self._chunk_store.space.total_inodes,
            cache_free_inodes=self._chunk_store.space.free_inodes,
            cache_free_floor_inodes=self._chunk_store.floor.inodes(self._chunk_store.space),
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
        """Removes views that are no longer mounted, and what is left of ended mounts. Called about every second."""
        self._view_publisher.sweep_if_due()
        self._forget_removed()
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
            if record.lost:
                with self._lock:
                    self._lost[record.mount_point] = _LostMount(record, {})
                continue
            try:
                self._adopt(record, held)
            except Exception as error:  # one mount must not prevent the start of the daemon and all other mounts
                facts = telemetry.fields(
                    volume_id=record.volume_id, mount_point=record.mount_point, error=summary(error)
                )
                unexpected = not isinstance(error, HayloftError)
                logger.error(
                    "a mount could not be adopted and is unmounted; its pods have to be restarted",
                    extra=facts,
                    exc_info=unexpected,
                )
                self._abandon(record)
        with self._lock:
            known |= {lost.record.mount_id for lost in self._lost.values()}
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
                self._forget(served.record)
            served.close()

    # -- mounting --

    def _mount_new(self, request: MountRequest, parameters: VolumeParameters) -> ServedMount:
        snapshot = self._snapshots.ensure(request.volume_id, parameters, request.secrets, request.tenant)
        try:
            return self._mount_snapshot(request, parameters, snapshot)
        finally:
            self._snapshots.release(snapshot)

    def _mount_snapshot(self, request: MountRequest, parameters: VolumeParameters, snapshot: Snapshot) -> ServedMount:
        tenant = request.tenant if request.tenant.inline else Tenant(snapshot.record.namespace)
        # First: it may fail, and then there is no store to close yet.
        credential = self._credentials.of(parameters, request.secrets, tenant)
        opened = self._open_volume(parameters, request.secrets)
        record = MountRecord(
            MountRecord.new_id(),
            request.volume_id,
            request.mount_point,
            parameters.to_context(),
            snapshot.snapshot_id,
            region=opened.region,
            credential=credential.own.hex(),
            namespace=tenant.namespace,
            inline=tenant.inline,
            with_secret=bool(request.secrets),
        )
        try:
            served = self._serve(record, parameters, opened, credential, snapshot.manifest_path)
            # Before the mount exists: a daemon that dies after mount(2) leaves a record by which it is found.
            self._records.save(record)
            try:
                self._reserve(served, adopted=False)
                served.begin(self._settings.fuse)
            except BaseException:
                served.close()
                raise
            with suppress(HayloftError):  # without the device in the record, the adoption looks it up
                self._records.save(served.record)
        except BaseException:
            self._forget(record)
            raise
        self._keeper_sync.add(record.mount_id, served.descriptor, request.secrets)
        self._register(served)
        facts = telemetry.fields(volume_id=record.volume_id, url=str(parameters.url), mount_point=record.mount_point)
        logger.info("volume mounted", extra=facts)
        for note in served.notes():
            logger.warning("mounted volume: %s", note, extra=telemetry.fields(volume_id=record.volume_id))
        if warning := served.request_timeout_warning():
            logger.warning("%s", warning, extra=telemetry.fields(volume_id=record.volume_id))
        return served

    def _serve(
        self,
        record: MountRecord,
        parameters: VolumeParameters,
        opened: VolumeStore,
        credential: Credential,
        manifest: Path | None = None,
    ) -> ServedMount:
        """A mount that does not serve yet, of this ``manifest``; without one it is adopted. Owns the store, also when
        it raises."""
        mount_id = record.mount_id
        try:
            if manifest is not None:
                self._records.store_manifest(mount_id, manifest)
            size_bytes = self._records.manifest_path(mount_id).stat().st_size
            self._manifest_budget.take(mount_id, record.tenant, size_bytes, adopted=manifest is None)
        except BaseException:
            opened.store.close()
            raise
        return ServedMount(
            record,
            parameters,
            self._records,
            self._read_through_cache,
            self._event_loop,
            opened,
            self._descriptors,
            credential,
            self._error_counts,
        )

    def _forget(self, record: MountRecord) -> None:
        """Of a mount that is not there (any more): its records, and what it counted for."""
        mount_id = record.mount_id
        self._chunk_store.reservations.end(mount_id)
        self._reservation_budget.end(mount_id)
        self._manifest_budget.end(mount_id)
        self._records.remove(mount_id)

    def _already_mounted(
        self, served: ServedMount, request: MountRequest, parameters: VolumeParameters
    ) -> VolumeReport:
        record = served.record
        if record.volume_id != request.volume_id:
            raise VolumeConflict(f"{request.mount_point}: volume {record.volume_id} is mounted there; unstage it")
        require_equal(request.volume_id, record.attributes, parameters.to_context())
        if self._renew_credentials(served, request, parameters) or not request.republished:
            self._warmups.retry_if_failed(served)
        return served.report()

    def _renew_credentials(self, served: ServedMount, request: MountRequest, parameters: VolumeParameters) -> bool:
        """The newest credentials that a caller brings are used. True if they are others than before. A call without any
        changes nothing: kubelet makes one for a volume that has a Secret for the other of its two calls. Raises as
        opening the store, and VolumeConflict."""
        if not request.secrets:
            return False
        record = served.record
        credential = self._credentials.of(parameters, request.secrets, record.tenant)
        if credential.own == served.credential.own:
            return False
        known = replace(parameters, region=parameters.region or record.region)
        served.renew(self._open_volume(known, request.secrets), credential)
        self._keeper_sync.add(record.mount_id, served.descriptor, request.secrets)
        facts = telemetry.fields(volume_id=record.volume_id, mount_point=record.mount_point)
        logger.info("the credentials of a mounted volume were renewed", extra=facts)
        return True

    def _require_one_volume(self, request: MountRequest, parameters: VolumeParameters) -> None:
        """Raises VolumeConflict if the volume is mounted elsewhere with other attributes. One that is unmounted, and
        still in use by a pod, does not count."""
        for served in self._all_served():
            record = served.record
            if record.volume_id == request.volume_id and self._at(record.mount_point) is served:
                require_equal(request.volume_id, record.attributes, parameters.to_context())

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
        """The mount that this daemon serves and that the host's mount table has at exactly this path. Not an earlier
        one that was unmounted there and is still in use elsewhere."""
        entry = mounting.find(Path(mount_point))
        with self._lock:
            found = [mount for mount in self._mounts.values() if mount.record.mount_point == mount_point]
        for served in found:
            if not served.ended and entry is not None and served.record.device == entry.device:
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
        """Raises CacheOvercommitted and BudgetExceeded, but not for an adopted mount, whose reservation was granted
        before."""
        count_bytes = served.parameters.cache_reservation_bytes
        mount_id, dataset = served.record.mount_id, served.filesystem.dataset
        self._reservation_budget.take(mount_id, served.record.tenant, count_bytes, adopted=adopted)
        self._chunk_store.reservations.reserve(mount_id, dataset, count_bytes, adopted=adopted)
        self._chunk_store.note_dataset(dataset, served.tree.total_bytes)

    def _register(self, served: ServedMount) -> None:
        with self._lock:
            self._mounts[served.record.mount_id] = served
        # In this order: ``_end``, which ends the warmup of a mount that is in _mounts, may be called at once.
        self._warmups.mounted(served)
        served.watch(self._end)

    def _end(self, served: ServedMount) -> None:
        """Frees a mount that has ended. Called by ``unmount`` and by the watching thread, in any order."""
        mount_id = served.record.mount_id
        with self._ending:
            with self._lock:
                if self._mounts.pop(mount_id, None) is None:  # the pop decides which of the two frees it
                    return
            if not served.unmounted:
                self._lose(served.record, self._keeper_sync.secrets_of(mount_id))
        self._warmups.remove(mount_id)
        # Before ``close``: a resync duplicates the descriptor of every mount that KeeperSync knows, and after ``close``
        # its number may belong to another file.
        self._keeper_sync.remove(mount_id)
        self._forget(served.record)
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
            parameters = VolumeParameters.parse(record.attributes).under(self._settings.policy, record.tenant)
            opened = reopen_volume_store(record, parameters, secrets, self._open_volume)
            credential = self._credentials.of_record(record, parameters, secrets)
            served = self._serve(record, parameters, opened, credential)
        except BaseException:
            os.close(descriptor)  # an open copy that no daemon serves lets readers hang for ever
            raise
        try:
            served.adopt(self._settings.fuse, descriptor)
        except BaseException:
            served.close()  # closes the descriptor as well, which it owns by now
            raise
        entry = mounting.find(Path(record.mount_point))
        served.unmounted = entry is None or entry.device != served.record.device
        self._keeper_sync.adopted(record.mount_id, served.descriptor, secrets)
        self._reserve(served, adopted=True)
        self._register(served)
        facts = telemetry.fields(volume_id=record.volume_id, mount_point=record.mount_point)
        logger.info("volume adopted from an earlier daemon", extra=facts)

    def _abandon(self, record: MountRecord) -> None:
        self._keeper_sync.remove(record.mount_id)
        if mounting.find(Path(record.mount_point)) is not None:
            self._lose(record, {})
        self._forget(record)

    # -- lost mounts --

    def _end_dead(self, mount_point: str) -> None:
        """Ends mounts that have died, before their watching threads do: a new one needs what is known of them."""
        for served in self._all_served():
            if served.record.mount_point == mount_point and served.ended:
                self._end(served)

    def _note_unmounted(self, mount_point: str) -> None:
        """What was mounted there is not any more: it is in use elsewhere, or ends."""
        with self._ending:
            for served in self._all_served():
                if served.record.mount_point == mount_point:
                    served.unmounted = True

    def _lose(self, record: MountRecord, secrets: Mapping[str, str]) -> None:
        """Before ``_forget``, of a mount that ended and was not unmounted by a call. What is left of it is unmounted:
        nothing can be done with it, and kubelet cannot stage onto it either. Pods that have it get ENOTCONN until the
        volume is published again and their containers are restarted."""
        entry = mounting.find(Path(record.mount_point))
        if entry is not None and record.device in (entry.device, ""):
            with suppress(HayloftError):
                mounting.unmount(Path(record.mount_point), lazy=True)
        self._forget_lost(record.mount_point)
        # A record of its own: that of the mount goes with its other files.
        lost = replace(record, mount_id=MountRecord.new_id(), device="", lost=True)
        with self._lock:
            self._lost[record.mount_point] = _LostMount(lost, secrets)
        with suppress(HayloftError):  # a full disk: the next daemon does not know it
            self._records.save(lost)

    def _forget_removed(self) -> None:
        """The caller of CSI removes the directory of a volume that it has unstaged, perhaps without this daemon."""
        with self._lock:
            lost = list(self._lost)
        for mount_point in lost:
            if MountTable.read().at(mount_point) is None and not os.path.lexists(mount_point):
                self._forget_lost(mount_point)

    def _forget_lost(self, mount_point: str) -> None:
        with self._lock:
            lost = self._lost.pop(mount_point, None)
        if lost is not None:
            self._records.remove(lost.record.mount_id)

    def _with_secret_of_lost(self, request: MountRequest) -> MountRequest:
        """A call that publishes a staged volume need not bring the Secret: then it is that of the mount that was lost.
        Raises NotMounted if it was lost too: without it all reads would fail, or be those of another identity."""
        with self._lock:
            lost = self._lost.get(request.mount_point)
        if request.secrets or lost is None or lost.record.volume_id != request.volume_id:
            return request
        if lost.record.with_secret and not lost.secrets:
            raise NotMounted(
                f"{request.mount_point}: the mount of volume {request.volume_id} died, and its Secret with it, which "
                "only NodeStageVolume brings; delete the pods of this node that use the volume, so that it is staged "
                "again. With the Secret as nodePublishSecretRef as well, a publication brings it"
            )
        return replace(request, secrets=lost.secrets)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")
