"""The warmups of a daemon, at most one for each mount: started by an attribute or by a call, recorded beside the
mount's record, and resumed by the daemon that adopts the mount."""

from __future__ import annotations

import logging
import threading
from array import array
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from csi_driver import telemetry
from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.catalog.selection import Selection, check_number_of_globs
from csi_driver.catalog.tree import FIRST_FILE_NODE, Tree
from csi_driver.daemon.mount_records import MountRecord, MountRecords
from csi_driver.daemon.warmup_records import WarmupRecord
from csi_driver.filesystem.dataset_filesystem import DatasetFilesystem
from csi_driver.model import conditions
from csi_driver.model.conditions import Condition
from csi_driver.model.errors import Interrupted, InvalidParameter
from csi_driver.reading.read_through_cache import ReadThroughCache
from csi_driver.reading.services import ObjectSource
from csi_driver.reading.warmup import Warmup
from csi_driver.reading.warmup_progress import Progress
from csi_driver.rpc import callers
from csi_driver.volumes.data_plane import WarmupReport, WarmupRequest, WarmupState
from csi_driver.volumes.dataset_lister import SelectionRequest
from csi_driver.volumes.parameter_text import BANDWIDTHS_ALLOWED, MOST_CONCURRENCY, is_bandwidth
from csi_driver.volumes.parameters import VolumeParameters

logger = logging.getLogger(__name__)

STOP_WAIT_S = 2.0
"""How long an unmount waits for the requests of its warmup in flight. Slower ones end after the unmount; their bytes
are cached or discarded."""

_CONDITION_OF = {
    WarmupState.FAILED: conditions.WARMUP_FAILED,
    WarmupState.FULL: conditions.CACHE_TOO_SMALL,
}

Select = Callable[[SelectionRequest], "array[int]"]
"""``SnapshotService.select``."""


class WarmableMount(Protocol):
    """The properties of a mount that a warmup uses; ``served_mount.ServedMount`` has them."""

    @property
    def record(self) -> MountRecord: ...
    @property
    def parameters(self) -> VolumeParameters: ...
    @property
    def filesystem(self) -> DatasetFilesystem: ...
    @property
    def tree(self) -> Tree: ...


@dataclass(slots=True)
class _Entry:
    """The warmup of a mount: the running one, or the report of the last one."""

    request: WarmupRequest
    running: Warmup | None = None
    ended: WarmupReport | None = None

    def report(self) -> WarmupReport:
        if self.running is not None:
            return _report(self.request, self.running.progress())
        return self.ended or WarmupReport(self.request.volume_id)


