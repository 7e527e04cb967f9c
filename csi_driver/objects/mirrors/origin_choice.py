"""Which of the stores of a volume is asked first: the nearest that works, or the first of the list that does.

A store that fails is left alone for a while, and then tried by a thread of its own. How near each store is another
thread measures. So no reader waits for a store for the sake of knowing it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from csi_driver.model.chunk import ByteRange
from csi_driver.model.entity_tags import is_strong
from csi_driver.model.errors import AccessDenied, AddressNotAllowed, CredentialsRejected, HayloftError, RequestError
from csi_driver.objects.mirrors.mirror_reports import MirrorReports
from csi_driver.objects.mirrors.object_verdicts import ObjectVerdicts, SourceStore, is_of_store
from csi_driver.objects.mirrors.origin_speeds import REQUESTS, OriginSpeeds
from csi_driver.objects.tier.replica_health import ReplicaHealth

_MOST_DISTRUSTED = 1 << 12

DECISIONS = (AccessDenied, CredentialsRejected, AddressNotAllowed, RequestError)
"""Of the first store: what it, or the operator, refuses is not fetched from its mirrors."""


class OriginChoice:
    """May be used from any thread: ``_distrusted`` is changed by single steps of a dictionary."""

    def __init__(
        self,
        sources: Sequence[SourceStore],
        reports: MirrorReports,
        *,
        size_is_enough: bool = False,
        speeds: OriginSpeeds | None = None,
        probe_timeout_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """As ``Mirrored``. The stores stay the caller's."""
        self._sources = tuple(sources)
        self.all = tuple(range(len(sources)))
        self._health = ReplicaHealth(probe_timeout_s, clock)
        self._reports, self._size_is_enough, self._speeds = reports, size_is_enough, speeds
        self.verdicts = ObjectVerdicts(sources, reports, self, size_is_enough=size_is_enough, clock=clock)
        self._distrusted: dict[tuple[str, str], int] = {}
        """How often damaged bytes of an object version were received: with each, another store is asked first."""
        self.closed = threading.Event()

    def order(self, key: str, if_match: str | None) -> Sequence[int]:
        """The stores, those that fail last; another one first, after damaged bytes. An object without an ETag is asked
        of the first alone: nothing tells its bytes from those of another version."""
        if if_match is None or not (is_strong(if_match) or self._size_is_enough):
            return (0,)
        order: Sequence[int] = self.all
        if self._speeds is not None:
            if self._speeds.read():
                self._begin_exploring(key, if_match)
            order = self._speeds.order
        if self._distrusted:
            turn = self._distrusted.get((key, if_match), 0) % len(order)
            order = (*order[turn:], *order[:turn])
        failing = [number for number in order if self.is_failing(number)]
        if not failing:
            return order
        for number in failing:
            self._try_again(number, key, if_match)
        return [*(number for number in order if number not in failing), *failing]

    def distrust(self, key: str, if_match: str | None) -> None:
        """Damaged bytes of this version were received: another store is asked first from now on."""
        if len(self._distrusted) >= _MOST_DISTRUSTED:
            self._distrusted.clear()
        name = key, if_match or ""
        self._distrusted[name] = self._distrusted.get(name, 0) + 1

    def is_failing(self, number: int) -> bool:
        """Whether the last request to it has failed."""
        return not self._health.is_well(self._sources[number].name)

    def failed(self, number: int, error: Exception) -> None:
        """A request has failed for a reason that is not its object's."""
        self._health.failed(self._sources[number].name)
        if self._speeds is not None:
            self._speeds.forget(number)
        self._reports.failed(number, error)

    def worked(self, number: int) -> None:
        """The store has answered."""
        self._health.worked(self._sources[number].name)
        self._reports.works(number)

    def explore(self, key: str, if_match: str) -> None:
        """Measures how near the stores are, if it is time for it. Blocks on them; raises nothing."""
        asked = self._speeds.begin_round(self._working()) if self._speeds is not None else ()
        if asked:
            self._ask_all(asked, key, if_match)

    # -- requests for one byte --

    def _begin_exploring(self, key: str, if_match: str) -> None:
        if self._speeds is None or self.closed.is_set():
            return
        asked = self._speeds.begin_round(self._working())
        if asked:
            arguments = asked, key, if_match
            threading.Thread(target=self._ask_all, args=arguments, name="mirror-exploration", daemon=True).start()

    def _working(self) -> list[int]:
        return [number for number in self.all if not self.is_failing(number)]

    def _ask_all(self, asked: Sequence[int], key: str, if_match: str) -> None:
        """One after the other, so that they do not take the link from each other."""
        first_refuses = False
        for number in asked:
            for _ in range(REQUESTS):
                if self.closed.is_set():
                    return
                error = self._ask(number, key, if_match)
                if error is None:
                    continue
                first_refuses |= not number and isinstance(error, DECISIONS)
                if is_of_store(error, number):
                    self.failed(number, error)
                break
        if self._speeds is not None:
            self._speeds.end_round(first_refuses=first_refuses)

    def _try_again(self, number: int, key: str, if_match: str) -> None:
        """After its pause, one thread finds out whether the store answers."""
        name = self._sources[number].name
        if not self.closed.is_set() and self._health.may_be_probed(name) and self._health.may_ask(name):
            threading.Thread(target=self._probe, args=(number, key, if_match), name="mirror-probe", daemon=True).start()

    def _probe(self, number: int, key: str, if_match: str) -> None:
        """A store that works again is measured, too: what was known of it is forgotten."""
        for _ in range(1 if self._speeds is None else REQUESTS):
            error = self._ask(number, key, if_match)
            if error is not None and is_of_store(error, number):
                self.failed(number, error)
                return
        self.worked(number)
        if self._speeds is not None:
            self._speeds.recovered()

    def _ask(self, number: int, key: str, if_match: str) -> HayloftError | None:
        """The error of a request as a reader sends it, for one byte: some failures are of GETs alone."""
        known = self.verdicts.known(number, key, if_match) if number else None
        condition = if_match if not number else known.etag if known is not None and known.etag else None
        at = self.verdicts.key_at(number, key) if number else key
        try:
            with nullcontext() if self._speeds is None else self._speeds.as_probe():
                for _ in self._sources[number].store.read_range(at, ByteRange(0, 1), if_match=condition):
                    pass
        except HayloftError as error:
            return error
        return None
