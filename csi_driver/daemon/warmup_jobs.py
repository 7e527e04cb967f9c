"""The warmups of a daemon, at most one for each mount: started by an attribute or by a call, recorded beside the
mount's record, and resumed by the daemon that adopts the mount."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

from csi_driver import telemetry
from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.catalog.selection import Selection, check_number_of_globs
from csi_driver.daemon.mount_records import MountRecords
from csi_driver.daemon.warmup_files import Select, SelectedFiles, TracedFiles, WarmableMount
from csi_driver.daemon.warmup_records import WarmupRecord
from csi_driver.daemon.warmup_spans import begin_span, end_span
from csi_driver.model import conditions
from csi_driver.model.conditions import Condition
from csi_driver.model.errors import InvalidParameter
from csi_driver.model.log_context import current_call_id
from csi_driver.model.spans import NO_SPAN, Span
from csi_driver.reading.memory_warmup import MemoryProgress, MemoryWarmup
from csi_driver.reading.read_through_cache import ReadThroughCache
from csi_driver.reading.warmup import Warmup
from csi_driver.reading.warmup_progress import Progress
from csi_driver.volumes.data_plane import WarmupReport, WarmupRequest, WarmupState
from csi_driver.volumes.parameter_text import BANDWIDTHS_ALLOWED, MOST_CONCURRENCY, is_bandwidth, trace_path

logger = logging.getLogger(__name__)

STOP_WAIT_S = 2.0
"""How long an unmount waits for the requests of its warmup in flight. Slower ones end after the unmount; their bytes
are cached or discarded."""

RECOUNT_S = 10.0
"""So often, at the most, a report counts again what is in memory."""

MOST_RECOUNTED = 10_000
"""Files: it takes 100 µs for each, and the caller waits. Of more, reports have what the warmup found at its end."""

_CONDITION_OF = {
    WarmupState.FAILED: conditions.WARMUP_FAILED,
    WarmupState.FULL: conditions.CACHE_TOO_SMALL,
}


@dataclass(slots=True)
class WarmupEntry:
    """The warmup of a mount: the running one, or the report of the last one."""

    request: WarmupRequest
    files: SelectedFiles | TracedFiles | None = None
    running: Warmup | None = None
    memory: MemoryWarmup | None = None
    """Once ``running`` has cached everything, and the request is ``into_memory``."""
    ended: WarmupReport | None = None
    call: str | None = None
    """The id of the call that started it, for the log."""
    span: Span = NO_SPAN
    counted: MemoryWarmup | None = None
    """After the end: counts again what is in memory."""
    counted_s: float = 0.0
    """When it did so last."""

    def report(self) -> WarmupReport:
        if self.running is None:
            return self.ended or WarmupReport(self.request.volume_id)
        report = _report(self.request, self.running.progress())
        if not self.request.into_memory or report.state is not WarmupState.COMPLETE:
            return report
        # The files are cached. Until ``ended`` is set it runs, also in the moment before ``memory`` is.
        running = replace(report, state=WarmupState.RUNNING, message="reading the cached files into memory")
        return running if self.memory is None else with_memory(running, self.memory.progress())

    @property
    def claimed_bytes(self) -> int:
        """Of the page cache."""
        if self.memory is not None:
            return self.memory.progress().claimed_bytes
        return 0 if self.ended is None else self.ended.hot_bytes

    def stop(self, *, cancelled: bool) -> None:
        """Does not wait for the end."""
        if self.running is not None:
            self.running.stop(cancelled=cancelled)
        if self.memory is not None:
            self.memory.stop()


class WarmupJobs:
    """May be used from any thread."""

    def __init__(
        self,
        read_through_cache: ReadThroughCache,
        chunk_store: ChunkStore,
        records: MountRecords,
        mounts: Callable[[], Iterable[WarmableMount]],
        select: Select,
        memory_bytes: Callable[[], int],
    ) -> None:
        """``mounts`` returns the mounts whose datasets a warmup must not evict. ``memory_bytes`` is asked for each one:
        what all of them may have in the page cache."""
        self._read_through_cache = read_through_cache
        self._chunk_store = chunk_store
        self._records = records
        self._mounts = mounts
        self._select = select
        self._memory_bytes = memory_bytes
        self._lock = threading.Lock()
        """Guards ``_entries``, ``_fetched_bytes``, ``_memory_read_bytes`` and the records on disk; held while such a
        small file is written.
        A warmup's thread takes it in ``_ended``, so a warmup is never joined under it."""
        self._entries: dict[str, WarmupEntry] = {}
        """By mount id."""
        self._fetched_bytes = self._memory_read_bytes = 0
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
                self._entries[mount.record.mount_id] = WarmupEntry(recorded.request, ended=recorded.ended)

    def retry_if_failed(self, mount: WarmableMount) -> None:
        """Starts the warmup of the mount's attributes if none was started, or the last one failed or did not fit into
        the cache. A cancelled warmup stays cancelled."""
        state = self.report(mount).state
        if mount.parameters.warmup != "none" and state in (WarmupState.NONE, WarmupState.FAILED, WarmupState.FULL):
            parameters = mount.parameters
            request = WarmupRequest(
                mount.record.volume_id,
                () if parameters.warmup_trace else parameters.warmup_include,
                into_memory=parameters.warmup == "memory",
                trace=parameters.warmup_trace or "",
            )
            self.start(mount, request)

    def remove(self, mount_id: str) -> None:
        """Called after the mount has ended. Waits up to ``STOP_WAIT_S`` for requests in flight."""
        with self._lock:
            entry = self._entries.pop(mount_id, None)
        if entry is not None and entry.running is not None:
            entry.stop(cancelled=False)
            entry.running.join(STOP_WAIT_S)
            entry.span.end("unmounted")

    def close(self) -> None:
        """Stops all warmups without a record of their end, so that the next daemon resumes them."""
        with self._lock:
            entries = list(self._entries.values())
            self._entries.clear()
        running = [(entry, entry.running) for entry in entries if entry.running is not None]
        for entry, _ in running:  # all stopped before the first join, so that the waits overlap
            entry.stop(cancelled=False)
        for entry, warmup in running:
            warmup.join(STOP_WAIT_S)
            entry.span.end("the daemon ends; the next one resumes it")

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
                before.stop(cancelled=False)
                before.span.end("replaced")
            # The callback names its entry: when a replaced warmup ends late, ``_ended`` must not end its successor.
            files = self._files(mount, request)
            entry = WarmupEntry(request, files, call=current_call_id(), span=begin_span(request))
            entry.running = Warmup(
                mount_id,
                files,
                self._read_through_cache,
                partial(self._has_space, mount.filesystem.dataset),
                bandwidth_bytes=request.bandwidth_bytes,
                concurrency=request.concurrency,
                start_share=request.start_percent / 100,
                ended=lambda progress: self._cached(mount, entry, progress),
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
            if entry is None:
                return WarmupReport(mount.record.volume_id)
            memory, now_s = entry.counted, time.monotonic()
            if entry.ended is None or memory is None or now_s < entry.counted_s + RECOUNT_S:
                return entry.report()
            entry.counted_s, ended = now_s, entry.ended
        counted = with_memory(ended, memory.recount())  # asks the disk, so not under the lock
        with self._lock:
            if entry.ended is ended:
                entry.ended = counted
            return entry.report()

    def cancel(self, mount: WarmableMount) -> WarmupReport:
        """As ``DataPlane.cancel_warmup``."""
        mount_id = mount.record.mount_id
        with self._lock:
            entry = self._entries.get(mount_id)
            if entry is not None and entry.running is not None:
                entry.stop(cancelled=True)
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

    def memory_read_bytes(self) -> int:
        """Bytes that warmups have read into the page cache since the daemon started."""
        with self._lock:
            running = [entry.memory.progress() for entry in self._entries.values() if entry.memory is not None]
            return self._memory_read_bytes + sum(progress.read_bytes for progress in running)

    def hot_bytes(self) -> int:
        """Bytes in the page cache for the warmups of all mounts, as they were counted last."""
        with self._lock:
            return sum(entry.report().hot_bytes for entry in self._entries.values())

    # -- internal --

    def _files(self, mount: WarmableMount, request: WarmupRequest) -> SelectedFiles | TracedFiles:
        if request.trace:
            return TracedFiles(mount, request.trace, self._read_through_cache.small_object_bytes)
        manifest_path = self._records.manifest_path(mount.record.mount_id)
        return SelectedFiles(mount, manifest_path, request.include, self._select)

    def _cached(self, mount: WarmableMount, entry: WarmupEntry, progress: Progress) -> None:
        """The files are cached, or the warmup has ended otherwise. Called on its thread, on which they are then read
        into memory: ``join`` waits for that, too."""
        mount_id, request = mount.record.mount_id, entry.request
        read = MemoryProgress()
        files = entry.files
        if request.into_memory and progress.state == "complete" and files is not None:
            memory = MemoryWarmup(mount_id, files, files.for_memory(lambda: False), self._read_through_cache)
            available_bytes = self._memory_bytes()
            with self._lock:
                if self._entries.get(mount_id) is not entry or entry.running is None:
                    return  # replaced, removed or cancelled in the meantime
                # Pages of other warmups count as available, since the kernel may drop them; here they do not.
                others = (other for other in self._entries.values() if other is not entry)
                memory.grant(max(0, available_bytes - sum(other.claimed_bytes for other in others)))
                entry.memory = memory
            read = memory.run()
            if memory.stopped:
                return  # recorded as running: the next daemon resumes it
        self._ended(mount_id, entry, progress, read)

    def _has_space(self, dataset: int, count_bytes: int) -> bool:
        """Raises CacheError while the disk refuses writes."""
        if self._chunk_store.is_roomy(count_bytes):
            return True
        mounted = {mount.filesystem.dataset for mount in self._mounts()}
        return self._chunk_store.has_space_for_warmup(count_bytes, dataset, mounted)

    def _ended(self, mount_id: str, entry: WarmupEntry, progress: Progress, memory: MemoryProgress) -> None:
        with self._lock:
            if self._entries.get(mount_id) is not entry or entry.running is None:
                return  # replaced, removed or cancelled in the meantime
            report = with_memory(_report(entry.request, progress), memory)
            if entry.files is not None and report.state is WarmupState.COMPLETE:
                report = replace(report, message="; ".join(filter(None, [report.message, *entry.files.remarks()])))
            self._end(mount_id, entry, report)
        level = logging.INFO if report.state is WarmupState.COMPLETE else logging.WARNING
        facts = telemetry.fields(
            volume_id=report.volume_id,
            state=str(report.state),
            files=report.done_files,
            failed_files=report.failed_files or None,
            bytes=report.done_bytes,
            hot_bytes=report.hot_bytes or None,
            reason=report.message or None,
            call=entry.call,
        )
        logger.log(level, "warmup ended", extra=facts)

    def _end(self, mount_id: str, entry: WarmupEntry, report: WarmupReport) -> None:
        """With ``_lock`` held."""
        end_span(entry.span, report)
        if entry.memory is not None:
            self._memory_read_bytes += entry.memory.progress().read_bytes
            if entry.memory.file_count <= MOST_RECOUNTED:
                entry.counted, entry.counted_s = entry.memory, time.monotonic()
        # The files of a warmup that has ended are not needed, and may be a number for each of a million.
        entry.running, entry.memory, entry.files, entry.ended = None, None, None, report
        self._fetched_bytes += report.fetched_bytes
        self._save(mount_id, entry)

    def _save(self, mount_id: str, entry: WarmupEntry) -> None:
        WarmupRecord(entry.request, entry.ended).save(self._records.warmup_path(mount_id))


def _check(request: WarmupRequest) -> None:
    """Raises InvalidParameter."""
    check_number_of_globs(include=request.include)
    Selection.including(request.include)
    if not is_bandwidth(request.bandwidth_bytes):
        raise InvalidParameter("bandwidth_bytes", request.bandwidth_bytes, BANDWIDTHS_ALLOWED)
    if not 0 <= request.concurrency <= MOST_CONCURRENCY:
        raise InvalidParameter("concurrency", request.concurrency, f"1 to {MOST_CONCURRENCY}, or 0: that of the volume")
    if not 0 <= request.start_percent < 100:
        raise InvalidParameter("start_percent", request.start_percent, "0 to below 100")
    if request.trace:
        trace_path("trace", request.trace)
    if request.trace and request.include:
        raise InvalidParameter("trace", request.trace, "given without globs: it names what is fetched")


def with_memory(report: WarmupReport, memory: MemoryProgress) -> WarmupReport:
    """With what was read into memory, and a remark where the bound was reached: the warmup is complete nevertheless."""
    if not memory.total_bytes:
        return report
    message = report.message
    if report.state is WarmupState.COMPLETE and memory.is_bounded:
        message = (
            "not everything is in memory: the files are larger than what warmups may fill of the available memory "
            "(--warmup-memory-percent)"
        )
    return replace(report, memory_bytes=memory.total_bytes, hot_bytes=memory.hot_bytes, message=message)


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
