"""The connection between ranks: rank 0 coordinates, every rank is a member. Messages are JSON objects, each preceded
by its length.

A member proves that it knows the token of the run (an HMAC of the coordinator's nonce) and sends its rank. From then on
it sends requests and waits for each answer: a barrier is answered when all ranks have requested it, results when all
have sent theirs. If a connection ends too early or a timeout passes, all members get the reason and the run is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import secrets
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hayloft_bench.errors import RankError

HELLO_S = 10.0
RETRY_S = 0.2
CLOSE_S = 2.0
GRACE_S = 20.0
"""A member waits this much longer than the coordinator, because the coordinator can name the missing ranks."""
MOST_BYTES = 1 << 30
_LENGTH = struct.Struct("!Q")
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

Message = dict[str, Any]


def _proof(token: str, nonce: str, rank: int) -> str:
    return hmac.new(token.encode(), f"{nonce}:{rank}".encode(), hashlib.sha256).hexdigest()


def _ranks(numbers: set[int]) -> str:
    shown = [str(number) for number in sorted(numbers)]
    return (
        f"rank{'s' if len(shown) > 1 else ''} {', '.join(shown[:8])}{f' and {len(shown) - 8} more' * (len(shown) > 8)}"
    )


class Coordinator:
    """Runs in one event loop, so no field needs a lock. No method awaits between two changes of the fields."""

    def __init__(self, ranks: int, token: str) -> None:
        self._ranks, self._token = ranks, token
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._agreed: Mapping[str, Any] | None = None
        self._waiting: dict[int, Message] = {}
        self._withdrawn: list[tuple[int, str, str]] = []
        """Rank, prefix of the names of the barriers that it will not reach, reason."""
        self._timer: asyncio.TimerHandle | None = None
        self._begun = False
        self._end_reason = ""
        """Why the run ended; empty while it runs."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection, from its first to its last message."""
        rank: int | None = None
        try:
            rank = await asyncio.wait_for(self._admit(reader, writer), HELLO_S)
            while rank is not None:
                self._receive_request(rank, await _receive(reader))
        except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError):
            if rank is not None and self._writers.get(rank) is writer:
                self.end(f"rank {rank} ended before the run was over")
        finally:
            writer.close()

    async def _admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int | None:
        nonce = secrets.token_hex(16)
        _send(writer, {"nonce": nonce})
        hello = await _receive(reader)
        reason = self._refusal(hello, nonce)
        if reason:
            _send(writer, {"end": reason})
            await writer.drain()
            return None
        rank = int(hello["rank"])
        self._agreed = hello["agreed"] if self._agreed is None else self._agreed
        self._writers[rank] = writer
        _send(writer, {"welcome": rank})
        return rank

    def _refusal(self, hello: Message, nonce: str) -> str:
        rank = hello.get("rank")
        if not isinstance(rank, int) or not hmac.compare_digest(
            str(hello.get("proof")), _proof(self._token, nonce, rank)
        ):
            return "refused: another run listens here (the tokens differ)"
        if self._end_reason:
            return self._end_reason
        if hello.get("ranks") != self._ranks:
            return f"refused: rank {rank} was started for {hello.get('ranks')} ranks, rank 0 for {self._ranks}"
        if not 0 <= rank < self._ranks:
            return f"refused: there is no rank {rank} among {self._ranks}"
        if rank in self._writers:
            when = "the run has begun with another process" if self._begun else "another process is connected"
            return f"refused: a second rank {rank}: {when}"
        if self._agreed is not None and hello.get("agreed") != self._agreed:
            theirs, ours = hello.get("agreed") or {}, self._agreed
            differ = sorted(name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name))
            reason = f"rank {rank} was started differently: {', '.join(differ)}"
            self.end(reason)
            return reason
        return ""

    def _receive_request(self, rank: int, message: Message) -> None:
        if self._end_reason:
            return
        if "withdraw" in message:
            self._withdrawn.append((rank, str(message["withdraw"]), str(message["reason"])))
            _send(self._writers[rank], {})
            self._release()
            return
        if not self._waiting:
            point = _point(message)
            self._timer = asyncio.get_running_loop().call_later(float(message["timeout_s"]), self._time_out, point)
        self._waiting[rank] = message
        self._release()
        if len(self._waiting) < self._ranks:
            return
        points = sorted({_point(one) for one in self._waiting.values()})
        if len(points) > 1:
            self.end(f"ranks wait for each other at different points: {', '.join(points)}")
        else:
            self._answer()

    def _release(self) -> None:
        """Answers the ranks that wait at a barrier from which another rank has withdrawn."""
        for rank, message in list(self._waiting.items()):
            name = str(message.get("barrier", ""))
            reasons = {str(one): why for one, begin, why in self._withdrawn if one != rank and name.startswith(begin)}
            if reasons:
                del self._waiting[rank]
                _send(self._writers[rank], {"withdrawn": reasons})
        if not self._waiting and self._timer is not None:
            self._timer.cancel()

    def _answer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        waiting, self._waiting, self._begun = self._waiting, {}, True
        if "results" in waiting[0]:
            self._end_reason = "the run is over"
            every = {str(rank): message["results"] for rank, message in waiting.items()}
            for rank, writer in self._writers.items():
                _send(writer, {"results": every if rank == 0 else {}})
            self._writers.clear()
            return
        obstacles = {str(rank): one["obstacle"] for rank, one in waiting.items() if one["obstacle"]}
        for writer in self._writers.values():
            _send(writer, {"obstacles": obstacles})

    def _time_out(self, point: str) -> None:
        missing = set(range(self._ranks)) - set(self._waiting)
        self.end(f"{_ranks(missing)} did not reach {point} in time")

    def end(self, reason: str) -> None:
        """Ends the run on all ranks; the first reason is kept."""
        if self._end_reason:
            return
        self._end_reason = reason
        if self._timer is not None:
            self._timer.cancel()
        for writer in self._writers.values():
            with contextlib.suppress(OSError):
                _send(writer, {"end": reason})


