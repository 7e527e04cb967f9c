"""HEAD of many objects of one server, by one thread over a few connections.

A listing asks for thousands of objects, and a thread for each request in flight costs several times as much as the
requests. Here each of some connections has one request in flight; the answers are received in the order of the
requests, and each is followed by the next request on its connection.
"""

from __future__ import annotations

import math
import select
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import NoReturn

from csi_driver.model.errors import HayloftError
from csi_driver.objects.http.connections import Connection
from csi_driver.objects.http.range_client import block_for, receive_head
from csi_driver.objects.http.socket_client import MAX_UNUSABLE
from csi_driver.objects.store import UnusableResponse
from csi_driver.objects.web.web_socket_clients import TOO_MANY, WebRequests

REFUSES_HEAD = (400, 403, 405, 501)
FEWEST = 32
"""Fewer objects are asked for one by one: connections for them would be of no further use."""

Headers = Mapping[str, str]


class _GivenUp(Exception):
    """The other objects have to be asked for one by one."""


class WebHeadClient(WebRequests):
    """Safe for any number of threads."""

    def ask(self, keys: Sequence[str], executor: Executor, most_in_flight: int) -> list[Headers | None]:
        """The headers of answers with status 200, with names in lower case. None: the object has to be asked for by
        itself; so do all others after an answer that takes too long, or a few that are unusable or refused, or where
        the server closes each connection. Blocks; ``executor`` makes the connections."""
        answers: list[Headers | None] = [None] * len(keys)
        if self.in_cooldown or len(keys) < FEWEST:
            return answers
        made = executor.map(lambda _: self._connect(), range(most_in_flight))
        free = [connection for connection in made if connection is not None]
        in_flight: deque[tuple[int, Connection]] = deque()
        try:
            if free:
                self._ask(keys, answers, free, in_flight)
        except TimeoutError:
            self._cooldown_until = math.inf  # each page would wait as long
        except (_GivenUp, OSError, HayloftError):
            pass  # what is wrong shows when one of them is asked for
        finally:
            for _, connection in in_flight:
                connection.close()
            for connection in free:
                connection.socket.setblocking(False)
                self.release(connection)
        return answers

    def _ask(
        self,
        keys: Sequence[str],
        answers: list[Headers | None],
        free: list[Connection],
        in_flight: deque[tuple[int, Connection]],
    ) -> None:
        """``in_flight``: the index of the key, and the connection that its request was sent on; the oldest first."""
        most_closed, closed = 2 * len(free), 0
        for index, key in enumerate(keys):
            connection = free.pop() if free else self._receive(*in_flight.popleft(), answers)
            closed = 0 if connection is not None else closed + 1
            if closed > most_closed:
                self._give_up()
            in_flight.append((index, self._send(key, connection)))
        while in_flight:
            connection = self._receive(*in_flight.popleft(), answers)
            if connection is not None:
                free.append(connection)

    def _connect(self) -> Connection | None:
        """An idle connection, or a new one; None: what is wrong shows when an object is asked for."""
        try:
            return self._dialled(self._take_idle())
        except (OSError, HayloftError):
            return None

    def _dialled(self, idle: Connection | None = None) -> Connection:
        """The idle connection, or a new one, to be used by calls that block. Raises AddressNotAllowed, OSError."""
        connection = idle or self._dialer.dial()
        try:
            block_for(connection.socket, self.timeout_s)
        except BaseException:
            connection.close()
            raise
        return connection

    def _send(self, key: str, connection: Connection | None) -> Connection:
        """Over the given connection, or a new one, which it returns. Raises AddressNotAllowed, OSError, _GivenUp."""
        request = self._request("HEAD", key)
        if request is None:
            if connection is not None:
                connection.close()
            raise _GivenUp
        while True:
            is_new = connection is None
            connection = connection or self._dialled()
            try:
                connection.socket.sendall(request)
                return connection
            except OSError:
                connection.close()
                if is_new:
                    raise
                connection = None  # the server closed it just before it was used

    def _receive(self, index: int, connection: Connection, answers: list[Headers | None]) -> Connection | None:
        """Returns the connection if it can be used for another request, else closes it. Raises OSError, _GivenUp."""
        free = None
        try:
            head, more = receive_head(connection.socket, time.monotonic() + self.timeout_s)
            if head.status < 200:
                raise UnusableResponse  # the answer itself follows, and must not be taken for that of the next request
            if head.status == 200:
                answers[index] = head.headers
            self.record(usable=head.status not in (*REFUSES_HEAD, *TOO_MANY))
            # A body after the head of HEAD would be taken for the next answer.
            if head.keeps_alive and not more and not _has_received(connection):
                free = connection
        except (UnusableResponse, ConnectionResetError):
            self.record(usable=False)
        finally:
            if free is None:
                connection.close()
        if self._unusable >= MAX_UNUSABLE:
            if free is not None:
                free.close()
            self._give_up()
        return free

    def _give_up(self) -> NoReturn:
        self._begin_cooldown()
        raise _GivenUp


def _has_received(connection: Connection) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))
