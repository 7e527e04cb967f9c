"""Finds the cache daemon of this machine, and the volume that is meant."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from csi_driver.cli import complain
from csi_driver.daemon.command_errors import DaemonOutdated
from csi_driver.daemon.operations_client import OperationsClient
from csi_driver.model.errors import InvalidParameter
from csi_driver.mounts.mount_table import MountTable
from csi_driver.volumes.node_operations import VolumeStatus
from csi_driver.wiring.daemon_sockets import find_daemon
from csi_driver.wiring.version import hayloft_version

_SHOWN = 10
"""Volumes that are named in an error."""


@contextmanager
def connected(socket: Path | None) -> Iterator[OperationsClient]:
    """A daemon that answers. Raises DaemonUnavailable, DaemonSilent, MissingParameter if there are several."""
    version = hayloft_version()
    client = OperationsClient(socket or find_daemon(), version)
    try:
        found = client.report().version
        if found != version:
            complain(f"warning: the cache daemon is of version {found}, this command of {version}")
        yield client
    finally:
        client.close()


def answering(socket: Path | None) -> Path:
    """The socket of a daemon that answers. Raises as ``connected``."""
    path = socket or find_daemon()
    with connected(path):
        return path


def volume_id_of(socket: Path, text: str) -> str:
    """As ``find_volume``; the text itself for a daemon that cannot list its volumes, which then looks for that id."""
    with connected(socket) as client:
        try:
            return find_volume(text, client.status().volumes).volume.volume_id
        except DaemonOutdated:
            return text


def find_volume(text: str, volumes: Sequence[VolumeStatus]) -> VolumeStatus:
    """By its id, a part of that, the URL of its dataset, or a path in a mount of it. Raises
    InvalidParameter."""
    exact = [one for one in volumes if one.volume.volume_id == text]
    found = exact or [
        one
        for one in volumes
        if text in one.volume.volume_id or one.url.rstrip("/") == text.rstrip("/") or one.device == _device(text)
    ]
    if len(found) == 1:
        return found[0]
    if not volumes:
        raise InvalidParameter("VOLUME", text, "a volume that is mounted on this node; none is")
    candidates = [one.volume.volume_id for one in found or volumes]
    listed = ", ".join(candidates[:_SHOWN]) + (", …" if len(candidates) > _SHOWN else "")
    problem = "Several volumes match" if found else "No volume of this node matches"
    raise InvalidParameter("VOLUME", text, f"one of {listed}", problem)


def _device(path: str) -> str | None:
    """Of the mount that contains an absolute path; the path itself is not accessed."""
    if not path.startswith("/"):
        return None
    entry = MountTable.read().containing(os.path.normpath(path))
    return entry.device if entry is not None and entry.is_fuse else None
