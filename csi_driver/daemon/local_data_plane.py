"""The data plane of the cache daemon: mounts volumes, adopts the mounts of an earlier daemon, and reports."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from csi_driver import telemetry
from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.cache.disk import NO_DESCRIPTOR
from csi_driver.cache.open_file_cache import IDLE_S
from csi_driver.daemon.daemon_reports import daemon_report
from csi_driver.daemon.keeper_sync import DescriptorKeeper, KeeperSync
from csi_driver.daemon.lost_mounts import LostMounts, remove_dead_mount
from csi_driver.daemon.measurements import Measurements, measurements
from csi_driver.daemon.mount_assembly import MountAssembly
from csi_driver.daemon.mount_records import MountRecord, MountRecords
from csi_driver.daemon.pod_sessions import PodSessions
from csi_driver.daemon.served_mount import ServedMount
from csi_driver.daemon.view_publisher import ViewPublisher
from csi_driver.daemon.volume_stores import StoreOpener, open_volume_store
from csi_driver.daemon.warmup_jobs import WarmupJobs
from csi_driver.event_loop.event_loop import EventLoop
from csi_driver.filesystem.no_open_support import machine_memory_bytes
from csi_driver.fuse import mounting
from csi_driver.model import conditions, spans
from csi_driver.model.conditions import Condition, distinct
from csi_driver.model.errors import BudgetExceeded, HayloftError, NotMounted, VolumeConflict, VolumeNotFound
from csi_driver.model.tracebacks import summary
from csi_driver.objects.mirrors.mirror_counts import MirrorCounts
from csi_driver.objects.request_counts import RequestCounts
from csi_driver.reading.read_through_cache import ReadThroughCache
from csi_driver.settings import CacheDaemonSettings
from csi_driver.volumes.admission import admit
from csi_driver.volumes.attribute_conflict import require_equal
from csi_driver.volumes.data_plane import (
    DaemonReport,
    HealthReport,
    KnownMount,
    MountRequest,
    TraceReport,
    VolumeReport,
    WarmupReport,
    WarmupRequest,
)
from csi_driver.volumes.dataset_snapshots import SnapshotService
from csi_driver.volumes.parameters import VolumeParameters
from csi_driver.volumes.volume_ids import check_id

if TYPE_CHECKING:
    from csi_driver.objects.tier.replica_set import Tier

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
        open_volume: StoreOpener | None = None,
        pod_sessions: PodSessions | None = None,
        available_memory: Callable[[], int] = machine_memory_bytes,
        tier: Tier | None = None,
    ) -> None:
        """``available_memory``: in bytes, of which warmups may have a share in the page cache."""
        self._settings = settings
        self._policy = settings.volume_policy
        self._chunk_store = chunk_store
        self._read_through_cache = read_through_cache
        self._snapshots = snapshots
        self._keeper_sync = KeeperSync(keeper)
        self._version = version
        self._pod_sessions = pod_sessions or PodSessions()
        self._records = MountRecords(settings.state_directory)
        self._request_counts, self._mirror_counts = RequestCounts(), MirrorCounts()
        self._assembly = MountAssembly(
            settings,
            chunk_store,
            read_through_cache,
            event_loop,
            self._records,
            open_volume or partial(open_volume_store, counts=self._request_counts, mirror_counts=self._mirror_counts),
            self._request_counts,
            tier,
            self._mirror_counts,
        )
        self._adopted_mounts = self._lost_adoptions = 0
        """Both, and the time, are of ``adopt``."""
        self._adoption_s = 0.0
        self._lock = threading.Lock()  # guards _mounts; not held across disk, network or mount(2)
        self._mounts: dict[str, ServedMount] = {}
        """By mount id. A mount whose volume was unmounted stays until its last bind mount is gone."""
        self._lost = LostMounts(self._records)
        self._ending = threading.Lock()
        """Guards ``ServedMount.unmounted``. A mount that has died is unmounted while it is held, so that a new one at
        its mount point, whose device may have the same number, is not taken for it. Not held across the network."""
        self._mount_ended_s: float | None = None
        """When a mount ended after the last full garbage collection, on the clock of ``time.monotonic``."""
        self._view_publisher = ViewPublisher(chunk_store.views, self)
        self._warmups = WarmupJobs(
            read_through_cache,
            chunk_store,
            self._records,
            self.served_mounts,
            snapshots.select,
            lambda: available_memory() * settings.reading.warmup_memory_percent // 100,
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
        remove_dead_mount(Path(request.mount_point))
        request = self._pod_sessions.begin(self._lost.with_secret(request), parameters)
        report = self._report(self._mount_new(request, parameters))
        self._lost.forget(request.mount_point)
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
        self._lost.forget(mount_point)
        if served is not None and served.session is not None and served.session.wait(_UNMOUNT_WAIT_S):
            self._end(served)

    def publish(self, volume_id: str, target: str) -> bool:
        served = self.served(volume_id)
        # With CAP_DAC_READ_SEARCH, a process in a pod opens every file of the file system that a view is on, by its
        # handle (open_by_handle_at): all of the cache. That of a FUSE mount holds the volume alone.
        if not self._settings.policy.trusts(served.record.tenant):
            return False
        with spans.span("view", {"hayloft.volume_id": volume_id}) as span:
            materialised = self._view_publisher.publish(served, Path(target))
            span.set({"hayloft.materialised": materialised})
        return materialised

    def unpublish(self, volume_id: str, target: str) -> None:
        self._view_publisher.unpublish(volume_id, Path(target))

    def volume(self, volume_id: str) -> VolumeReport:
        return self._report(self.served(volume_id))

    def mounts(self) -> tuple[KnownMount, ...]:
        records = [served.record for served in self.served_mounts() if served.record.device]
        records += self._lost.records()
        return tuple(KnownMount(record.volume_id, record.mount_point, record.device) for record in records)

    def report(self) -> DaemonReport:
        return daemon_report(
            self._version,
            self.served_mounts(),
            self._chunk_store,
            self._read_through_cache,
            self._warmups,
            self._assembly.error_counts.by_errno(),
        )

    def health(self) -> HealthReport:
        keeper = [conditions.KEEPER_UNAVAILABLE] if self._keeper_sync.is_unavailable else []
        of_node = [*self._chunk_store.conditions(), *keeper]
        mounts = [served for served in self.served_mounts() if served.record.device]
        return HealthReport(distinct(of_node), tuple(served.health(self._conditions_of(served)) for served in mounts))

    def reserve(self, volume_id: str, count_bytes: int) -> VolumeReport:
        served = self.served(volume_id)
        self._assembly.reserve(served, count_bytes)
        return self._report(served)

    def pin(self, volume_id: str, pinned: bool) -> ServedMount:
        """As ``NodeOperations.set_pinned``."""
        served = self.served(volume_id)
        self._assembly.pin(served, pinned)
        facts = telemetry.fields(volume_id=volume_id, bytes=served.tree.total_bytes)
        logger.info("volume pinned" if pinned else "volume unpinned", extra=facts)
        return served

    def volume_report(self, served: ServedMount) -> VolumeReport:
        """As of ``volume``, of one mount."""
        return self._report(served)

    def warmup_of(self, served: ServedMount) -> WarmupReport:
        """As of ``warmup``, of one mount."""
        return self._warmups.report(served)

    def start_warmup(self, request: WarmupRequest) -> WarmupReport:
        return self._warmups.start(self.served(request.volume_id), request)

    def warmup(self, volume_id: str) -> WarmupReport:
        return self._warmups.report(self.served(volume_id))

    def cancel_warmup(self, volume_id: str) -> WarmupReport:
        return self._warmups.cancel(self.served(volume_id))

    def start_trace(self, volume_id: str, seconds: float) -> None:
        self.served(volume_id).tracing.start(seconds)

    def stop_trace(self, volume_id: str) -> TraceReport:
        return self.served(volume_id).tracing.stop(volume_id)

    def read_trace(self, volume_id: str, offset: int) -> bytes:
        return self.served(volume_id).tracing.piece(offset)

    # -- lifecycle --

    def tidy(self, age_s: float = IDLE_S) -> None:
        """Closes files in the open-file caches that were not reopened for ``age_s``, and ends recordings whose time is
        over. Called about every second."""
        for served in self.served_mounts():
            served.filesystem.close_idle(age_s)
            served.tracing.end_if_due()

    def sweep(self) -> None:
        """Removes views that are no longer mounted, and what is left of ended mounts. Called about every second."""
        self._view_publisher.sweep_if_due()
        self._lost.forget_removed()
        ended_s = self._mount_ended_s
        if ended_s is not None and time.monotonic() - ended_s > _COLLECT_DELAY_S:
            self._mount_ended_s = None
            gc.collect()

    def probe(self) -> None:
        """Takes the locks that mounts, calls and reads need, and returns, unless one is held for ever. Waits for
        neither disk, store nor kernel."""
        self.health()
        self._assembly.read_counts.numbers()
        self._read_through_cache.probe()

    def measurements(self) -> Measurements:
        """For metrics. May count cached bytes (``CachedBytesCount``)."""
        measured = measurements(
            self.served_mounts(),
            self._chunk_store,
            self._read_through_cache,
            self._assembly.read_counts,
            self._warmups,
        )
        return replace(
            measured,
            requests=self._request_counts.numbers(),
            mirrors=self._mirror_counts.numbers(),
            adopted_mounts=self._adopted_mounts,
            lost_adoptions=self._lost_adoptions,
            adoption_s=self._adoption_s,
            lost_mounts=len(self._lost.records()),
            keeper_reachable=not self._keeper_sync.is_unavailable,
        )

    def adopt(self) -> None:
        """Adopts the mounts of an earlier daemon. Those that cannot be adopted are unmounted: no reader may hang."""
        began_s = time.monotonic()
        records = list(self._records.load())
        known = {record.mount_id for record in records}
        held = self._keeper_sync.held_ids() if records else self._keeper_sync.held_ids(timeout_s=0.0)
        for record in records:
            if record.lost:
                self._lost.remember(record)
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
                self._lost_adoptions += 1
            else:
                self._adopted_mounts += 1
        self._adoption_s = time.monotonic() - began_s
        known |= {record.mount_id for record in self._lost.records()}
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
                self._assembly.forget(served.record)
            served.close()

    # -- reporting --

    def _report(self, served: ServedMount) -> VolumeReport:
        return served.report(self._conditions_of(served))

    def _conditions_of(self, served: ServedMount) -> tuple[Condition, ...]:
        of_cache = self._chunk_store.conditions(served.filesystem.dataset)
        return distinct([*served.conditions(), *of_cache, *self._warmups.conditions(served)])

    # -- mounting --

    def _mount_new(self, request: MountRequest, parameters: VolumeParameters) -> ServedMount:
        lost = self._lost.of(request)
        snapshot = self._snapshots.ensure(request.volume_id, parameters, request.secrets, request.tenant)
        try:
            with spans.span("mount", {"hayloft.volume_id": request.volume_id}) as span:
                served = self._assembly.mount(request, parameters, snapshot, lost.reserved_bytes if lost else 0)
                span.set({"hayloft.files": served.tree.file_count, "hayloft.bytes": served.tree.total_bytes})
        finally:
            self._snapshots.release(snapshot)
        record = served.record
        self._keeper_sync.add(record.mount_id, served.descriptor, request.secrets)
        self._register(served)
        facts = telemetry.fields(volume_id=record.volume_id, url=str(parameters.url), mount_point=record.mount_point)
        logger.info("volume mounted", extra=facts)
        for note in served.notes():
            logger.warning("mounted volume: %s", note, extra=telemetry.fields(volume_id=record.volume_id))
        if warning := served.request_timeout_warning():
            logger.warning("%s", warning, extra=telemetry.fields(volume_id=record.volume_id))
        return served

    def _already_mounted(
        self, served: ServedMount, request: MountRequest, parameters: VolumeParameters
    ) -> VolumeReport:
        record = served.record
        if record.volume_id != request.volume_id:
            raise VolumeConflict(f"{request.mount_point}: volume {record.volume_id} is mounted there; unstage it")
        require_equal(request.volume_id, record.attributes, parameters.to_context())
        if self._renew_credentials(served, request, parameters) or not request.republished:
            self._warmups.retry_if_failed(served)
        return self._report(served)

    def _renew_credentials(self, served: ServedMount, request: MountRequest, parameters: VolumeParameters) -> bool:
        """The newest credentials that a caller brings are used. True if they are others than before. A call without any
        changes nothing: kubelet makes one for a volume that has a Secret for the other of its two calls. Raises as
        opening the store, and VolumeConflict."""
        if not request.secrets:
            return False
        renewed = self._pod_sessions.renew(request, parameters, served.pod_session)
        if renewed is None or not self._assembly.renew_credentials(served, renewed.secrets, parameters):
            return False
        request = renewed
        record = served.record
        self._keeper_sync.add(record.mount_id, served.descriptor, request.secrets)
        facts = telemetry.fields(volume_id=record.volume_id, mount_point=record.mount_point)
        logger.info("the credentials of a mounted volume were renewed", extra=facts)
        return True

    def _require_one_volume(self, request: MountRequest, parameters: VolumeParameters) -> None:
        """Raises VolumeConflict if the volume is mounted elsewhere with other attributes. One that is unmounted, and
        still in use by a pod, does not count."""
        for served in self.served_mounts():
            record = served.record
            if record.volume_id == request.volume_id and self._at(record.mount_point) is served:
                require_equal(request.volume_id, record.attributes, parameters.to_context())

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

    def served_mounts(self) -> list[ServedMount]:
        """All mounts of this moment."""
        with self._lock:
            return list(self._mounts.values())

    def served(self, volume_id: str) -> ServedMount:
        """The mount of a volume. Raises VolumeNotFound."""
        with self._lock:
            found = [mount for mount in self._mounts.values() if mount.record.volume_id == volume_id]
        if not found:
            raise VolumeNotFound(f"volume {volume_id} is not mounted on this node")
        return found[-1]

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
                self._lost.add(served.record, self._keeper_sync.secrets_of(mount_id))
        self._warmups.remove(mount_id)
        # Before ``close``: a resync duplicates the descriptor of every mount that KeeperSync knows, and after ``close``
        # its number may belong to another file.
        self._keeper_sync.remove(mount_id)
        self._assembly.forget(served.record)
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
        served = self._assembly.adopt(record, descriptor, secrets)
        entry = mounting.find(Path(record.mount_point))
        served.unmounted = entry is None or entry.device != served.record.device
        self._keeper_sync.adopted(record.mount_id, served.descriptor, secrets)
        self._register(served)
        facts = telemetry.fields(volume_id=record.volume_id, mount_point=record.mount_point)
        logger.info("volume adopted from an earlier daemon", extra=facts)

    def _abandon(self, record: MountRecord) -> None:
        self._keeper_sync.remove(record.mount_id)
        if mounting.find(Path(record.mount_point)) is not None:
            self._lost.add(record, {})
        self._assembly.forget(record)

    # -- mounts that end --

    def _end_dead(self, mount_point: str) -> None:
        """Ends mounts that have died, before their watching threads do: a new one needs what is known of them."""
        for served in self.served_mounts():
            if served.record.mount_point == mount_point and served.ended:
                self._end(served)

    def _note_unmounted(self, mount_point: str) -> None:
        """What was mounted there is not any more: it is in use elsewhere, or ends."""
        with self._ending:
            for served in self.served_mounts():
                if served.record.mount_point == mount_point:
                    served.unmounted = True
