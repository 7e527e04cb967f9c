"""The descriptors of open files, shared by the mounts of a daemon.

An open file of a mount holds a descriptor of its object file, also while the kernel reads it by itself, and so does one
that stays open, idle. Of these each namespace has a share, and in it each store and each volume (``fair_shares.py``):
the files of one volume must not keep the daemon from opening files of another, connections, and new mounts.
"""

from __future__ import annotations

import resource
import threading

from csi_driver.reading.fair_shares import FairShares, Share, Slot

BLOCK = 16
"""Descriptors that a mount gets at a time, so that an open seldom takes the lock of all mounts."""

FILES_PART = 2
"""One of so many descriptors of the process is for open files. The others are for connections, mounts and the daemon
itself."""


class DescriptorBudget:
    """May be used from any thread. ``_lock`` guards ``_shares``."""

    def __init__(self, descriptors: int) -> None:
        """So many are shared by all mounts."""
        self._lock = threading.Lock()
        self._shares = FairShares(descriptors, descriptors)

    @classmethod
    def of_this_process(cls) -> DescriptorBudget:
        """By the soft limit of open files, which does not change from now on."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return cls(soft // FILES_PART)

    def share(self, share: Share) -> DescriptorShare:
        """What a mount gets of the budget."""
        return DescriptorShare(self, share)

    def grant(self, share: Share) -> Slot | None:
        """``BLOCK`` more descriptors; None if the share has all that it may have."""
        with self._lock:
            return self._shares.start(share, BLOCK) if self._shares.may_start(share) else None

    def give_back(self, slot: Slot) -> None:
        """Ends what ``grant`` began."""
        with self._lock:
            self._shares.end(slot)


class DescriptorShare:
    """The descriptors of one mount. May be used from any thread. ``_lock`` guards ``_slots``."""

    def __init__(self, budget: DescriptorBudget, share: Share) -> None:
        self._budget, self._share = budget, share
        self._lock = threading.Lock()
        self._slots: list[Slot] = []
        self._granted = 0
        self._closed = False

    def allows(self, used: int) -> bool:
        """Whether one more file may be opened beside so many."""
        return used < self._granted or self._grow(used)

    def trim(self, used: int) -> None:
        """Gives back what is not needed. Called every second or so."""
        with self._lock:
            while self._slots and used + BLOCK < self._granted:
                self._give_back_one()

    def close(self) -> None:
        """Gives back all. Nothing is granted from now on."""
        with self._lock:
            self._closed = True
            while self._slots:
                self._give_back_one()

    def _grow(self, used: int) -> bool:
        with self._lock:
            while used >= self._granted:
                slot = None if self._closed else self._budget.grant(self._share)
                if slot is None:
                    return False
                self._slots.append(slot)
                self._granted += BLOCK
        return True

    def _give_back_one(self) -> None:
        self._granted -= BLOCK
        self._budget.give_back(self._slots.pop())
