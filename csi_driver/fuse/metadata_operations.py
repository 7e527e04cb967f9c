"""Names, attributes, directories, extended attributes and space: requests that are answered at once, from memory."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable

from csi_driver.filesystem.inodes import DirectoryEntry, Filesystem, NodeAttributes
from csi_driver.fuse import protocol as p
from csi_driver.fuse.replies import Replies

_NS = 1_000_000_000
_U64 = (1 << 64) - 1
_DT_DIRECTORY, _DT_FILE = 4, 8
_ENTRY_AND_DIRENT_BYTES = p.ENTRY_OUT.size + p.DIRENT.size
_OWN_ENTRIES = 2
"""``.`` and ``..`` come first and have the cookies 1 and 2; those of the file system follow, increased by two."""
_XATTR_NAMESPACE = b"user."
_XATTR_BYTES_MAXIMUM = 65536


class MetadataOperations:
    """Handlers are called as ``handler(buffer, length, unique, node)`` with a request that is long enough."""

    def __init__(self, filesystem: Filesystem, replies: Replies, entry_timeout_s: int, opendir_flags: int) -> None:
        self._filesystem = filesystem
        self._replies = replies
        self._timeout_s = entry_timeout_s
        self._opendir_reply = p.OPEN_REPLY.pack
        self._opendir_flags = opendir_flags
        self.opendir_is_optional = False
        """Set by INIT: OPENDIR is answered with ENOSYS, and from then on the kernel opens directories by itself and
        caches their contents."""
        self.recent_file = 0
        """The regular file that the kernel has seen last, to wake threads by; 0: none yet."""
        self._no_such_name = p.ENTRY_OUT.pack(0, 0, entry_timeout_s, *(0,) * 19)

    # -- names and attributes -----------------------------------------------------------------------------------------

    def lookup(self, buffer: bytearray, length: int, unique: int, node: int) -> None:
        """A missing name is answered with an entry of node 0, which the kernel caches as well."""
        name = p.name_at(buffer, p.HEADER_BYTES, length)
        if len(name) > p.NAME_BYTES_MAXIMUM:
            self._replies.error(unique, errno.ENAMETOOLONG)
            return
        attributes = self._find(node, name)
        self._replies.body(unique, self._no_such_name if attributes is None else self._entry(attributes))

    def _find(self, node: int, name: bytes) -> NodeAttributes | None:
        if name == b".":
            return self._filesystem.attributes(node)
        if name == b"..":
            return self._filesystem.attributes(self._filesystem.parent(node))
        return self._filesystem.lookup(node, name)

    def getattr(self, buffer: bytearray, length: int, unique: int, node: int) -> None:
        """A handle in the request is ignored."""
        attributes = self._filesystem.attributes(node)
        if attributes is None:
            self._replies.error(unique, errno.ESTALE)
            return
        a = attributes
        seconds, nanoseconds = divmod(a.mtime_ns, _NS)
        seconds &= _U64
        self._replies.body(
            unique,
            p.ATTR_OUT.pack(
                self._timeout_s,
                0,
                a.node,
                a.size_bytes,
                (a.size_bytes + 511) >> 9,
                seconds,
                seconds,
                seconds,
                nanoseconds,
                nanoseconds,
                nanoseconds,
                a.mode,
                a.link_count,
                a.uid,
                a.gid,
                0,
                p.BLOCK_BYTES,
                0,
            ),
        )

    def _entry(self, a: NodeAttributes) -> bytes:
        if a.mode & stat.S_IFREG:
            self.recent_file = a.node
        seconds, nanoseconds = divmod(a.mtime_ns, _NS)
        seconds &= _U64
        return p.ENTRY_OUT.pack(
            a.node,
            0,
            self._timeout_s,
            self._timeout_s,
            0,
            0,
            a.node,
            a.size_bytes,
            (a.size_bytes + 511) >> 9,
            seconds,
            seconds,
            seconds,
            nanoseconds,
            nanoseconds,
            nanoseconds,
            a.mode,
            a.link_count,
            a.uid,
            a.gid,
            0,
            p.BLOCK_BYTES,
            0,
        )

    def access(self, buffer: bytearray, length: int, unique: int, node: int) -> None:
        """Sent only for mounts without default_permissions. The kernel has checked the modes; writes are refused."""
        (mask,) = p.ACCESS_IN.unpack_from(buffer, p.HEADER_BYTES)
        self._replies.error(unique, errno.EROFS if mask & os.W_OK else 0)

    # -- directories --------------------------------------------------------------------------------------------------

    def opendir(self, buffer: bytearray, length: int, unique: int, node: int) -> None:
        """ENOSYS where that makes the kernel open directories by itself, see ``opendir_is_optional``."""
        if self.opendir_is_optional:
            self._replies.error(unique, errno.ENOSYS)
            return
        reply = self._opendir_reply(p.OPEN_REPLY.size, 0, unique, 0, self._opendir_flags, 0)
        self._replies.message(reply, unique)

    def releasedir(self, buffer: bytearray, length: int, unique: int, node: int) -> None:
        """Directories have no handles."""
        self._replies.empty(unique)

    def readdir(self, buffer: bytearray, length: int, unique: int, node: int) -> None:
        _, cookie, size_bytes = p.READDIR_IN.unpack_from(buffer, p.HEADER_BYTES)
        listing = bytearray()
        for entry in self._entries(node, cookie):
            kind = _DT_DIRECTORY if entry.is_directory else _DT_FILE
            name = entry.name
            space = p.DIRENT.size + len(name) + p.pad8(len(name))
            if len(listing) + space > size_bytes:
                break
            listing += p.DIRENT.pack(entry.node, entry.cookie, len(name), kind)
            listing += name
            listing += bytes(p.pad8(len(name)))
        self._replies.body(unique, listing)

    def readdirplus(self, buffer: bytearray, length: int, unique: int, node: int) -> None:
        """``.`` and ``..`` have no attributes."""
        _, cookie, size_bytes = p.READDIR_IN.unpack_from(buffer, p.HEADER_BYTES)
        attributes_of = self._filesystem.attributes
        listing = bytearray()
        for entry in self._entries(node, cookie):
            name = entry.name
            padding = p.pad8(len(name))
            if len(listing) + _ENTRY_AND_DIRENT_BYTES + len(name) + padding > size_bytes:
                break
            attributes = None if entry.cookie <= _OWN_ENTRIES else attributes_of(entry.node)
            listing += bytes(p.ENTRY_OUT.size) if attributes is None else self._entry(attributes)
            kind = _DT_DIRECTORY if entry.is_directory else _DT_FILE
            listing += p.DIRENT.pack(entry.node, entry.cookie, len(name), kind)
            listing += name
            listing += bytes(padding)
        self._replies.body(unique, listing)

    def _entries(self, node: int, cookie: int) -> Iterable[DirectoryEntry]:
        if cookie < 1:
            yield DirectoryEntry(b".", node, True, 1)
        if cookie < _OWN_ENTRIES:
            yield DirectoryEntry(b"..", self._filesystem.parent(node), True, _OWN_ENTRIES)
        for entry in self._filesystem.entries(node, max(cookie - _OWN_ENTRIES, 0)):
            yield DirectoryEntry(entry.name, entry.node, entry.is_directory, entry.cookie + _OWN_ENTRIES)

    # -- the rest -----------------------------------------------------------------------------------------------------

    def statfs(self, buffer: bytearray, length: int, unique: int, node: int) -> None:
        """The dataset's size, with nothing free: df shows the dataset and not the cache's disk."""
        space = self._filesystem.space()
        blocks = -(-space.total_bytes // p.BLOCK_BYTES)
        sizes = (p.BLOCK_BYTES, p.NAME_BYTES_MAXIMUM, p.BLOCK_BYTES)
        self._replies.body(unique, p.STATFS_OUT.pack(blocks, 0, 0, space.file_count, 0, *sizes))

    def getxattr(self, buffer: bytearray, length: int, unique: int, node: int) -> None:
        """ENODATA for a missing name in ``user.``. The other namespaces do not exist here: with EOPNOTSUPP for one file
        ``ls -l`` asks for no more access control lists and SELinux labels, which it would do twice for each file."""
        (size_bytes,) = p.XATTR_IN.unpack_from(buffer, p.HEADER_BYTES)
        name = p.name_at(buffer, p.HEADER_BYTES + p.XATTR_IN.size, length)
        if not name.startswith(_XATTR_NAMESPACE):
            self._replies.error(unique, errno.EOPNOTSUPP)
            return
        value = self._filesystem.extended_attribute(node, name)
        if value is None:
            self._replies.error(unique, errno.ENODATA)
        else:
            self._sized(unique, value, size_bytes)

    def _sized(self, unique: int, value: bytes, size_bytes: int) -> None:
        """A request with size 0 is answered with the size of the value."""
        if len(value) > _XATTR_BYTES_MAXIMUM:
            self._replies.error(unique, errno.E2BIG)
        elif not size_bytes:
            self._replies.body(unique, p.XATTR_OUT.pack(len(value)))
        elif len(value) > size_bytes:
            self._replies.error(unique, errno.ERANGE)
        else:
            self._replies.body(unique, value)

    def seek(self, buffer: bytearray, length: int, unique: int, node: int) -> None:
        """No file has holes: data everywhere, and one hole at its end."""
        _, offset, whence = p.LSEEK_IN.unpack_from(buffer, p.HEADER_BYTES)
        attributes = self._filesystem.attributes(node)
        if attributes is None or not stat.S_ISREG(attributes.mode) or whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            self._replies.error(unique, errno.EINVAL)
        elif offset >= attributes.size_bytes:
            self._replies.error(unique, errno.ENXIO)
        else:
            found = offset if whence == os.SEEK_DATA else attributes.size_bytes
            self._replies.body(unique, p.LSEEK_OUT.pack(found))
