"""Fetches small objects on the event loop: many requests in flight, and no thread that waits for each.

An object of 110 kB takes 160 microseconds from its last byte until it is in the cache, while no other thread has the
interpreter. With a thread per request they pass it to each other a dozen times per object, and on two cores it was
1,050. So the loop's thread (``event_loop.py``) sends the requests, receives the bytes, and has them verified, answered
and written.

Work that keeps others busy goes first: a request that can be sent, then a reader that can be answered; writes to the
disk are deferred until no event is pending. Otherwise the store and the readers would be idle together, and then all of
them would wait for this thread.

It handles the fast path alone. A request that cannot be started without waiting, an unexpected response, an error and a
timeout go to the *fallback*: the fetch threads, which start over.
"""

from __future__ import annotations

import logging
import select
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from csi_driver.event_loop.event_loop import TICK_S, EventLoop, LoopWork, Step
from csi_driver.event_loop.once import Once
from csi_driver.objects.store import InFlightObject, UnusableResponse, WholeObject, whole_reader
from csi_driver.reading.fair_queue import FairQueue
from csi_driver.reading.fetcher import OTHERS_SHARE
from csi_driver.reading.services import ObjectSource

logger = logging.getLogger(__name__)

MAX_OBJECT_BYTES = 1 << 20
"""Larger objects take so long to receive that a thread for each costs little."""
MAX_IN_FLIGHT_BYTES = 32 << 20
"""Of all requests in flight: more than 128 objects of 110 kB have together, and a bound for larger ones."""
MAX_DEFERRED_BYTES = 8 << 20
"""Of objects that are answered and not yet written: more than a burst brings. Beyond it each answer is followed by a
write."""


class ObjectWrite(NamedTuple):
    """The write of an object that was received and answered."""

    step: Step
    awaited: bool
    """True if an open still waits for the file. If not, the write is deferred."""


class SmallFetch(Once):
    """A request for one object. ``received`` gets the object and returns its write, if there is one. ``fallback``,
    which must not raise, is called instead if the object cannot be had here, or after ``received`` if that raises."""

    __slots__ = ("fallback", "received", "source")

    def __init__(
        self, source: ObjectSource, received: Callable[[WholeObject], ObjectWrite | None], fallback: Callable[[], None]
    ) -> None:
        super().__init__()
        self.source, self.received, self.fallback = source, received, fallback


@dataclass(slots=True)
class _InFlight:
    fetch: SmallFetch
    response: InFlightObject
    last_received_s: float
    events: int
    """Registered with the loop's poll object."""


