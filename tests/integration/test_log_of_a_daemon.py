"""The log of a real daemon: the id of a call, and its level."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.model.log_context import logging_call
from tests.support.daemons import Bucket, DaemonBench, wait_until
from tests.support.hostile_s3 import HostileS3, Status
from tests.support.random_bytes import random_bytes

pytestmark = pytest.mark.fuse

CONTENT = random_bytes(4, 6 << 20)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[DaemonBench]:
    flags = ("--supervise", "--node-name=node-7", "--free-floor=0")
    bench = DaemonBench(tmp_path, flags=flags, log_path=tmp_path / "log", keep=False)
    bench.start()
    yield bench
    bench.close()


def lines(bench: DaemonBench, text: str) -> list[str]:
    assert bench.log_path is not None
    return [line for line in bench.log_path.read_text().splitlines() if text in line]


@pytest.mark.promise("S608")
def test_one_id_leads_from_the_call_that_mounts_to_the_read_that_fails(bench: DaemonBench) -> None:
    with HostileS3({"data/large": CONTENT}) as store:
        bucket = Bucket(store, store.bucket, {"large": CONTENT})  # type: ignore[arg-type]
        with logging_call("0123abcd"):  # as the node plugin does for a call of kubelet
            mount_point = bench.mount(bucket, "pvc-1")
        (mounted,) = lines(bench, " Mount volume_id=pvc-1")
        assert " call=0123abcd node=node-7" in mounted
        assert f" dataset=s3://{store.bucket}/data " in mounted
        store.fail_all(Status(403, "AccessDenied"))
        with pytest.raises(PermissionError):
            (mount_point / "large").read_bytes()
        wait_until(lambda: lines(bench, "a read of a volume failed"))  # written after the reader has its answer
        failed = lines(bench, "a read of a volume failed")
        assert all(" call=0123abcd" in line and " node=node-7" in line for line in failed)
        for line in lines(bench, ""):
            assert store.secret_access_key not in line


@pytest.mark.promise("S610")
def test_the_level_of_a_daemon_is_changed_without_a_restart(bench: DaemonBench) -> None:
    process_id = int((bench.cache / "lock").read_text())
    changed = "the level of the log was changed"
    with bench.client() as client:
        client.mounts()
        assert not lines(bench, "ListMounts request")
        os.kill(process_id, signal.SIGUSR1)
        wait_until(lambda: lines(bench, f"{changed} level=DEBUG"))
        client.mounts()
        wait_until(lambda: lines(bench, "ListMounts request"))
        # The supervisor passes it on.
        bench.processes[-1].send_signal(signal.SIGUSR2)
        wait_until(lambda: lines(bench, f"{changed} level=INFO"))
        assert client.report().process_id == process_id
