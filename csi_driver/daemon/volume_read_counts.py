"""The read counts of the volumes of a daemon. So many are told apart; those of the others are added up, so that the
number of metrics is bounded."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from csi_driver.model.read_counts import NO_READS, ReadCounts, ReadNumbers

OTHERS = "others"
"""In place of the ids of further volumes. No id of Kubernetes is this: those have a hyphen."""


class _Named(NamedTuple):
    counts: ReadCounts
    mounts: set[str]
    """Ids of the mounts: a volume that was unmounted and is still in use has two when it is mounted again."""


class VolumeReadCounts:
    """May be used from any thread. ``_lock`` guards ``_named``, ``_volumes`` and ``_ended``."""

    def __init__(self, most_volumes: int = 128, new: Callable[[], ReadCounts] = ReadCounts) -> None:
        self._most_volumes, self._new = most_volumes, new
        self._lock = threading.Lock()
        self._named: dict[str, _Named] = {}
        """By volume."""
        self._volumes: dict[str, str] = {}
        """By mount: its volume, or ``OTHERS``."""
        self._others = new()
        self._has_others = False
        self._ended = NO_READS
        """Of the volumes whose mounts have ended."""

    def begin(self, mount_id: str, volume_id: str) -> ReadCounts:
        """Those of the mount, until ``end``. A volume is told apart from the others, or not, as long as it is mounted:
        a count that moved from one metric to another would look like reads that did not happen."""
        with self._lock:
            named = self._named.get(volume_id)
            if named is None and len(self._named) >= self._most_volumes:
                self._volumes[mount_id], self._has_others = OTHERS, True
                return self._others
            if named is None:
                named = self._named[volume_id] = _Named(self._new(), set())
            named.mounts.add(mount_id)
            self._volumes[mount_id] = volume_id
            return named.counts

    def end(self, mount_id: str) -> None:
        """The mount has ended, or was never made; an unknown one is success."""
        with self._lock:
            volume_id = self._volumes.pop(mount_id, None)
            named = None if volume_id is None else self._named.get(volume_id)
            if volume_id is None or named is None:
                return
            named.mounts.discard(mount_id)
            if not named.mounts:
                del self._named[volume_id]
                self._ended = self._ended.plus(named.counts.numbers())

    def numbers(self) -> tuple[ReadNumbers, dict[str, ReadNumbers]]:
        """Of all volumes together since the start, and of each that is mounted, with ``OTHERS`` if there were any."""
        with self._lock:
            volumes = {volume_id: named.counts.numbers() for volume_id, named in self._named.items()}
            if self._has_others:
                volumes[OTHERS] = self._others.numbers()
            total = self._ended
        for numbers in volumes.values():
            total = total.plus(numbers)
        return total, volumes

    def name_of(self, mount_id: str) -> str | None:
        """The volume, if it is told apart; None for others and for a mount that has ended."""
        with self._lock:
            volume_id = self._volumes.get(mount_id)
        return None if volume_id == OTHERS else volume_id