def _point(message: Message) -> str:
    return "the end" if "results" in message else repr(str(message.get("barrier")))


def _send(writer: asyncio.StreamWriter, message: Message) -> None:
    data = json.dumps(message).encode()
    writer.write(_LENGTH.pack(len(data)) + data)


async def _receive(reader: asyncio.StreamReader) -> Message:
    (size_bytes,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if size_bytes > MOST_BYTES:
        raise ValueError("a message is too long")
    return _object(await reader.readexactly(size_bytes))


def _object(data: bytes) -> Message:
    message = json.loads(data)
    if not isinstance(message, dict):
        raise ValueError("a message is not a JSON object")
    return message


@contextmanager
def coordinating(address: str, port: int, ranks: int, token: str) -> Iterator[None]:
    """Listens in its own thread: on loopback if that is rank 0's address, else on all interfaces. Raises RankError."""
    loop = asyncio.new_event_loop()
    coordinator = Coordinator(ranks, token)
    host = "127.0.0.1" if address in LOOPBACK else None
    try:
        server = loop.run_until_complete(asyncio.start_server(coordinator.serve, host, port))
    except OSError as error:
        loop.close()
        raise RankError(f"rank 0 cannot listen on port {port}: {error.strerror or error}") from error
    thread = threading.Thread(target=loop.run_forever, name="coordinator", daemon=True)
    thread.start()
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(_close(server, coordinator), loop).result(GRACE_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(GRACE_S)
        loop.close()


async def _close(server: asyncio.Server, coordinator: Coordinator) -> None:
    """Notifies connected members, waits up to ``CLOSE_S`` for the last answers to be sent, and ends the connections."""
    server.close()
    coordinator.end("rank 0 ended before the run was over")
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    if tasks:
        await asyncio.wait(tasks, timeout=CLOSE_S)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0.05)  # transports close in the next iterations of the loop


class Member:
    """One rank's connection to the coordinator. Not for several threads."""

    def __init__(self, connection: socket.socket, rank: int) -> None:
        self._connection, self._rank = connection, rank

    def request(self, message: Message, timeout_s: float) -> Message:
        """Sends a message and waits for the answer. Raises RankError."""
        try:
            self._connection.settimeout(timeout_s + GRACE_S)
            self.send(message)
            answer = self.receive()
        except TimeoutError as error:
            raise RankError(f"rank 0 did not answer within {timeout_s + GRACE_S:g} s") from error
        except (OSError, EOFError) as error:
            raise RankError("rank 0 ended before the run was over") from error
        except ValueError as error:
            raise RankError(f"the server at rank 0's address is not hayloft bench: {error}") from error
        if "end" in answer:
            raise RankError(str(answer["end"]))
        return answer

    def send(self, message: Message) -> None:
        data = json.dumps(message).encode()
        self._connection.sendall(_LENGTH.pack(len(data)) + data)

    def receive(self) -> Message:
        (size_bytes,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if size_bytes > MOST_BYTES:
            raise ValueError("a message is too long")
        return _object(self._exactly(size_bytes))

    def _exactly(self, size_bytes: int) -> bytes:
        data = bytearray()
        while len(data) < size_bytes:
            piece = self._connection.recv(min(size_bytes - len(data), 1 << 20))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)


@contextmanager
def member(
    address: str, port: int, rank: int, ranks: int, token: str, agreed: Mapping[str, object], timeout_s: float
) -> Iterator[Member]:
    """Connects, and retries until rank 0 listens: its name may not even resolve yet. Raises RankError."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            connection = socket.create_connection((address, port), timeout=HELLO_S)
            break
        except OSError as error:
            if time.monotonic() >= deadline:
                raise RankError(f"rank 0 is not reached at {address}:{port}: {error.strerror or error}") from error
            time.sleep(RETRY_S)
    with connection:
        # A node that vanishes closes no connection: keepalive notices it.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        one = Member(connection, rank)
        try:
            nonce = str(one.receive().get("nonce"))
        except (OSError, EOFError, ValueError) as error:
            raise RankError(f"the server at {address}:{port} is not hayloft bench") from error
        hello = {"rank": rank, "ranks": ranks, "proof": _proof(token, nonce, rank), "agreed": agreed}
        one.request(hello, HELLO_S)
        yield one
