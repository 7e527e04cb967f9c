"""Small objects, fetched by one thread: many requests under way, and no thread that waits for each.

An object of 110 kB takes 160 microseconds from its arrival until it is in the cache, when nobody else wants the
interpreter. With a thread for each request they hand it to each other a dozen times an object, and on two cores it was
1,050. So one thread (see ``loop.py``) sends the requests, takes what comes, has it checked, answered and written, and
goes on.

What keeps others busy goes first: a request that can be sent, then a reader that can be answered, and a write to the
disk when nothing else has come. Otherwise the store and the readers stand still together, and then all of them wait
for this thread.

It does only what goes smoothly. What cannot be begun without waiting, what the store answers otherwise, and what does
not come in time is done ``elsewhere``: by the threads of the fetcher, from the beginning.
"""

from __future__ import annotations

import logging
import select
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from csi_driver.event_loop.event_loop import LOOK_S, EventLoop, Step
from csi_driver.objects.store import InFlightObject, NotPlain, Whole, whole_reader
from csi_driver.reading.fair_queue import Claimed, FairQueue
from csi_driver.reading.fetcher import OTHERS_SHARE
from csi_driver.reading.services import ObjectSource

logger = logging.getLogger(__name__)

MOST_BYTES = 1 << 20
"""Larger objects take so long to come that a thread for each costs little."""
MOST_BYTES_COMING = 32 << 20
"""Of all that is under way: more than 128 objects of 110 kB have together, and a bound for larger ones."""
MOST_BYTES_LEFT = 8 << 20
"""Of objects that were answered and are not written. More than a burst brings; beyond it each answer waits for a write.
"""


class Rest(NamedTuple):
    """What is left to do with an object that has come."""

    work: Step
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
    coming: InFlightObject
    heard_s: float
    """When something came last."""
    events: int
    """What is waited for."""


class SmallObjectFetcher:
    """See the module. ``submit``, ``busy`` and ``close`` may be called from any thread. The others are for the loop,
    one thread of which at a time touches all fields but ``_submitted``.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        """``most`` requests under way, of ``MOST_BYTES_COMING`` together. Starts the thread."""
        self._most = most
        self._most_of_a_volume = most - most // OTHERS_SHARE
        self._clock = clock
        self._submitted: deque[SmallFetch] = deque()
        self._waiting: FairQueue[SmallFetch] = FairQueue()
        self._running: Counter[int] = Counter()
        """Requests by volume."""
        self._coming_bytes = 0
        self._flights: dict[int, _Flight] = {}
        """By descriptor."""
        self._left: deque[tuple[Step, int]] = deque()
        """And how many bytes of memory it keeps."""
        self._left_bytes = 0
        self.loop = EventLoop(self, clock)
        """Its thread does what others want done without a thread of their own, too."""
        self.loop.start()

    @staticmethod
    def takes(source: ObjectSource) -> bool:
        """Whether the object is small enough, and its store one that can be asked without waiting."""
        return source.version.size_bytes <= MOST_BYTES and whole_reader(source.store) is not None

    def submit(self, fetch: SmallFetch) -> None:
        """Begins it as soon as it is its volume's turn. Only what it ``takes``."""
        self._submitted.append(fetch)
        self.loop.awake()

    @property
    def busy(self) -> int:
        """Requests that are under way or about to be."""
        return len(self._submitted) + len(self._flights)

    def close(self) -> None:
        """Ends the thread, see ``EventLoop.close``. Who still waits gets no answer, and what is not written by then is
        dropped."""
        self.loop.close()
        self._left.clear()

    # -- for the loop, see ``LoopWork`` --

    def resume(self, poll: select.poll) -> None:
        """See Work."""
        for descriptor, flight in self._flights.items():
            poll.register(descriptor, flight.events)

    def wait_ms(self) -> float | None:
        """See Work."""
        return 0.0 if self._submitted or self._left else LOOK_S * 1000 if self._flights else None

    def begin(self, poll: select.poll) -> None:
        """See Work."""
        while self._submitted:
            fetch = self._submitted.popleft()
            self._waiting.put(fetch.source.volume, fetch)
        while self._waiting and len(self._flights) < self._most and self._coming_bytes < MOST_BYTES_COMING:
            taken = self._waiting.take(self._running, self._most_of_a_volume)
            if taken is None:
                return
            self._begin(taken[1], poll)

    def take(self, descriptor: int, poll: select.poll) -> Step | None:
        """See Work."""
        flight = self._flights[descriptor]
        try:
            whole = flight.coming.advance()
        except Exception as error:
            if not isinstance(error, (NotPlain, OSError)):
                logger.exception("a small fetch failed in a way nobody foresaw")
            self._end(descriptor, poll)
            flight.coming.give_up()
            flight.fetch.elsewhere()
            return None
        if whole is None:
            flight.heard_s = self._clock()
            if flight.events != flight.coming.events:
                flight.events = flight.coming.events
                poll.modify(descriptor, flight.events)
            return None
        self._end(descriptor, poll)
        try:
            rest = flight.fetch.arrived(whole)
        except Exception:
            logger.exception("a small object could not be answered in a way nobody foresaw")
            flight.fetch.elsewhere()
            return None
        if rest is None or rest.awaited:
            return rest and rest.work
        size_bytes = flight.fetch.source.version.size_bytes
        self._left.append((rest.work, size_bytes))
        self._left_bytes += size_bytes
        return self.next_left() if self._left_bytes > MOST_BYTES_LEFT else None

    def next_left(self) -> Step | None:
        """See Work."""
        try:
            step, size_bytes = self._left.popleft()
        except IndexError:
            return None
        self._left_bytes -= size_bytes
        return step

    def look(self, poll: select.poll) -> None:
        """See Work. Gives up what does not come."""
        now = self._clock()
        for descriptor, flight in list(self._flights.items()):
            if now - flight.heard_s > flight.coming.timeout_s:
                self._end(descriptor, poll)
                flight.coming.give_up()
                flight.fetch.elsewhere()

    def give_up(self) -> None:
        """See Work."""
        while self._flights:
            self._flights.popitem()[1].coming.give_up()

    # -- inside --

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

    def _end(self, descriptor: int, poll: select.poll) -> None:
        """A request is no longer under way."""
        source = self._flights.pop(descriptor).fetch.source
        volume = source.volume
        self._coming_bytes -= source.version.size_bytes
        poll.unregister(descriptor)
        self._running[volume] -= 1
        if not self._running[volume]:
            del self._running[volume]
