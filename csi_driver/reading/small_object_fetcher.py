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
import resource
import select
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from csi_driver.event_loop.event_loop import TICK_S, EventLoop, LoopWork, Step
from csi_driver.event_loop.once import Once
from csi_driver.objects.store import InFlightObject, StoreAtLimit, UnusableResponse, WholeObject, whole_reader
from csi_driver.reading.fair_queue import FairQueue
from csi_driver.reading.fair_shares import FairShares, Share, Slot
from csi_driver.reading.fetcher import OTHERS_SHARE
from csi_driver.reading.services import ObjectSource
from csi_driver.reading.warmup_admission import Foreground

logger = logging.getLogger(__name__)

MAX_OBJECT_BYTES = 1 << 20
"""Larger objects take so long to receive that a thread for each costs little."""
MAX_IN_FLIGHT_BYTES = 32 << 20
"""Of all requests in flight: more than 128 objects of 110 kB have together, and a bound for larger ones."""
MOST_REQUESTS = 4
"""So many times as many requests, and bytes, are in flight at the most, while others are stalled or a namespace or a
store waits that has less than an equal part."""
DESCRIPTORS_PART = 4
"""But no more than one of so many descriptors of the process."""
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
    slot: Slot
    events: int
    """Registered with the loop's poll object."""
    progress: int = 0


