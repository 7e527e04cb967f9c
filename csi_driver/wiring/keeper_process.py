"""``hayloft keeper``: one process that holds descriptors."""

from __future__ import annotations

import logging
import resource
import signal
from pathlib import Path
from types import FrameType
from typing import Protocol

from csi_driver.mounts.keeper_protocol import KeeperServer

_log = logging.getLogger(__name__)


class HasSocket(Protocol):
    """The part of ``KeeperSettings`` that is used here. That class needs pydantic, which would be most of what this
    process holds in memory."""

    @property
    def socket(self) -> Path: ...


def run(settings: HasSocket) -> None:
    """Serves until SIGTERM or SIGINT. Raises InvalidParameter for a socket that cannot be made.

    Ending it unmounts nothing: a daemon that runs has copies of its own and goes on, but from then on its mounts end
    when it does. Must be called from the main thread.
    """
    _allow_many_descriptors()
    server = KeeperServer(settings.socket)

    def end(number: int, frame: FrameType | None) -> None:
        server.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    _log.info("keeper listens at %s", settings.socket)
    try:
        server.serve()
    finally:
        server.close()


def _allow_many_descriptors() -> None:
    """Two descriptors for each mount: the soft limit, often 1024, is raised to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
