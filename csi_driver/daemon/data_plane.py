"""The cache daemon's use of everything below it: mounts volumes, adopts those of an earlier daemon, and reports."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from csi_driver.chunks.chunk_store import ChunkStore
from csi_driver.daemon.mount_records import MountRecord, MountRecords
from csi_driver.daemon.served_mount import ServedMount, StoreOpener, open_volume_store
from csi_driver.filesystem.dataset_filesystem import LINGER_S
from csi_driver.fuse import device
from csi_driver.model.errors import HayloftError, MountPointBusy, VolumeConflict, VolumeNotFound
from csi_driver.mounts.mount_table import MountTable
from csi_driver.reading.library import Library
from csi_driver.settings import CacheDaemonSettings
from csi_driver.volumes.data_plane import DaemonReport, MountWish, VolumeReport, WarmUpReport, WarmUpWish
from csi_driver.volumes.parameters import VolumeParameters
from csi_driver.volumes.snapshots import SnapshotService
from csi_driver.volumes.volume_ids import check_id

logger = logging.getLogger(__name__)

_UNMOUNT_WAIT_S = 2.0
"""How long ``unmount`` waits for the session to end. It goes on longer if the volume is published somewhere still."""


class DescriptorKeeper(Protocol):
    """What holds descriptors while no daemon runs; ``mounts/keeper.py``."""

    def put(self, name: str, descriptors: list[int]) -> None:
        """Holds copies of the descriptors under the name."""

    def get(self, name: str) -> list[int]:
        """Copies of the descriptors; empty if there are none of that name."""

    def drop(self, name: str) -> None:
        """Closes what is held."""

    def names(self) -> list[str]:
        """Everything that is held."""


class LocalDataPlane:
    """See ``volumes.data_plane.DataPlane``.

    ``_lock`` guards ``_mounts``; it is not held across disk, network or mount(2). The daemon's server lets only one
    call for a volume in at a time.
    """

    def __init__(
        self,
        settings: CacheDaemonSettings,
        chunk_store: ChunkStore,
        library: Library,
        snapshots: SnapshotService,
        keeper: DescriptorKeeper | None,
        version: str,
        open_volume: StoreOpener = open_volume_store,
    ) -> None:
        self._settings = settings
        self._chunk_store = chunk_store
        self._library = library
        self._snapshots = snapshots
        self._keeper = keeper
        self._version = version
        self._open_volume = open_volume
        self._records = MountRecords(settings.state_directory)
        self._lock = threading.Lock()
        self._mounts: dict[str, ServedMount] = {}
        """By mount id. A mount whose volume was unmounted stays until its last bind mount is gone."""
        chunk_store.before_evicting(lambda: self.tidy(-1.0))

    # -- the protocol --

    def mount(self, wish: MountWish) -> VolumeReport:
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

    def volume(self, volume_id: str) -> VolumeReport:
        """See DataPlane."""
        with self._lock:
            found = [mount for mount in self._mounts.values() if mount.record.volume_id == volume_id]
        if not found:
            raise VolumeNotFound(f"volume {volume_id} is not mounted on this node")
        return found[-1].report()

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
        )

    def start_warm_up(self, wish: WarmUpWish) -> WarmUpReport:
        """See DataPlane."""
        self.volume(wish.volume_id)
        return WarmUpReport(wish.volume_id)

    def warm_up(self, volume_id: str) -> WarmUpReport:
        """See DataPlane."""
        self.volume(volume_id)
        return WarmUpReport(volume_id)

    def cancel_warm_up(self, volume_id: str) -> WarmUpReport:
        """See DataPlane."""
        return self.warm_up(volume_id)

    # -- life --

    def tidy(self, age_s: float = LINGER_S) -> None:
        """Closes files that nobody opened again for so long. Called every second or so."""
        with self._lock:
            mounts = list(self._mounts.values())
        for served in mounts:
            served.filesystem.close_lingering(age_s)

    def adopt(self) -> None:
        """Takes over the mounts of an earlier daemon. One that cannot be adopted is unmounted: nothing shall hang."""
        held = set(self._keeper.names()) if self._keeper is not None else set()
        known = set()
        for record in self._records.load():
            known.add(record.mount_id)
            try:
                self._adopt(record, held)
            except HayloftError as error:
                logger.error("volume %s could not be adopted and is unmounted: %s", record.volume_id, error)
                self._give_up(record)
        self._records.remove_strays(known)
        for name in held - known:
            self._drop(name)

    def close(self) -> None:
        """Stops serving. With a keeper the mounts stay for the next daemon; without one they would be dead, and are
        unmounted."""
        with self._lock:
            mounts = list(self._mounts.values())
            self._mounts.clear()
        for served in mounts:
            if self._keeper is None:
                with suppress(HayloftError):
                    device.unmount(Path(served.record.mount_point), lazy=True)
                self._records.remove(served.record.mount_id)
            served.close()

    # -- mounting --

    def _mount_anew(self, wish: MountWish, parameters: VolumeParameters) -> ServedMount:
        snapshot = self._snapshots.ensure(wish.volume_id, parameters, wish.secrets)
        store, domain = self._open_volume(parameters, wish.secrets)
        record = MountRecord(
            MountRecord.new_id(), wish.volume_id, wish.mount_point, parameters.to_context(), snapshot.snapshot_id
        )
        try:
            self._records.keep_manifest(record.mount_id, snapshot.manifest_path)
            served = ServedMount(record, self._records, self._library, store, domain)
            self._records.save(record)
            try:
                served.begin(self._settings.fuse)
            except BaseException:
                served.close()
                raise
        except BaseException:
            self._records.remove(record.mount_id)
            raise
        self._hold(served, wish.secrets)
        self._enter(served)
        logger.info("mounted volume %s (%s) at %s", record.volume_id, parameters.url, record.mount_point)
        return served

    def _already_mounted(self, served: ServedMount, wish: MountWish, parameters: VolumeParameters) -> VolumeReport:
        record = served.record
        if record.volume_id != wish.volume_id or record.attributes != parameters.to_context():
            raise VolumeConflict(
                f"{wish.mount_point}: volume {record.volume_id} is mounted there with other attributes; unstage it"
            )
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

    def _enter(self, served: ServedMount) -> None:
        with self._lock:
            self._mounts[served.record.mount_id] = served
        served.watch(self._end)

    def _end(self, served: ServedMount) -> None:
        """Frees a mount that is gone, once."""
        mount_id = served.record.mount_id
        with self._lock:
            if self._mounts.pop(mount_id, None) is None:
                return
        self._drop(mount_id)
        self._records.remove(mount_id)
        served.close()
        logger.info("volume %s is no longer mounted at %s", served.record.volume_id, served.record.mount_point)

    # -- the keeper --

    def _hold(self, served: ServedMount, secrets: Mapping[str, str]) -> None:
        if self._keeper is None:
            return
        memory = os.memfd_create("hayloft-secrets", os.MFD_CLOEXEC)
        try:
            os.write(memory, json.dumps(dict(secrets)).encode())
            self._keeper.put(served.record.mount_id, [served.descriptor, memory])
        except HayloftError as error:
            logger.warning("volume %s will not survive a restart: %s", served.record.volume_id, error)
        finally:
            os.close(memory)

    def _drop(self, name: str) -> None:
        if self._keeper is not None:
            with suppress(HayloftError):
                self._keeper.drop(name)

    def _adopt(self, record: MountRecord, held: set[str]) -> None:
        if record.mount_id not in held or self._keeper is None:
            self._give_up(record)
            return
        descriptor, memory = self._keeper.get(record.mount_id)
        try:
            secrets = json.loads(os.pread(memory, 1 << 20, 0))
        finally:
            os.close(memory)
        parameters = VolumeParameters.parse(record.attributes)
        store, domain = self._open_volume(parameters, secrets)
        served = ServedMount(record, self._records, self._library, store, domain)
        served.adopt(self._settings.fuse, descriptor)
        self._enter(served)
        logger.info("adopted volume %s at %s", record.volume_id, record.mount_point)

    def _give_up(self, record: MountRecord) -> None:
        with suppress(HayloftError):
            device.unmount(Path(record.mount_point), lazy=True)
        self._drop(record.mount_id)
        self._records.remove(record.mount_id)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")
