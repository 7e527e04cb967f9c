"""The metrics port: what it answers, and what it survives."""

from __future__ import annotations

import http.client
import resource
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from csi_driver.model.errors import InvalidParameter
from csi_driver.settings import CacheDaemonSettings
from csi_driver.wiring import page_server
from csi_driver.wiring.control_group import ControlGroupMemory
from csi_driver.wiring.metrics import serving_metrics
from csi_driver.wiring.page_server import HttpPage, PageServer, listen
from tests.support.data_planes import InMemoryDataPlane

HALF_OPEN = 4000


@contextmanager
def serving(address: str = "127.0.0.1") -> Iterator[int]:
    listener = listen(address, 0)
    port = int(listener.getsockname()[1])
    with serving_metrics(listener, InMemoryDataPlane()):
        yield port


@pytest.fixture
def port() -> Iterator[int]:
    with serving() as number:
        yield number


def scrape(port: int, host: str = "127.0.0.1") -> str:
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=60) as response:
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/plain; version=")
        return str(response.read(), "utf-8")


def request(port: int, method: str, path: str, headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, headers=headers or {})
    return connection.getresponse()


def raw(port: int, text: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(text)
        return b"".join(iter(lambda: client.recv(4096), b""))


def test_the_page_shows_the_daemons_report(port: int) -> None:
    page = scrape(port)
    assert "hayloft_mounts 1.0" in page
    assert "# TYPE hayloft_origin_bytes_total counter" in page
    assert "hayloft_cache_evicted_objects_total 3.0" in page
    assert "hayloft_cache_free_bytes 9000.0" in page
    assert "hayloft_cache_free_floor_bytes 1000.0" in page
    assert "hayloft_cache_inodes 200.0" in page
    assert "hayloft_cache_free_inodes 60.0" in page
    assert "hayloft_cache_free_floor_inodes 20.0" in page


@pytest.mark.promise("S279")
def test_the_page_shows_the_memory_of_the_control_group(monkeypatch: pytest.MonkeyPatch) -> None:
    group = ControlGroupMemory(1000, 100, 300, 200, limit_bytes=5000)
    monkeypatch.setattr(ControlGroupMemory, "of_this_process", lambda: group)
    with serving() as port:
        page = scrape(port)
    for kind, count_bytes in [
        ("process", 100),
        ("page_cache_active", 300),
        ("page_cache_inactive", 200),
        ("other", 400),
    ]:
        assert f'hayloft_container_memory_bytes{{kind="{kind}"}} {count_bytes}.0' in page
    assert "hayloft_container_memory_limit_bytes 5000.0" in page


def test_only_get_and_head_of_one_path_are_answered(port: int) -> None:
    head = request(port, "HEAD", "/metrics?x=1")
    assert (head.status, head.read()) == (200, b"")
    # Numbers of the process change between two requests, and now and then their lengths.
    assert any(int(request(port, "HEAD", "/metrics").headers["Content-Length"]) == len(scrape(port)) for _ in range(20))
    assert request(port, "GET", "/").status == 404
    assert request(port, "GET", "/metrics/../etc").status == 404
    refused = request(port, "POST", "/metrics")
    assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD")
    assert raw(port, b"\x16\x03\x01 hello\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert raw(port, b"GET /metrics\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_headers_that_are_too_long_are_refused(port: int) -> None:
    long = {"X-Long": "x" * page_server.LONGEST_REQUEST_BYTES}
    assert request(port, "GET", "/metrics", long).status == 431
    scrape(port)


def test_a_request_that_does_not_end_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_server, "REQUEST_S", 0.1)
    with serving() as port:
        assert raw(port, b"GET /metrics HTTP/1.1\r\n").startswith(b"HTTP/1.1 408 ")
        assert raw(port, b"") == b"", "a connection without a request is closed without an answer"


@pytest.mark.promise("S171")
def test_thousands_of_half_open_requests_take_no_thread_and_keep_no_scrape_out() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert hard > HALF_OPEN + 500, "this test needs descriptors"
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with serving() as port, ExitStack() as attacker:
        threads = set(threading.enumerate())
        for number in range(HALF_OPEN):
            client = attacker.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
            if number % 2:
                client.sendall(b"GET /metrics HTTP/1.1\r\n")
        assert "hayloft_mounts" in scrape(port)
        assert set(threading.enumerate()) <= threads


def test_the_clients_of_other_addresses_keep_their_connections() -> None:
    """The whole of 127.0.0.0/8 is this machine: the attacker has another address than the scraper."""
    with serving("0.0.0.0") as port, ExitStack() as stack:
        scraper = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
        for _ in range(2 * page_server.CONNECTIONS):
            client = socket.create_connection(("127.0.0.1", port), timeout=60, source_address=("127.0.0.2", 0))
            stack.enter_context(client)
        scrape(port)  # accepted after all of them
        scraper.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert scraper.recv(15) == b"HTTP/1.1 200 OK"


def test_a_reader_that_does_not_read_its_response_keeps_no_other_out() -> None:
    server = PageServer(listen("127.0.0.1", 0), {"/metrics": lambda _: HttpPage(b"x" * (32 << 20))}, "pages")
    server.start()
    with socket.create_connection(("127.0.0.1", server.port)) as stuck:
        stuck.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=60) as response:
            assert len(response.read()) == 32 << 20
    server.close()


