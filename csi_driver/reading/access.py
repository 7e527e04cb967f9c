"""The credential by which a mount reads, and which files of the mount the store has let it read."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from csi_driver.reading.services import ObjectSource

_PERIODS = 8
"""A mount remembers the age of a proof in eighths of its limit, rounded up, so that a byte is enough for 31 times the
limit. In its last eighth a proof is looked up in the object file."""
_MOST_PERIODS = 255


class Credential(NamedTuple):
    """What a mount reads with. Neither name is to be logged."""

    own: bytes
    """16 bytes that name it alone: fetches in flight, and what they have not yet written, are for no other one."""
    proven_as: bytes
    """The name under which its proofs of access are recorded: mostly ``own``; one for all volumes of the namespaces
    that share cached bytes."""
    age_s: float
    """How long a proof is valid."""


UNNAMED = Credential(bytes(16), bytes(16), 86_400.0)
"""For a cache with one reader. It has to prove its access like any other."""


class _Rows(NamedTuple):
    """What is known of the rows of a manifest. Replaced as a whole, so that no period is written into the arrays of
    another start."""

    began_s: float
    """From here periods are counted, from 1."""
    proven: bytearray
    """The period in which the store let the mount read a row; 0: not known."""
    asked: bytearray
    """The period in which it was asked ahead of a reader; 0: it was not."""


class Access:
    """One mount's view of the proofs of access. Methods may be called from any thread, without a lock: the entries are
    single bytes, and what is lost here is found again in the attribute of the object file."""

    def __init__(
        self,
        credential: Credential = UNNAMED,
        files: int = 0,
        source_of: Callable[[int], ObjectSource] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``files`` are the rows of the mount's manifest; each takes two bytes. ``source_of`` returns the object of a
        row."""
        self.credential = credential
        self.source_of = source_of
        self.fetches = 0
        """Counts objects, or chunks, that the store has sent to the mount. Not locked: that it changes is enough."""
        self.failing: set[int] = set()
        """Rows of which a read has failed, until the store sends of them again. Single steps of a set: no lock."""
        self._clock = clock
        self._period_s = credential.age_s / _PERIODS
        self._rows = self._nothing(files)

    def renewed(self, credential: Credential) -> Access:
        """For another credential of the same mount: it has proven nothing yet, and errors that were about the
        credential alone are over."""
        access = Access(credential, len(self._rows.proven), self.source_of, self._clock)
        access.fetches, access.failing = self.fetches + 1, self.failing
        return access

    def is_proven(self, row: int) -> bool:
        """True if the row was proven, recently enough. False says nothing: see ``AccessProofs.holds``."""
        began_s, proven, _ = self._rows
        try:
            period = proven[row]
        except IndexError:
            return False
        return period > 0 and 0 <= self._period(began_s, self._clock()) - period < _PERIODS

    def is_young(self, at_s: int) -> bool:
        """True if a proof of this time is valid: neither too old nor, by a clock that was set back, from the future."""
        return at_s > 0 and -1 < self._clock() - at_s < self.credential.age_s

    def remember(self, row: int, at_s: int) -> None:
        """The row was proven at this time, in seconds since 1970."""
        began_s, proven, _ = self._rows
        period = self._period(began_s, at_s)
        if period > _MOST_PERIODS:
            self._rows = self._nothing(len(proven))
            began_s, proven, _ = self._rows
            period = self._period(began_s, at_s)
        if 0 <= row < len(proven):
            proven[row] = max(0, period)

    def note_fetch(self, row: int) -> None:
        """The store has sent bytes of the row."""
        self.fetches += 1
        if self.failing:
            self.failing.discard(row)

    def claim_rows(self, rows: range) -> list[int]:
        """Those of the rows that are not known to be proven, and that no other call has returned since a proof of that
        time would have expired."""
        began_s, proven, asked = self._rows
        now, found = self._period(began_s, self._clock()), []
        for row in range(rows.start, min(rows.stop, len(asked))):
            if not (0 <= now - asked[row] < _PERIODS or 0 <= now - proven[row] < _PERIODS):
                asked[row] = max(0, min(now, _MOST_PERIODS))
                found.append(row)
        return found

    def now_s(self) -> int:
        return int(self._clock())

    def _nothing(self, files: int) -> _Rows:
        return _Rows(self._clock() - self.credential.age_s, bytearray(files), bytearray(files))

    def _period(self, began_s: float, at_s: float) -> int:
        return 1 + int((at_s - began_s) / self._period_s)
