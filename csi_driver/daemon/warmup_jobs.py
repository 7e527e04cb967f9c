"""The warmups of a daemon, one for each mount at the most: started by an attribute or by a call, remembered beside the
record of the mount, and taken up again by the daemon that adopts it."""

from __future__ import annotations

import logging
import threading
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from csi_driver import telemetry
from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.catalog.selection import Selection
from csi_driver.catalog.tree import FIRST_FILE_NODE, Tree
from csi_driver.daemon.mount_records import MountRecord, MountRecords
from csi_driver.daemon.warmup_records import WarmupRecord
from csi_driver.filesystem.dataset_filesystem import DatasetFilesystem
from csi_driver.model.errors import InvalidParameter
from csi_driver.reading.admission import AdmissionGate
from csi_driver.reading.read_through_cache import ReadThroughCache
from csi_driver.reading.services import ObjectSource
from csi_driver.reading.warmup import Warmup
from csi_driver.reading.warmup_progress import Progress
from csi_driver.volumes.data_plane import WarmupReport, WarmupRequest, WarmupState
from csi_driver.volumes.parameter_text import BANDWIDTHS_ALLOWED, MOST_CONCURRENCY, is_bandwidth
from csi_driver.volumes.parameters import VolumeParameters

logger = logging.getLogger(__name__)

STOP_WAIT_S = 2.0
"""How long an unmount waits for the requests of its warmup to end. One that takes longer ends beside it: its bytes
go into the cache, or nowhere."""

_MATCH_AT_ONCE = 1000
"""Paths that are matched between two looks at whether it is still wanted."""


class WarmableMount(Protocol):
    """What a warmup wants of a mount; ``served_mount.ServedMount``."""

    @property
    def record(self) -> MountRecord:
        """What is known of it."""

    @property
    def parameters(self) -> VolumeParameters:
        """Of its volume."""

    @property
    def filesystem(self) -> DatasetFilesystem:
        """What it shows."""

    @property
    def tree(self) -> Tree:
        """Of its snapshot."""


@dataclass(slots=True)
class _Entry:
    """The warmup of a mount: one that runs, or how the last one ended."""

    wish: WarmupRequest
    running: Warmup | None = None
    ended: WarmupReport | None = None

    def report(self) -> WarmupReport:
        if self.running is not None:
            return _report(self.wish, self.running.progress())
        return self.ended or WarmupReport(self.wish.volume_id)


