"""A snapshot of a dataset as a read-only tree of files. No FUSE types: ``fuse/operations.py`` translates."""

from __future__ import annotations

import stat
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from csi_driver.cache.object_file import ObjectFile
from csi_driver.cache.open_file_cache import IDLE_BYTES, IDLE_S
from csi_driver.catalog.tree import FIRST_FILE_NODE, Tree
from csi_driver.filesystem.access_recorder import AccessRecorder
from csi_driver.filesystem.descriptor_budget import DescriptorShare
from csi_driver.filesystem.fetching import DAEMON_SETTINGS, Fetching
from csi_driver.filesystem.inodes import (
    ROOT_NODE,
    Data,
    DirectoryEntry,
    NodeAttributes,
    Opened,
    OpenedFile,
    SpaceReport,
)
from csi_driver.filesystem.no_open_support import NoOpenRule, OpensMode, machine_memory_bytes, reader_memory_bytes
from csi_driver.model.errors import DescriptorsExhausted, HayloftError, InternalFailure
from csi_driver.model.read_counts import NOT_COUNTED, ReadCounts, Wait, WaitsFor
from csi_driver.model.snapshot import ObjectVersion
from csi_driver.model.tracebacks import unexpected
from csi_driver.objects.store import ObjectStore
from csi_driver.reading.access import UNNAMED, Access, Credential
from csi_driver.reading.fair_shares import Share
from csi_driver.reading.object_reader import ObjectReader
from csi_driver.reading.open_object import OpenObject
from csi_driver.reading.pending_read import PendingRead
from csi_driver.reading.read_through_cache import ReadThroughCache
from csi_driver.reading.services import ObjectSource

_ATTRIBUTE_URL = b"user.hayloft.url"
_ATTRIBUTE_ETAG = b"user.hayloft.etag"
_ATTRIBUTE_CACHED = b"user.hayloft.cached"


class _PendingOpen:
    """The answer of the read-through cache to an open, and how long that took if it did not come at once.

    The answer may come on another thread while the caller notes that it waits for it. No lock, which every open would
    pay for: each of the two sets its own field first and then looks at the other's, so that at least one of them ends
    the wait, and the second end is none.
    """

    __slots__ = ("_answer", "_answered", "_wait")

    def __init__(self, answer: Callable[[OpenObject | HayloftError], None]) -> None:
        self._answer = answer
        self._answered = False
        self._wait: Wait | None = None

    def __call__(self, result: OpenObject | HayloftError) -> None:
        self._answered = True
        if self._wait is not None:
            self._wait.end()
        self._answer(result)

    def note_waiting(self, counts: ReadCounts) -> None:
        """The cache has returned, perhaps without an answer."""
        if not self._answered:
            self._wait = counts.begin_wait(WaitsFor.OPEN)
            self._end_if_answered(self._wait)

    def _end_if_answered(self, wait: Wait) -> None:
        if self._answered:
            wait.end()


@dataclass(frozen=True, slots=True)
class Presentation:
    """How files and directories look. Modes have no write bits: nothing can be written."""

    uid: int = 0
    gid: int = 0
    file_mode: int = 0o444
    directory_mode: int = 0o555


