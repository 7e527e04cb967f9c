"""What the operator of a node asks (``NodeOperations``), answered from the state that the data plane has."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.catalog.tree import FIRST_FILE_NODE
from csi_driver.daemon.cached_bytes_count import BATCH_FILES
from csi_driver.daemon.local_data_plane import LocalDataPlane
from csi_driver.daemon.served_mount import ServedMount
from csi_driver.model.entity_tags import is_strong
from csi_driver.model.errors import (
    AccessDenied,
    BucketNotFound,
    CredentialsRejected,
    EndpointUnreachable,
    HayloftError,
    InvalidParameter,
    ObjectNotFound,
    StoreUnavailable,
    VolumeConflict,
)
from csi_driver.model.snapshot import TIME_UNKNOWN_NS, ObjectInfo, ObjectVersion
from csi_driver.objects.retrying import without_retries
from csi_driver.objects.store import ObjectStore
from csi_driver.reading.read_through_cache import ReadThroughCache
from csi_driver.volumes.data_plane import WarmupState
from csi_driver.volumes.node_operations import (
    Counted,
    DirectoryPage,
    Entry,
    Evicted,
    FileRows,
    Finding,
    FindingKind,
    NodeActivity,
    NodeStatus,
    Verified,
    VolumeActivity,
    VolumeStatus,
)

STEP_S = 0.5
"""How long one step of a long operation takes: a command that is interrupted stops within it, and progress is shown as
often."""

PAGE_ENTRIES = 1_000
"""Entries of a directory in one answer: 15 ms for the cached bytes of as many files."""

PAUSE_S = 0.001
"""After each batch of files, so that readers get the interpreter: a count takes a fifth of it."""

EVICT_FILES = 256
"""Evicted while no other thread may: 10 ms where an unlink takes 40 µs."""

COMPARE_FILES = 64
"""Compared with the store in one step at the most, ``COMPARE_THREADS`` at a time."""
COMPARE_THREADS = 8

MOST_OPEN = 5_000
"""Open files of a volume that are reported, of each kind: some ten kilobytes of an answer."""

_SECOND_NS = 1_000_000_000

_UNUSABLE = (BucketNotFound, CredentialsRejected, EndpointUnreachable, StoreUnavailable)
"""Errors of a store that concern no single object."""


class LocalNodeOperations:
    """A ``NodeOperations``. May be used from any thread; holds no lock of its own."""

    def __init__(
        self,
        plane: LocalDataPlane,
        chunk_store: ChunkStore,
        read_through_cache: ReadThroughCache,
        *,
        passthrough_allowed: bool,
    ) -> None:
        self._plane = plane
        self._chunk_store = chunk_store
        self._read_through_cache = read_through_cache
        self._passthrough_allowed = passthrough_allowed
        self._started_s = time.monotonic()

    # -- reports --

    def status(self) -> NodeStatus:
        report, store = self._plane.report(), self._chunk_store
        return NodeStatus(
            report=report,
            conditions=self._plane.health().node,
            volumes=tuple(self._volume_status(served) for served in self._mounted()),
            cache_directory=str(store.path),
            cache_file_system=store.file_system,
            cache_shared_with=store.floor.shared_with,
            uptime_s=time.monotonic() - self._started_s,
            opened_bytes=store.opened_bytes,
            fetched_for_readers_bytes=max(0, report.origin_bytes - report.warmup_bytes),
            unverified_files=store.has_unverified_files,
            passthrough_allowed=self._passthrough_allowed,
        )

    def activity(self) -> NodeActivity:
        return NodeActivity(self._plane.report(), tuple(map(self._volume_activity, self._mounted())))

    def _mounted(self) -> list[ServedMount]:
        return [served for served in self._plane.served_mounts() if served.record.device]

    def _volume_status(self, served: ServedMount) -> VolumeStatus:
        record, session = served.record, served.session
        volume = self._plane.volume_report(served)
        return VolumeStatus(
            volume=volume,
            warmup=self._plane.warmup_of(served),
            counted=served.cached_bytes_are_known,
            pinned=record.pinned,
            namespace=record.namespace,
            inline=record.inline,
            url=str(served.parameters.url),
            endpoint=served.store.endpoint,
            device=record.device,
            passthrough=session is not None and session.passthrough,
            store_wait_s=served.store_wait_s,
        )

    def _volume_activity(self, served: ServedMount) -> VolumeActivity:
        opens = list(served.open_files())
        session = served.session
        return VolumeActivity(
            volume_id=served.record.volume_id,
            device=served.record.device,
            passed_through=tuple(islice({node for node, passed in opens if passed}, MOST_OPEN)),
            served=tuple(islice({node for node, passed in opens if not passed}, MOST_OPEN)),
            without_opens=session is not None and session.without_opens,
            cached_bytes=self._plane.volume_report(served).cached_bytes,
            store_wait_s=served.store_wait_s,
        )

    # -- files --

    def list_directory(self, volume_id: str, path: bytes, cookie: int = 0) -> DirectoryPage:
        served = self._plane.served(volume_id)
        tree = served.tree
        node = tree.resolve(path.strip(b"/"))
        if node is None:
            shown = path.decode("utf-8", "backslashreplace")
            raise InvalidParameter("path", shown, f"a path in the volume {volume_id}, as below its mount")
        rows = tree.rows_below(node)
        if not tree.is_directory(node):
            return DirectoryPage(
                tree.snapshot_id, (self._file_entry(served, tree.file(node).name, node),), 0, _file_rows(rows), False
            )
        entries, after = [], cookie
        for name, child, is_directory, after in islice(tree.children(node, cookie), PAGE_ENTRIES):  # noqa: B007
            if is_directory:
                below = tree.rows_below(child)
                entries.append(Entry(name, True, tree.bytes_in_rows(below), None, _file_rows(below)))
            else:
                entries.append(self._file_entry(served, name, child))
        following = after if len(entries) == PAGE_ENTRIES else 0
        return DirectoryPage(tree.snapshot_id, tuple(entries), following, _file_rows(rows), True)

    def _file_entry(self, served: ServedMount, name: bytes, node: int) -> Entry:
        row = node - FIRST_FILE_NODE
        cached_bytes = served.filesystem.cached_bytes(row, row + 1)
        return Entry(name, False, served.tree.size_bytes(node), cached_bytes, FileRows(row, row + 1))

    def count_cached(self, volume_id: str, snapshot_id: str, rows: FileRows) -> Counted:
        served = self._of_snapshot(volume_id, snapshot_id, rows)
        cached_bytes = complete_files = total_bytes = 0
        next_row = rows.start
        for batch in _batches(rows, BATCH_FILES):
            for row in batch:
                count_bytes = served.filesystem.cached_bytes(row, row + 1)
                size_bytes = served.tree.size_bytes(row + FIRST_FILE_NODE)
                cached_bytes += count_bytes
                total_bytes += size_bytes
                complete_files += count_bytes == size_bytes
            next_row = batch.stop
            time.sleep(PAUSE_S)
        return Counted(cached_bytes, complete_files, next_row, total_bytes)

    def evict(self, volume_id: str, snapshot_id: str, rows: FileRows) -> Evicted:
        served = self._of_snapshot(volume_id, snapshot_id, rows)
        for other in self._plane.served_mounts():
            if other.record.pinned and other.filesystem.dataset == served.filesystem.dataset:
                name = other.record.volume_id
                whose = "is pinned" if name == volume_id else f"shows the dataset of {name}, which is pinned"
                raise VolumeConflict(f"volume {volume_id} {whose}; unpin it first: hayloft unpin {name}")
        if self._plane.warmup_of(served).state is WarmupState.RUNNING:
            raise VolumeConflict(
                f"volume {volume_id} is being warmed, which would fetch again what is evicted; cancel its warmup "
                f"first: hayloft warm {volume_id} --cancel"
            )
        served.filesystem.close_idle(-1.0)
        evicted_bytes = evicted_files = kept_bytes = kept_files = 0
        next_row = rows.start
        for batch in _batches(rows, EVICT_FILES):
            gone, kept = self._chunk_store.evict(_version(served, row) for row in batch)
            evicted_bytes, evicted_files = evicted_bytes + gone.count_bytes, evicted_files + gone.files
            kept_bytes, kept_files = kept_bytes + kept.count_bytes, kept_files + kept.files
            next_row = batch.stop
            time.sleep(PAUSE_S)
        return Evicted(evicted_bytes, evicted_files, kept_bytes, kept_files, next_row)

    def set_pinned(self, volume_id: str, pinned: bool) -> VolumeStatus:
        return self._volume_status(self._plane.pin(volume_id, pinned))

    # -- verification --

    def verify(self, volume_id: str, snapshot_id: str, rows: FileRows, *, origin: bool) -> Verified:
        served = self._of_snapshot(volume_id, snapshot_id, rows)
        checked_bytes = checked_files = 0
        findings: list[Finding] = []
        next_row = rows.start
        stop = min(rows.stop, rows.start + COMPARE_FILES) if origin else rows.stop
        for batch in _batches(FileRows(rows.start, stop), 1):
            checked = self._chunk_store.verify(_version(served, batch.start))
            checked_bytes += checked.checked_bytes
            checked_files += bool(checked.checked_bytes)
            if checked.bad_chunks:
                findings.append(Finding(_path(served, batch.start), FindingKind.DAMAGED, checked.bad_chunks))
            next_row = batch.stop
        compared = range(rows.start, next_row) if origin else range(0)
        findings.extend(_compared(served, compared))
        return Verified(checked_bytes, checked_files, len(compared), tuple(findings), next_row)

    def _of_snapshot(self, volume_id: str, snapshot_id: str, rows: FileRows) -> ServedMount:
        """Raises VolumeNotFound, VolumeConflict, InvalidParameter."""
        served = self._plane.served(volume_id)
        if served.record.snapshot_id != snapshot_id:
            raise VolumeConflict(f"volume {volume_id} was mounted anew and shows another snapshot by now; repeat")
        if not 0 <= rows.start <= rows.stop <= served.tree.file_count:
            allowed = f"rows from 0 to {served.tree.file_count}"
            raise InvalidParameter("rows", f"{rows.start} to {rows.stop}", allowed)
        return served


def _batches(rows: FileRows, size: int) -> Iterator[range]:
    """Parts of the rows, until ``STEP_S`` have passed; one at the least."""
    until_s = time.monotonic() + STEP_S
    for start in range(rows.start, rows.stop, size):
        yield range(start, min(start + size, rows.stop))
        if time.monotonic() >= until_s:
            return


def _file_rows(rows: range) -> FileRows:
    return FileRows(rows.start, rows.stop)


def _version(served: ServedMount, row: int) -> ObjectVersion:
    return served.filesystem.source(row + FIRST_FILE_NODE).version


def _path(served: ServedMount, row: int) -> bytes:
    return served.tree.path(row + FIRST_FILE_NODE)


def _compared(served: ServedMount, rows: range) -> list[Finding]:
    """Asks the store for each file, some at a time. Raises what concerns no single object."""
    if not rows:
        return []
    store = without_retries(served.store)

    def compare(row: int) -> Finding | None:
        found = _difference(store, _version(served, row))
        return None if found is None else Finding(_path(served, row), found[0], detail=found[1])

    with ThreadPoolExecutor(COMPARE_THREADS, thread_name_prefix="compare") as threads:
        return [finding for finding in threads.map(compare, rows) if finding is not None]


def _difference(store: ObjectStore, version: ObjectVersion) -> tuple[FindingKind, str] | None:
    try:
        found = store.stat(version.key)
    except ObjectNotFound:
        return FindingKind.MISSING, "the store has no such object any more"
    except AccessDenied as error:
        return FindingKind.FORBIDDEN, str(error)
    except _UNUSABLE:
        raise
    except HayloftError as error:
        return FindingKind.UNREADABLE, str(error)
    return _change(version, found)


def _change(version: ObjectVersion, found: ObjectInfo) -> tuple[FindingKind, str] | None:
    if found.size_bytes != version.size_bytes:
        return FindingKind.CHANGED, f"{found.size_bytes} bytes in the store, {version.size_bytes} in the snapshot"
    if is_strong(version.etag) and is_strong(found.etag) and found.etag != version.etag:
        return FindingKind.CHANGED, "another ETag in the store than in the snapshot"
    by_time = not is_strong(version.etag) and TIME_UNKNOWN_NS not in (version.mtime_ns, found.mtime_ns)
    if by_time and version.mtime_ns // _SECOND_NS != found.mtime_ns // _SECOND_NS:  # HTTP has dates of seconds
        return FindingKind.CHANGED, "another modification time in the store than in the snapshot, and no strong ETag"
    return None