class WarmupJobs:
    """May be used from any thread."""

    def __init__(
        self,
        read_through_cache: ReadThroughCache,
        chunk_store: ChunkStore,
        records: MountRecords,
        mounts: Callable[[], Iterable[WarmableMount]],
        select: Select,
    ) -> None:
        """``mounts`` returns the mounts whose datasets a warmup must not evict."""
        self._read_through_cache = read_through_cache
        self._chunk_store = chunk_store
        self._records = records
        self._mounts = mounts
        self._select = select
        self._lock = threading.Lock()
        """Guards ``_entries``, ``_fetched_bytes`` and the records on disk; held while such a small file is written.
        A warmup's thread takes it in ``_ended``, so a warmup is never joined under it."""
        self._entries: dict[str, _Entry] = {}
        """By mount id."""
        self._fetched_bytes = 0
        """By warmups that have ended."""

    # -- by the mount --

    def mounted(self, mount: WarmableMount) -> None:
        """Called after a mount or an adoption. Resumes the recorded warmup, or starts that of the attributes."""
        recorded = WarmupRecord.load(self._records.warmup_path(mount.record.mount_id))
        if recorded is None:
            self.retry_if_failed(mount)
        elif recorded.ended is None:
            self.start(mount, recorded.request)
        else:
            with self._lock:
                self._entries[mount.record.mount_id] = _Entry(recorded.request, ended=recorded.ended)

    def retry_if_failed(self, mount: WarmableMount) -> None:
        """Starts the warmup of the mount's attributes if none was started, or the last one failed or did not fit into
        the cache. A cancelled warmup stays cancelled."""
        state = self.report(mount).state
        if mount.parameters.warmup != "none" and state in (WarmupState.NONE, WarmupState.FAILED, WarmupState.FULL):
            self.start(mount, WarmupRequest(mount.record.volume_id, mount.parameters.warmup_include))

    def remove(self, mount_id: str) -> None:
        """Called after the mount has ended. Waits up to ``STOP_WAIT_S`` for requests in flight."""
        with self._lock:
            entry = self._entries.pop(mount_id, None)
        if entry is not None and entry.running is not None:
            entry.running.stop(cancelled=False)
            entry.running.join(STOP_WAIT_S)

    def close(self) -> None:
        """Stops all warmups without a record of their end, so that the next daemon resumes them."""
        with self._lock:
            running = [entry.running for entry in self._entries.values() if entry.running is not None]
            self._entries.clear()
        for warmup in running:  # all stopped before the first join, so that the waits overlap
            warmup.stop(cancelled=False)
        for warmup in running:
            warmup.join(STOP_WAIT_S)

    # -- by calls --

    def start(self, mount: WarmableMount, request: WarmupRequest) -> WarmupReport:
        """As ``DataPlane.start_warmup``."""
        _check(request)
        parameters = mount.parameters
        request = replace(
            request,
            bandwidth_bytes=request.bandwidth_bytes or parameters.warmup_bandwidth_bytes,
            concurrency=request.concurrency or parameters.warmup_concurrency,
        )
        mount_id = mount.record.mount_id
        with self._lock:
            before = self._entries.get(mount_id)
            if before is not None and before.running is not None:
                if before.request == request:
                    return before.report()
                before.running.stop(cancelled=False)
            # The callback names its entry: when a replaced warmup ends late, ``_ended`` must not end its successor.
            entry = _Entry(request)
            entry.running = Warmup(
                mount_id,
                SelectedFiles(mount, self._records.manifest_path(mount_id), request.include, self._select),
                self._read_through_cache,
                partial(self._has_space, mount.filesystem.dataset),
                bandwidth_bytes=request.bandwidth_bytes,
                concurrency=request.concurrency,
                ended=lambda progress: self._ended(mount_id, entry, progress),
            )
            self._entries[mount_id] = entry
            self._save(mount_id, entry)  # before the start: a daemon that is killed from now on has a record to resume
        entry.running.start()
        facts = telemetry.fields(volume_id=request.volume_id, include=",".join(request.include))
        logger.info("warmup started", extra=facts)
        return entry.report()

    def report(self, mount: WarmableMount) -> WarmupReport:
        """As ``DataPlane.warmup``."""
        with self._lock:
            entry = self._entries.get(mount.record.mount_id)
            return WarmupReport(mount.record.volume_id) if entry is None else entry.report()

    def cancel(self, mount: WarmableMount) -> WarmupReport:
        """As ``DataPlane.cancel_warmup``."""
        mount_id = mount.record.mount_id
        with self._lock:
            entry = self._entries.get(mount_id)
            if entry is not None and entry.running is not None:
                entry.running.stop(cancelled=True)
                progress = entry.report()
                cancelled = replace(progress, state=WarmupState.CANCELLED, rate_bytes=0.0, eta_s=None, message="")
                self._end(mount_id, entry, cancelled)
        return self.report(mount)

    # -- for reports --

    def conditions(self, mount: WarmableMount) -> list[Condition]:
        """Of a mount whose last warmup ended without everything that it was to fetch. Without the lock, which is held
        while a record is written: the disk may hang. Both steps are single ones of the interpreter."""
        entry = self._entries.get(mount.record.mount_id)
        ended = None if entry is None else entry.ended
        return [] if ended is None else [*filter(None, [_CONDITION_OF.get(ended.state)])]

    def running(self) -> int:
        """The number of running warmups."""
        with self._lock:
            return sum(entry.running is not None for entry in self._entries.values())

    def fetched_bytes(self) -> int:
        """Bytes that warmups have fetched since the daemon started."""
        with self._lock:
            running = [entry.running for entry in self._entries.values() if entry.running is not None]
            return self._fetched_bytes + sum(warmup.progress().fetched_bytes for warmup in running)

    # -- internal --

    def _has_space(self, dataset: int, count_bytes: int) -> bool:
        """Raises CacheError while the disk refuses writes."""
        mounted = {mount.filesystem.dataset for mount in self._mounts()}
        return self._chunk_store.has_space_for_warmup(count_bytes, dataset, mounted)

    def _ended(self, mount_id: str, entry: _Entry, progress: Progress) -> None:
        with self._lock:
            if self._entries.get(mount_id) is not entry or entry.running is None:
                return  # replaced, removed or cancelled in the meantime
            report = _report(entry.request, progress)
            self._end(mount_id, entry, report)
        level = logging.INFO if report.state is WarmupState.COMPLETE else logging.WARNING
        facts = telemetry.fields(
            volume_id=report.volume_id,
            state=str(report.state),
            files=report.done_files,
            failed_files=report.failed_files or None,
            bytes=report.done_bytes,
            reason=report.message or None,
        )
        logger.log(level, "warmup ended", extra=facts)

    def _end(self, mount_id: str, entry: _Entry, report: WarmupReport) -> None:
        """With ``_lock`` held."""
        entry.running, entry.ended = None, report
        self._fetched_bytes += report.fetched_bytes
        self._save(mount_id, entry)

    def _save(self, mount_id: str, entry: _Entry) -> None:
        WarmupRecord(entry.request, entry.ended).save(self._records.warmup_path(mount_id))