class SmallObjectFetcher(LoopWork):
    """``submit``, ``busy`` and ``close`` may be called from any thread. All other methods are called by the loop, one
    thread at a time, and only these touch the fields other than ``_submitted``; so no lock is needed."""

    def __init__(self, event_loop: EventLoop, max_requests: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Attaches itself to the loop, which the caller starts, and closes before this. ``max_requests`` are in flight
        at a time, for ``MAX_IN_FLIGHT_BYTES`` together."""
        self._event_loop = event_loop
        self._max_requests = max_requests
        self._max_requests_of_a_volume = max_requests - max_requests // OTHERS_SHARE
        self._clock = clock
        self._submitted: deque[SmallFetch] = deque()  # append and popleft are atomic
        self._queued: FairQueue[SmallFetch] = FairQueue()
        self._running: Counter[int] = Counter()
        """Requests by volume."""
        self._in_flight: dict[int, _InFlight] = {}
        """By descriptor."""
        self._in_flight_bytes = 0
        self._deferred: deque[tuple[Step, int]] = deque()
        """Writes, and the bytes of memory that each occupies."""
        self._deferred_bytes = 0
        event_loop.attach(self)

    @staticmethod
    def accepts(source: ObjectSource) -> bool:
        """True if the object is small enough, and its store can be asked without waiting."""
        return source.version.size_bytes <= MAX_OBJECT_BYTES and whole_reader(source.store) is not None

    def submit(self, fetch: SmallFetch) -> None:
        """Starts the request as soon as it is its volume's turn. Only for a source that this ``accepts``."""
        self._submitted.append(fetch)
        self._event_loop.wake()

    @property
    def busy(self) -> int:
        """Requests that are in flight or about to be."""
        return len(self._submitted) + len(self._in_flight)

    def close(self) -> None:
        """After the loop was closed: drops the writes for which there was no time, as the cache is closed next.
        Pending opens get no answer."""
        self._deferred.clear()

    # -- LoopWork --

    def register(self, poll: select.poll) -> None:
        for descriptor, in_flight in self._in_flight.items():
            poll.register(descriptor, in_flight.events)

    def poll_timeout_ms(self) -> float | None:
        return 0.0 if self._submitted or self._deferred else TICK_S * 1000 if self._in_flight else None

    def start_pending(self, poll: select.poll) -> None:
        while self._submitted:
            fetch = self._submitted.popleft()
            self._queued.put(fetch.source.volume, fetch)
        while (
            self._queued and len(self._in_flight) < self._max_requests and self._in_flight_bytes < MAX_IN_FLIGHT_BYTES
        ):
            taken = self._queued.take(self._running, self._max_requests_of_a_volume)
            if taken is None:
                return
            self._start(taken[1], poll)

    def on_ready(self, descriptor: int, poll: select.poll) -> Step | None:
        in_flight = self._in_flight[descriptor]
        fetch = in_flight.fetch
        try:
            whole = in_flight.response.advance()
        except Exception as error:
            if not isinstance(error, (UnusableResponse, OSError)):
                logger.exception("%s: unexpected error of a small fetch; a fetch thread retries it", _key(fetch))
            self._abort(descriptor, poll)
            return None
        if whole is None:
            in_flight.last_received_s = self._clock()
            if in_flight.events != in_flight.response.events:
                in_flight.events = in_flight.response.events
                poll.modify(descriptor, in_flight.events)
            return None
        self._remove(descriptor, poll)
        try:
            write = fetch.received(whole)
        except Exception:
            logger.exception("%s: unexpected error in an answer; a fetch thread fetches it again", _key(fetch))
            fetch.fallback()
            return None
        if write is None or write.awaited:
            return write and write.step
        size_bytes = fetch.source.version.size_bytes
        self._deferred.append((write.step, size_bytes))
        self._deferred_bytes += size_bytes
        return self.next_deferred() if self._deferred_bytes > MAX_DEFERRED_BYTES else None

    def next_deferred(self) -> Step | None:
        try:
            step, size_bytes = self._deferred.popleft()
        except IndexError:  # not `if`: close() may clear it at any moment
            return None
        self._deferred_bytes -= size_bytes
        return step

    def tick(self, poll: select.poll) -> None:
        now = self._clock()
        for descriptor, in_flight in list(self._in_flight.items()):
            if now - in_flight.last_received_s > in_flight.response.timeout_s:
                self._abort(descriptor, poll)

    def abort(self) -> None:
        while self._in_flight:
            self._in_flight.popitem()[1].response.abort()

    # -- inside --

    def _start(self, fetch: SmallFetch, poll: select.poll) -> None:
        version, response = fetch.source.version, None
        try:
            reader = whole_reader(fetch.source.store)
            if reader is not None:
                response = reader.begin_whole(version.key, version.size_bytes, if_match=version.etag)
        except Exception:
            logger.exception("%s: unexpected error at the start of a small fetch; retried by a thread", version.key)
        if response is None:
            fetch.fallback()
            return
        events = response.events
        self._in_flight[response.fileno()] = _InFlight(fetch, response, self._clock(), events)
        self._running[fetch.source.volume] += 1
        self._in_flight_bytes += version.size_bytes
        poll.register(response.fileno(), events)

    def _abort(self, descriptor: int, poll: select.poll) -> None:
        in_flight = self._remove(descriptor, poll)
        in_flight.response.abort()
        in_flight.fetch.fallback()

    def _remove(self, descriptor: int, poll: select.poll) -> _InFlight:
        in_flight = self._in_flight.pop(descriptor)
        source = in_flight.fetch.source
        volume = source.volume
        self._in_flight_bytes -= source.version.size_bytes
        poll.unregister(descriptor)
        self._running[volume] -= 1
        if not self._running[volume]:
            del self._running[volume]
        return in_flight


def _key(fetch: SmallFetch) -> str:
    return fetch.source.version.key
