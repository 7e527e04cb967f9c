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
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from csi_driver.event_loop.event_loop import TICK_S, EventLoop, LoopWork, Step
from csi_driver.objects.store import InFlightObject, StoreAtLimit, UnusableResponse, WholeObject, whole_reader
from csi_driver.reading.bandwidth_limit import Pace
from csi_driver.reading.fair_shares import Share
from csi_driver.reading.fetcher import Fetcher
from csi_driver.reading.scheduler import Priority, Started, Work
from csi_driver.reading.services import ObjectSource

logger = logging.getLogger(__name__)

MAX_OBJECT_BYTES = 1 << 20
"""Larger objects take so long to receive that a thread for each costs little."""
MAX_DEFERRED_BYTES = 8 << 20
"""Of objects that are answered and not yet written: more than a burst brings. Beyond it each answer is followed by a
write."""


REPORT_S = 0.05
"""After so long the ends of requests are passed on, although no other work waits for them: a warmup that begins in this
time counts them as readers' requests in flight."""
_MOST_ENDED = 32


class ObjectWrite(NamedTuple):
    """The write of an object that was received and answered."""

    step: Step
    awaited: bool
    """True if an open still waits for the file. If not, the write is deferred."""


class SmallFetch(Work):
    """A request for one object. ``received`` gets the object and returns its write, if there is one. ``fallback``,
    which must not raise, is called instead if the object cannot be had here, or after ``received`` if that raises."""

    __slots__ = ("fallback", "received", "source", "wanted")

    def __init__(
        self,
        source: ObjectSource,
        received: Callable[[WholeObject], ObjectWrite | None],
        fallback: Callable[[], None],
        wanted: Callable[[], bool] | None = None,
        pace: Pace | None = None,
    ) -> None:
        """``wanted`` is called when it is the request's turn; False: it is not needed any more."""
        super().__init__(source.version.size_bytes, pace)
        self.source, self.received, self.fallback, self.wanted = source, received, fallback, wanted


@dataclass(slots=True)
class _InFlight:
    started: Started[SmallFetch]
    response: InFlightObject
    events: int
    """Registered with the loop's poll object."""
    progress: int = 0


