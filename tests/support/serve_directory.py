"""A small daemon, to be killed: serves a local directory, and a keeper holds the mount.

    python -m tests.support.serve_directory DIRECTORY MOUNT_POINT TABLE KEEPER_SOCKET [HANGING_FILE ...]

Adopts the mount if the keeper has it. Reads of hanging files are never answered. Prints ``ready`` when it serves.
"""

from __future__ import annotations

import sys
from pathlib import Path

from csi_driver.filesystem.open_table import OpenTable
from csi_driver.fuse import mounting as device
from csi_driver.fuse.session import FuseSession
from csi_driver.mounts.keeper_protocol import KeeperClient
from csi_driver.settings import FuseSettings
from tests.support.local_filesystem import LocalFilesystem


def main() -> None:
    directory, mount_point, table_path, keeper_socket = map(Path, sys.argv[1:5])
    filesystem = LocalFilesystem(directory)
    for name in sys.argv[5:]:
        node = filesystem.node_of(name)
        filesystem.incomplete.add(node)
        filesystem.pending_nodes.add(node)
    keeper = KeeperClient(keeper_socket)
    held = keeper.get("mount")
    if held:
        device_fd, table = held[0], OpenTable.load(table_path, "snapshot")
    else:
        table = OpenTable.create(table_path, "snapshot")
        device_fd = device.mount(mount_point, "memory://test")
        keeper.put("mount", [device_fd])
    session = FuseSession(device_fd, filesystem, table, FuseSettings(), adopted=bool(held))
    session.start()
    print("ready", flush=True)  # noqa: T201 - the parent waits for it
    session.wait()


if __name__ == "__main__":
    main()
