"""SIGKILL of the controller, and of the cache daemon, in the middle of a long listing: the repeated call goes on."""

from __future__ import annotations

import re
import shutil
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import grpc
import pytest

from csi_driver.rpc.pb import csi_pb2
from tests.support.csi_calls import CsiClient, mount_capability, refused
from tests.support.daemons import DaemonBench, wait_until
from tests.support.node_processes import NodeProcesses

pytestmark = [pytest.mark.fuse, pytest.mark.faults, pytest.mark.timeout(300)]

PAGES, PAGE_KEYS = 400, 50
IN_FLIGHT = 16 + 2 * 16
"""At a kill: a request of each thread, and pages that wait to be handed over."""


class ListingServer(ThreadingHTTPServer):
    """S3's listing of ``PAGES`` pages, each after a delay; counts the requests for each continuation token. Pages after
    a key, by which a range is divided, are others each time."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requested: Counter[int] = Counter()
        self.lock = threading.Lock()  # guards ``requested``
        self.pause = threading.Event()
        self.delay_s = 0.03
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def total(self) -> int:
        """Requests by continuation tokens."""
        with self.lock:
            return self.requested.total()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ListingServer

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        start = int(query.get("continuation-token", ["0"])[0])
        if "start-after" in query:
            after = query["start-after"][0]
            start = next((row for row in range(PAGES * PAGE_KEYS) if key_of(row) > after), PAGES * PAGE_KEYS)
        else:
            with self.server.lock:
                self.server.requested[start] += 1
        self.server.pause.wait(self.server.delay_s)
        stop = min(start + PAGE_KEYS, PAGES * PAGE_KEYS)
        entries = "".join(
            f"<Contents><Key>{key_of(row)}</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified>"
            f"<ETag>&quot;{row:032x}&quot;</ETag><Size>1</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for row in range(start, stop)
        )
        more = stop < PAGES * PAGE_KEYS
        token = f"<NextContinuationToken>{stop}</NextContinuationToken>" if more else ""
        body = (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>b</Name><Prefix>data/</Prefix><IsTruncated>{'true' if more else 'false'}</IsTruncated>{token}"
            f"{entries}</ListBucketResult>"
        ).encode()
        with suppress(ConnectionError):  # of a process that was killed
            self.send_response(200)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are counted."""


def key_of(row: int) -> str:
    return f"data/{row // 100:04d}/{row:06d}"


@pytest.fixture
def store() -> Iterator[ListingServer]:
    server = ListingServer()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def driver() -> Iterator[NodeProcesses]:
    home = Path(tempfile.mkdtemp(prefix="hayloft-", dir="/var/tmp"))
    made = NodeProcesses(DaemonBench(home, keep=False))
    yield made
    made.close()
    shutil.rmtree(home)


@pytest.mark.promise("S636")
def test_a_killed_controller_goes_on_listing_where_it_was(driver: NodeProcesses, store: ListingServer) -> None:
    request = csi_pb2.CreateVolumeRequest(
        name="pvc-00000000-0000-0000-0000-000000000001",
        parameters={"url": "s3://b/data", "endpoint": store.endpoint, "anonymous": "true", "region": "us-east-1"},
        volume_capabilities=[mount_capability()],
    )
    kills = 2
    with ThreadPoolExecutor(1) as caller:
        for number in range(kills):
            driver.start("controller")
            client = CsiClient(driver.bench.run / "controller.sock")
            call = caller.submit(client.controller.CreateVolume, request, timeout=120)
            wait_until(lambda before=PAGES // 5 * (number + 1): store.total > before)
            driver.processes["controller"].send_signal(signal.SIGKILL)
            driver.processes["controller"].wait()
            with pytest.raises(grpc.RpcError):
                call.result()
            client.close()
    before = store.total
    driver.start("controller")
    client = CsiClient(driver.bench.run / "controller.sock")
    volume = client.controller.CreateVolume(request, timeout=120).volume
    client.close()
    assert volume.capacity_bytes == PAGES * PAGE_KEYS
    assert store.total - before < PAGES * 3 // 4
    again = sum(count - 1 for count in store.requested.values())
    assert again <= kills * IN_FLIGHT, "pages that were requested again"
    driver.processes["controller"].send_signal(signal.SIGTERM)
    driver.processes["controller"].wait(30)


@pytest.mark.promise("S636")
def test_a_killed_daemon_goes_on_listing_where_it_was(driver: NodeProcesses, store: ListingServer) -> None:
    context = {"url": "s3://b/data", "endpoint": store.endpoint, "anonymous": "true", "region": "us-east-1"}
    staging = driver.bench.directory / "staging"
    staging.mkdir()
    volume = csi_pb2.Volume(volume_id="static", volume_context=context)
    driver.start("cache")
    driver.start("csi")
    client = CsiClient(driver.bench.run / "csi.sock")
    with ThreadPoolExecutor(1) as caller:
        call = caller.submit(client.stage, volume, staging)
        wait_until(lambda: store.total > PAGES // 4)
        driver.processes["cache"].send_signal(signal.SIGKILL)
        driver.processes["cache"].wait()
        with pytest.raises(grpc.RpcError):
            call.result()
    driver.start("cache")
    client.stage(volume, staging)
    assert sum(1 for _ in (staging / "0007").iterdir()) == 100
    assert sum(count - 1 for count in store.requested.values()) <= IN_FLIGHT
    client.node.NodeUnstageVolume(
        csi_pb2.NodeUnstageVolumeRequest(volume_id="static", staging_target_path=str(staging)), timeout=60
    )
    client.close()


@pytest.mark.promise("S638")
def test_a_call_that_is_repeated_during_a_listing_says_how_far_it_is(
    driver: NodeProcesses, store: ListingServer
) -> None:
    store.delay_s = 0.4
    request = csi_pb2.CreateVolumeRequest(
        name="pvc-00000000-0000-0000-0000-000000000002",
        parameters={"url": "s3://b/data", "endpoint": store.endpoint, "anonymous": "true", "region": "us-east-1"},
        volume_capabilities=[mount_capability()],
    )
    driver.start("controller")
    client = CsiClient(driver.bench.run / "controller.sock")
    texts: set[str] = set()
    with ThreadPoolExecutor(1) as caller:
        call = caller.submit(client.controller.CreateVolume, request, timeout=120)
        wait_until(lambda: store.total > 0)
        while not any("lists its dataset" in text for text in texts):
            assert not call.done(), texts
            with refused(grpc.StatusCode.ABORTED) as found:
                client.controller.CreateVolume(request, timeout=120)
            texts.add(found[0].message)
            store.pause.wait(0.2)
        store.delay_s = 0.0
        assert call.result().volume.capacity_bytes == PAGES * PAGE_KEYS
    client.close()
    assert re.fullmatch(
        r"hayloft-pvc-.*: another call for this volume is in flight, which lists its dataset: more than [125]0+ "
        r"objects so far; retry later",
        max(texts, key=len),
    ), texts
