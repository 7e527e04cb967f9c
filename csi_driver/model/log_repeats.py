"""Bounds the lines of the log that say the same again and again."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

MOST_LINES = 20
WITHIN_S = 60.0
"""So many warnings of one kind about one volume in such a time; further ones are counted. A fault that hits every read
would write a thousand lines a second, and the node's log would lose all others."""

_MOST_KINDS = 1000


class _Kind:
    __slots__ = ("began_s", "left_out", "lines")

    def __init__(self, began_s: float) -> None:
        self.began_s, self.lines, self.left_out = began_s, 0, 0


class RepeatFilter(logging.Filter):
    """Of a handler. Passes everything below WARNING: those lines are about one call each. ``_lock`` guards ``_kinds``,
    which forgets the kinds that were seen longest ago."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._kinds: OrderedDict[tuple[object, ...], _Kind] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        values = getattr(record, "fields", None)
        volume = values.get("volume_id") if isinstance(values, dict) else None
        key = (record.name, record.levelno, record.lineno, volume)
        with self._lock:
            left_out = self._admit(key)
        if left_out:
            record.fields = {**(values or {}), "left_out": left_out}
        return left_out is not None

    def _admit(self, key: tuple[object, ...]) -> int | None:
        """How many lines of the kind were left out before this one; None: this one is, too."""
        now = self._clock()
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = _Kind(now)
            if len(self._kinds) > _MOST_KINDS:
                self._kinds.popitem(last=False)
        self._kinds.move_to_end(key)
        if now - kind.began_s >= WITHIN_S:
            left_out, kind.began_s, kind.lines, kind.left_out = kind.left_out, now, 1, 0
            return left_out
        if kind.lines >= MOST_LINES:
            kind.left_out += 1
            return None
        kind.lines += 1
        return 0
