"""A snapshot of a dataset as a read-only tree of files. No FUSE types: ``fuse/operations.py`` translates."""

from __future__ import annotations

import stat
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from csi_driver.cache.object_file import ObjectFile
from csi_driver.cache.open_file_cache import IDLE_BYTES, IDLE_S
from csi_driver.catalog.tree import Tree
from csi_driver.filesystem.inodes import (
    ROOT_NODE,
    Data,
    DirectoryEntry,
    NodeAttributes,
    Opened,
    OpenedFile,
    SpaceReport,
)
from csi_driver.filesystem.no_open_support import memory_bytes, opens_are_needless
from csi_driver.model.errors import HayloftError, InternalFailure
from csi_driver.model.snapshot import ObjectVersion
from csi_driver.objects.store import ObjectStore
from csi_driver.reading.object_reader import ObjectReader
from csi_driver.reading.open_object import OpenObject
from csi_driver.reading.pending_read import PendingRead
from csi_driver.reading.read_through_cache import ReadThroughCache
from csi_driver.reading.services import ObjectSource

_ATTRIBUTE_URL = b"user.hayloft.url"
_ATTRIBUTE_ETAG = b"user.hayloft.etag"
_ATTRIBUTE_CACHED = b"user.hayloft.cached"


@dataclass(frozen=True, slots=True)
class Presentation:
    """How files and directories look. Modes have no write bits: nothing can be written."""

    uid: int = 0
    gid: int = 0
    file_mode: int = 0o444
    directory_mode: int = 0o555


class DatasetFilesystem:
    """Implements ``filesystem.nodes.Filesystem`` with the read-through cache.

    ``_lock`` guards the handles: ``_open``, ``_free`` and ``_next_handle``. It is not held across disk, network or an
    answer; reads look a handle up without it.
    """

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
    ) -> None:
        """``url_base`` plus a key is the URL of an object, for ``user.hayloft.url``. ``dataset_name`` is the same for
        all volumes that show the same dataset."""
        self._tree = tree
        self._library = library
        self._store = store
        self._access_domain = access_domain
        self._endpoint, self._bucket = store.endpoint, store.bucket
        self._url_base = url_base
        identity = f"{access_domain}\n{self._endpoint}\n{self._bucket}\n{dataset_name}"
        self._dataset = zlib.crc32(identity.encode("utf-8", "surrogateescape"))
        self._file_mode = stat.S_IFREG | presentation.file_mode
        self._directory_mode = stat.S_IFDIR | presentation.directory_mode
        self._uid, self._gid = presentation.uid, presentation.gid
        self._needs_no_opens = opens_are_needless(tree, library.small_object_bytes, memory_bytes())
        self._lock = threading.Lock()
        self._open: dict[int, tuple[int, OpenObject]] = {}
        self._open_files = library.add_open_file_cache()
        self._free: list[int] = []
        self._next_handle = 1

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

    def extended_attributes(self, node: int) -> tuple[bytes, ...]:
        if self._tree.is_directory(node):
            return (_ATTRIBUTE_URL,)
        if self._tree.file(node).etag is None:
            return (_ATTRIBUTE_URL, _ATTRIBUTE_CACHED)
        return (_ATTRIBUTE_URL, _ATTRIBUTE_ETAG, _ATTRIBUTE_CACHED)

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
        idle = self._open_files.take(node)
        if idle is not None:
            opened(self._opened(node, idle))
            return
        self._library.open(self._source(node), lambda result: opened(self._opened(node, result)))

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
        return found[1].read(offset, size_bytes, data)

    @property
    def opens_are_needless(self) -> bool:
        return self._needs_no_opens

    def read_node(self, node: int, offset: int, size_bytes: int, data: Data) -> object:
        """The object stays open, idle, after the read: a file of a few MiB is read in several pieces."""
        idle = self._open_files.take(node)
        if idle is not None:
            return self._read_and_keep_open(node, idle, offset, size_bytes, data)

        def read(result: OpenObject | HayloftError) -> None:
            if isinstance(result, HayloftError):
                data(result)
            else:
                self._read_and_keep_open(node, result, offset, size_bytes, data)

        self._library.open_to_read(self._source(node), read)
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
            self._free.append(handle)
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

    def close(self) -> None:
        """Ends all opens."""
        for idle in self._open_files.close():
            idle.close()
        with self._lock:
            opens = list(self._open.values())
            self._open.clear()
        for _, opened in opens:
            opened.close()

    def cached_bytes(self) -> int:
        """Bytes of the dataset that are in the cache. Looks at every file: slow for a large dataset."""
        return sum(self._library.present_bytes(self._source(node)) for node in range(2, 2 + self._tree.file_count))

    @property
    def dataset(self) -> int:
        """The number by which eviction knows the dataset."""
        return self._dataset

    def source(self, node: int) -> ObjectSource:
        """The object and the store of a file. Raises KeyError for a node that is no file."""
        return self._source(node)

    def _read_and_keep_open(
        self, node: int, opened: OpenObject, offset: int, size_bytes: int, data: Data
    ) -> PendingRead | None:
        pending = opened.read(offset, size_bytes, data)
        file = opened.reusable_file
        if file is None and opened.in_memory:
            opened.close()
        else:
            self._keep_open(node, file, opened)
        return pending

    def _keep_open(self, node: int, file: ObjectFile | None, opened: OpenObject) -> None:
        surplus = self._open_files.put(node, file, opened)
        if surplus is not None:
            surplus.close()

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
        return OpenedFile(handle, result.backing_descriptor)

    def _source(self, node: int) -> ObjectSource:
        row = self._tree.file(node)
        version = ObjectVersion(self._access_domain, self._endpoint, self._bucket, row.key, row.etag, row.size_bytes)
        return ObjectSource(version, self._store, self._dataset)

    def _url(self, path: bytes) -> bytes:
        return self._url_base.encode("utf-8", "surrogateescape") + path