class _StoresAtLimit:
    """By share, the one request that waits for a slot of its store, and with it all others of the share."""

    def __init__(self) -> None:
        self._waiting: dict[Share, tuple[SmallFetch, StoreAtLimit]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def may_start(self, share: Share) -> bool:
        return share not in self._waiting

    def add(self, fetch: SmallFetch, limit: StoreAtLimit) -> None:
        """Until the slot is granted."""
        self._waiting[fetch.source.share] = fetch, limit

    def remove(self, share: Share) -> tuple[SmallFetch, StoreAtLimit]:
        """The share's request, which has its slot."""
        return self._waiting.pop(share)


class SmallObjectFetcher(LoopWork):
    """``submit``, ``busy``, ``foreground``, ``longest_wait_s`` and ``close`` may be called from any thread. All other
    methods are called by the loop, one thread at a time, and only these touch the fields other than ``_submitted`` and
    ``_granted``; so no lock is needed."""

    def __init__(self, event_loop: EventLoop, max_requests: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Attaches itself to the loop, which the caller starts, and closes before this. ``max_requests`` are in flight
        at a time, for ``MAX_IN_FLIGHT_BYTES`` together, without those that are stalled."""
        self._event_loop = event_loop
        self._clock = clock
        self._submitted: deque[SmallFetch] = deque()  # append and popleft are atomic
        self._queued: FairQueue[SmallFetch] = FairQueue()
        self._at_limit = _StoresAtLimit()
        self._granted: deque[Share] = deque()
        """Of these shares in ``_at_limit`` the request has its slot now; append and popleft are atomic."""
        self._request_bytes = MAX_IN_FLIGHT_BYTES // max_requests
        """A request counts as one for so many bytes at least, so that one number limits requests and bytes."""
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most_requests = min(max_requests * MOST_REQUESTS, max(max_requests, descriptors // DESCRIPTORS_PART))
        self._shares = FairShares(
            MAX_IN_FLIGHT_BYTES,
            self._request_bytes * most_requests,
            most_of_a_volume=MAX_IN_FLIGHT_BYTES - max_requests // OTHERS_SHARE * self._request_bytes,
            clock=clock,
        )
        self._may_start = False
        """Whether one of the queued may have become startable: with many volumes the look at all of them takes time."""
        self._in_flight: dict[int, _InFlight] = {}
        """By descriptor, without those in ``_stalled``."""
        self._stalled: dict[int, _InFlight] = {}
        self._stalled_poll = select.epoll()
        self._stalled_fd = self._stalled_poll.fileno()
        """Watches the stalled ones. The loop polls this one descriptor for them, so that a thousand of them do not make
        each of its polls slower."""
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
        """Requests that are in flight or about to be, without those that are stalled."""
        return len(self._submitted) + len(self._at_limit) + len(self._in_flight)

    def foreground(self) -> Foreground:
        """The work for readers at this moment, without what is stalled. Approximate: it takes no lock."""
        return Foreground(self._queued.waits(self._shares), self.busy)

    @property
    def queued(self) -> int:
        """Requests that wait for a slot. Approximate."""
        return len(self._submitted) + len(self._queued) + len(self._at_limit)

    def longest_wait_s(self, share: Share) -> float:
        """As ``FairShares.longest_wait_s``."""
        return self._shares.longest_wait_s(share)

    def close(self) -> None:
        """After the loop was closed: drops the writes for which there was no time, as the cache is closed next.
        Pending opens get no answer."""
        self._deferred.clear()
        self._stalled_poll.close()

    # -- LoopWork --

    def register(self, poll: select.poll) -> None:
        for descriptor, in_flight in self._in_flight.items():
            poll.register(descriptor, in_flight.events)
        poll.register(self._stalled_poll, select.POLLIN)

    def poll_timeout_ms(self) -> float | None:
        if self._submitted or self._granted or self._deferred:
            return 0.0
        return TICK_S * 1000 if self._in_flight or self._stalled else None

    def start_pending(self, poll: select.poll) -> None:
        while self._submitted:
            fetch = self._submitted.popleft()
            self._queued.put(fetch.source.share, fetch)
            self._may_start = True
        while self._granted:
            fetch, limit = self._at_limit.remove(self._granted.popleft())
            self._may_start = True
            self._start(fetch, poll, limit.begin)
        while self._may_start:
            taken = self._queued.take(self._shares, self._at_limit)
            self._may_start = taken is not None
            if taken is not None:
                self._start(taken[1], poll)

    def on_ready(self, descriptor: int, poll: select.poll) -> Step | None:
        if descriptor == self._stalled_fd:
            self._resume_stalled(poll)
            return None
        in_flight = self._in_flight[descriptor]
        fetch = in_flight.fetch
        try:
            whole = in_flight.response.advance()
        except BaseException as error:
            if not isinstance(error, (UnusableResponse, OSError)):
                logger.exception("%s: unexpected error of a small fetch; a fetch thread retries it", _key(fetch))
            self._abort(descriptor, poll)
            return None
        if whole is None:
            if in_flight.progress != (progress := in_flight.response.progress):
                in_flight.progress = progress
                in_flight.slot.progressed_s = self._clock()
            if in_flight.events != in_flight.response.events:
                in_flight.events = in_flight.response.events
                poll.modify(descriptor, in_flight.events)
            return None
        self._remove(descriptor, poll)
        try:
            write = fetch.received(whole)
        except BaseException:
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
        for descriptor, in_flight in [*self._in_flight.items(), *self._stalled.items()]:
            if now - in_flight.slot.progressed_s > in_flight.response.timeout_s:
                self._abort(descriptor, poll)
            elif not in_flight.slot.stalled and self._shares.is_silent(in_flight.slot):
                self._set_aside(descriptor, poll)

    def abort(self) -> None:
        for requests in (self._in_flight, self._stalled):
            while requests:
                requests.popitem()[1].response.abort()

    # -- inside --

    def _start(
        self, fetch: SmallFetch, poll: select.poll, begin: Callable[[], InFlightObject | None] | None = None
    ) -> None:
        """``begin``: in a slot of its store that it has waited for."""
        version, response = fetch.source.version, None
        try:
            if begin is not None:
                response = begin()
            elif (reader := whole_reader(fetch.source.store)) is not None:
                response = reader.begin_whole(version.key, version.size_bytes, if_match=version.etag)
            if response is not None:
                events = response.events
                poll.register(response.fileno(), events)
        except StoreAtLimit as limit:
            self._wait_for_store(fetch, limit)
            return
        except BaseException:
            logger.exception("%s: unexpected error at the start of a small fetch; retried by a thread", version.key)
            if response is not None:
                response.abort()
                response = None
        if response is None:
            fetch.fallback()
            return
        slot = self._shares.start(fetch.source.share, max(self._request_bytes, version.size_bytes))
        self._in_flight[response.fileno()] = _InFlight(fetch, response, slot, events)

    def _wait_for_store(self, fetch: SmallFetch, limit: StoreAtLimit) -> None:
        share = fetch.source.share
        self._at_limit.add(fetch, limit)

        def granted() -> None:
            self._granted.append(share)
            self._event_loop.wake()

        if limit.take(granted):  # one was given back meanwhile
            self._granted.append(share)

    def _abort(self, descriptor: int, poll: select.poll) -> None:
        in_flight = self._remove(descriptor, poll)
        try:
            in_flight.response.abort()
        finally:
            in_flight.fetch.fallback()

    def _remove(self, descriptor: int, poll: select.poll) -> _InFlight:
        in_flight = self._in_flight.pop(descriptor, None)
        # The caller answers the request from here on. What is not registered, because that failed, is no error.
        with suppress(KeyError, OSError):
            if in_flight is None:
                self._stalled_poll.unregister(descriptor)
            else:
                poll.unregister(descriptor)
        if in_flight is None:
            in_flight = self._stalled.pop(descriptor)
        self._shares.end(in_flight.slot)
        self._may_start = True
        return in_flight

    def _set_aside(self, descriptor: int, poll: select.poll) -> None:
        """The request is stalled."""
        in_flight = self._stalled[descriptor] = self._in_flight.pop(descriptor)
        poll.unregister(descriptor)
        self._stalled_poll.register(descriptor, in_flight.events)
        self._shares.stall(in_flight.slot)
        self._may_start = True

    def _resume_stalled(self, poll: select.poll) -> None:
        """Requests that were stalled are ready: the loop finds them ready with its next poll."""
        for descriptor, _ in self._stalled_poll.poll(0):
            in_flight = self._in_flight[descriptor] = self._stalled.pop(descriptor)
            self._stalled_poll.unregister(descriptor)
            poll.register(descriptor, in_flight.events)
            self._shares.resume(in_flight.slot)


def _key(fetch: SmallFetch) -> str:
    return fetch.source.version.key
