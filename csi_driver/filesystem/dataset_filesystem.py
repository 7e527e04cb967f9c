"""A snapshot of a dataset as a read-only tree of files. No FUSE types: ``fuse/operations.py`` translates."""

from __future__ import annotations

import stat
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from csi_driver.catalog.tree import Tree
from csi_driver.filesystem.no_open_support import memory_bytes, opens_are_needless
from csi_driver.filesystem.nodes import (
    ROOT_NODE,
    Data,
    DirectoryEntry,
    NodeAttributes,
    Opened,
    OpenedFile,
    SpaceReport,
)
from csi_driver.filesystem.open_file_cache import LINGER_BYTES, LINGER_S, OpenFileCache
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
    """See ``filesystem.nodes.Filesystem``.

    ``_lock`` guards the table of handles. It is not held across disk, network or an answer.
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
        self._openless = opens_are_needless(tree, library.small_object_bytes, memory_bytes())
        self._lock = threading.Lock()
        self._open: dict[int, tuple[int, OpenObject]] = {}
        self._lingering = OpenFileCache()
        self._free: list[int] = []
        self._next_handle = 1

    # -- names and attributes --

    def lookup(self, parent: int, name: bytes) -> NodeAttributes | None:
        """See Filesystem."""
        node = self._tree.lookup(parent, name)
        return None if node is None else self.attributes(node)

    def attributes(self, node: int) -> NodeAttributes | None:
        """See Filesystem."""
        tree = self._tree
        if tree.is_directory(node):
            links = 2 + tree.subdirectory_count(node)
            return NodeAttributes(node, self._directory_mode, 4096, tree.created_ns, links, self._uid, self._gid)
        if not tree.exists(node):
            return None
        size_bytes, mtime_ns = tree.size_bytes(node), tree.mtime_ns(node)
        return NodeAttributes(node, self._file_mode, size_bytes, mtime_ns, 1, self._uid, self._gid)

    def entries(self, node: int, cookie: int) -> Iterator[DirectoryEntry]:
        """See Filesystem."""
        for name, child, is_directory, after in self._tree.children(node, cookie):
            yield DirectoryEntry(name, child, is_directory, after)

    def parent(self, node: int) -> int:
        """See Filesystem."""
        return ROOT_NODE if node == ROOT_NODE else self._tree.parent(node)

    def space(self) -> SpaceReport:
        """See Filesystem."""
        return SpaceReport(self._tree.total_bytes, self._tree.file_count)

    def extended_attributes(self, node: int) -> tuple[bytes, ...]:
        """See Filesystem."""
        if self._tree.is_directory(node):
            return (_ATTRIBUTE_URL,)
        if self._tree.file(node).etag is None:
            return (_ATTRIBUTE_URL, _ATTRIBUTE_CACHED)
        return (_ATTRIBUTE_URL, _ATTRIBUTE_ETAG, _ATTRIBUTE_CACHED)

    def extended_attribute(self, node: int, name: bytes) -> bytes | None:
        """See Filesystem. ``user.hayloft.cached`` is ``cached bytes/size in bytes``, such as ``1048576/7340032``."""
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
        """See Filesystem."""
        lingering = self._lingering.take(node)
        if lingering is not None:
            opened(self._opened(node, lingering))
            return
        self._library.open(self._source(node), lambda result: opened(self._opened(node, result)))

    def reopen(self, node: int, handle: int) -> OpenedFile:
        """See Filesystem. Blocks on the disk and asks no store: runs once for each open file, while a daemon starts."""
        result = self._library.reopen(self._source(node))
        with self._lock:
            self._free.extend(range(self._next_handle, handle))
            self._next_handle = max(self._next_handle, handle + 1)
            if handle in self._free:
                self._free.remove(handle)
            self._open[handle] = (node, result)
        return OpenedFile(handle, result.backing_descriptor)

    def read(self, handle: int, offset: int, size_bytes: int, data: Data) -> object:
        """See Filesystem."""
        found = self._open.get(handle)
        if found is None:
            data(InternalFailure(f"no file is open under handle {handle}"))
            return None
        return found[1].read(offset, size_bytes, data)

    @property
    def opens_are_needless(self) -> bool:
        """See Filesystem."""
        return self._openless

    def read_node(self, node: int, offset: int, size_bytes: int, data: Data) -> object:
        """See Filesystem. The object stays open for a moment: a file of a few MiB is read in several pieces."""
        lingering = self._lingering.take(node)
        if lingering is not None:
            return self._read_and_keep(node, lingering, offset, size_bytes, data)

        def read(result: OpenObject | HayloftError) -> None:
            if isinstance(result, HayloftError):
                data(result)
            else:
                self._read_and_keep(node, result, offset, size_bytes, data)

        self._library.open_to_read(self._source(node), read)
        return None

    def cancel(self, token: object) -> None:
        """See Filesystem."""
        if isinstance(token, PendingRead):
            ObjectReader.cancel(token)

    def release(self, handle: int) -> None:
        """See Filesystem. A handle that is not open is success."""
        with self._lock:
            found = self._open.pop(handle, None)
            if found is None:
                return
            self._free.append(handle)
        node, opened = found
        if opened.lingers(LINGER_BYTES):
            self._lingering.put(node, opened)
        else:
            opened.close()

    def close_lingering(self, age_s: float = LINGER_S) -> None:
        """Closes what was released longer ago than this. Called every second or so."""
        self._lingering.close_older(age_s)

    def close(self) -> None:
        """Ends all opens."""
        self._lingering.close()
        with self._lock:
            opens = list(self._open.values())
            self._open.clear()
        for _, opened in opens:
            opened.close()

    def cached_bytes(self) -> int:
        """Bytes of the dataset that are in the cache. Asks for every file: slow for a large dataset."""
        return sum(self._library.present_bytes(self._source(node)) for node in range(2, 2 + self._tree.file_count))

    @property
    def dataset(self) -> int:
        """What eviction knows the dataset by."""
        return self._dataset

    def source(self, node: int) -> ObjectSource:
        """Where the bytes of a file are to be had. Raises KeyError for a node that is no file."""
        return self._source(node)

    # -- inside --

    def _read_and_keep(
        self, node: int, opened: OpenObject, offset: int, size_bytes: int, data: Data
    ) -> PendingRead | None:
        parked = opened.read(offset, size_bytes, data)
        if opened.in_memory:
            opened.close()
        else:
            self._lingering.put(node, opened)
        return parked

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
