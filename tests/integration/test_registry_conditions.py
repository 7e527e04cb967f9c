"""A registry on a store without conditional writes: found at the start, and said."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.model.dataset import Credentials, StoreOptions
from csi_driver.model.errors import InvalidParameter
from csi_driver.objects.blobs.blob_factory import open_blobs
from csi_driver.objects.blobs.blob_store import BlobStore
from tests.support.daemons import DaemonBench, wait_until
from tests.support.hostile_s3 import HostileS3

PAIR = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "x"}
WAYS = ["refused", "ignored", "if-match-ignored"]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostileS3]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    with HostileS3() as server:
        yield server


def blobs_on(store: HostileS3) -> BlobStore:
    return open_blobs("s3://data/registry", StoreOptions(endpoint=store.endpoint, deadline_s=5), Credentials(PAIR))


def test_a_store_with_conditional_writes_is_asked_once_and_left_as_it_was(store: HostileS3) -> None:
    blobs = blobs_on(store)
    blobs.check()
    sent = len(store.requests)
    blobs.check()
    assert blobs.put_if_absent("volumes/a.json", b"a") is not None
    assert len(store.requests) == sent + 1
    assert blobs.list("") == ["volumes/a.json"]


@pytest.mark.promise("S216")
@pytest.mark.parametrize("way", WAYS)
def test_a_store_without_conditional_writes_is_refused_before_the_first_record(store: HostileS3, way: str) -> None:
    store.conditional_puts = way
    for write in (blobs_on(store).check, lambda: blobs_on(store).put_if_absent("volumes/a.json", b"a")):
        with pytest.raises(InvalidParameter, match="a store with conditional writes"):
            write()
    assert blobs_on(store).list("") == []


@pytest.mark.promise("S216")
@pytest.mark.parametrize("way", WAYS)
def test_a_controller_does_not_start_and_says_why(store: HostileS3, tmp_path: Path, way: str) -> None:
    store.conditional_puts = way
    command = [
        *(sys.executable, "-m", "csi_driver.cli", "controller", f"--endpoint=unix://{tmp_path}/csi.sock"),
        *("--registry=s3://data/registry", f"--registry-endpoint={store.endpoint}"),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode != 0
    assert "a store with conditional writes" in " ".join(ended.stderr.split())


@pytest.mark.fuse
@pytest.mark.promise("S216")
def test_a_daemon_says_it_and_serves_what_it_has(
    store: HostileS3, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store.conditional_puts = "ignored"
    flags = ("--registry=s3://data/registry", f"--registry-endpoint={store.endpoint}")
    bench = DaemonBench(tmp_path, flags, keep=False)
    said = ""

    def says() -> bool:
        nonlocal said
        said += capfd.readouterr().err
        return "a store with conditional writes" in said

    try:
        bench.start()
        wait_until(says)
    finally:
        bench.close()
