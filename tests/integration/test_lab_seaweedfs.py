"""The S3 server for benchmarks and tests: its counters, its errors, and its end."""

from __future__ import annotations

import os
import select
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from csi_driver.model.chunk import ByteRange
from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import BucketNotFound, CredentialsRejected
from csi_driver.objects.blobs.blob_factory import open_blobs
from csi_driver.objects.store_factory import open_store
from hayloft_lab.seaweedfs import SeaweedFsServer
from tests.support.seaweedfs import seaweed, seaweed_bucket

__all__ = ["seaweed", "seaweed_bucket"]
pytestmark = pytest.mark.server


def _options(server: SeaweedFsServer) -> StoreOptions:
    return StoreOptions(endpoint=server.endpoint, deadline_s=5)


def _keys(server: SeaweedFsServer) -> Credentials:
    return Credentials({"access_key_id": server.access_key_id, "secret_access_key": server.secret_access_key})


def test_the_key_file_is_readable_by_its_owner_only(seaweed: SeaweedFsServer) -> None:
    config = next(path for path in seaweed.log_path.parent.iterdir() if path.name == "s3.json")
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert seaweed.secret_access_key not in Path(f"/proc/{seaweed.pid}/cmdline").read_text()


def test_the_server_counts_bytes_and_requests(seaweed: SeaweedFsServer, seaweed_bucket: str) -> None:
    store = open_store(DatasetUrl.parse(f"s3://{seaweed_bucket}"), _options(seaweed), _keys(seaweed))
    open_blobs(f"s3://{seaweed_bucket}", _options(seaweed), _keys(seaweed)).put_if_absent("key", bytes(1000))
    sent_bytes, requests = seaweed.bytes_sent(), seaweed.requests("GET")
    for _ in range(3):
        list(store.read_range("key", ByteRange(0, 500), if_match=None))
    assert seaweed.bytes_sent() - sent_bytes == 1500
    assert seaweed.requests("GET") - requests == 3


def test_a_missing_bucket_and_wrong_keys_are_different_errors(seaweed: SeaweedFsServer, seaweed_bucket: str) -> None:
    with pytest.raises(BucketNotFound, match="no-such-bucket"):
        list(open_store(DatasetUrl.parse("s3://no-such-bucket"), _options(seaweed), _keys(seaweed)).list(""))
    for wrong in ({"access_key_id": "WRONG"}, {"secret_access_key": "wrong"}):
        credentials = Credentials(_keys(seaweed).values | wrong)
        store = open_store(DatasetUrl.parse(f"s3://{seaweed_bucket}"), _options(seaweed), credentials)
        with pytest.raises(CredentialsRejected):
            list(store.list(""))
        with pytest.raises(CredentialsRejected):
            store.stat("key")


def test_the_server_dies_with_the_program_that_started_it(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from hayloft_lab.seaweedfs import SeaweedFsServer\n"
        "server = SeaweedFsServer(Path(sys.argv[1])); server.start(); print(server.pid, flush=True); time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        server = int(parent.stdout.readline())
        descriptor = os.pidfd_open(server)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    try:
        _wait_for_end(descriptor)
    finally:
        os.close(descriptor)


def _wait_for_end(descriptor: int) -> None:
    ended, _, _ = select.select([descriptor], [], [], 20)
    assert ended, "the server outlived the program that started it"
