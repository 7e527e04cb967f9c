"""Small objects, fetched by one thread: many requests under way, and no thread that waits for each.

An object of 110 kB takes 160 microseconds from its arrival until it is in the cache, when nobody else wants the
interpreter. With a thread for each request they hand it to each other a dozen times an object, and on two cores it was
1,050. So one thread sends the requests, takes what comes, has it checked, answered and written, and goes on.

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
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from csi_driver.model.errors import HayloftError
from csi_driver.objects.store import Coming, NotPlain, Whole
from csi_driver.reading.turns import Turn

logger = logging.getLogger(__name__)

MOST_BYTES = 1 << 20
"""Larger objects take so long to come that a thread for each costs little; and this bounds the memory."""
_LOOK_S = 1.0
"""How often it is looked for answers that do not come."""
_STOP_S = 3.0

Rescue = Callable[[], None]


@dataclass(frozen=True, slots=True)
class SmallFetch:
    """One object. ``begin`` asks for it; ``arrived`` gets it, and what to call, from any thread, when it is stuck;
    ``elsewhere``, which must not raise, is called in its place if nothing usable comes."""

    begin: Callable[[], Coming | None]
    arrived: Callable[[Whole, Rescue], None]
    elsewhere: Callable[[], None]


@dataclass(slots=True)
class _Flight:
    fetch: SmallFetch
    coming: Coming
    heard_s: float
    """When something came last."""


class SmallFetches:
    """See the module. ``submit`` may be called from any thread.

    One thread at a time touches ``_flights``: the first, or whoever went on in its place.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        """``most`` requests under way. Starts the thread."""
        self._most = most
        self._clock = clock
        self._waiting: deque[SmallFetch] = deque()
        self._flights: dict[int, _Flight] = {}
        """By descriptor."""
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._sleeping = False
        self._closing = False
        self._go_on()

    def submit(self, fetch: SmallFetch) -> None:
        """Begins it as soon as may be."""
        self._waiting.append(fetch)
        if self._sleeping:
            self._ring()

    @property
    def busy(self) -> int:
        """Requests that wait or are under way."""
        return len(self._waiting) + len(self._flights)

    def close(self) -> None:
        """Ends the thread. Who still waits gets no answer."""
        self._closing = True
        self._ring()
        self._thread.join(_STOP_S)
        if not self._thread.is_alive():
            os.close(self._bell)

    def _ring(self) -> None:
        self._sleeping = False
        os.eventfd_write(self._bell, 1)

    # -- the thread --

    def _go_on(self) -> None:
        """In a new thread: the first, or one in place of one that is stuck."""
        self._thread = threading.Thread(target=self._work, name="small", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        for descriptor in self._flights:
            poll.register(descriptor, select.POLLIN)
        look_s = self._clock() + _LOOK_S
        while not self._closing:
            for descriptor, _ in self._events(poll):
                if descriptor == self._bell:
                    self._hear()
                elif not self._take(descriptor, poll):
                    return
            while self._waiting and len(self._flights) < self._most:
                self._begin(self._waiting.popleft(), poll)
            if self._clock() >= look_s:
                look_s = self._clock() + _LOOK_S
                self._give_up_late(poll)
        for flight in self._flights.values():
            flight.coming.give_up()

    def _events(self, poll: select.poll) -> list[tuple[int, int]]:
        full = len(self._flights) >= self._most
        # Whoever submits after this rings; whoever submitted before is seen here.
        self._sleeping = True
        wait_ms = 0.0 if self._waiting and not full else _LOOK_S * 1000 if self._flights else None
        events = poll.poll(wait_ms)
        self._sleeping = False
        return events

    def _hear(self) -> None:
        try:
            os.eventfd_read(self._bell)
        except BlockingIOError:
            return

    def _begin(self, fetch: SmallFetch, poll: select.poll) -> None:
        try:
            coming = fetch.begin()
        except HayloftError:
            coming = None
        except Exception:
            logger.exception("a small fetch could not be begun in a way nobody foresaw")
            coming = None
        if coming is None:
            fetch.elsewhere()
            return
        self._flights[coming.fileno()] = _Flight(fetch, coming, self._clock())
        poll.register(coming.fileno(), select.POLLIN)

    def _take(self, descriptor: int, poll: select.poll) -> bool:
        """False if another thread has gone on meanwhile."""
        flight = self._flights[descriptor]
        try:
            whole = flight.coming.advance()
        except (NotPlain, OSError):
            self._let_go(descriptor, poll)
            return True
        if whole is None:
            flight.heard_s = self._clock()
            return True
        del self._flights[descriptor]
        poll.unregister(descriptor)
        turn = Turn()

        def rescue() -> None:
            if turn.take():
                self._go_on()

        try:
            flight.fetch.arrived(whole, rescue)
        except Exception:
            # Who waited has an answer: it is given before anything is raised.
            logger.exception("a small fetch failed in a way nobody foresaw")
        return turn.take()

    def _let_go(self, descriptor: int, poll: select.poll) -> None:
        flight = self._flights.pop(descriptor)
        poll.unregister(descriptor)
        flight.coming.give_up()
        flight.fetch.elsewhere()

    def _give_up_late(self, poll: select.poll) -> None:
        now = self._clock()
        late = [
            descriptor for descriptor, flight in self._flights.items() if now - flight.heard_s > flight.coming.timeout_s
        ]
        for descriptor in late:
            self._let_go(descriptor, poll)
