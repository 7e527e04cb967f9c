"""Records what a version of Hayloft sends and stores, for ``tests/integration/test_version_skew.py``.

Run it with the environment of that version:

    ../hayloft-of-before/.venv/bin/python tests/support/recorded/record.py tests/support/recorded/before.json
"""

from __future__ import annotations

import base64
import json
import os
import socket
import sys
import tempfile
import threading
import zlib
from pathlib import Path
from typing import Any

from csi_driver.daemon.mount_records import MountRecord, MountRecords
from csi_driver.daemon.warmup_records import WarmupRecord
from csi_driver.filesystem.open_table import ConnectionState, OpenTable
from csi_driver.mounts.keeper_protocol import KeeperClient, KeeperServer
from csi_driver.rpc.pb import hayloft_pb2
from csi_driver.volumes.data_plane import WarmupRequest

SNAPSHOT = "0123456789abcdef0123456789abcdef01234567"
PACKETS = (
    ("LIST !", 0),
    ("PUT m-0123456789abcdef", 2),
    ("PUT m-fedcba9876543210", 1),
    ("LIST !", 0),
    ("LIST m-0123456789abcdef", 0),
    ("GET m-0123456789abcdef", 0),
    ("GET m-none", 0),
    ("PUT m-0123456789abcdef", 1),
    ("GET m-0123456789abcdef", 0),
    ("DROP m-0123456789abcdef", 0),
    ("DROP m-0123456789abcdef", 0),
    ("LIST !", 0),
)


def packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 9)).decode()


def received(connection: socket.socket) -> tuple[str, int]:
    """A packet, and how many descriptors came with it."""
    data, descriptors, _, _ = socket.recv_fds(connection, 4096, 4)
    for descriptor in descriptors:
        os.close(descriptor)
    return data.decode(), len(descriptors)


def keeper_answers(path: Path, packets: tuple[tuple[str, int], ...] = PACKETS) -> list[list[Any]]:
    """Packets and numbers of descriptors, sent and received."""
    server = KeeperServer(path)
    thread = threading.Thread(target=server.serve)
    thread.start()
    found = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client, open(os.devnull) as null:
        client.connect(str(path))
        for packet, count in packets:
            if count:
                socket.send_fds(client, [packet.encode()], [null.fileno()] * count)
            else:
                client.send(packet.encode())
            found.append([packet, count, *received(client)])
    server.stop()
    thread.join()
    server.close()
    return found


def client_packets(path: Path, replies: tuple[str, ...] = ("OK", "OK", "OK", "OK m-1 m-2", "OK")) -> list[list[Any]]:
    """What the client sends, and the replies that it gets."""
    found = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, open(os.devnull) as null:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            for reply in replies:
                connection, _ = listener.accept()
                with connection:
                    found.append([*received(connection), reply])
                    connection.send(reply.encode())

        thread = threading.Thread(target=answer)
        thread.start()
        client = KeeperClient(path)
        client.put("m-1", [null.fileno()] * 2)
        client.get("m-1")
        client.drop("m-1")
        client.names()
        thread.join()
    return found


def main() -> None:
    home = Path(tempfile.mkdtemp())
    (home / "state").mkdir()
    records = MountRecords(home / "state")
    attributes = {"url": "s3://bucket/data"}
    record = MountRecord("m-0123456789abcdef", "volume-1", "/a/globalmount", attributes, SNAPSHOT, region="us-east-1")
    records.save(record)
    opens = OpenTable.create(home / "opens", SNAPSHOT)
    opens.record_connection(ConnectionState(45, 1 << 37 | 1))
    handles = [opens.claim(2, 11, 100, 0), opens.claim(3, 12, 102, 7)]
    opens.close()
    WarmupRecord(WarmupRequest("volume-1", ("*.jpg",), 5 << 20, 2), None).save(home / "warmup")
    recorded = {
        "keeper": keeper_answers(home / "keeper"),
        "keeper_client": client_packets(home / "listener"),
        "mount_record": (home / "state" / "mounts" / f"{record.mount_id}.json").read_text(),
        "open_table": packed((home / "opens").read_bytes()),
        "open_table_handles": handles,
        "warmup_record": (home / "warmup").read_text(),
        "hayloft_proto": packed(hayloft_pb2.DESCRIPTOR.serialized_pb),
    }
    Path(sys.argv[1]).write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    main()