class WarmupJobs:
    """``_lock`` guards the table of entries and their records on disk; it is held while a small file is written."""

    def __init__(
        self,
        library: ReadThroughCache,
        chunk_store: ChunkStore,
        records: MountRecords,
        mounts: Callable[[], Iterable[WarmableMount]],
        most_fetches: int,
    ) -> None:
        """``mounts`` are those of which a warmup takes no room. ``most_fetches`` at a time, all warmups together."""
        self._library = library
        self._chunk_store = chunk_store
        self._records = records
        self._mounts = mounts
        self._gate = AdmissionGate(library.foreground, most_fetches)
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._fetched_bytes = 0
        """By those that have ended."""

    # -- by the mount itself --

    def mounted(self, mount: WarmableMount) -> None:
        """A mount was made or adopted: what was begun for it goes on, else what its attributes ask for begins."""
        note = WarmupRecord.load(self._records.warmup_path(mount.record.mount_id))
        if note is None:
            self.asked_again(mount)
        elif note.ended is None:
            self.start(mount, note.wish)
        else:
            with self._lock:
                self._entries[mount.record.mount_id] = _Entry(note.wish, ended=note.ended)

    def asked_again(self, mount: WarmableMount) -> None:
        """The mount is asked for (again): what its attributes ask for is tried (again), unless somebody cancelled."""
        state = self.report(mount).state
        if mount.parameters.warmup != "none" and state in (WarmupState.NONE, WarmupState.FAILED, WarmupState.FULL):
            self.start(mount, WarmupRequest(mount.record.volume_id, mount.parameters.warmup_include))

    def forget(self, mount_id: str) -> None:
        """The mount is gone. Waits for a moment until requests under way have ended."""
        with self._lock:
            entry = self._entries.pop(mount_id, None)
        if entry is not None and entry.running is not None:
            entry.running.stop(cancelled=False)
            entry.running.join(STOP_WAIT_S)

    def close(self) -> None:
        """The daemon ends; the next one goes on where this one was."""
        with self._lock:
            running = [entry.running for entry in self._entries.values() if entry.running is not None]
            self._entries.clear()
        for warmup in running:
            warmup.stop(cancelled=False)
        for warmup in running:
            warmup.join(STOP_WAIT_S)

    # -- by calls --

    def start(self, mount: WarmableMount, wish: WarmupRequest) -> WarmupReport:
        """See DataPlane.start_warmup."""
        _check(wish)
        parameters = mount.parameters
        wish = replace(
            wish,
            bandwidth_bytes=wish.bandwidth_bytes or parameters.warmup_bandwidth_bytes,
            concurrency=wish.concurrency or parameters.warmup_concurrency,
        )
        mount_id = mount.record.mount_id
        with self._lock:
            before = self._entries.get(mount_id)
            if before is not None and before.running is not None:
                if before.wish == wish:
                    return before.report()
                before.running.stop(cancelled=False)
            entry = _Entry(wish)
            entry.running = self._made(mount, wish, entry)
            self._entries[mount_id] = entry
            self._save(mount_id, entry)
        entry.running.start()
        logger.info("warmup begins", extra=telemetry.fields(volume_id=wish.volume_id, include=",".join(wish.include)))
        return entry.report()

    def report(self, mount: WarmableMount) -> WarmupReport:
        """See DataPlane.warmup."""
        with self._lock:
            entry = self._entries.get(mount.record.mount_id)
            return WarmupReport(mount.record.volume_id) if entry is None else entry.report()

    def cancel(self, mount: WarmableMount) -> WarmupReport:
        """See DataPlane.cancel_warmup."""
        mount_id = mount.record.mount_id
        with self._lock:
            entry = self._entries.get(mount_id)
            if entry is not None and entry.running is not None:
                entry.running.stop(cancelled=True)
                so_far = entry.report()
                cancelled = replace(so_far, state=WarmupState.CANCELLED, rate_bytes=0.0, eta_s=None, message="")
                self._end(mount_id, entry, cancelled)
        return self.report(mount)

    # -- all of them --

    def running(self) -> int:
        """How many have not ended."""
        with self._lock:
            return sum(entry.running is not None for entry in self._entries.values())

    def fetched_bytes(self) -> int:
        """What warmups have brought since the daemon started."""
        with self._lock:
            under_way = [entry.running for entry in self._entries.values() if entry.running is not None]
            return self._fetched_bytes + sum(warmup.progress().fetched_bytes for warmup in under_way)

    # -- inside --

    def _made(self, mount: WarmableMount, wish: WarmupRequest, entry: _Entry) -> Warmup:
        return Warmup(
            mount.record.mount_id,
            ChosenFiles(mount, wish.include),
            self._library,
            self._gate,
            partial(self._has_room, mount.filesystem.dataset),
            bandwidth_bytes=wish.bandwidth_bytes,
            concurrency=wish.concurrency,
            ended=lambda progress: self._ended(mount.record.mount_id, entry, progress),
        )

    def _has_room(self, dataset: int, count_bytes: int) -> bool:
        """Raises CacheError while the disk refuses writes."""
        mounted = {mount.filesystem.dataset for mount in self._mounts()}
        return self._chunk_store.has_space_for_warmup(count_bytes, dataset, mounted)

    def _ended(self, mount_id: str, entry: _Entry, progress: Progress) -> None:
        with self._lock:
            if self._entries.get(mount_id) is not entry or entry.running is None:
                return
            report = _report(entry.wish, progress)
            self._end(mount_id, entry, report)
        level = logging.INFO if report.state is WarmupState.COMPLETE else logging.WARNING
        facts = telemetry.fields(volume_id=report.volume_id, files=report.done_files, bytes=report.done_bytes)
        logger.log(level, "warmup is %s%s", report.state, report.message and f": {report.message}", extra=facts)

    def _end(self, mount_id: str, entry: _Entry, report: WarmupReport) -> None:
        entry.running, entry.ended = None, report
        self._fetched_bytes += report.fetched_bytes
        self._save(mount_id, entry)

    def _save(self, mount_id: str, entry: _Entry) -> None:
        WarmupRecord(entry.wish, entry.ended).save(self._records.warmup_path(mount_id))


class ChosenFiles:
    """Files of a mount by globs; see ``reading.warmup.WarmupFiles``. Numbers are rows of the manifest."""

    def __init__(self, mount: WarmableMount, include: tuple[str, ...]) -> None:
        self._tree = mount.tree
        self._filesystem = mount.filesystem
        self._include = include

    def chosen(self, stopping: Callable[[], bool]) -> Sequence[int]:
        """See WarmupFiles. Eight bytes a file where there are globs, none where there are not."""
        rows = range(self._tree.file_count)
        if not self._include:
            return rows
        selection, found = Selection.including(self._include), array("Q")
        for first in range(0, len(rows), _MATCH_AT_ONCE):
            if stopping():
                return array("Q")
            some = rows[first : first + _MATCH_AT_ONCE]
            paths = [self._tree.path(row + FIRST_FILE_NODE).decode("utf-8", "surrogateescape") for row in some]
            found.extend(first + position for position in selection.chosen(paths))
        return found

    def size_bytes(self, number: int) -> int:
        """See WarmupFiles."""
        return self._tree.size_bytes(number + FIRST_FILE_NODE)

    def source(self, number: int) -> ObjectSource:
        """See WarmupFiles."""
        return self._filesystem.source(number + FIRST_FILE_NODE)


def _check(wish: WarmupRequest) -> None:
    """Raises InvalidParameter."""
    Selection.including(wish.include)
    if not is_bandwidth(wish.bandwidth_bytes):
        raise InvalidParameter("bandwidth_bytes", wish.bandwidth_bytes, BANDWIDTHS_ALLOWED)
    if not 0 <= wish.concurrency <= MOST_CONCURRENCY:
        raise InvalidParameter("concurrency", wish.concurrency, f"1 to {MOST_CONCURRENCY}, or 0: as the volume says")


def _report(wish: WarmupRequest, progress: Progress) -> WarmupReport:
    return WarmupReport(
        volume_id=wish.volume_id,
        state=WarmupState(progress.state),
        include=wish.include,
        total_bytes=progress.total_bytes,
        total_files=progress.total_files,
        done_bytes=progress.done_bytes,
        done_files=progress.done_files,
        fetched_bytes=progress.fetched_bytes,
        failed_files=progress.failed_files,
        rate_bytes=progress.rate_bytes,
        eta_s=progress.eta_s,
        message=progress.message,
    )
