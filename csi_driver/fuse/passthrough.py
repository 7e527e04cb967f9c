"""Passthrough: opens that the kernel reads by itself, with one counted backing id and one mode per node.

The kernel's rules, each tried: two opens of one inode with different backing ids fail with EIO, and so does a
passthrough open while a cached one exists, or the other way round. A file that is open does not change its mode. So the
first open of a node decides the mode, and further opens have the same until the last close.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import struct
import threading
from dataclasses import dataclass

from csi_driver.filesystem.inodes import OpenedFile
from csi_driver.fuse import protocol as p

_log = logging.getLogger(__name__)

_IOC_WRITE = 1 << 30
_BACKING_MAP = struct.Struct("<iI8x")
_BACKING_ID = struct.Struct("<i")
BACKING_OPEN = _IOC_WRITE | _BACKING_MAP.size << 16 | 229 << 8 | 1
BACKING_CLOSE = _IOC_WRITE | _BACKING_ID.size << 16 | 229 << 8 | 2

CACHED_FLAGS = p.FOPEN_KEEP_CACHE | p.FOPEN_NOFLUSH
"""Pages stay between opens, since a snapshot does not change, and close(2) has nothing to flush."""
PASSTHROUGH_FLAGS = p.FOPEN_PASSTHROUGH | p.FOPEN_NOFLUSH
"""With KEEP_CACHE the kernel refuses passthrough; without it, it drops the pages of earlier cached opens itself."""

_REASONS = {
    errno.EPERM: "the daemon lacks CAP_SYS_ADMIN",
    errno.EOPNOTSUPP: "the cache's file system cannot be a backing file system",
    errno.ELOOP: "the cache directory is on a stacked file system such as overlayfs; put it on a volume of its own",
    errno.ENOTTY: "the kernel is older than 6.9",
}


@dataclass(slots=True)
class _OpenNode:
    """A node with opens. ``backing_id`` 0 means cached mode."""

    opens: int
    backing_id: int


class BackingTable:
    """The modes of all nodes that are open. Methods may be called from any thread.

    ``_lock`` guards ``_nodes`` and changes of ``enabled``. It is held across the backing ioctls, which neither sleep
    nor touch a disk: the second open of a node has to find the id of the first, and an id must not be closed while
    another open of the node gets it.
    """

    def __init__(self, device_fd: int, enabled: bool) -> None:
        self._device_fd = device_fd
        self._lock = threading.Lock()
        self._nodes: dict[int, _OpenNode] = {}
        self.enabled = enabled

    def admit(self, node: int, opened: OpenedFile) -> int:
        """Counts an open and returns its backing id, or 0 for cached mode."""
        with self._lock:
            known = self._nodes.get(node)
            if known is not None:
                # Whatever the file is by now: a second id, or the other mode, would be EIO for this reader.
                known.opens += 1
                return known.backing_id
            descriptor = opened.backing_descriptor
            backing_id = self._register(descriptor) if descriptor is not None and self.enabled else 0
            self._nodes[node] = _OpenNode(1, backing_id)
            return backing_id

    def release(self, node: int) -> bool:
        """Uncounts an open. True: it was the last cached open of a node, in a mount that has passthrough. The pages of
        served bytes are then a second copy of the object file's, and useless to the next open if the file is complete
        by then."""
        with self._lock:
            known = self._nodes.get(node)
            if known is None:
                return False
            known.opens -= 1
            if known.opens:
                return False
            del self._nodes[node]
            if known.backing_id:
                self._unregister(known.backing_id)
                return False
            return self.enabled

    def restore(self, node: int, backing_id: int) -> None:
        """Counts an open that an earlier daemon of this connection admitted."""
        with self._lock:
            known = self._nodes.get(node)
            if known is None:
                self._nodes[node] = _OpenNode(1, backing_id)
            else:
                known.opens += 1
                known.backing_id = known.backing_id or backing_id

    def forget_leftovers(self, backing_ids: set[int]) -> None:
        """Closes ids that an earlier daemon may have left open. An id that is closed already is no error."""
        with self._lock:
            # The body of a free slot may name an id that a restored open uses now.
            in_use = {node.backing_id for node in self._nodes.values()}
            for backing_id in backing_ids - in_use:
                self._unregister(backing_id)

    def is_cached(self, node: int) -> bool:
        """Whether the node has cached opens now."""
        with self._lock:
            known = self._nodes.get(node)
            return known is not None and not known.backing_id

    def _register(self, descriptor: int) -> int:
        request = bytearray(_BACKING_MAP.pack(descriptor, 0))
        try:
            backing_id: int = fcntl.ioctl(self._device_fd, BACKING_OPEN, request)
        except OSError as error:
            self._disable_if_permanent(error)
            return 0
        return backing_id

    def _unregister(self, backing_id: int) -> None:
        try:
            fcntl.ioctl(self._device_fd, BACKING_CLOSE, _BACKING_ID.pack(backing_id))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EPERM):
                _log.warning(
                    "backing id %d was not closed, its object file stays on the disk until the unmount: %s",
                    backing_id,
                    error.strerror,
                )

    def _disable_if_permanent(self, error: OSError) -> None:
        """Reads are served for the rest of the mount if the reason is permanent; else for this open alone."""
        reason = _REASONS.get(error.errno or 0)
        if reason is None:
            return
        self.enabled = False
        _log.warning("reads are served by the daemon, without passthrough: %s (%s)", reason, error.strerror)