@dataclass(frozen=True, slots=True)
class _Stoppable:
    """The caller of the work for a warmup: gone once the warmup is stopped."""

    stopping: Callable[[], bool]
    timed_out: bool = False

    @property
    def gone(self) -> bool:
        return self.stopping()


class SelectedFiles:
    """The files of a mount that match globs: a ``reading.warmup.WarmupFiles``. Numbers are rows of the manifest."""

    def __init__(self, mount: WarmableMount, manifest_path: Path, include: tuple[str, ...], select: Select) -> None:
        self._tree = mount.tree
        self._filesystem = mount.filesystem
        self._request = SelectionRequest(manifest_path, include, mount.record.tenant)
        self._select = select

    def chosen(self, stopping: Callable[[], bool]) -> Sequence[int]:
        """With globs the result takes eight bytes of memory for each file; without, none."""
        if not self._request.globs:
            return range(self._tree.file_count)
        with callers.working_for(_Stoppable(stopping)), suppress(Interrupted):
            return self._select(self._request)
        return array("Q")

    def size_bytes(self, number: int) -> int:
        return self._tree.size_bytes(number + FIRST_FILE_NODE)

    def source(self, number: int) -> ObjectSource:
        return self._filesystem.source(number + FIRST_FILE_NODE)


def _check(request: WarmupRequest) -> None:
    """Raises InvalidParameter."""
    check_number_of_globs(include=request.include)
    Selection.including(request.include)
    if not is_bandwidth(request.bandwidth_bytes):
        raise InvalidParameter("bandwidth_bytes", request.bandwidth_bytes, BANDWIDTHS_ALLOWED)
    if not 0 <= request.concurrency <= MOST_CONCURRENCY:
        raise InvalidParameter("concurrency", request.concurrency, f"1 to {MOST_CONCURRENCY}, or 0: that of the volume")


def _report(request: WarmupRequest, progress: Progress) -> WarmupReport:
    state, message = WarmupState(progress.state), progress.message
    if state is WarmupState.COMPLETE and request.include and not progress.total_files:
        globs = ", ".join(map(repr, request.include))
        state = WarmupState.FAILED
        message = (
            f"no file of the volume matches {globs}; globs are matched with the paths below the volume's root, as in "
            "include"
        )
    return WarmupReport(
        volume_id=request.volume_id,
        state=state,
        include=request.include,
        total_bytes=progress.total_bytes,
        total_files=progress.total_files,
        done_bytes=progress.done_bytes,
        done_files=progress.done_files,
        fetched_bytes=progress.fetched_bytes,
        failed_files=progress.failed_files,
        rate_bytes=progress.rate_bytes,
        eta_s=progress.eta_s,
        message=message,
    )
