"""Shares a number of slots (threads, requests in flight) among namespaces, their stores, and the volumes of these.

A request that brings no byte for seconds is *stalled*: its slot is counted for its own namespace, store and volume, and
not for the others, which get another one in its place. So a store that hangs, or a hundred of them, cost the node some
sleeping threads and descriptors, and the other volumes nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

STALL_S = 3.0
"""A request without a byte for so long is stalled. Stores that work answer within a second, and in between send a piece
of 64 KiB within 3 s at 22 kB/s."""

_STORE_PART, _VOLUME_PART = 2, 3
"""A namespace may hold as many slots as are free, a store half as many, a volume a third: so with one namespace that
takes all it gets, half of the slots stay free, with four of them a fifth."""

_MOST_IDLE_HOLDERS = 1000
"""Volumes without a slot that are remembered: finding them again costs less than making them anew."""


class Share(NamedTuple):
    """The owner of some work."""

    namespace: str = ""
    """Empty for volumes of administrators of an unknown namespace."""
    endpoint: str = ""
    """Of the store."""
    volume: str = ""


class _Holder:
    """A namespace, a store or a volume, and the weight of its slots: all of them, and those that are not stalled."""

    __slots__ = ("active", "held")

    def __init__(self) -> None:
        self.held = self.active = 0


_Holders = tuple[_Holder, _Holder, _Holder]
"""Of a share: its namespace, its store, its volume."""


class Slot:
    """One slot in use. ``progressed_s``, when a byte was received last, may be set by any thread."""

    __slots__ = ("holders", "progressed_s", "stalled", "weight")

    def __init__(self, holders: _Holders, weight: int, now: float) -> None:
        self.holders, self.weight = holders, weight
        self.progressed_s = now
        self.stalled = False


class FairShares:
    """Not locked: the caller serialises."""

    def __init__(
        self,
        limit: int,
        most: int,
        *,
        most_of_a_volume: int = 0,
        stall_s: float = STALL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``limit`` slots are in use at a time, without those that are stalled, and ``most`` with them; at least four
        times ``limit``, or it would not be reached by a volume alone. ``most_of_a_volume`` (0: no such limit) is of
        slots that are not stalled."""
        self.limit = limit
        """May be changed at any time."""
        self.active = 0
        """Weight of the slots that are not stalled. May be read without the caller's lock."""
        self._most = most
        self._most_of_a_volume = most_of_a_volume
        self._stall_s = stall_s
        self._clock = clock
        self._slots: set[Slot] = set()
        self._held = 0
        self._holders: dict[Share, _Holders] = {}
        self._by_level: tuple[dict[tuple[str, ...], _Holder], ...] = {}, {}
        """Namespaces, and stores of a namespace."""
        self._namespaces = self._stores = 0
        """How many of them hold slots."""

    def held(self, share: Share) -> tuple[int, int, int]:
        """What the share's namespace, store and volume hold. The smaller goes first."""
        namespace, store, volume = self._holders_of(share)
        return namespace.held, store.held, volume.held

    def may_start(self, share: Share) -> bool:
        """Whether the share gets one more slot. Beyond ``limit`` it does while its namespace, or its store, has less
        than an equal part of ``limit``: it does not wait until others have ended what they have begun."""
        namespace, store, volume = self._holders_of(share)
        free = self._most - self._held
        if namespace.held >= free or store.held * _STORE_PART >= free or volume.held * _VOLUME_PART >= free:
            return False
        if 0 < self._most_of_a_volume <= volume.active:
            return False
        return (
            self.active < self.limit
            or self._is_below_part(namespace, self._namespaces)
            or self._is_below_part(store, self._stores)
        )

    def waits_for_progress(self, share: Share) -> bool:
        """Whether the share has no slot now because all of them, or all of its volume's, are in use and not stalled.
        Without the caller's lock."""
        holders = self._holders.get(share)
        most = self._most_of_a_volume
        return self.active >= self.limit or (holders is not None and 0 < most <= holders[2].active)

    def start(self, share: Share, weight: int = 1) -> Slot:
        """Takes a slot until ``end``, whether or not there is one."""
        namespace, store, volume = holders = self._holders_of(share)
        slot = Slot(holders, weight, self._clock())
        self._slots.add(slot)
        self._namespaces += not namespace.held
        self._stores += not store.held
        self._held += weight
        namespace.held += weight
        store.held += weight
        volume.held += weight
        volume.active += weight
        self.active += weight
        return slot

    def end(self, slot: Slot) -> None:
        """Gives a slot back."""
        self._slots.remove(slot)
        weight = slot.weight
        namespace, store, volume = slot.holders
        self._held -= weight
        namespace.held -= weight
        store.held -= weight
        volume.held -= weight
        self._namespaces -= not namespace.held
        self._stores -= not store.held
        if not slot.stalled:
            self._count_active(slot, -weight)

    def stall(self, slot: Slot) -> None:
        """The slot is stalled from now on."""
        slot.stalled = True
        self._count_active(slot, -slot.weight)

    def resume(self, slot: Slot) -> None:
        """The slot is not stalled any more."""
        slot.stalled = False
        slot.progressed_s = self._clock()
        self._count_active(slot, slot.weight)

    def is_silent(self, slot: Slot) -> bool:
        """Whether no byte was received for so long that the slot should be stalled."""
        return self._clock() - slot.progressed_s > self._stall_s

    def longest_wait_s(self, share: Share) -> float:
        """For how many seconds the slot of the volume that has waited longest has received no byte; 0: it has no slot.
        May be called from any thread: the set is copied in one step of the interpreter."""
        holders, now = self._holders.get(share), self._clock()
        return max((now - slot.progressed_s for slot in list(self._slots) if slot.holders is holders), default=0.0)

    def mark_stalled(self) -> int:
        """Looks at all slots; how many are stalled since the last look."""
        stalled = 0
        for slot in self._slots:
            silent = self.is_silent(slot)
            if silent and not slot.stalled:
                self.stall(slot)
                stalled += 1
            elif slot.stalled and not silent:
                self.resume(slot)
        return stalled

    def _is_below_part(self, holder: _Holder, holders: int) -> bool:
        """``holders`` of its level have slots."""
        return holder.held < max(1, self.limit // (holders + (not holder.held)))

    def _count_active(self, slot: Slot, weight: int) -> None:
        self.active += weight
        slot.holders[2].active += weight

    def _holders_of(self, share: Share) -> _Holders:
        return self._holders.get(share) or self._add_holders(share)

    def _add_holders(self, share: Share) -> _Holders:
        if len(self._holders) > _MOST_IDLE_HOLDERS:
            self._holders = {key: holders for key, holders in self._holders.items() if holders[2].held}
            for known in self._by_level:
                for key in [key for key, holder in known.items() if not holder.held]:
                    del known[key]
        namespace, store = (known.setdefault(share[:depth], _Holder()) for depth, known in enumerate(self._by_level, 1))
        holders = self._holders[share] = namespace, store, _Holder()
        return holders


_of_this_thread = threading.local()


def work_in(*slots: Slot) -> None:
    """The calling thread works in these slots from now on; in none, without arguments."""
    _of_this_thread.slots = slots


def note_progress() -> None:
    """A byte was received on the calling thread."""
    slots: tuple[Slot, ...] = getattr(_of_this_thread, "slots", ())
    for slot in slots:
        slot.progressed_s = time.monotonic()
