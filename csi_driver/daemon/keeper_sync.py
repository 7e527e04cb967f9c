"""What the keeper holds for the mounts of this daemon: handed over at the mount, and again after the keeper was
restarted, since it then holds nothing."""

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

from csi_driver.model.errors import DaemonUnavailable, HayloftError

logger = logging.getLogger(__name__)

PATIENCE_S = 10.0
"""How long a new daemon waits for a keeper that does not answer before it takes what it held for lost. A keeper that
is restarted together with the daemon is there in a second, and has nothing; one that is only busy is not given up at
once, because with it go the mounts."""
_ASK_AGAIN_S = 0.2


class DescriptorKeeper(Protocol):
    """What holds descriptors while no daemon runs; ``mounts/keeper_protocol.py``."""

    def put(self, name: str, descriptors: list[int]) -> None:
        """Holds copies of the descriptors under the name."""

    def get(self, name: str) -> list[int]:
        """Copies of the descriptors; empty if there are none of that name."""

    def drop(self, name: str) -> None:
        """Closes what is held."""

    def names(self) -> list[str]:
        """Everything that is held."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A mount's descriptor, which belongs to the mount, and the secrets of its volume."""

    descriptor: int
    secrets: bytes = field(repr=False)


class KeeperSync:
    """``_lock`` guards ``_kept``, ``_silent`` and ``_ending``; it is not held while the keeper is asked. All methods
    may be called from any thread and block up to the keeper's time-out; without a keeper they do nothing."""

    def __init__(self, keeper: DescriptorKeeper | None) -> None:
        self._keeper = keeper
        self._lock = threading.Lock()
        self._kept: dict[str, Kept] = {}
        self._silent = False
        self._ending = False

    @property
    def exists(self) -> bool:
        """False for a daemon that was started without a keeper."""
        return self._keeper is not None

    def hold(self, mount_id: str, descriptor: int, secrets: Mapping[str, str]) -> None:
        """Hands a mount over. The descriptor must stay open until ``forget`` or ``let_go``."""
        if self._keeper is None:
            return
        kept = Kept(descriptor, json.dumps(dict(secrets)).encode())
        with self._lock:
            self._kept[mount_id] = kept
        self._hand_over(mount_id)

    def hand_over_missing(self) -> None:
        """Gives the keeper what it does not have (any more). Called every few seconds: costs one question."""
        if self._keeper is None:
            return
        with self._lock:
            kept = list(self._kept)
        try:
            held = set(self._keeper.names())
        except HayloftError as error:
            self._say_silent(error)
            return
        with self._lock:
            self._silent = False
        missing = [mount_id for mount_id in kept if mount_id not in held]
        if sum(map(self._hand_over, missing)):
            logger.warning("the keeper had lost mounts, or come late; it holds %d of them again", len(missing))

    def forget(self, mount_id: str) -> None:
        """The mount is gone: nobody shall hold it."""
        with self._lock:
            self._kept.pop(mount_id, None)
        self._drop(mount_id)

    def let_go(self) -> None:
        """This daemon ends and closes its descriptors; what the keeper holds it keeps."""
        self.hand_over_missing()
        with self._lock:
            self._ending = True
            self._kept.clear()

    # -- for a new daemon --

    def held(self, patience_s: float = PATIENCE_S) -> set[str]:
        """Names of all mounts that are held. A keeper that does not answer for so long holds none."""
        give_up_s = time.monotonic() + patience_s
        while self._keeper is not None:
            try:
                return set(self._keeper.names())
            except DaemonUnavailable as error:
                if time.monotonic() >= give_up_s:
                    self._say_silent(error)
                    break
                time.sleep(_ASK_AGAIN_S)
        return set()

    def take(self, mount_id: str) -> tuple[int, dict[str, str]] | None:
        """A copy of the descriptor, which belongs to the caller, and the secrets; None if it is not held."""
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
        """The keeper has it still, and is to have it again if it should lose it."""
        with self._lock:
            self._kept[mount_id] = Kept(descriptor, json.dumps(dict(secrets)).encode())

    # -- inside --

    def _hand_over(self, mount_id: str) -> bool:
        """Puts copies that nobody closes meanwhile: the number of a closed descriptor may be another file's."""
        with self._lock:
            kept = self._kept.get(mount_id)
            if kept is None or self._keeper is None:
                return False
            descriptor = os.dup(kept.descriptor)
        memory = os.memfd_create("hayloft-secrets", os.MFD_CLOEXEC)
        try:
            os.write(memory, kept.secrets)
            self._keeper.put(mount_id, [descriptor, memory])
        except HayloftError as error:
            self._say_silent(error)
            return False
        finally:
            os.close(memory)
            os.close(descriptor)
        with self._lock:
            forgotten = mount_id not in self._kept and not self._ending
        if forgotten:  # unmounted in between: a copy that is held would keep its readers waiting
            self._drop(mount_id)
        return not forgotten

    def _drop(self, mount_id: str) -> None:
        if self._keeper is not None:
            with suppress(HayloftError):
                self._keeper.drop(mount_id)

    def _say_silent(self, error: HayloftError) -> None:
        """Once, until it answers again."""
        with self._lock:
            said, self._silent = self._silent, True
        if not said:
            logger.warning("%s; mounts will not survive a restart of this daemon until it is there", error)
