"""Which objects were added to the cache lately: pure bookkeeping, without a lock."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

MOST_REMEMBERED = 1024
"""More than arrive within a look-up that takes a millisecond."""


class Arrivals:
    """The caller serialises ``add``; ``count`` may be read at any time."""

    def __init__(self, most: int = MOST_REMEMBERED) -> None:
        self._most = most
        self._latest: OrderedDict[Hashable, int] = OrderedDict()
        """By key, the number of its latest arrival, the oldest first."""
        self._forgotten = 0
        """The number of the latest arrival that is not remembered any more."""
        self.count = 0

    def add(self, key: Hashable) -> None:
        """The object is in the cache, as far as it will be."""
        self.count += 1
        self._latest[key] = self.count
        self._latest.move_to_end(key)
        while len(self._latest) > self._most:
            _, self._forgotten = self._latest.popitem(last=False)

    def may_have(self, key: Hashable, since: int) -> bool:
        """Whether the object may have arrived after the moment when ``count`` was ``since``: True if it has, and if
        that is forgotten."""
        return self._forgotten > since or self._latest.get(key, 0) > since