class DatasetFilesystem:
    """Implements ``filesystem.nodes.Filesystem`` with the read-through cache.

    ``_lock`` guards the handles, ``_open``, ``_superseded``, ``_free`` and ``_next_handle``, and ``_opening``. It is
    not held across disk, network or an answer; reads look a handle up without it."""

    def __init__(
        self,
        tree: Tree,
        library: ReadThroughCache,
        store: ObjectStore,
        *,
        access_domain: str,
        url_base: str,
        dataset_name: str,
        presentation: Presentation,
        share: Share,
        descriptors: DescriptorShare,
        credential: Credential = UNNAMED,
        opens: OpensMode = "auto",
        fetching: Fetching = DAEMON_SETTINGS,
        counts: ReadCounts = NOT_COUNTED,
    ) -> None:
        """``url_base`` plus a key is the URL of an object, for ``user.hayloft.url``. ``dataset_name`` is the same for
        all volumes that show the same dataset. ``credential`` is what the store is asked with. Fetches count for
        ``share``, and readers for ``counts``."""
        self._tree = tree
        self._library = library
        # Replaced as one value: what one credential has fetched is never recorded as the proof of another one.
        self._reads_as = store, Access(credential, tree.file_count, self._source_of_row)
        self._fetching = None if fetching == DAEMON_SETTINGS else fetching
        self.recorder: AccessRecorder | None = None
        """While the reads of the mount are recorded: files that are opened meanwhile are served, not passed through."""
        self._access_domain = access_domain
        self._endpoint, self._bucket = store.endpoint, store.bucket
        self._url_base = url_base
        identity = f"{access_domain}\n{self._endpoint}\n{self._bucket}\n{dataset_name}"
        self._share = share
        self._counts = counts
        self._descriptors = descriptors
        self._dataset = zlib.crc32(identity.encode("utf-8", "surrogateescape"))
        self._file_mode = stat.S_IFREG | presentation.file_mode
        self._directory_mode = stat.S_IFDIR | presentation.directory_mode
        self._uid, self._gid = presentation.uid, presentation.gid
        self._no_open_rule = NoOpenRule(tree, library.small_object_bytes, opens)
        self._lock = threading.Lock()
        self._open: dict[int, tuple[int, OpenObject]] = {}
        self._superseded: dict[int, OpenObject] = {}
        """By handle: what it read from before the credential was renewed, in which reads may still be pending."""
        self._opening = 0
        self._open_files = library.add_open_file_cache()
        self._free: list[int] = []
        self._next_handle = 1

    @property
    def access(self) -> Access:
        """The credential that the store is asked with, and what it has proven."""
        return self._reads_as[1]

    def renew(self, store: ObjectStore, credential: Credential) -> None:
        """From now on the store is asked with another credential. Open files stay open; what is missing of them is
        fetched with the new one. ``store`` is the same bucket; the caller closes the one before."""
        self._reads_as = store, self.access.renewed(credential)

    # -- names and attributes --

    def lookup(self, parent: int, name: bytes) -> NodeAttributes | None:
        node = self._tree.lookup(parent, name)
        return None if node is None else self.attributes(node)

    def attributes(self, node: int) -> NodeAttributes | None:
        tree = self._tree
        if tree.is_directory(node):
            links = 2 + tree.subdirectory_count(node)
            return NodeAttributes(node, self._directory_mode, 4096, tree.created_ns, links, self._uid, self._gid)
        if not tree.exists(node):
            return None
        size_bytes, mtime_ns = tree.size_bytes(node), tree.mtime_ns(node)
        return NodeAttributes(node, self._file_mode, size_bytes, mtime_ns, 1, self._uid, self._gid)

    def entries(self, node: int, cookie: int) -> Iterator[DirectoryEntry]:
        for name, child, is_directory, after in self._tree.children(node, cookie):
            yield DirectoryEntry(name, child, is_directory, after)

    def parent(self, node: int) -> int:
        return ROOT_NODE if node == ROOT_NODE else self._tree.parent(node)

    def space(self) -> SpaceReport:
        return SpaceReport(self._tree.total_bytes, self._tree.file_count)

    def extended_attribute(self, node: int, name: bytes) -> bytes | None:
        """``user.hayloft.cached`` is ``cached bytes/size in bytes``, such as ``1048576/7340032``."""
        if self._tree.is_directory(node):
            return self._url(self._tree.path(node)) if name == _ATTRIBUTE_URL else None
        if name == _ATTRIBUTE_URL:
            return (self._url_base + self._tree.file(node).key).encode("utf-8", "surrogateescape")
        if name == _ATTRIBUTE_ETAG:
            etag = self._tree.file(node).etag
            return None if etag is None else etag.encode()
        if name == _ATTRIBUTE_CACHED:
            source = self._source(node)
            return f"{self._library.present_bytes(source)}/{source.version.size_bytes}".encode()
        return None

    # -- opens and reads --

    def open(self, node: int, opened: Opened) -> None:
        idle = self._take_idle(node)
        if idle is not None:
            opened(self._opened(node, idle))
            return
        with self._lock:
            self._opening += 1
        if not self._has_descriptor():
            opened(self._answered(node, DescriptorsExhausted(self._exhausted())))
            return
        pending = _PendingOpen(lambda result: opened(self._answered(node, result)))
        self._library.open(self._source(node), pending)
        pending.note_waiting(self._counts)

    def reopen(self, node: int, handle: int) -> OpenedFile:
        """Blocks on the disk, but calls no store. For each open file of a mount that is adopted."""
        result = self._library.reopen(self._source(node))
        with self._lock:
            # Handles below this one that were not restored yet count as free; each is taken out when it is.
            self._free.extend(range(self._next_handle, handle))
            self._next_handle = max(self._next_handle, handle + 1)
            if handle in self._free:
                self._free.remove(handle)
            self._open[handle] = (node, result)
        return OpenedFile(handle, result.backing_descriptor)

    def read(self, handle: int, offset: int, size_bytes: int, data: Data) -> object:
        found = self._open.get(handle)  # one step, so without the lock
        if found is None:
            data(InternalFailure(f"no file is open under handle {handle}"))
            return None
        opened = found[1]
        if self.recorder is not None:
            self.recorder.note(found[0], offset, offset + size_bytes)
        if opened.access is self.access or opened.complete:
            return opened.read(offset, size_bytes, data)
        self._read_renewed(handle, found, offset, size_bytes, data)
        return None

    @property
    def opens_are_needless(self) -> bool:
        return self._no_open_rule.applies(machine_memory_bytes())

    def opens_are_needless_for(self, process_id: int) -> bool:
        return self._no_open_rule.applies(reader_memory_bytes(process_id))

    def read_node(self, node: int, offset: int, size_bytes: int, data: Data) -> object:
        """The object stays open, idle, after the read: a file of a few MiB is read in several pieces."""
        if self.recorder is not None:
            self.recorder.note(node, offset, offset + size_bytes)
        idle = self._take_idle(node)
        if idle is not None:
            return self._read_and_keep_open(node, idle, offset, size_bytes, data)

        def read(result: OpenObject | HayloftError) -> None:
            if isinstance(result, HayloftError):
                data(result)
                return
            try:
                self._read_and_keep_open(node, result, offset, size_bytes, data)
            except BaseException as error:
                data(unexpected(error))  # one that is answered already ignores it
                raise

        pending = _PendingOpen(read)
        self._library.open_to_read(self._source(node), pending)
        pending.note_waiting(self._counts)
        return None

    def cancel(self, token: object) -> None:
        if isinstance(token, PendingRead):
            ObjectReader.cancel(token)

    def release(self, handle: int) -> None:
        """A handle that is not open is success."""
        with self._lock:
            found = self._open.pop(handle, None)
            if found is None:
                return
            superseded = self._superseded.pop(handle, None)
            self._free.append(handle)
        if superseded is not None:
            superseded.close()
        node, opened = found
        file = opened.reusable_file
        if file is not None and file.size_bytes <= IDLE_BYTES:
            self._keep_open(node, file, opened)
        else:
            opened.close()

    def close_idle(self, age_s: float = IDLE_S) -> None:
        """Closes opens that were idle for longer than this. Called every second or so."""
        for opened in self._open_files.take_expired(age_s):
            opened.close()
        self._descriptors.trim(self._used_descriptors())

    def close(self) -> None:
        """Ends all opens."""
        for idle in self._open_files.close():
            idle.close()
        with self._lock:
            opens = [*(opened for _, opened in self._open.values()), *self._superseded.values()]
            self._open.clear()
            self._superseded.clear()
        for opened in opens:
            opened.close()
        self._descriptors.close()

    def cached_bytes(self, start: int, stop: int) -> int:
        """Bytes of the files ``start`` to ``stop`` (exclusive; rows of the manifest) that are in the cache, and
        that the store has let the mount read. Takes 15 µs a file."""
        return sum(self._library.present_bytes(self._source_of_row(row)) for row in range(start, stop))

    def prove_all(self, until_s: float) -> bool:
        """Whether the store lets the mount read every file, all of which are to be cached. Asks it for those that are
        not proven, until ``until_s`` by time.monotonic()."""
        rows = range(self._tree.file_count)
        unknown = (self._source_of_row(row) for row in rows if not self.access.is_proven(row))
        return self._library.proofs.prove_all(unknown, until_s)

    @property
    def dataset(self) -> int:
        """The number by which eviction knows the dataset."""
        return self._dataset

    def source(self, node: int) -> ObjectSource:
        """The object and the store of a file. Raises KeyError for a node that is no file."""
        return self._source(node)

    def _take_idle(self, node: int) -> OpenObject | None:
        """An idle open, unless it is so old that the store has to be asked again, or by another credential."""
        idle, access = self._open_files.take(node), self.access
        if idle is None or (idle.access is access and access.is_proven(node - FIRST_FILE_NODE)):
            return idle
        idle.close()
        return None

    def _read_renewed(
        self, handle: int, found: tuple[int, OpenObject], offset: int, size_bytes: int, data: Data
    ) -> None:
        """A read of a file that was opened with an earlier credential, and of which bytes are missing: opens it with
        the one of now, for this handle."""
        node, earlier = found

        def read(result: OpenObject | HayloftError) -> None:
            if isinstance(result, HayloftError):
                data(result)
                return
            with self._lock:
                replaces = self._open.get(handle) is found
                # The one before stays open: other threads may be about to read from it. Two renewals ago none is.
                surplus = self._superseded.pop(handle, None) if replaces else None
                if replaces:
                    self._open[handle] = node, result
                    self._superseded[handle] = earlier
            try:
                result.read(offset, size_bytes, data)
            except BaseException as error:
                data(unexpected(error))  # one that is answered already ignores it
                raise
            finally:
                if surplus is not None:
                    surplus.close()
                if not replaces:  # another read was faster, or the file was closed
                    result.close()

        self._library.open(self._source(node), read)

    def _read_and_keep_open(
        self, node: int, opened: OpenObject, offset: int, size_bytes: int, data: Data
    ) -> PendingRead | None:
        try:
            pending = opened.read(offset, size_bytes, data)
        except BaseException:  # no memory for a buffer, say: no other has the open, and its file would stay open
            opened.close()
            raise
        file = opened.reusable_file
        if file is None and opened.in_memory:
            opened.close()
        else:
            self._keep_open(node, file, opened)
        return pending

    def _keep_open(self, node: int, file: ObjectFile | None, opened: OpenObject) -> None:
        fits = self._descriptors.allows(self._used_descriptors())
        surplus = self._open_files.put(node, file, opened) if fits else opened
        if surplus is not None:
            surplus.close()

    # -- descriptors --

    def descriptors_exhausted(self) -> bool:
        """False while the volume may open files."""
        used = self._used_descriptors()
        return bool(used) and not self._descriptors.allows(used)

    def _exhausted(self) -> str:
        return (
            f"{self._used_descriptors()} files are open, and this volume's share of the daemon's open files is used "
            "up; close files, or raise the limit of open files (RLIMIT_NOFILE) of the daemon"
        )

    def _used_descriptors(self) -> int:
        """Approximate: opens end and become idle meanwhile."""
        return len(self._open) + self._opening + len(self._open_files)

    def _has_descriptor(self) -> bool:
        """For an open that is counted. Closes idle opens if that helps."""
        if self._descriptors.allows(self._used_descriptors() - 1):
            return True
        self.close_idle(-1.0)
        return self._descriptors.allows(self._used_descriptors() - 1)

    def _answered(self, node: int, result: OpenObject | HayloftError) -> OpenedFile | HayloftError:
        with self._lock:
            self._opening -= 1
        return self._opened(node, result)

    def _opened(self, node: int, result: OpenObject | HayloftError) -> OpenedFile | HayloftError:
        if isinstance(result, HayloftError):
            return result
        with self._lock:
            if self._free:
                handle = self._free.pop()
            else:
                handle = self._next_handle
                self._next_handle += 1
            self._open[handle] = (node, result)
        file = result.file
        descriptor = result.backing_descriptor if self.recorder is None else None
        return OpenedFile(handle, descriptor, 0 if file is None else file.size_bytes)

    def _source(self, node: int) -> ObjectSource:
        row = self._tree.file(node)
        version = ObjectVersion(
            self._access_domain, self._endpoint, self._bucket, row.key, row.etag, row.size_bytes, row.mtime_ns
        )
        store, access = self._reads_as
        source = ObjectSource(version, store, self._dataset, self._share, access, node - FIRST_FILE_NODE, self._counts)
        if self._fetching is None or row.size_bytes <= self._library.small_object_bytes:
            return source
        return source._replace(limits=self._fetching.limits(row.key, row.size_bytes, self._library.limits))

    def _source_of_row(self, row: int) -> ObjectSource:
        return self._source(row + FIRST_FILE_NODE)

    def _url(self, path: bytes) -> bytes:
        return self._url_base.encode("utf-8", "surrogateescape") + path
