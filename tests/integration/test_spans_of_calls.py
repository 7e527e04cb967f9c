"""Traces of calls through real processes, received by a real receiver of OTLP."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from csi_driver.model import spans
from csi_driver.rpc.pb import csi_pb2, csi_pb2_grpc
from csi_driver.wiring.span_export import exporting_spans
from hayloft_lab.emulated_kubelet import CallRefused, EmulatedKubelet, Volume
from hayloft_lab.node_driver import NodeDriver
from tests.support.csi_calls import mount_capability
from tests.support.hostile_s3 import HostileS3, Status
from tests.support.random_bytes import random_bytes
from tests.support.span_receiver import FAST, ReceivedSpan, SpanReceiver

pytestmark = pytest.mark.fuse

SMALL = {f"data/small/{number:03}": random_bytes(number, 2000) for number in range(60)}
OBJECTS = {**SMALL, "data/large": random_bytes(3, 9 << 20)}
STAGE, PUBLISH = "csi.v1.Node/NodeStageVolume", "csi.v1.Node/NodePublishVolume"
SERVICES = ("hayloft-node", "hayloft-cache")


class RunningNode:
    """Node plugin and daemon, as processes of their own."""

    def __init__(self, home: Path, store: HostileS3) -> None:
        self.home, self.store = home, store
        self.driver = NodeDriver(home, ["--allowed-address=127.0.0.0/8", "--trusted-namespace=*", "--free-floor=0"])
        self.kubelet = EmulatedKubelet(self.driver.endpoint, self.driver.kubelet_directory)

    def start(self) -> None:
        self.driver.start()
        self.driver.wait_until_ready(self.kubelet)

    def close(self) -> None:
        self.kubelet.close()
        self.driver.stop()

    def volume(self, name: str, **parameters: str) -> Volume:
        """A static volume."""
        plugins = self.driver.kubelet_directory / "plugins" / name
        return Volume(
            name,
            {
                "url": f"s3://{self.store.bucket}/data",
                "endpoint": self.store.endpoint,
                "requestTimeout": "2s",
                "deadline": "4s",
                **parameters,
            },
            plugins / "globalmount",
            self.driver.kubelet_directory / "pods" / name / "volumes" / "mount",
            {"access_key_id": self.store.access_key_id, "secret_access_key": self.store.secret_access_key},
        )

    def log(self) -> list[str]:
        return self.driver.log_path.read_text().splitlines()


@pytest.fixture
def store() -> Iterator[HostileS3]:
    with HostileS3(OBJECTS) as store:
        yield store


@pytest.fixture
def home() -> Iterator[Path]:
    home = Path(tempfile.mkdtemp(prefix="hs-"))
    yield home
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def nodes(home: Path, store: HostileS3) -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def started(stack: ExitStack, home: Path, store: HostileS3) -> RunningNode:
    node = RunningNode(home, store)
    stack.callback(node.close)
    node.start()
    return node


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[SpanReceiver]:
    with SpanReceiver() as receiver:
        for name, value in receiver.environment.items():
            monkeypatch.setenv(name, value)
        yield receiver


def of_trace(receiver: SpanReceiver, root: ReceivedSpan) -> dict[str, ReceivedSpan]:
    """By name."""
    return {span.name: span for span in receiver.spans() if span.trace_id == root.trace_id}


@pytest.mark.promise("S670")
def test_one_trace_leads_from_the_call_of_kubelet_through_the_daemon_to_the_first_requests_to_the_store(
    receiver: SpanReceiver, nodes: ExitStack, home: Path, store: HostileS3
) -> None:
    node = started(nodes, home, store)
    volume = node.volume("pv-1")
    node.kubelet.stage(volume)
    target = node.kubelet.publish(volume)
    assert (target / "large").read_bytes() == OBJECTS["data/large"]
    assert (target / "small" / "001").read_bytes() == SMALL["data/small/001"]
    stage = receiver.named(STAGE)
    receiver.named("store read")
    found = of_trace(receiver, stage)
    mount, listing = found["hayloft.v1.CacheDaemon/Mount"], found["listing"]
    assert (stage.service, stage.parent_id) == ("hayloft-node", "")
    assert (mount.service, mount.parent_id) == ("hayloft-cache", stage.span_id)
    assert listing.parent_id == mount.span_id
    assert listing.attributes["hayloft.files"] == len(OBJECTS)
    assert ("page", {"hayloft.objects": len(OBJECTS)}) in listing.events
    assert found["mount"].parent_id == mount.span_id
    reads = [span for span in receiver.spans() if span.name == "store read"]
    assert {(span.trace_id, span.parent_id) for span in reads} == {(stage.trace_id, found["mount"].span_id)}
    assert all([name for name, _ in span.events] == ["first bytes"] for span in reads)
    for span in (stage, mount):
        assert span.attributes["hayloft.volume_id"] == "pv-1"
        assert span.attributes["hayloft.dataset"] == f"s3://{store.bucket}/data"
        assert span.attributes["rpc.grpc.status_code"] == 0
        assert span.error is None
    published = of_trace(receiver, receiver.named(PUBLISH))
    assert published["view"].service == "hayloft-cache"
    assert published["bind mount"].service == "hayloft-node"
    # The lines of both processes name the trace, and the call by which it is found in either.
    for text in (" NodeStageVolume volume_id=pv-1", " Mount volume_id=pv-1"):
        (line,) = (line for line in node.log() if text in line)
        assert f" trace={stage.trace_id}" in line
        assert f" call={stage.attributes['hayloft.call']}" in line


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "csi_driver.cli", *arguments]


@pytest.mark.promise("S670")
def test_a_claim_is_a_trace_of_the_controller_with_its_listing(
    receiver: SpanReceiver, home: Path, store: HostileS3
) -> None:
    endpoint = f"unix://{home}/controller.sock"
    flags = [f"--endpoint={endpoint}", f"--registry={home}/registry", "--allowed-address=127.0.0.0/8"]
    process = subprocess.Popen(command("controller", *flags))
    kubelet = EmulatedKubelet(endpoint, home)
    try:
        kubelet.wait_until_ready(60, lambda: process.poll() is None)
        parameters = {"url": f"s3://{store.bucket}/data", "endpoint": store.endpoint}
        secret = {"access_key_id": store.access_key_id, "secret_access_key": store.secret_access_key}
        kubelet.create("pvc-1", parameters, secret)
        created = receiver.named("csi.v1.Controller/CreateVolume")
    finally:
        kubelet.close()
        process.terminate()
        assert process.wait(60) == 0
    assert created.service == "hayloft-controller"
    listing = receiver.named("listing")
    assert (listing.trace_id, listing.parent_id) == (created.trace_id, created.span_id)
    assert created.attributes["hayloft.volume_id"] == "pvc-1"


@pytest.mark.promise("S673")
def test_a_process_whose_variables_cannot_be_used_says_which_and_ends(
    receiver: SpanReceiver, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    flags = [f"--endpoint=unix://{home}/csi.sock", "--node-id=n", f"--daemon-socket={home}/cache.sock"]
    done = subprocess.run(command("node", *flags), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode not in (0, None)
    assert "OTEL_EXPORTER_OTLP_PROTOCOL: 'http/protobuf' is not allowed; allowed: grpc" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.promise("S670")
def test_a_call_continues_the_trace_of_its_caller(
    receiver: SpanReceiver, nodes: ExitStack, home: Path, store: HostileS3
) -> None:
    node = started(nodes, home, store)
    volume = node.volume("pv-1")
    volume.staging_path.mkdir(parents=True)
    request = csi_pb2.NodeStageVolumeRequest(
        volume_id=volume.volume_id,
        staging_target_path=str(volume.staging_path),
        volume_capability=mount_capability(),
        secrets=volume.secrets,
        volume_context=volume.context,
    )
    with grpc.insecure_channel(node.driver.endpoint) as channel:
        stub = csi_pb2_grpc.NodeStub(channel)
        for sent in ("01" * 16, "02" * 16):
            metadata = (("traceparent", f"00-{sent}-00f067aa0ba902b7-0{1 if sent < '02' else 0}"),)
            stub.NodeStageVolume(request, timeout=60, metadata=metadata)
    span = receiver.named(STAGE)
    assert (span.trace_id, span.parent_id) == ("01" * 16, "00f067aa0ba902b7")
    node.kubelet.unstage(volume)
    receiver.named("csi.v1.Node/NodeUnstageVolume")
    assert "02" * 16 not in receiver.text(), "its caller did not sample it"
    assert not [line for line in node.log() if f"trace={'02' * 16}" in line]


@pytest.mark.promise("S671")
def test_neither_reads_nor_calls_that_kubelet_repeats_make_spans_and_of_requests_the_first_do(
    receiver: SpanReceiver, nodes: ExitStack, home: Path, store: HostileS3
) -> None:
    node = started(nodes, home, store)
    volume = node.volume("pv-1", view="fuse")
    node.kubelet.stage(volume)
    target = node.kubelet.publish(volume)
    for _ in range(3):
        node.kubelet.publish(volume)  # as kubelet repeats it
        for key, content in SMALL.items():
            assert (target / key.removeprefix("data/")).read_bytes() == content
        node.kubelet.usage(volume)
    assert len(store.seen("GET")) >= len(SMALL)
    node.kubelet.unpublish(volume)
    receiver.named("csi.v1.Node/NodeUnpublishVolume")
    names = [span.name for span in receiver.spans()]
    # Of the first sixteen; one that could not be begun without waiting was begun again elsewhere.
    assert 8 <= sum(name.startswith("store ") for name in names) <= 16
    assert len(names) < 40
    assert names.count(PUBLISH) == 1
    assert names.count("hayloft.v1.CacheDaemon/Mount") == 1
    assert not [name for name in names if "Stats" in name or "Probe" in name]


@pytest.mark.promise("S670")
def test_a_call_that_fails_and_its_cause_are_marked_as_failed(
    receiver: SpanReceiver, nodes: ExitStack, home: Path, store: HostileS3
) -> None:
    node = started(nodes, home, store)
    store.fail_all(Status(403, "AccessDenied", kinds=("LIST",)))
    with pytest.raises(CallRefused):
        node.kubelet.stage(node.volume("pv-1"))
    stage = receiver.named(STAGE)
    assert stage.error is not None
    assert "pv-1" in stage.error or store.bucket in stage.error
    assert stage.attributes["error.type"] == "AccessDenied"
    assert receiver.named("listing").error == "AccessDenied"


@pytest.mark.promise("S670")
def test_a_warmup_is_a_span_of_the_call_that_started_it(
    receiver: SpanReceiver, nodes: ExitStack, home: Path, store: HostileS3
) -> None:
    node = started(nodes, home, store)
    node.kubelet.stage(node.volume("pv-1", warmup="wait"))
    stage = receiver.named(STAGE)
    warmup = receiver.named("warmup")
    assert warmup.trace_id == stage.trace_id
    assert warmup.attributes["hayloft.state"] == "complete"
    assert warmup.attributes["hayloft.bytes"] == sum(map(len, OBJECTS.values()))
    assert receiver.named("warmup wait").parent_id == stage.span_id


def use_volume(node: RunningNode) -> float:
    """The seconds that it takes."""
    began = time.monotonic()
    for number in range(5):
        volume = node.volume(f"pv-{number}")
        node.kubelet.stage(volume)
        assert (node.kubelet.publish(volume) / "small" / "007").read_bytes() == SMALL["data/small/007"]
        node.kubelet.unpublish(volume)
        node.kubelet.unstage(volume)
    return time.monotonic() - began


@pytest.mark.promise("S672")
def test_spans_beyond_the_queue_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"OTEL_BSP_MAX_QUEUE_SIZE": "100", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "50"}.items():
        monkeypatch.setenv(name, value)
    with SpanReceiver(answers=False) as receiver:
        for name, value in receiver.environment.items():
            monkeypatch.setenv(name, value)
        with exporting_spans("test", os.environ):
            for number in range(200):
                spans.start("first", {"number": number}).end()
            assert receiver.asked.wait(30)
            for number in range(5000):  # returns, whatever the receiver does
                spans.start("later", {"number": number}).end()
            receiver.resume()
            receiver.wait(lambda span: span.attributes.get("number") == 4999, "the last one")
        assert len(receiver.spans()) <= 350
    assert not spans.is_on()


@pytest.mark.promise("S672")
@pytest.mark.parametrize("kind", ["no listener", "no answer"])
def test_a_receiver_that_is_away_fails_no_call(
    kind: str, nodes: ExitStack, home: Path, store: HostileS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "no answer":
        receiver = nodes.enter_context(SpanReceiver(answers=False))
        port, away = receiver.port, receiver.asked
    else:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port, away = free.getsockname()[1], None
    for name, value in {**FAST, "OTEL_EXPORTER_OTLP_TIMEOUT": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    node = started(nodes, home, store)
    use_volume(node)
    if away is not None:
        assert away.wait(30)
    deadline = time.monotonic() + 30
    while not [line for line in node.log() if "spans cannot be exported" in line]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    use_volume(node)
    failures = [line for line in node.log() if "cannot be exported" in line]
    assert len(failures) <= len(SERVICES), "each process says it once"
    assert not [line for line in node.log() if "opentelemetry" in line]
