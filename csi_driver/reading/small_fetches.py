"""Small objects, fetched by one thread: many requests under way, and no thread that waits for each.

An object of 110 kB takes 160 microseconds from its arrival until it is in the cache, when nobody else wants the
interpreter. With a thread for each request they hand it to each other a dozen times an object, and on two cores it was
1,050. So one thread sends the requests, takes what comes, has it checked, answered and written, and goes on.

What keeps others busy goes first: a request that can be sent, then a reader that can be answered, and a write to the
disk when nothing else has come. Otherwise the store and the readers stand still together, and then all of them wait
for this thread.

It does only what goes smoothly. What cannot be begun without waiting, what the store answers otherwise, and what does
not come in time is done ``elsewhere``: by the threads of the fetcher, from the beginning. A write that gets stuck does
not stop the others: another thread goes on in the place of the one that writes.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from csi_driver.objects.store import Coming, NotPlain, Whole, whole_reader
from csi_driver.reading.fetcher import OTHERS_SHARE
from csi_driver.reading.turns import Claimed, Turn, Turns
from csi_driver.reading.world import ObjectSource

logger = logging.getLogger(__name__)

MOST_BYTES = 1 << 20
"""Larger objects take so long to come that a thread for each costs little."""
MOST_BYTES_COMING = 32 << 20
"""Of all that is under way: more than 128 objects of 110 kB have together, and a bound for larger ones."""
MOST_BYTES_LEFT = 8 << 20
"""Of objects that were answered and are not written. More than a burst brings; beyond it each answer waits for a write.
"""
_LOOK_S = 1.0
"""How often it is looked for answers that do not come."""
_STOP_S, _LOOK_AGAIN_S = 3.0, 0.05

Rescue = Callable[[], None]


class Rest(NamedTuple):
    """What is left to do with an object that has come."""

    work: Callable[[Rescue], None]
    """Gets what to call, from any thread, when it is stuck."""
    awaited: bool
    """Whether somebody waits for it. If nobody does, it waits itself."""


class SmallFetch(Claimed):
    """One object. ``arrived`` gets it, and tells what is left to do; ``elsewhere``, which must not raise, is called in
    its place if nothing usable comes, and after it if it raises."""

    __slots__ = ("arrived", "elsewhere", "source")

    def __init__(
        self, source: ObjectSource, arrived: Callable[[Whole], Rest | None], elsewhere: Callable[[], None]
    ) -> None:
        super().__init__()
        self.source, self.arrived, self.elsewhere = source, arrived, elsewhere


@dataclass(slots=True)
class _Flight:
    fetch: SmallFetch
    coming: Coming
    heard_s: float
    """When something came last."""
    events: int
    """What is waited for."""


class SmallFetches:
    """See the module. Methods may be called from any thread.

    One thread at a time touches ``_flights``, ``_waiting``, ``_running``, ``_left`` and the counts of bytes: the first,
    or whoever went on in its place. ``_lock`` guards ``_bell``, so that nobody rings one that is gone.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        """``most`` requests under way, of ``MOST_BYTES_COMING`` together. Starts the thread."""
        self._most = most
        self._most_of_a_volume = most - most // OTHERS_SHARE
        self._clock = clock
        self._submitted: deque[SmallFetch] = deque()
        self._waiting: Turns[SmallFetch] = Turns()
        self._running: Counter[int] = Counter()
        """Requests by volume."""
        self._coming_bytes = 0
        self._flights: dict[int, _Flight] = {}
        """By descriptor."""
        self._left: deque[tuple[Rest, int]] = deque()
        """And how many bytes of memory it keeps."""
        self._left_bytes = 0
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._sleeping = False
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._go_on()

    @staticmethod
    def takes(source: ObjectSource) -> bool:
        """Whether the object is small enough, and its store one that can be asked without waiting."""
        return source.version.size_bytes <= MOST_BYTES and whole_reader(source.store) is not None

    def submit(self, fetch: SmallFetch) -> None:
        """Begins it as soon as it is its volume's turn. Only what it ``takes``."""
        self._submitted.append(fetch)
        if self._sleeping:
            self._ring()

    @property
    def busy(self) -> int:
        """Requests that are under way or about to be."""
        return len(self._submitted) + len(self._flights)

    def close(self) -> None:
        """Ends the thread, which does before what is left, as far as that takes no more than 3 s. Who still waits gets
        no answer."""
        self._closing.set()
        self._ring()
        until = time.monotonic() + _STOP_S
        while self._thread.is_alive() and time.monotonic() < until:
            self._thread.join(_LOOK_AGAIN_S)  # another one may have gone on in its place
        self._left.clear()
        with self._lock:
            os.close(self._bell)
            self._bell = -1

    def _ring(self) -> None:
        self._sleeping = False
        with self._lock:
            if self._bell >= 0:
                os.eventfd_write(self._bell, 1)

    # -- the thread --

    def _go_on(self) -> None:
        """In a new thread: the first, or one in place of one that is stuck."""
        thread = threading.Thread(target=self._work, name="small", daemon=True)
        thread.start()
        self._thread = thread

    def _work(self) -> None:
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        for descriptor, flight in self._flights.items():
            poll.register(descriptor, flight.events)
        look_s = self._clock() + _LOOK_S
        while not self._closing.is_set():
            if not self._do_what_came(poll) or (self._left and not self._finish_oldest()):
                return
            if self._clock() >= look_s:
                look_s = self._clock() + _LOOK_S
                self._give_up_late(poll)
        while self._flights:
            self._flights.popitem()[1].coming.give_up()
        while self._left and self._finish_oldest():
            pass

    def _do_what_came(self, poll: select.poll) -> bool:
        """Waits, if there is nothing to do. False if another thread has gone on meanwhile."""
        self._begin_all(poll)
        for descriptor, _ in self._events(poll):
            if self._closing.is_set():
                break
            if descriptor == self._bell:
                os.eventfd_read(descriptor)
            elif not self._take(descriptor, poll):
                return False
            self._begin_all(poll)
        return True

    def _events(self, poll: select.poll) -> list[tuple[int, int]]:
        # Whoever submits after this rings; whoever submitted before is seen here.
        self._sleeping = True
        wait_ms = 0.0 if self._submitted or self._left else _LOOK_S * 1000 if self._flights else None
        events = poll.poll(wait_ms)
        self._sleeping = False
        return events

    def _begin_all(self, poll: select.poll) -> None:
        while self._submitted:
            fetch = self._submitted.popleft()
            self._waiting.put(fetch.source.volume, fetch)
        while self._waiting and len(self._flights) < self._most and self._coming_bytes < MOST_BYTES_COMING:
            taken = self._waiting.take(self._running, self._most_of_a_volume)
            if taken is None:
                return
            self._begin(taken[1], poll)

    def _begin(self, fetch: SmallFetch, poll: select.poll) -> None:
        version, coming = fetch.source.version, None
        try:
            reader = whole_reader(fetch.source.store)
            if reader is not None:
                coming = reader.begin_whole(version.key, version.size_bytes, if_match=version.etag)
        except Exception:
            logger.exception("a small fetch could not be begun in a way nobody foresaw")
        if coming is None:
            fetch.elsewhere()
            return
        events = coming.events
        self._flights[coming.fileno()] = _Flight(fetch, coming, self._clock(), events)
        self._running[fetch.source.volume] += 1
        self._coming_bytes += version.size_bytes
        poll.register(coming.fileno(), events)

    def _take(self, descriptor: int, poll: select.poll) -> bool:
        """False if another thread has gone on meanwhile."""
        flight = self._flights[descriptor]
        try:
            whole = flight.coming.advance()
        except Exception as error:
            if not isinstance(error, (NotPlain, OSError)):
                logger.exception("a small fetch failed in a way nobody foresaw")
            self._end(descriptor, poll)
            flight.coming.give_up()
            flight.fetch.elsewhere()
            return True
        if whole is None:
            flight.heard_s = self._clock()
            if flight.events != flight.coming.events:
                flight.events = flight.coming.events
                poll.modify(descriptor, flight.events)
            return True
        self._end(descriptor, poll)
        try:
            rest = flight.fetch.arrived(whole)
        except Exception:
            logger.exception("a small object could not be answered in a way nobody foresaw")
            flight.fetch.elsewhere()
            return True
        if rest is None:
            return True
        if rest.awaited:
            return self._finish(rest)
        size_bytes = flight.fetch.source.version.size_bytes
        self._left.append((rest, size_bytes))
        self._left_bytes += size_bytes
        return self._left_bytes <= MOST_BYTES_LEFT or self._finish_oldest()

    def _finish_oldest(self) -> bool:
        """False if another thread has gone on meanwhile."""
        try:
            rest, size_bytes = self._left.popleft()
        except IndexError:  # dropped by ``close``
            return True
        self._left_bytes -= size_bytes
        return self._finish(rest)

    def _finish(self, rest: Rest) -> bool:
        """False if another thread has gone on meanwhile."""
        turn = Turn()

        def rescue() -> None:
            if turn.take():
                self._go_on()

        try:
            rest.work(rescue)
        except Exception:
            # Who waited has an answer: it is given before anything is raised.
            logger.exception("a small object could not be kept in a way nobody foresaw")
        return turn.take()

    def _end(self, descriptor: int, poll: select.poll) -> None:
        """A request is no longer under way."""
        source = self._flights.pop(descriptor).fetch.source
        volume = source.volume
        self._coming_bytes -= source.version.size_bytes
        poll.unregister(descriptor)
        self._running[volume] -= 1
        if not self._running[volume]:
            del self._running[volume]

    def _give_up_late(self, poll: select.poll) -> None:
        now = self._clock()
        for descriptor, flight in list(self._flights.items()):
            if now - flight.heard_s > flight.coming.timeout_s:
                self._end(descriptor, poll)
                flight.coming.give_up()
                flight.fetch.elsewhere()
