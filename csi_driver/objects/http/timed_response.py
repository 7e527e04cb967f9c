"""Responses of http.client, which urllib3 uses, with a bound on the time that a head takes."""

from __future__ import annotations

import io
import socket
import time
from http.client import HTTPResponse
from typing import Any


class TimedResponse(HTTPResponse):
    """The head is complete within one time-out of the connection. By itself that time-out bounds each wait for a byte:
    a store that sends one from time to time, or "100 Continue" again and again, would never reach it."""

    def __init__(self, connection: socket.socket, *arguments: Any, **more: Any) -> None:
        super().__init__(connection, *arguments, **more)
        self._timed = _TimedReader(self.fp.detach(), connection)
        self.fp = io.BufferedReader(self._timed)

    def begin(self) -> None:
        """Receives the head. Blocks. Raises OSError, TimeoutError among them, and http.client's errors."""
        super().begin()
        self._timed.end()


class _TimedReader(io.RawIOBase):
    """Reads a connection; until ``end`` all reads together have the time of one."""

    def __init__(self, reader: Any, connection: socket.socket) -> None:
        self._reader, self._connection = reader, connection
        self._timeout_s = connection.gettimeout()
        self._until_s = None if self._timeout_s is None else time.monotonic() + self._timeout_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._until_s is not None:
            left_s = self._until_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self._connection.settimeout(left_s)
        count: int | None = self._reader.readinto(buffer)
        return count

    def end(self) -> None:
        """From now on each read has the time-out of the connection."""
        if self._until_s is not None:
            self._connection.settimeout(self._timeout_s)
            self._until_s = None

    def close(self) -> None:
        self._reader.close()
        super().close()
