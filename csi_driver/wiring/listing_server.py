"""The process that starts listings: a fork of the daemon at its start, or, when that one has died and the daemon has
threads by then, ``python -m csi_driver.wiring.listing_server DESCRIPTOR``.

Importing what a listing needs takes half a second and 30 MB. This process does it once, at the first request, and
forks: it has one thread, no secret, and no descriptor of the daemon but one socket. Each message there brings the
socket of one listing. The daemon ends a listing by closing its side of that socket, and all of them, with this process,
by its own end, however it dies.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from typing import NoReturn

from csi_driver.catalog.arrow_alone import import_arrow, use_arrow_alone
from csi_driver.wiring.listing_messages import send
from csi_driver.wiring.process_name import name_this_process

_MESSAGE_BYTES = 16


class ListingServer:
    """Used by one thread, the only one of its process."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._connections: dict[int, socket.socket] = {}
        """By process id. The process has a copy of its own."""
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._wake, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll.register(self._wake, select.POLLIN)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)  # writes to the wake-up descriptor

    def run(self) -> None:
        """Until the daemon has closed its side."""
        while True:
            ready = {descriptor for descriptor, _ in self._poll.poll()}
            if self._control.fileno() in ready and not self._begin():
                break
            for pid, connection in self._connections.items():
                if connection.fileno() in ready:  # the daemon does not wait any more, or the process has ended
                    self._poll.unregister(connection)
                    os.kill(pid, signal.SIGKILL)  # not reaped yet, so the number is not that of another process
            if self._wake in ready:
                os.read(self._wake, 1 << 10)
                self._reap()
        for pid in self._connections:
            os.kill(pid, signal.SIGKILL)

    def _begin(self) -> bool:
        """Starts a process for the socket that was sent. False: the daemon has ended."""
        message, descriptors, _, _ = socket.recv_fds(self._control, _MESSAGE_BYTES, 1)
        if not message:
            return False
        _import_for_listings()
        for descriptor in descriptors:
            connection = socket.socket(fileno=descriptor)
            parent_pid = os.getpid()
            try:
                pid = os.fork()
            except OSError:  # no memory or no process left: the daemon sees the end of the connection
                connection.close()
                continue
            if not pid:
                self._become_child(connection, parent_pid)
            self._connections[pid] = connection
            self._poll.register(connection, select.POLLRDHUP)
        return True

    def _become_child(self, connection: socket.socket, parent_pid: int) -> None:
        """Never returns."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for other in (self._control, *self._connections.values()):
                other.close()  # or the daemon would not see the end of another listing
            from csi_driver.wiring.listing_process import run_listing

            run_listing(connection, parent_pid)
            status = 0
        finally:
            os._exit(status)

    def _reap(self) -> None:
        while self._connections:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            connection = self._connections.pop(pid)
            with suppress(KeyError):  # unregistered when it was killed
                self._poll.unregister(connection)
            with suppress(OSError):
                send(connection, {"exit_code": os.waitstatus_to_exitcode(status)})
            connection.close()


def _import_for_listings() -> None:
    """What nearly every listing uses, so that its process finds it imported: Arrow, and the client of S3. Afterwards
    the collector of a listing need not copy the pages of what was imported."""
    if "csi_driver.wiring.listing_process" in sys.modules:
        return
    import_arrow()
    import csi_driver.objects.s3.s3_factory
    import csi_driver.wiring.listing_process  # noqa: F401  # for the processes that are forked

    gc.collect()
    gc.freeze()


def serve_listings(control: socket.socket) -> NoReturn:
    """In a fork of a process with one thread: becomes a process of its own, serves, and ends it."""
    status = 1
    try:
        # Ctrl-C in a terminal reaches only the daemon. No session of its own: the kernel would give that an equal share
        # of the processors beside the daemon (sched(7), autogroup), whatever the niceness of its listings.
        os.setpgid(0, 0)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        os.dup2(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), 0)
        kept = control.fileno()
        os.closerange(3, kept)
        os.closerange(kept + 1, max(map(int, os.listdir("/proc/self/fd"))) + 1)
        _serve(control)
        status = 0
    finally:
        os._exit(status)


def _serve(control: socket.socket) -> None:
    name_this_process("listing-server")
    use_arrow_alone()
    logging.disable(logging.CRITICAL)  # the answer of a listing is its report; libraries may log what is secret
    control.set_inheritable(False)
    ListingServer(control).run()


def main() -> None:
    """The argument is the descriptor of a connected Unix socket for packets."""
    _serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
