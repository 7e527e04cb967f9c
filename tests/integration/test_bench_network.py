"""The shaped path to the store: its request, its construction and its complete removal."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from hayloft_bench.errors import NetworkError
from hayloft_bench.network import shaped_path as network
from hayloft_bench.network.delay_proxy import VNET_HEADER_BYTES, Direction
from hayloft_bench.network.path_check import PathMeasurement
from hayloft_bench.network.shaped_path import NAMESPACES, PREFIX, Shape, netem, shaped, tbf
from hayloft_lab.seaweedfs import SeaweedFsServer
from tests.architecture.source_tree import REPOSITORY

needs_root = pytest.mark.fuse  # the mark asks for root, which namespaces need as well


@pytest.mark.parametrize(
    ("text", "rate", "round_trip_s"),
    [
        ("25gbit,5ms", 25e9, 0.005),
        ("5ms,25gbit", 25e9, 0.005),
        ("1.5gbit", 1.5e9, 0.0),
        ("200us", None, 0.0002),
        ("100mbit, 0.1s", 1e8, 0.1),
        ("800KBIT", 8e5, 0.0),
    ],
)
def test_rates_and_round_trips_are_parsed(text: str, rate: float | None, round_trip_s: float) -> None:
    shape = Shape.parse(text)
    assert shape.rate_bits_per_s == rate
    assert shape.round_trip_s == pytest.approx(round_trip_s)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fast", "'fast' is neither a rate (such as 25gbit; kbit, mbit, gbit) nor a round-trip time"),
        ("", "'' is neither a rate"),
        ("25gbit,", "'' is neither"),
        ("-5ms", "'-5ms' is neither"),
        ("25gb,5ms", "'25gb' is neither"),
        ("25", "'25' is neither"),
        ("1gbit,2gbit", "rate: given twice"),
        ("1ms,2ms", "round trip: given twice"),
        ("0gbit", "rate: '0gbit' is not within 100kbit to 400gbit"),
        ("1gbit,1000s", "round trip: '1000s' is not within 0 to 5s"),
    ],
)
def test_an_invalid_shape_is_refused_with_its_field(text: str, message: str) -> None:
    with pytest.raises(NetworkError) as caught:
        Shape.parse(text)
    assert str(caught.value).startswith(f"--network: {message}")


def test_a_shape_is_worded_for_people() -> None:
    assert Shape.parse("25gbit,5ms").wording() == "25 Gbit/s, 5 ms round trip"
    assert Shape.parse("800kbit").wording() == "0.8 Mbit/s"


def test_half_of_the_round_trip_is_spent_each_way() -> None:
    words = netem(Shape.parse("10gbit,6ms"))
    assert words[:3] == ["netem", "delay", "3000us"]
    assert words[-2:] == ["rate", "10000000000bit"]
    assert int(words[words.index("limit") + 1]) > 10e9 / 8 * 0.006 / 1500


def test_a_burst_holds_two_packets_before_segmentation() -> None:
    words = tbf(Shape.parse("1mbit"))
    assert int(words[words.index("burst") + 1]) == network.LEAST_BURST_BYTES


def test_a_packet_queues_for_the_rate_and_then_waits_for_the_delay() -> None:
    way = Direction(rate_bits_per_s=8000.0, delay_s=1.0)  # 1,000 bytes per second
    packets = [bytes([number]) * (500 + VNET_HEADER_BYTES) for number in range(2)]
    for packet in packets:
        way.take(packet, now_s=10.0)
    assert way.next_s() == pytest.approx(11.5)
    assert way.due(11.4) == []
    assert way.due(11.6) == packets[:1]
    assert way.due(12.1) == packets[1:]
    assert way.next_s() is None


def test_a_hop_reads_no_packet_while_its_queue_is_full() -> None:
    way = Direction(rate_bits_per_s=8000.0, delay_s=0.0)
    assert not way.is_full(0.0)
    way.take(bytes(500 + VNET_HEADER_BYTES), now_s=0.0)
    assert way.is_full(0.0)
    assert not way.is_full(0.5)


@pytest.mark.parametrize(
    ("spec", "measured", "message"),
    [
        ("10ms", PathMeasurement(0.0001, 1e9), "round trip: 10 ms requested, 0.1 ms measured"),
        ("10ms", PathMeasurement(0.2, 1e9), "round trip: 10 ms requested, 200 ms measured"),
        ("1gbit", PathMeasurement(0.0001, 9e9), "rate: 1 Gbit/s requested, 9 Gbit/s measured"),
    ],
)
def test_a_path_that_differs_from_the_request_is_an_error(spec: str, measured: PathMeasurement, message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        network._require_requested(Shape.parse(spec), measured)


def test_a_path_slower_than_its_rate_is_recorded() -> None:
    shape, measured = Shape.parse("25gbit,5ms"), PathMeasurement(0.0052, 3e9)
    network._require_requested(shape, measured)
    path = network.ShapedPath("none", "198.18.0.1", shape, "hop", measured)
    assert path.wording() == (
        "25 Gbit/s, 5 ms round trip, by hop; measured over one connection: 3 Gbit/s, 5.2 ms round trip"
    )


def test_missing_rights_and_programs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process without capabilities, like one of a user without root."""
    code = (
        "import os\n"
        "from hayloft_bench.network.shaped_path import unavailable\n"
        "if os.geteuid() == 0:\n"
        "    os.setuid(65534)\n"
        "print(unavailable())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert "CAP_NET_ADMIN" in done.stdout or "install iproute2" in done.stdout
    monkeypatch.setattr("hayloft_bench.network.shaped_path._path", lambda: "/nowhere")
    with pytest.raises(NetworkError, match="ip and tc not found: install iproute2"), shaped("1gbit"):
        pass


def ours() -> list[str]:
    return [entry.name for entry in NAMESPACES.glob(f"{PREFIX}{os.getpid()}-*")]


def devices() -> set[str]:
    return {name for _, name in socket.if_nameindex() if name.startswith("hb")}


@needs_root
@pytest.mark.parametrize("spec", ["200mbit", "200mbit,20ms"])
def test_the_path_is_as_requested_and_is_removed_completely(spec: str) -> None:
    before = devices()
    with shaped(spec) as path:
        assert len(ours()) == 1
        assert path.measured is not None
        assert path.measured.bits_per_s < 250e6
        assert path.measured.round_trip_s >= path.shape.round_trip_s * 0.8
        assert path.wording().startswith(path.shape.wording())
    assert ours() == []
    assert devices() <= before


@needs_root
def test_only_processes_started_inside_are_in_the_namespace() -> None:
    with shaped("1gbit") as path:
        at_home = Path("/proc/thread-self/ns/net").readlink()
        with path.inside():
            there = Path("/proc/thread-self/ns/net").readlink()
            child = subprocess.run(["readlink", "/proc/self/ns/net"], capture_output=True, text=True, check=True)
        assert Path("/proc/thread-self/ns/net").readlink() == at_home
    assert there != at_home
    assert child.stdout.strip() == str(there)


@needs_root
def test_an_error_inside_of_the_block_leaves_no_namespace() -> None:
    with pytest.raises(RuntimeError, match="made up"), shaped("1gbit,2ms") as path, path.inside():
        raise RuntimeError("made up")
    assert ours() == []


@needs_root
def test_the_namespace_of_a_killed_process_is_removed_by_the_next_sweep() -> None:
    """The path is one that a busy machine makes as requested."""
    code = (
        "import time\nfrom hayloft_bench.network.shaped_path import shaped\n"
        "with shaped('100mbit,200ms') as path:\n    print(path.namespace, flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        process.send_signal(signal.SIGKILL)
    assert name
    assert (NAMESPACES / name).exists()
    assert name in network.sweep()
    assert not (NAMESPACES / name).exists()


@needs_root
@pytest.mark.server
def test_the_store_is_reached_over_the_shaped_path(tmp_path: Path) -> None:
    with shaped("1gbit,20ms") as path:
        server = SeaweedFsServer(tmp_path / "store", host=path.address)
        try:
            with path.inside():
                server.start()
            begun = time.perf_counter()
            with urllib.request.urlopen(f"{server.endpoint}/healthz", timeout=10) as answer:  # noqa: S310 - http
                assert answer.status == 200
            # A handshake and a request are two round trips, on any machine.
            assert time.perf_counter() - begun >= 0.03
            server.create_bucket("bench")
            assert server.bytes_sent() == 0
        finally:
            server.stop()


def test_a_direction_without_a_rate_only_delays() -> None:
    way = Direction(None, 0.5)
    way.take(bytes(1000), 1.0)
    assert way.next_s() == pytest.approx(1.5)