def test_an_error_while_metrics_are_collected_is_an_answer() -> None:
    data_plane = InMemoryDataPlane()
    data_plane.failure = ValueError("secret detail")
    listener = listen("127.0.0.1", 0)
    with serving_metrics(listener, data_plane):
        response = request(int(listener.getsockname()[1]), "GET", "/metrics")
        assert response.status == 500
        assert b"secret" not in response.read()


def test_the_port_is_closed_with_the_server() -> None:
    with serving() as port:
        scrape(port)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=60)


@pytest.mark.parametrize(("address", "host"), [("127.0.0.2", "127.0.0.2"), ("::1", "[::1]"), ("::", "127.0.0.1")])
def test_it_listens_where_the_operator_says(address: str, host: str) -> None:
    with serving(address) as port:
        scrape(port, host)
        if address == "127.0.0.2":
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=60)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--metrics-address=localhost",), "--metrics-address: 'localhost' is not allowed"),
        (("--metrics-address=192.0.2.1", "--metrics-port=9810"), "--metrics-address: '192.0.2.1' is not allowed"),
        (("--metrics-address=127.0.0.1", "--metrics-port={port}"), "no other process uses at 127.0.0.1"),
    ],
)
def test_the_daemon_refuses_an_unusable_address_in_one_line(
    port: int, tmp_path: Path, flags: tuple[str, ...], said: str
) -> None:
    command = [
        sys.executable,
        "-m",
        "csi_driver.cli",
        "cache",
        f"--socket={tmp_path}/s",
        f"--state-dir={tmp_path}/state",
    ]
    command += [
        f"--cache-dir={tmp_path}",
        f"--registry={tmp_path}/registry",
        *(flag.format(port=port) for flag in flags),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    *log, line = done.stderr.splitlines()
    assert said in line
    assert all(" INFO cache csi_driver." in other for other in log), "only one line is a complaint"


def test_a_port_in_use_and_a_foreign_address_are_refused_by_name(port: int) -> None:
    with pytest.raises(InvalidParameter, match=f"--metrics-port: {port} .* no other process"):
        listen("127.0.0.1", port)
    with pytest.raises(InvalidParameter, match=r"--metrics-address: '192\.0\.2\.1'"):
        listen("192.0.2.1", 0)


@pytest.mark.promise("S270")
def test_metrics_are_scraped_over_ipv4_and_ipv6_without_a_flag() -> None:
    address = CacheDaemonSettings.model_fields["metrics_address"].default
    with serving(address) as port:
        for host in ("127.0.0.1", "[::1]"):
            assert "hayloft_mounts 1" in scrape(port, host)


@pytest.mark.promise("S270")
def test_metrics_are_scraped_over_ipv4_where_the_kernel_has_no_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_server, "_has_ipv6", lambda: False)
    with serving("::") as port:
        scrape(port)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("::1", port), timeout=60)
