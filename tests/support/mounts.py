"""Real FUSE mounts for tests, unmounted also after a failed test."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from csi_driver.event_loop.event_loop import EventLoop
from csi_driver.filesystem.inodes import Filesystem
from csi_driver.filesystem.open_table import OpenTable
from csi_driver.fuse import mounting
from csi_driver.fuse import protocol as p
from csi_driver.fuse.session import FuseSession
from csi_driver.model.errors import MountError
from csi_driver.settings import FuseSettings


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Polls until the condition holds. Fails the test when it times out."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.005)


@dataclass
class ServedMount:
    """A mount that this process serves."""

    mount_point: Path
    device_fd: int
    table_path: Path
    session: FuseSession
    open_table: OpenTable
    requests: Counter[int] = field(default_factory=Counter)
    """Those that were answered or passed on, by opcode."""

    def __truediv__(self, name: str) -> Path:
        return self.mount_point / name


@dataclass
class MountBench:
    """Makes mounts below a directory; ``close`` unmounts all of them."""

    directory: Path
    loop: EventLoop | None = None
    """Offered to each session."""
    mounts: list[ServedMount] = field(default_factory=list)
    mount_points: list[Path] = field(default_factory=list)
    actions: list[Callable[[], None]] = field(default_factory=list)

    def mount_point(self) -> Path:
        """A new directory; ``close`` unmounts everything that is mounted there."""
        path = self.directory / f"mount-{len(self.mount_points)}"
        path.mkdir()
        self.mount_points.append(path)
        return path

    def serve(self, filesystem: Filesystem, settings: FuseSettings | None = None) -> ServedMount:
        """Mounts the file system and serves it from threads of this process."""
        settings = settings or FuseSettings()
        mount_point = self.mount_point()
        table_path = self.directory / f"{mount_point.name}.opens"
        open_table = OpenTable.create(table_path, "snapshot")
        device_fd = mounting.mount(mount_point, "memory://test")
        session = FuseSession(device_fd, filesystem, open_table, settings, adopted=False, loop=self.loop)
        mount = ServedMount(mount_point, device_fd, table_path, session, open_table)
        self.mounts.append(mount)
        _count(session, mount.requests)
        session.start()
        mounting.set_read_ahead(mount_point, settings.read_ahead_kib)
        return mount

    def adopt(self, mount: ServedMount, filesystem: Filesystem, settings: FuseSettings | None = None) -> ServedMount:
        """Serves a mount whose session was stopped, like a new daemon."""
        open_table = OpenTable.load(mount.table_path, "snapshot")
        settings = settings or FuseSettings()
        session = FuseSession(mount.device_fd, filesystem, open_table, settings, adopted=True, loop=self.loop)
        adopted = ServedMount(mount.mount_point, mount.device_fd, mount.table_path, session, open_table)
        mount.session = session
        _count(session, adopted.requests)
        session.start()
        return adopted

    def close(self) -> None:
        """Aborts and detaches every mount, in any state, and closes the descriptors."""
        for action in reversed(self.actions):
            action()
        for mount_point in self.mount_points:
            entry = mounting.find(mount_point)
            while entry is not None:
                with suppress(MountError):
                    mounting.unmount(mount_point)
                if mounting.find(mount_point) is not None:
                    mounting.abort(entry)
                    mounting.unmount(mount_point, lazy=True)
                entry = mounting.find(mount_point)
        for mount in self.mounts:
            ended = not mount.session.serving or mount.session.wait(5.0)
            mount.session.stop()
            os.close(mount.device_fd)
            assert ended, "the session did not see that the mount is gone"


def _count(session: FuseSession, requests: Counter[int]) -> None:
    dispatcher = session._request_loop._dispatcher  # type: ignore[attr-defined]  # both kinds of loops have it
    answer = dispatcher.answer

    def counted(buffer: bytearray, length: int) -> int:
        requests[p.OPCODE.unpack_from(buffer, p.OPCODE_OFFSET)[0]] += 1
        opcode: int = answer(buffer, length)
        return opcode

    dispatcher.answer = counted
