"""One mount being served: INIT, adoption after a restart, notifications, and the end."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable

from csi_driver.event_loop.event_loop import EventLoop
from csi_driver.filesystem.inodes import Filesystem
from csi_driver.filesystem.open_table import ConnectionState, OpenTable
from csi_driver.fuse import negotiation
from csi_driver.fuse import protocol as p
from csi_driver.fuse.adaptive_request_loop import AdaptiveRequestLoop
from csi_driver.fuse.file_operations import FileOperations
from csi_driver.fuse.interrupts import Interrupts
from csi_driver.fuse.metadata_operations import MetadataOperations
from csi_driver.fuse.notifier import Notifier
from csi_driver.fuse.operations import Operations
from csi_driver.fuse.passthrough import BackingTable
from csi_driver.fuse.replies import Replies
from csi_driver.fuse.request_loop import ENDED, BlockingRequestLoop, RequestDispatcher, RequestLoop
from csi_driver.fuse.request_timeout import RequestTimeouts
from csi_driver.model.errors import HayloftError, MountFailed
from csi_driver.model.read_counts import ReadCounts
from csi_driver.settings import FuseSettings

_log = logging.getLogger(__name__)

_INIT_TIMEOUT_S = 30.0
_DROP_PAGES_AFTER_S = 1.0
"""After the last cached close. A reader that opens a file again and again within this time, such as one that reads the
parts of a large file one by one while it is being fetched, keeps its pages."""


class FuseSession:
    """Serves one connection until it is unmounted (``closed`` is set) or until ``stop``.

    The session neither mounts nor unmounts, and it does not close the descriptor: a keeper may hold another copy.
    """

    def __init__(
        self,
        device_fd: int,
        filesystem: Filesystem,
        open_table: OpenTable,
        settings: FuseSettings,
        *,
        adopted: bool,
        name: str = "fuse",
        loop: EventLoop | None = None,
    ) -> None:
        """``loop`` serves a dataset that is read without opens, unless the settings ask for several threads."""
        self.closed = threading.Event()
        self._device_fd = device_fd
        self._filesystem = filesystem
        self._open_table = open_table
        self._settings = settings
        self._adopted = adopted
        self._name = name
        self._agreed = threading.Event()
        self._refusal = ""
        self._notifier = Notifier(f"{name}-notifier")
        self._replies = Replies(device_fd)
        self._backing = BackingTable(device_fd, enabled=False)
        self._files = FileOperations(filesystem, self._replies, open_table, self._backing, self._drop_pages_later)
        directory_flags = p.FOPEN_KEEP_CACHE | p.FOPEN_CACHE_DIR
        self._metadata = MetadataOperations(filesystem, self._replies, settings.entry_timeout_s, directory_flags)
        self._interrupts = Interrupts(self._files, self._replies, self._notifier)
        self._operations = Operations(self._metadata, self._files, self._interrupts, self._replies, self._init)
        dispatcher = RequestDispatcher(device_fd, self._operations, self._end)
        self._request_loop: RequestLoop
        if loop is not None and settings.threads == 1 and settings.openless and filesystem.opens_are_needless:
            self._request_loop = AdaptiveRequestLoop(dispatcher, loop, name, self._wake, self._notify_resend)
        else:
            self._request_loop = BlockingRequestLoop(
                dispatcher, settings.threads, name, self._wake, self._notify_resend
            )

    def on_failure(self, failed: Callable[[int, HayloftError], None]) -> None:
        """``failed`` is called with the node and the error of each open and read that fails, before it is answered."""
        self._files.failed = failed

    def count_opens(self, counts: ReadCounts) -> None:
        """Before ``start``: where opens are counted."""
        self._files.counts = counts

    # -- life ---------------------------------------------------------------------------------------------------------

    @property
    def passthrough(self) -> bool:
        """Whether complete files are read by the kernel itself."""
        return self._backing.enabled

    @property
    def without_opens(self) -> bool:
        """Whether the kernel opens files without a request."""
        return self._files.openless

    def start(self) -> None:
        """Starts serving. Blocks until INIT is answered, which the kernel sends at once after mount(2).

        Raises MountFailed when the kernel is too old or sends no INIT.
        """
        # Restored before a request is read: the first may already be a READ of an open of the last daemon.
        if self._adopted:
            self._restore()
        self._notifier.start()
        self._request_loop.start()
        if self._adopted:
            self._request_resend()
        if not self._agreed.wait(_INIT_TIMEOUT_S) and not self.closed.is_set():
            raise MountFailed(f"{self._name}: the kernel did not begin the FUSE protocol within {_INIT_TIMEOUT_S} s")
        if self._refusal:
            raise MountFailed(f"{self._name}: {self._refusal}")

    def wait(self, timeout_s: float | None = None) -> bool:
        """Blocks until the mount is gone. False: timed out."""
        return self.closed.wait(timeout_s)

    def stop(self) -> None:
        """Stops serving and leaves the mount as it is, for another daemon to adopt. Pending requests stay unanswered;
        the kernel sends them to the next daemon. Blocks up to 2 s."""
        # In this order: no new requests; no notifications; then no answers to pending requests.
        self._request_loop.stop()
        self._notifier.stop()
        self._files.stop()

    @property
    def serving(self) -> bool:
        """Whether a thread still reads requests."""
        return self._request_loop.serving

    # -- serving ------------------------------------------------------------------------------------------------------

    def _notify_resend(self) -> None:
        if not self._settings.resend:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._replies.notify(p.REPLY.pack(p.REPLY_HEADER_BYTES, p.NOTIFY_RESEND, 0))

    def _end(self, error: OSError) -> None:
        if error.errno not in ENDED:
            _log.error("%s: /dev/fuse cannot be read, the mount is served no more: %s", self._name, error.strerror)
        if error.errno == errno.ECONNABORTED:
            _log.error(
                "%s: the mount was aborted, and its pods have to be restarted: by a request that took longer than "
                "fs.fuse.max_request_timeout allows, by a forced unmount, or by a write to its file abort in "
                "/sys/fs/fuse/connections",
                self._name,
            )
        self.closed.set()
        self._agreed.set()
        self._notifier.stop()

    def _init(self, buffer: bytearray, length: int, unique: int, node: int) -> None:
        offer = negotiation.parse_offer(buffer, length)
        if offer.major > p.MAJOR:
            self._replies.body(unique, negotiation.newer_major_reply())
            return
        agreed = negotiation.agree(offer, self._settings.passthrough, RequestTimeouts.read().named_s)
        if agreed is None:
            self._refusal = (
                f"the kernel speaks FUSE {offer.major}.{offer.minor}; "
                f"{p.MAJOR}.{p.MINOR_MINIMUM} (Linux 5.4) or newer is needed"
            )
            self._replies.error(unique, errno.EPROTO)
        else:
            self._open_table.record_connection(ConnectionState(agreed.minor, agreed.flags))
            self._apply(agreed)
            self._replies.body(unique, negotiation.init_reply(agreed))
        self._agreed.set()

    def _apply(self, agreed: negotiation.Negotiated) -> None:
        self._metadata.opendir_is_optional = agreed.opendir_is_optional
        if not agreed.open_is_optional or not self._settings.openless or not self._filesystem.opens_are_needless:
            self._files_are_opened()
        else:
            self._files.decides_openless = self._decide_openless
        self._backing.enabled = agreed.passthrough and self._settings.passthrough
        if self._settings.passthrough and not agreed.passthrough:
            _log.warning(
                "%s: reads are served by the daemon: the kernel (FUSE 7.%d) has no passthrough; Linux 6.9 has",
                self._name,
                agreed.minor,
            )

    def _decide_openless(self, process_id: int) -> bool:
        if self._filesystem.opens_are_needless_for(process_id):
            return True
        _log.info("%s: files are opened by the daemon: the first reader has not enough memory for them", self._name)
        self._files_are_opened()
        return False

    def _files_are_opened(self) -> None:
        """For the life of the connection: a later daemon must not answer an OPEN with ENOSYS, since the kernel would
        send it no RELEASE of the opens that there are."""
        state = self._open_table.state
        self._open_table.record_connection(ConnectionState(state.minor, state.flags & ~p.INIT_NO_OPEN_SUPPORT))

    # -- adoption -----------------------------------------------------------------------------------------------------

    def _restore(self) -> None:
        """Restores the opens of an earlier daemon that the kernel still has."""
        state = self._open_table.state
        if state.minor:
            self._apply(negotiation.Negotiated(state.minor, state.flags))
            self._agreed.set()
        for record in self._open_table.records():
            self._backing.restore(record.node, record.backing_id)
            self._metadata.recent_file = record.node
            self._files.recorded_opens[record.unique] = record.handle
            try:
                opened = self._filesystem.reopen(record.node, record.file_handle)
            except HayloftError as error:
                _log.warning(
                    "%s: node %d: an open file was not restored, reads that the daemon serves fail: %s",
                    self._name,
                    record.node,
                    error,
                )
                continue
            self._files.handles[record.handle] = opened.handle
        self._backing.forget_leftovers(self._open_table.leftover_backing_ids())

    def _request_resend(self) -> None:
        try:
            self._notify_resend()
        except OSError as error:
            if error.errno not in ENDED:
                self._interrupts.requests_may_be_lost = True
                _log.warning(
                    "%s: the kernel cannot repeat its requests (%s): reads that were pending when the last daemon died "
                    "hang until their process is killed; Linux 6.9 or newer resends them",
                    self._name,
                    error.strerror,
                )

    # -- notifications ------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Wakes one thread that blocks in read(2): NOTIFY_RETRIEVE of no bytes of a file makes the kernel send a
        NOTIFY_REPLY. It has to be a regular file that the kernel knows."""
        node = self._metadata.recent_file
        message = p.RETRIEVE.pack(p.RETRIEVE.size, p.NOTIFY_RETRIEVE, 0, 0, node, 0, 0)
        try:
            self._replies.notify(message)
        except OSError as error:
            if error.errno not in ENDED:
                _log.debug("%s: no thread was woken, tried again: %s", self._name, error.strerror)

    def _drop_pages_later(self, node: int) -> None:
        """Served bytes are in the page cache twice: for this inode and for the object file."""
        self._notifier.after(_DROP_PAGES_AFTER_S, lambda: self._drop_pages(node))

    def _drop_pages(self, node: int) -> None:
        if not self._backing.is_cached(node):
            self._send_invalidation(node)

    def _send_invalidation(self, node: int) -> None:
        """On the thread of the notifier only: the kernel may block this until reads of the node are answered."""
        message = p.INVAL_INODE.pack(p.INVAL_INODE.size, p.NOTIFY_INVAL_INODE, 0, node, 0, 0)
        try:
            self._replies.notify(message)
        except OSError as error:
            if error.errno not in (errno.ENOENT, *ENDED):  # ENOENT: the kernel has forgotten the inode already
                _log.warning(
                    "%s: node %d: its pages were not dropped, memory holds them twice: %s",
                    self._name,
                    node,
                    error.strerror,
                )
