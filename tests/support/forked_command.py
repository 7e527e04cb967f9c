"""Commands of ``hayloft`` that start as forks of a process that has imported them: ``fork_server.py``."""

from __future__ import annotations

import atexit
import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from functools import cache
from typing import IO

from tests.architecture.source_tree import REPOSITORY
from tests.support.fork_server import MESSAGE_BYTES, STATUS

FORK_SERVER = "tests.support.fork_server"


class ForkedCommand(subprocess.Popen[bytes]):
    """A running command, with the methods of Popen. Its standard input is empty; its output goes where that of this
    process goes, standard error to ``stderr`` if given."""

    def __init__(
        self,
        arguments: list[str],
        *,
        stdout: IO[bytes] | None = None,
        stderr: IO[bytes] | None = None,
        new_session: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._child_created = False  # for Popen's finalizer: it is no child of this process
        self.args = arguments
        self.stdin = self.stdout = self.stderr = None
        self.returncode: int | None = None  # as Popen has it until the end
        # Guards: returncode and the reading end of the pipe. Never held while waiting.
        self._lock = threading.Lock()
        message = json.dumps(
            {
                "arguments": arguments,
                "environment": dict(os.environ if environment is None else environment),
                "directory": os.getcwd(),
                "new_session": new_session,
            }
        ).encode()
        assert len(message) <= MESSAGE_BYTES
        self._pipe, status = os.pipe2(os.O_CLOEXEC)
        try:
            with open(os.devnull, "rb") as nothing:
                streams = [
                    nothing.fileno(),
                    1 if stdout is None else stdout.fileno(),
                    2 if stderr is None else stderr.fileno(),
                ]
                socket.send_fds(_server(), [message], [*streams, status])
        finally:
            os.close(status)
        self.pid = self._received("the fork server has ended")

    def poll(self) -> int | None:
        with self._lock:
            if self.returncode is None and select.select([self._pipe], [], [], 0)[0]:
                self.returncode = self._received("the parent of the command has ended")
                os.close(self._pipe)
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            select.select([self._pipe], [], [], timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return code

    def _received(self, otherwise: str) -> int:
        data = os.read(self._pipe, STATUS.size)
        assert data, otherwise
        (number,) = STATUS.unpack(data)
        return int(number)


@cache
def _server() -> socket.socket:
    """The connection to the server, one of this process, which is started now."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        server = subprocess.Popen(
            (sys.executable, "-m", FORK_SERVER, str(theirs.fileno())),
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
        )

    def stop() -> None:
        ours.close()
        server.wait()

    atexit.register(stop)
    return ours
