"""Decides which work starts next: requests to stores, on threads or on the event loop, and reads from the disk.

Fetches for pending reads (DEMAND) go before readahead (AHEAD), and that before warmups (WARM). Among equals the
namespace, of this the store, and of this the volume goes first that has the least in flight (``fair_shares.py``). One
budget bounds the requests and the bytes in flight, and limits of bandwidth bound the bytes that are begun in a second.

Each method is one transition. Nothing here blocks, starts a thread or does the work: ``fetcher.py`` and
``small_object_fetcher.py`` do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from enum import Enum, IntEnum
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from csi_driver.event_loop.once import Once
from csi_driver.reading.bandwidth_limit import Pace
from csi_driver.reading.fair_queue import FairQueue
from csi_driver.reading.fair_shares import STALL_S, FairShares, Share, Slot

LIGHT_BYTES = 1 << 20
"""A fetch of at most so much is a light one: a store takes 20 to 200 ms for it, however small it is."""
LIGHT_FETCHES = 8
"""So many light fetches of warmups count as one of the others, which are of up to 16 MiB. With 4 at a time and 100 ms
each, files of 110 kB would be received at 4 MB/s; with 32 it is 35."""

MOST_WARM = 8
"""So many times as many fetches of warmups there are at the most, while others are stalled or a namespace or a store
waits that has less than an equal part."""


class Priority(IntEnum):
    """The smaller goes first."""

    DEMAND = 0
    """A reader waits for it."""
    AHEAD = 1
    """A reader will probably need it."""
    WARM = 2
    """A warmup. None begins while a read waits for its turn. While readers have work in flight, one fetch of a warmup
    runs beside them, or ``LIGHT_FETCHES`` light ones: with none, a warmup would never end beside a training that always
    reads."""


class Lane(Enum):
    """Where work is done."""

    THREADS = "threads"
    """One thread for each request."""
    LOOP = "loop"
    """The event loop: small objects."""
    DISK = "disk"
    """One thread for each read from the disk."""


class Work(Once):
    """Something to be done in one slot. It may be queued with several priorities; the first that is taken counts."""

    __slots__ = ("count_bytes", "pace", "unused_bytes")

    def __init__(self, count_bytes: int = 0, pace: Pace | None = None) -> None:
        """``count_bytes`` are requested from a store; they count for the limits of bandwidth: those of the node and of
        the volume, and ``pace`` if it has one of its own."""
        super().__init__()
        self.count_bytes, self.pace, self.unused_bytes = count_bytes, pace, 0
        """Of the former, what was not needed after all: to be set before the work ends."""


J = TypeVar("J", bound=Work)


class LaneLimits(NamedTuple):
    """The budget of a lane for readers."""

    shares: FairShares
    ahead: FairShares | None = None
    """Of those of readahead, which have a slot in ``shares`` too."""
    least_weight: int = 1
    weighs_bytes: bool = False
    """The weight of work in ``shares``: 1, or its bytes, but at least ``least_weight``: so one number limits requests
    and bytes."""


class Started(Generic[J]):
    """Work that was taken, and what it occupies until ``Scheduler.end``."""

    __slots__ = ("held", "lane", "paces", "priority", "share", "work")

    def __init__(self, work: J, share: Share, lane: Lane, priority: Priority) -> None:
        self.work, self.share, self.lane, self.priority = work, share, lane, priority
        self.held: list[tuple[FairShares, Slot]] = []
        self.paces: list[Pace] = []

    def progressed(self, now_s: float) -> None:
        """A byte was received. From any thread."""
        for _, slot in self.held:
            slot.progressed_s = now_s

    @property
    def progressed_s(self) -> float:
        """When a byte was received last, or since when it is in flight."""
        return self.held[0][1].progressed_s

    @property
    def slots(self) -> list[Slot]:
        return [slot for _, slot in self.held]

    @property
    def is_silent(self) -> bool:
        """Whether no byte was received for so long that it should be stalled."""
        shares, slot = self.held[0]
        return shares.is_silent(slot)


class _LaneState(Generic[J]):
    def __init__(self, limits: LaneLimits, warm: FairShares) -> None:
        self.limits = limits
        self.at_store_limit: set[Share] = set()
        self.queues: tuple[FairQueue[J], ...] = tuple(FairQueue() for _ in Priority)
        readahead = (limits.shares,) if limits.ahead is None else (limits.shares, limits.ahead)
        self.slots_in: tuple[tuple[FairShares, ...], ...] = (limits.shares,), readahead, (warm,)
        """By priority, what work takes slots in."""
        self.ordered = tuple(zip(Priority, self.queues, self.slots_in, strict=True))

    @property
    def readers_wait(self) -> bool:
        """Whether work for readers waits for other work that makes progress."""
        shares = self.limits.shares
        demand, ahead, _ = self.queues
        if demand.by_share and demand.waits(shares):
            return True
        return bool(ahead.by_share) and shares.active >= shares.limit


class Scheduler(Generic[J]):
    """Not locked: the caller serialises."""

    def __init__(
        self,
        lanes: Mapping[Lane, LaneLimits],
        warm_fetches: int,
        *,
        bytes_per_second: int = 0,
        may_warm: Callable[[], bool] = lambda: True,
        stall_s: float = STALL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``warm_fetches`` of warmups are in flight at a time, all together. ``bytes_per_second`` of the node; 0: no
        limit. No fetch of a warmup begins while ``may_warm`` is False."""
        self._may_warm = may_warm
        self._clock = clock
        self._most_warm = warm_fetches * LIGHT_FETCHES
        self._warm = FairShares(self._most_warm, self._most_warm * MOST_WARM, stall_s=stall_s, clock=clock)
        """In units of a light fetch."""
        self._lanes: dict[Lane, _LaneState[J]] = {
            lane: _LaneState(limits, self._warm) for lane, limits in lanes.items()
        }
        self._warm_queues = [state.queues[Priority.WARM] for state in self._lanes.values()]
        self._node = Pace(bytes_per_second) if bytes_per_second else None
        self._paces: dict[Share, Pace] = {}
        """Of the volumes that have a limit."""
        self._awaited: set[Pace] = set()
        """Limits of bandwidth that work has to wait for."""

    # -- what is to be done --

    def submit(self, lane: Lane, priority: Priority, share: Share, work: J) -> None:
        """Queues work of the share."""
        self._lanes[lane].queues[priority].put(share, work)

    def limit(self, share: Share, bytes_per_second: int) -> Pace | None:
        """A mount of the volume begins, which requests at most so many bytes a second, together with its other mounts;
        0: no limit. The result is for ``unlimit``."""
        if not bytes_per_second:
            return None
        pace = self._paces.setdefault(share, Pace(bytes_per_second))
        pace.bytes_per_second = bytes_per_second
        pace.users += 1
        return pace

    def unlimit(self, share: Share, pace: Pace | None) -> None:
        """The mount has ended."""
        if pace is not None:
            pace.users -= 1
            if not pace.users:
                self._paces.pop(share, None)

    def bytes_per_second(self, share: Share) -> int:
        """The lowest limit for a volume; 0: there is none."""
        paces = filter(None, (self._node, self._paces.get(share)))
        return min((pace.bytes_per_second for pace in paces), default=0)

    def hold_back(self, lane: Lane, share: Share) -> None:
        """The store of the volume has as many requests in flight as it may: none begins until ``admit``."""
        self._lanes[lane].at_store_limit.add(share)

    def admit(self, lane: Lane, share: Share) -> None:
        """Ends ``hold_back``."""
        self._lanes[lane].at_store_limit.discard(share)

    def clear(self) -> None:
        """Drops everything that is queued."""
        for lane in self._lanes.values():
            for queue in lane.queues:
                queue.clear()

    # -- what starts --

    def take(self, lane: Lane) -> Started[J] | None:
        """The work of the lane that starts now; None if none may. It is asked for each small object, several times."""
        state = self._lanes[lane]
        for priority, queue, shares in state.ordered:
            if queue.by_share and (priority is not Priority.WARM or self._may_warm_start()):
                now_s, admits = None, None
                if state.at_store_limit or self._has_limits or priority is Priority.WARM:
                    now_s = self._clock()
                    admits = partial(self._admits, state, lane, priority, now_s)
                found = queue.take(shares, admits)
                if found is not None:
                    return self._start(Started(found[1], found[0], lane, priority), shares, now_s)
        return None

    def may_start(self, lane: Lane) -> bool:
        """Whether work of the lane might start. Approximate: it leaves out limits of bandwidth, and of stores."""
        return any(
            queue.by_share
            and (priority is not Priority.WARM or self._may_warm_start())
            and queue.next_share(shares, None) is not None
            for priority, queue, shares in self._lanes[lane].ordered
        )

    def next_start_s(self) -> float | None:
        """When the first limit of bandwidth that work waits for lets it start; None: none waits for one."""
        if not self._awaited:
            return None
        now_s = self._clock()
        # What could not start then waits for something else.
        self._awaited = {pace for pace in self._awaited if pace.is_awaited(now_s)}
        return min((pace.next_start_s(now_s) for pace in self._awaited), default=None)

    def restart(self, started: Started[J]) -> None:
        """Takes slots anew after ``end``, whether or not there are any: for work that has waited for its store."""
        self._hold(started, self._lanes[started.lane].slots_in[started.priority])

    def end(self, started: Started[J]) -> None:
        """The work is done, or given up."""
        for shares, slot in started.held:
            shares.end(slot)
        if started.work.unused_bytes:
            for pace in started.paces:
                pace.give_back(started.work.unused_bytes)
        started.held, started.paces = [], []

    # -- what is stalled --

    def stall(self, started: Started[J]) -> None:
        """No byte was received for long: others get its place."""
        for shares, slot in started.held:
            if not slot.stalled:
                shares.stall(slot)

    def resume(self, started: Started[J]) -> None:
        """A byte was received again."""
        for shares, slot in started.held:
            if slot.stalled:
                shares.resume(slot)

    def mark_stalled(self, *lanes: Lane) -> None:
        """Looks at everything in flight in these lanes, and at the warmups'."""
        self._warm.mark_stalled()
        for lane in lanes:
            for shares in filter(None, self._lanes[lane].limits[:2]):
                shares.mark_stalled()

    # -- reports --

    def queued(self, lane: Lane) -> tuple[int, ...]:
        """Work that is queued in a lane, by priority."""
        return tuple(map(len, self._lanes[lane].queues))

    @property
    def is_idle(self) -> bool:
        """Whether nothing is queued, and no warmup has anything in flight."""
        return not self._warm.active and not any(any(lane.queues) for lane in self._lanes.values())

    @property
    def warmups_wait(self) -> bool:
        """Whether work of warmups is queued."""
        return any(queue.by_share for queue in self._warm_queues)

    def waits(self, lane: Lane) -> bool:
        """Whether work is queued in the lane."""
        return any(queue.by_share for queue in self._lanes[lane].queues)

    def active(self, lane: Lane) -> int:
        """The weight of the work for readers in a lane that is in flight and not stalled."""
        return self._lanes[lane].limits.shares.active

    def longest_wait_s(self, share: Share) -> float:
        """As ``FairShares.longest_wait_s``; reads from the disk do not count."""
        stores = [self._lanes[lane].limits.shares for lane in self._lanes if lane is not Lane.DISK]
        return max(shares.longest_wait_s(share) for shares in stores)

    def _admits(
        self, state: _LaneState[J], lane: Lane, priority: Priority, now_s: float, share: Share, work: J
    ) -> bool:
        if state.at_store_limit and share in state.at_store_limit:
            return False
        if work.pace is None and not self._has_limits:
            return True
        # Each is asked, so that the work is noted at all of those that it waits for.
        held_up = [pace for pace in self._paces_of(share, work) if not pace.may_start(lane, priority, now_s)]
        self._awaited.update(held_up)
        return not held_up

    def _paces_of(self, share: Share, work: J) -> list[Pace]:
        if not work.count_bytes or (work.pace is None and not self._has_limits):
            return []
        return [pace for pace in (self._node, self._paces.get(share), work.pace) if pace is not None]

    @property
    def _has_limits(self) -> bool:
        return self._node is not None or bool(self._paces)

    def _may_warm_start(self) -> bool:
        """Whether any warmup may begin a fetch; sets how many."""
        self._warm.limit = self._warm_limit()
        return self._warm.limit > 0

    def _warm_limit(self) -> int:
        if not self._may_warm():
            return 0
        limit = self._most_warm
        for lane in self._lanes.values():  # loops without generators: this is done for each small object, twice
            if lane.readers_wait:
                return 0
            if lane.limits.shares.active:
                limit = LIGHT_FETCHES
        return limit

    def _start(self, started: Started[J], shares: tuple[FairShares, ...], now_s: float | None) -> Started[J]:
        self._hold(started, shares)
        if now_s is not None:
            started.paces = self._paces_of(started.share, started.work)
            for pace in started.paces:
                pace.start(started.lane, started.work.count_bytes, now_s)
        return started

    def _hold(self, started: Started[J], shares: tuple[FairShares, ...]) -> None:
        share, count_bytes, limits = started.share, started.work.count_bytes, self._lanes[started.lane].limits
        if started.priority is Priority.WARM:
            weight = 1 if count_bytes <= LIGHT_BYTES else LIGHT_FETCHES
        else:
            weight = max(limits.least_weight, count_bytes) if limits.weighs_bytes else 1
        started.held = [(each, each.start(share, weight)) for each in shares]
