"""Where the cache daemons of this machine listen: that of ``deploy/kubernetes``, and those of ``all-in-one``."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from csi_driver.model.errors import DaemonUnavailable, MissingParameter

NODE_SOCKET = Path("/var/lib/hayloft/run/cache.sock")
"""Of ``deploy/kubernetes``."""

_SOCKET = "cache.sock"

_PROBE_S = 0.2
"""A connection is made at once, whatever the daemon does, unless its backlog is full."""


def run_base() -> Path:
    """Where ``all-in-one`` makes the directory of its sockets; the path is short enough for a socket."""
    return Path("/run") if os.access("/run", os.W_OK) else Path(tempfile.gettempdir())


def run_prefix(process_id: int) -> str:
    """The name of that directory begins with it."""
    return f"hayloft-{process_id}-"


def run_directories(base: Path) -> Iterator[tuple[Path, int]]:
    """Those that exist, each with the id of its process, which may have ended."""
    for path in sorted(base.glob("hayloft-*-*")):
        owner = path.name.split("-")[1]
        if owner.isdigit():
            yield path, int(owner)


def find_daemon(node_socket: Path = NODE_SOCKET, base: Path | None = None) -> Path:
    """The socket of the one daemon that runs on this machine. Raises DaemonUnavailable if there is none, and
    MissingParameter, which lists them, if there are several."""
    base = base or run_base()
    own = [path / _SOCKET for path, _ in run_directories(base)]
    found = [path for path in (node_socket, *own) if _is_served(path)]
    if not found:
        raise DaemonUnavailable(
            f"no cache daemon runs on this machine: none listens at {node_socket} or {base}/hayloft-*/{_SOCKET}; "
            "start one, or give its socket as --daemon-socket"
        )
    if len(found) > 1:
        listed = ", ".join(map(str, found))
        raise MissingParameter("--daemon-socket", f"Several daemons run on this machine: give one of {listed}")
    return found[0]


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(os.fspath(path))
        except TimeoutError:
            return True  # its backlog is full
        except OSError:
            return False
        return True
