"""The interface of a file system: nodes, attributes and opens as plain values, no FUSE types.

A node id is a number that a restarted daemon computes again: 1 is the root, a file is its row in the manifest plus
2, directories follow after all files. No table of nodes is needed, so FORGET has nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from csi_driver.model.errors import HayloftError

ROOT_NODE = 1


@dataclass(frozen=True, slots=True)
class NodeAttributes:
    """The result of stat(2). ``mode`` has the file type bits."""

    node: int
    mode: int
    size_bytes: int
    mtime_ns: int
    link_count: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """One name of a directory. ``cookie`` is the position after this entry, where a listing resumes."""

    name: bytes
    node: int
    is_directory: bool
    cookie: int


@dataclass(frozen=True, slots=True)
class OpenedFile:
    """An open file. ``backing_descriptor`` is a descriptor of the complete object file, or None while bytes are
    missing; it belongs to the file system and stays open until ``release``. ``size_bytes`` is the size of that file."""

    handle: int
    backing_descriptor: int | None
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class SpaceReport:
    """The result of statfs(2): the dataset, not the cache disk."""

    total_bytes: int
    file_count: int


Opened = Callable[[OpenedFile | HayloftError], None]
"""Called exactly once, from any thread, perhaps before ``open`` returns. Must not block."""

Data = Callable[[list[memoryview] | HayloftError], None]
"""Called exactly once, from any thread, perhaps before ``read`` returns, with the bytes in order (none at and beyond
the end of the file; never less than asked for before it). The views are valid only during the call."""


class Filesystem(Protocol):
    """A read-only tree. ``fuse/operations.py`` translates the kernel's requests to calls of it. Methods may be called
    from any thread."""

    def lookup(self, parent: int, name: bytes) -> NodeAttributes | None:
        """The entry of that name, or None. Does not block on the network."""

    def attributes(self, node: int) -> NodeAttributes | None:
        """None: no such node."""

    def entries(self, node: int, cookie: int) -> Iterator[DirectoryEntry]:
        """Entries of a directory after ``cookie`` (0: from the start), without ``.`` and ``..``."""

    def parent(self, node: int) -> int:
        """The directory that holds this directory; the root is its own parent."""

    def open(self, node: int, opened: Opened) -> None:
        """Answers through ``opened``; later if an object has to be fetched first."""

    def reopen(self, node: int, handle: int) -> OpenedFile:
        """Restores, after a restart of the daemon, an open that the kernel still holds under this handle."""

    def read(self, handle: int, offset: int, size_bytes: int, data: Data) -> object:
        """Answers through ``data``. Returns a token for ``cancel``."""

    @property
    def opens_are_needless(self) -> bool:
        """True where files are so small, and so few, that it is best to read them without an open: the kernel then
        opens and closes them by itself, and keeps their pages."""

    def opens_are_needless_for(self, process_id: int) -> bool:
        """The same with the memory that a process may use. Asked once, of the first process that opens a file."""

    def read_node(self, node: int, offset: int, size_bytes: int, data: Data) -> object:
        """Like ``read``, of a file that was not opened."""

    def cancel(self, token: object) -> None:
        """The reader was interrupted: answers a pending read with Interrupted, unless it is answered already."""

    def release(self, handle: int) -> None:
        """Closes an open."""

    def extended_attribute(self, node: int, name: bytes) -> bytes | None:
        """The value of a name such as ``user.hayloft.etag``, or None."""

    def space(self) -> SpaceReport:
        """Totals of the dataset."""