class SmallObjectFetcher(LoopWork):
    """``submit``, ``busy`` and ``close`` may be called from any thread. All other methods are called by the loop, one
    thread at a time, and only these touch the fields other than ``_submitted``, ``_granted`` and ``_may_start``; so no
    lock is needed."""

    def __init__(self, event_loop: EventLoop, fetcher: Fetcher, clock: Callable[[], float] = time.monotonic) -> None:
        """Attaches itself to the loop, which the caller starts, and closes before this. ``fetcher`` decides which
        requests are in flight."""
        self._event_loop = event_loop
        self._fetcher = fetcher
        self._clock = clock
        self._submitted: deque[tuple[Priority, Share, Work]] = deque()  # append and popleft are atomic
        self._ended: list[Started[Any]] = []
        """Not passed on yet. The next exchange does, with what was submitted meanwhile: one lock for all of it. At once
        if other work waits for them, else after ``REPORT_S``."""
        self._report_at_s = 0.0
        self._others_wait = False
        """Whether other work waited at the last exchange."""
        self._at_limit: dict[Share, deque[Started[SmallFetch]]] = {}
        """Requests that wait for a slot of their store. The first of each share is in the queue of the store."""
        self._granted: deque[tuple[Share, StoreAtLimit]] = deque()
        """Of these shares the first request has its slot now; append and popleft are atomic."""
        self._may_start = False
        """Whether something else than this has changed what may start."""
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
        fetcher.attach_loop(self._look_again)

    @staticmethod
    def accepts(source: ObjectSource) -> bool:
        """True if the object is small enough, and its store can be asked without waiting."""
        return source.version.size_bytes <= MAX_OBJECT_BYTES and whole_reader(source.store) is not None

    def submit(self, fetch: SmallFetch, priority: Priority = Priority.DEMAND) -> None:
        """Starts the request as soon as it is its volume's turn. Only for a source that this ``accepts``."""
        self._submitted.append((priority, fetch.source.share, fetch))
        self._event_loop.wake()

    @property
    def busy(self) -> int:
        """Requests that are in flight or about to be, without those that are stalled."""
        return len(self._submitted) + len(self._at_limit) + len(self._in_flight)

    @property
    def submitted(self) -> int:
        """Requests that are not queued yet, or wait for their store. Approximate."""
        return len(self._submitted) + len(self._at_limit)

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
        if self._submitted or self._granted or self._may_start or self._deferred:
            return 0.0
        if self._ended:
            return 0.0 if self._others_wait else REPORT_S * 1000
        return TICK_S * 1000 if self._in_flight or self._stalled else None

    def start_pending(self, poll: select.poll) -> None:
        while self._granted:
            self._start_granted(*self._granted.popleft(), poll)
        while self._submitted or self._may_start or (self._ended and self._is_report_due):
            self._may_start = False  # first: it may be set again meanwhile
            submitted = [self._submitted.popleft() for _ in range(len(self._submitted))]
            ended, self._ended = self._ended, []
            starting, self._others_wait = self._fetcher.exchange(submitted, ended)
            for started in starting:
                self._start(started, poll)

    def on_ready(self, descriptor: int, poll: select.poll) -> Step | None:
        if descriptor == self._stalled_fd:
            self._resume_stalled(poll)
            return None
        in_flight = self._in_flight[descriptor]
        fetch = in_flight.started.work
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
                in_flight.started.progressed(self._clock())
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
            if now - in_flight.started.progressed_s > in_flight.response.timeout_s:
                self._abort(descriptor, poll)
            elif descriptor in self._in_flight and in_flight.started.is_silent:
                self._set_aside(descriptor, poll)

    def abort(self) -> None:
        for requests in (self._in_flight, self._stalled):
            while requests:
                requests.popitem()[1].response.abort()

    # -- inside --

    @property
    def _is_report_due(self) -> bool:
        return self._others_wait or len(self._ended) >= _MOST_ENDED or self._clock() >= self._report_at_s

    def _end(self, started: Started[Any]) -> None:
        """The request occupies nothing any more."""
        if not self._ended:
            self._report_at_s = self._clock() + REPORT_S
        self._ended.append(started)

    def _look_again(self) -> None:
        """From any thread."""
        self._may_start = True
        self._event_loop.wake()

    def _start(
        self,
        started: Started[SmallFetch],
        poll: select.poll,
        begin: Callable[[], InFlightObject | None] | None = None,
    ) -> None:
        """``begin``: in a slot of its store that it has waited for."""
        fetch = started.work
        version, response = fetch.source.version, None
        try:
            if begin is not None:
                response = begin()
            elif fetch.wanted is not None and not fetch.wanted():
                fetch.unused_bytes = fetch.count_bytes
                self._end(started)
                return
            elif (reader := whole_reader(fetch.source.store)) is not None:
                fetch.wanted = None  # it is asked once, also if the store is at its limit
                response = reader.begin_whole(version.key, version.size_bytes, if_match=version.etag)
            if response is not None:
                events = response.events
                poll.register(response.fileno(), events)
        except StoreAtLimit as limit:
            self._wait_for_store(started, limit)
            return
        except BaseException:
            logger.exception("%s: unexpected error at the start of a small fetch; retried by a thread", version.key)
            if response is not None:
                response.abort()
                response = None
        if response is None:
            fetch.unused_bytes = fetch.count_bytes
            self._end(started)
            fetch.fallback()
            return
        self._in_flight[response.fileno()] = _InFlight(started, response, events)

    def _wait_for_store(self, started: Started[SmallFetch], limit: StoreAtLimit) -> None:
        share = started.share
        self._fetcher.hold_back(started)
        waiting = self._at_limit.setdefault(share, deque())
        waiting.append(started)
        if len(waiting) > 1:
            return

        def granted() -> None:
            self._granted.append((share, limit))
            self._event_loop.wake()

        if limit.take(granted):  # one was given back meanwhile
            self._granted.append((share, limit))

    def _start_granted(self, share: Share, limit: StoreAtLimit, poll: select.poll) -> None:
        """The first request of the share has a slot of its store; the others may find one, too."""
        waiting = self._at_limit.pop(share)
        first = waiting.popleft()
        self._fetcher.restart(first)
        self._start(first, poll, limit.begin)
        while waiting:
            following = waiting.popleft()
            self._fetcher.restart(following)
            self._start(following, poll)
            if share in self._at_limit:
                self._at_limit[share].extend(waiting)
                return
        self._fetcher.admit(share)
        self._may_start = True

    def _abort(self, descriptor: int, poll: select.poll) -> None:
        in_flight = self._remove(descriptor, poll)
        try:
            in_flight.response.abort()
        finally:
            in_flight.started.work.fallback()

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
        self._end(in_flight.started)
        return in_flight

    def _set_aside(self, descriptor: int, poll: select.poll) -> None:
        """The request is stalled."""
        in_flight = self._stalled[descriptor] = self._in_flight.pop(descriptor)
        poll.unregister(descriptor)
        self._stalled_poll.register(descriptor, in_flight.events)
        self._fetcher.stall(in_flight.started)
        self._may_start = True

    def _resume_stalled(self, poll: select.poll) -> None:
        """Requests that were stalled are ready: the loop finds them ready with its next poll."""
        for descriptor, _ in self._stalled_poll.poll(0):
            in_flight = self._in_flight[descriptor] = self._stalled.pop(descriptor)
            self._stalled_poll.unregister(descriptor)
            poll.register(descriptor, in_flight.events)
            self._fetcher.resume(in_flight.started)


def _key(fetch: SmallFetch) -> str:
    return fetch.source.version.key
