"""Makes the mounts of a daemon, new ones and those of an earlier daemon, and counts what each holds of the node."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.daemon.mount_credentials import MountCredentials
from csi_driver.daemon.mount_records import MountRecord, MountRecords
from csi_driver.daemon.namespace_budget import NamespaceBudget
from csi_driver.daemon.pod_sessions import PodSession
from csi_driver.daemon.read_errors import ReadErrorCounts
from csi_driver.daemon.served_mount import ServedMount
from csi_driver.daemon.tier_of_mounts import TierOfMounts
from csi_driver.daemon.volume_read_counts import VolumeReadCounts
from csi_driver.daemon.volume_stores import StoreOpener, VolumeStore, reopen_volume_store
from csi_driver.event_loop.event_loop import EventLoop
from csi_driver.filesystem.descriptor_budget import DescriptorBudget
from csi_driver.model import spans
from csi_driver.model.errors import CapacityOutOfRange, HayloftError
from csi_driver.model.tenant import Tenant
from csi_driver.objects.request_counts import RequestCounts
from csi_driver.reading.access import Credential
from csi_driver.reading.read_through_cache import ReadThroughCache
from csi_driver.settings import CacheDaemonSettings
from csi_driver.volumes.data_plane import MountRequest
from csi_driver.volumes.dataset_snapshots import Snapshot
from csi_driver.volumes.parameters import VolumeParameters

if TYPE_CHECKING:
    from csi_driver.objects.mirrors.mirror_counts import MirrorCounts
    from csi_driver.objects.tier.replica_set import Tier


class MountAssembly:
    """May be used from any thread; by one at a time for one mount."""

    def __init__(
        self,
        settings: CacheDaemonSettings,
        chunk_store: ChunkStore,
        read_through_cache: ReadThroughCache,
        event_loop: EventLoop,
        records: MountRecords,
        open_volume: StoreOpener,
        request_counts: RequestCounts,
        tier: Tier | None = None,
        mirror_counts: MirrorCounts | None = None,
    ) -> None:
        """``request_counts``, ``mirror_counts``: of stores that an adopted mount opens later."""
        self._settings = settings
        self._chunk_store = chunk_store
        self._read_through_cache = read_through_cache
        self._event_loop = event_loop
        self._records = records
        self._open_volume = open_volume
        self._credentials = MountCredentials(settings.policy, chunk_store.credential_key)
        self._tier = None if tier is None else TierOfMounts(tier, MountCredentials(settings.policy, tier.key))
        self._descriptors = DescriptorBudget.of_this_process()
        self.error_counts = ReadErrorCounts()
        self.read_counts = VolumeReadCounts(settings.metrics_volumes)
        self._request_counts, self._mirror_counts = request_counts, mirror_counts
        policy = settings.policy
        self._reservation_budget = NamespaceBudget(
            policy, policy.inline_reservation_bytes, "cacheReservation (--inline-reservation)"
        )
        self._manifest_budget = NamespaceBudget(policy, policy.inline_manifest_bytes, "the list of its objects")

    def mount(
        self, request: MountRequest, parameters: VolumeParameters, snapshot: Snapshot, reserved_bytes: int
    ) -> ServedMount:
        """A new mount that serves. ``reserved_bytes``: what an earlier mount of the volume had been given. Raises as
        ``DataPlane.mount``, with nothing left mounted, recorded or counted."""
        parameters = snapshot.record.in_effect(parameters)
        tenant = request.tenant if request.tenant.inline else Tenant(snapshot.record.namespace)
        # First: it may fail, and then there is no store to close yet.
        credential = self._credentials.of(parameters, request.secrets, tenant)
        opened = self._open(parameters, request.secrets, tenant)
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
            reserved_bytes=reserved_bytes,
            mount_group=request.mount_group,
        )
        try:
            served = self._serve(record, parameters, opened, credential, snapshot.manifest_path)
            served.pod_session = PodSession.of(request.secrets)
            # Before the mount exists: a daemon that dies after mount(2) leaves a record by which it is found.
            self._records.save(record)
            try:
                self._count(served, adopted=False)
                if parameters.warmup_trace is not None:  # refused before there is a mount
                    served.load_trace(parameters.warmup_trace)
                served.begin(self._settings.fuse)
            except BaseException:
                served.close()
                raise
            with suppress(HayloftError):  # without the device in the record, the adoption looks it up
                self._records.save(served.record)
        except BaseException:
            self.forget(record)
            raise
        return served

    def adopt(self, record: MountRecord, descriptor: int, secrets: Mapping[str, str]) -> ServedMount:
        """Serves a mount of an earlier daemon. Owns the descriptor, also when it raises."""
        try:
            parameters = VolumeParameters.parse(record.attributes).under(self._settings.policy, record.tenant)
            opened = reopen_volume_store(
                record, parameters, secrets, self._open_volume, self._request_counts, self._mirror_counts
            )
            if self._tier is not None:
                opened = self._tier.around_adopted(opened, parameters, secrets, record)
            credential = self._credentials.of_record(record, parameters, secrets)
            served = self._serve(record, parameters, opened, credential)
            served.pod_session = PodSession.of(secrets)
        except BaseException:
            os.close(descriptor)  # an open copy that no daemon serves lets readers hang for ever
            raise
        try:
            served.adopt(self._settings.fuse, descriptor)
        except BaseException:
            served.close()  # closes the descriptor as well, which it owns by now
            raise
        self._count(served, adopted=True)
        return served

    def renew_credentials(self, served: ServedMount, secrets: Mapping[str, str], parameters: VolumeParameters) -> bool:
        """True if the mount reads with other credentials from now on. Raises as opening the store, and
        VolumeConflict."""
        record = served.record
        credential = self._credentials.of(parameters, secrets, record.tenant)
        pod_session = PodSession.of(secrets)
        if credential.own == served.credential.own and pod_session is None:
            return False
        known = replace(parameters, region=parameters.region or record.region)
        with spans.detached():  # kubelet repeats this call, and it is no span unless it fails
            opened = self._open(known, secrets, record.tenant)
        served.renew(opened, credential)
        served.pod_session = pod_session
        return True

    def reserve(self, served: ServedMount, count_bytes: int) -> None:
        """As ``DataPlane.reserve``."""
        before = served.requested_bytes
        if not before or count_bytes <= before:
            return
        most = self._chunk_store.reservations.limit_bytes
        if count_bytes > most:
            raise CapacityOutOfRange(
                f"capacity_range: {count_bytes} bytes cannot be reserved for volume {served.record.volume_id}: the "
                f"cache of this node may hold {most} bytes; ask for less, or raise --cache-limit"
            )
        try:
            self._hold(served, count_bytes, adopted=False)
            served.note_reserved(count_bytes)
        except BaseException:
            self._hold(served, before, adopted=True)
            raise

    def pin(self, served: ServedMount, pinned: bool) -> None:
        """As ``NodeOperations.set_pinned``. The budget of a tenant does not bound what the operator pins."""
        total_bytes, most = served.tree.total_bytes, self._chunk_store.reservations.limit_bytes
        if pinned and total_bytes > most:
            raise CapacityOutOfRange(
                f"volume {served.record.volume_id} has {total_bytes} bytes and cannot be pinned: the cache of this "
                f"node may hold {most} bytes; raise --cache-limit"
            )
        before = served.reserved_bytes
        wanted = max(served.requested_bytes, total_bytes) if pinned else served.requested_bytes
        try:
            self._hold_in_cache(served, wanted, adopted=not pinned)
            served.note_pinned(pinned)
        except BaseException:
            self._hold_in_cache(served, before, adopted=True)
            raise

    def forget(self, record: MountRecord) -> None:
        """Of a mount that is not there (any more): its records, and what it counted for."""
        mount_id = record.mount_id
        self.read_counts.end(mount_id)
        self._chunk_store.reservations.end(mount_id)
        self._reservation_budget.end(mount_id)
        self._manifest_budget.end(mount_id)
        self._records.remove(mount_id)

    def _open(self, parameters: VolumeParameters, secrets: Mapping[str, str], tenant: Tenant) -> VolumeStore:
        """The volume's store, behind the tier if there is one."""
        opened = self._open_volume(parameters, secrets)
        return opened if self._tier is None else self._tier.around(opened, parameters, secrets, tenant)

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
            self.error_counts,
            self.read_counts.begin(mount_id, record.volume_id),
        )

    def _count(self, served: ServedMount, *, adopted: bool) -> None:
        """Raises CacheOvercommitted and BudgetExceeded, but not for an adopted mount, whose reservation was granted
        before."""
        self._hold(served, served.requested_bytes, adopted=adopted)
        self._chunk_store.note_dataset(served.filesystem.dataset, served.tree.total_bytes)

    def _hold(self, served: ServedMount, count_bytes: int, *, adopted: bool) -> None:
        """What the volume asks for; if it is pinned, all of it stays reserved."""
        mount_id = served.record.mount_id
        self._reservation_budget.take(mount_id, served.record.tenant, count_bytes, adopted=adopted)
        self._hold_in_cache(served, max(count_bytes, served.reserved_bytes), adopted=adopted)

    def _hold_in_cache(self, served: ServedMount, count_bytes: int, *, adopted: bool) -> None:
        mount_id, reservations = served.record.mount_id, self._chunk_store.reservations
        if not count_bytes:
            reservations.end(mount_id)  # of one that was pinned
        reservations.reserve(mount_id, served.filesystem.dataset, count_bytes, adopted=adopted)
