"""Composition of ``hayloft keeper``. Standard library only, so that the process stays small."""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from types import FrameType
from typing import Protocol

from csi_driver import telemetry
from csi_driver.mounts.keeper_protocol import KeeperServer
from csi_driver.wiring.core_files import keep_no_core_files

_log = logging.getLogger(__name__)


class HasSocket(Protocol):
    """Settings of the keeper. Not a class of ``settings.py``: pydantic would be most of this process's memory."""

    @property
    def socket(self) -> Path: ...


def run(settings: HasSocket, daemon_timeout_s: float = 0.0) -> None:
    """Serves until SIGTERM or SIGINT. Raises InvalidParameter for a socket that cannot be created. ``daemon_timeout_s``
    as of ``KeeperServer``.

    Its end unmounts nothing: a running daemon has its own descriptors and continues, but until a keeper runs again the
    mounts end with the daemon. Must be called from the main thread.
    """
    keep_no_core_files()
    server = KeeperServer(settings.socket, daemon_timeout_s=daemon_timeout_s)

    def stop(_number: int, _frame: FrameType | None) -> None:
        server.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    _log.info("ready", extra=telemetry.fields(socket=str(settings.socket)))
    try:
        server.serve()
    finally:
        server.close()
