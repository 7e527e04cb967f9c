"""Keeps the keeper in step with the mounts of this daemon: passes it each new mount, and all of them again after the
keeper was restarted, since it then holds nothing."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from csi_driver import telemetry
from csi_driver.model.errors import DaemonUnavailable, HayloftError

logger = logging.getLogger(__name__)

KEEPER_TIMEOUT_S = 10.0
"""How long a new daemon retries a keeper that does not answer before it treats the mounts as lost. A keeper that is
restarted together with the daemon answers within a second, and is empty; a keeper that is only busy gets more time,
because all mounts depend on it."""
_RETRY_S = 0.2


class DescriptorKeeper(Protocol):
    """Holds descriptors while no daemon runs; ``mounts/keeper_protocol.py`` implements it. All methods raise
    DaemonUnavailable."""

    def put(self, name: str, descriptors: list[int]) -> None:
        """Stores copies of the descriptors under the name."""

    def get(self, name: str) -> list[int]:
        """Copies of the descriptors; empty if the name is unknown."""

    def drop(self, name: str) -> None:
        """Closes the stored copies. Success if the name is unknown."""

    def names(self) -> list[str]:
        """All stored names."""


@dataclass(frozen=True, slots=True)
class HeldMount:
    """The descriptor of a mount, which ServedMount owns and closes, and the secrets of its volume as JSON."""

    descriptor: int
    secrets: bytes = field(repr=False)


class KeeperSync:
    """Methods may be called from any thread and block up to the keeper's time-out. Without a keeper they do nothing.

    A keeper that does not answer is logged once and never fails a mount: ``resync`` retries every few seconds.
    """

    def __init__(self, keeper: DescriptorKeeper | None) -> None:
        self._keeper = keeper
        self._lock = threading.Lock()
        """Guards ``_mounts``, ``_not_passed``, ``_keeper_unavailable`` and ``_stopped``. Not held during a call to the
        keeper, which may block for seconds."""
        self._mounts: dict[str, HeldMount] = {}
        """By mount id: every mount that the keeper should hold."""
        self._not_passed: set[str] = set()
        """Mounts that the keeper lacks, or holds with earlier secrets, because it did not answer."""
        self._keeper_unavailable = False
        self._stopped = False

    @property
    def exists(self) -> bool:
        """False for a daemon that was started without a keeper."""
        return self._keeper is not None

    @property
    def is_unavailable(self) -> bool:
        """The keeper did not answer last, and mounts do not outlive this daemon until it does."""
        with self._lock:
            return self._keeper_unavailable

    def add(self, mount_id: str, descriptor: int, secrets: Mapping[str, str]) -> None:
        """Passes a mount to the keeper, also one that it holds, for other secrets. The descriptor must stay open until
        ``remove`` or ``stop``."""
        if self._keeper is None:
            return
        held = HeldMount(descriptor, json.dumps(dict(secrets)).encode())
        with self._lock:
            self._mounts[mount_id] = held
        self._put(mount_id)

    def resync(self) -> None:
        """Passes the keeper the mounts that it lacks, as after its restart. Called every few seconds; costs one LIST
        request."""
        if self._keeper is None:
            return
        # Listed before the keeper answers: a mount that is added in between is put by ``add`` and must not count as
        # missing here.
        with self._lock:
            expected = list(self._mounts)
        try:
            held = set(self._keeper.names())
        except HayloftError as error:
            self._log_unavailable(error)
            return
        with self._lock:
            self._keeper_unavailable = False
            not_passed = self._not_passed & held
        for mount_id in not_passed:
            self._put(mount_id)
        missing = [mount_id for mount_id in expected if mount_id not in held]
        if restored := sum(map(self._put, missing)):
            facts = telemetry.fields(missing=len(missing), restored=restored)
            logger.warning("the keeper lacked mounts, as after a restart; it holds them again", extra=facts)

    def secrets_of(self, mount_id: str) -> dict[str, str]:
        """Empty for a volume without a Secret, and for a mount that the keeper is not to hold."""
        with self._lock:
            held = self._mounts.get(mount_id)
        return {} if held is None else dict(json.loads(held.secrets))

    def remove(self, mount_id: str) -> None:
        """The mount has ended: the keeper closes its copies, or readers of the mount would hang."""
        with self._lock:
            self._mounts.pop(mount_id, None)
            self._not_passed.discard(mount_id)
        self._drop(mount_id)

    def stop(self) -> None:
        """To be called before this daemon closes its descriptors. The keeper's copies stay for the next daemon."""
        self.resync()
        with self._lock:
            self._stopped = True
            self._mounts.clear()

    # -- for adoption by a new daemon --

    def held_ids(self, timeout_s: float = KEEPER_TIMEOUT_S) -> set[str]:
        """The ids of all mounts that the keeper holds; empty if it does not answer within the time-out."""
        deadline_s = time.monotonic() + timeout_s
        while self._keeper is not None:
            try:
                return set(self._keeper.names())
            except DaemonUnavailable as error:
                if time.monotonic() >= deadline_s:
                    self._log_unavailable(error)
                    break
                time.sleep(_RETRY_S)
        return set()

    def fetch(self, mount_id: str) -> tuple[int, dict[str, str]] | None:
        """A copy of the descriptor, which the caller owns, and the secrets; None if the keeper does not hold them."""
        if self._keeper is None:
            return None
        found = self._keeper.get(mount_id)
        if len(found) != 2:
            for number in found:
                os.close(number)
            return None
        descriptor, memory = found
        try:
            secrets: dict[str, str] = json.loads(os.pread(memory, 1 << 20, 0))
        except BaseException:
            os.close(descriptor)
            raise
        finally:
            os.close(memory)
        return descriptor, secrets

    def adopted(self, mount_id: str, descriptor: int, secrets: Mapping[str, str]) -> None:
        """Adds a mount that the keeper holds already: ``resync`` restores it if the keeper loses it."""
        with self._lock:
            self._mounts[mount_id] = HeldMount(descriptor, json.dumps(dict(secrets)).encode())

    # -- internal --

    def _put(self, mount_id: str) -> bool:
        with self._lock:
            held = self._mounts.get(mount_id)
            if held is None or self._keeper is None:
                return False
            # Duplicated under the lock: after ``remove`` the mount's own descriptor may be closed, and its number may
            # belong to another file by the time that the keeper receives it.
            descriptor = os.dup(held.descriptor)
        memory = os.memfd_create("hayloft-secrets", os.MFD_CLOEXEC)
        try:
            os.write(memory, held.secrets)
            self._keeper.put(mount_id, [descriptor, memory])
        except HayloftError as error:
            with self._lock:
                self._not_passed.add(mount_id)
            self._log_unavailable(error)
            return False
        finally:
            os.close(memory)
            os.close(descriptor)
        # Race with ``remove``: its drop may have reached the keeper before this put. The copy would then keep the
        # connection of an ended mount open and its readers hanging, so it is dropped again. After ``stop`` an absent
        # id means that this daemon ends, and the copy must stay.
        with self._lock:
            removed = mount_id not in self._mounts and not self._stopped
            if self._mounts.get(mount_id) is held:  # not renewed once more meanwhile
                self._not_passed.discard(mount_id)
        if removed:
            self._drop(mount_id)
        return not removed

    def _drop(self, mount_id: str) -> None:
        if self._keeper is not None:
            with suppress(HayloftError):
                self._keeper.drop(mount_id)

    def _log_unavailable(self, error: HayloftError) -> None:
        """Logs once, until the keeper answers again."""
        with self._lock:
            logged, self._keeper_unavailable = self._keeper_unavailable, True
        if not logged:
            facts = telemetry.fields(error=str(error))
            logger.warning("the keeper does not answer; mounts will not survive a restart until it does", extra=facts)
