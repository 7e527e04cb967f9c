"""A limit of bytes a second for fetches, as a value: the scheduler asks it, and nothing waits here."""

from __future__ import annotations

BURST_S = 0.05
"""What a limit allows in this time may begin at once after a pause: wake-ups are late by milliseconds, and the rate
would stay below the limit by as much."""

_TURN_S = 2 * BURST_S
"""How long it is kept for the lane whose turn it is."""


class Pace:
    """A limit of bytes a second for fetches that start one after another. The caller serialises.

    Each fetch takes as long as its bytes do at that rate, and the next one starts afterwards. No credit is saved up but
    ``BURST_S``: in any span of time at most the bytes of that span and of ``BURST_S`` are started, and one fetch.
    """

    def __init__(self, bytes_per_second: int) -> None:
        self.bytes_per_second = bytes_per_second
        self.users = 0
        """Mounts that it limits."""
        self.free_at_s = 0.0
        self._next: tuple[int, object] | None = None
        """Whose turn it is, by priority and lane: that of the most urgent work that had to wait, and among equals of
        another lane than the last. Lanes look at different moments, and one would have all of it otherwise."""
        self._following: tuple[int, object] | None = None
        """Work of another lane that waits, too."""
        self._last: object = None
        """The lane that has started the last fetch."""

    def is_awaited(self, now_s: float) -> bool:
        """Whether work waits for the moment when it is free."""
        return self._next is not None and not self._is_late(now_s)

    def next_start_s(self, now_s: float) -> float:
        """When more may start than now: when it is free, or when the turn is over of a lane that does not take it."""
        return self.free_at_s if now_s < self.free_at_s else self.free_at_s + _TURN_S

    def _is_late(self, now_s: float) -> bool:
        """Whether the lane whose turn it is has not come."""
        return now_s >= self.free_at_s + _TURN_S

    def may_start(self, lane: object, priority: int, now_s: float) -> bool:
        """Whether a fetch may start now. If not, it is noted that one waits; the smaller ``priority`` goes first."""
        turn = self._next
        its_turn = turn is None or turn[1] is lane or priority < turn[0] or self._is_late(now_s)
        if its_turn and now_s >= self.free_at_s:
            return True
        if turn is None or priority < turn[0] or (priority == turn[0] and turn[1] is self._last is not lane):
            self._next, self._following = (priority, lane), turn or self._following
        elif turn[1] is not lane:
            self._following = priority, lane
        return False

    def start(self, lane: object, count_bytes: int, now_s: float) -> None:
        """A fetch of so many bytes starts."""
        if self._next is None or self._next[1] is lane or self._is_late(now_s):
            self._next, self._following = self._following, None
        self.free_at_s = max(self.free_at_s, now_s - BURST_S) + count_bytes / self.bytes_per_second
        self._last = lane

    def give_back(self, count_bytes: int) -> None:
        """Returns the time of bytes that were not fetched after all."""
        self.free_at_s -= count_bytes / self.bytes_per_second
