"""What the mirrors of a volume did: for its conditions, and the log."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from csi_driver import telemetry
from csi_driver.model import conditions
from csi_driver.model.conditions import Condition
from csi_driver.objects.mirrors.mirror_counts import MirrorCounts
from csi_driver.objects.mirrors.same_object import SameBy

logger = logging.getLogger(__name__)

LOG_INTERVAL_S = 60.0
"""Between two lines about objects of one mirror."""

MOST_KEYS = 1000
"""Of the objects that a mirror does not have, which are remembered until it has them."""


class MirrorReports:
    """Of one volume. May be used from any thread. ``_lock`` guards ``_failing``, ``_refused``, ``_next_line_s``,
    ``_unlogged`` and ``_rules``; the log is written without it."""

    def __init__(
        self,
        names: Sequence[str],
        volume_id: str = "",
        clock: Callable[[], float] = time.monotonic,
        counts: MirrorCounts | None = None,
    ) -> None:
        """``names``: of the stores, the bucket of the volume first. ``counts``: of the daemon."""
        self.counts = counts or MirrorCounts()
        self.names, self.volume_id = tuple(names), volume_id
        self._clock = clock
        self._lock = threading.Lock()
        self._failing: set[int] = set()
        self._refused: dict[int, set[str]] = {}
        """Keys, by store: part of the condition until the object is found there, as an object that is gone is."""
        self._next_line_s: dict[int, float] = {}
        self._unlogged: Counter[int] = Counter()
        self._rules: dict[int, Counter[SameBy]] = {}

    def failed(self, number: int, error: Exception) -> None:
        """The store answers no more; the others are asked until it does."""
        with self._lock:
            if number in self._failing:
                return
            self._failing.add(number)
        self.counts.failed(number)
        self._log(logging.WARNING, "a store of a volume fails; its mirrors are read", number, error=str(error))

    def works(self, number: int) -> None:
        if number not in self._failing:  # nearly always
            return
        with self._lock:
            if number not in self._failing:
                return
            self._failing.discard(number)
        self._log(logging.INFO, "a store of a volume answers again", number)

    def accepted(self, number: int, key: str, rule: SameBy) -> None:
        """An object of the mirror is the same, by this rule."""
        with self._lock:
            self._refused.get(number, set()).discard(str(key))
            counts = self._rules.setdefault(number, Counter())
            counts[rule] += 1
            is_first = counts[rule] == 1
        if is_first:
            self._log(logging.INFO, "objects of a mirror are the same as those of the volume", number, rule=str(rule))

    def refused(self, number: int, key: str, reason: str) -> None:
        """The mirror has no object of these bytes, as far as can be told."""
        self.counts.refused(number)
        with self._lock:
            keys, now = self._refused.setdefault(number, set()), self._clock()
            if len(keys) < MOST_KEYS:
                keys.add(str(key))
            if now < self._next_line_s.get(number, now):
                self._unlogged[number] += 1
                return
            self._next_line_s[number] = now + LOG_INTERVAL_S
            unlogged = self._unlogged.pop(number, 0) or None
        message = "an object of a mirror is not used; it is read from another store"
        self._log(logging.WARNING, message, number, key=key, reason=reason, not_logged=unlogged)

    def rules(self, number: int) -> dict[str, int]:
        """How many objects of the mirror were found to be the same, by rule."""
        with self._lock:
            return {str(rule): count for rule, count in self._rules.get(number, Counter()).items()}

    def conditions(self) -> Iterator[Condition]:
        """What is wrong with the stores of the volume, while reads go on from the others."""
        with self._lock:
            failing, refused = set(self._failing), any(self._refused.values())
        if 0 in failing and len(failing) < len(self.names):
            yield conditions.READING_FROM_MIRRORS
        if failing - {0}:
            yield conditions.MIRROR_FAILING
        if refused:
            yield conditions.MIRROR_DIFFERS

    def _log(self, level: int, message: str, number: int, **facts: object) -> None:
        fields = telemetry.fields(volume_id=self.volume_id, store=self.names[number], **facts)
        logger.log(level, message, extra=fields)
