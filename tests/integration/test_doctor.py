"""``hayloft doctor URL``: a real store with right and wrong keys, and servers with other faults."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from csi_driver.cli.application import run_command
from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.wiring.store_checks import store_checks
from hayloft_lab.seaweedfs import SeaweedFsServer
from tests.support.daemons import Bucket, made_bucket
from tests.support.seaweedfs import seaweed

__all__ = ["seaweed"]

pytestmark = [pytest.mark.server, pytest.mark.promise("S591")]

OPTIONS = StoreOptions(deadline_s=2.0, request_timeout_s=2.0)


@pytest.fixture(scope="module")
def bucket(seaweed: SeaweedFsServer) -> Bucket:
    return made_bucket(seaweed, "doctor", small=3, large=0)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in list(os.environ):
        if name.startswith(("HAYLOFT_", "AWS_", "COLUMNS")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    return monkeypatch


def examined(
    capfd: pytest.CaptureFixture[str], directory: Path, url: str, endpoint: str, code: int
) -> dict[str, dict[str, Any]]:
    """Results by check, of a machine without a daemon."""
    capfd.readouterr()
    words = ["doctor", url, f"--store-endpoint={endpoint}", f"--cache-dir={directory}", "--json"]
    found = run_command([*words, f"--daemon-socket={directory}/none.sock", f"--kubelet-dir={directory}/none"])
    document = json.loads(capfd.readouterr().out)
    assert found == code
    results = {one["check"]: one for one in document["results"]}
    assert document["problems"] == sum(one["level"] == "problem" for one in document["results"])
    for one in document["results"]:
        assert one["remedy"] or one["level"] in ("ok", "note"), one
    return results


def test_a_store_that_works_and_one_that_refuses_the_keys_are_told_apart(
    bucket: Bucket, environment: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    environment.setenv("AWS_ACCESS_KEY_ID", bucket.server.access_key_id)
    environment.setenv("AWS_SECRET_ACCESS_KEY", bucket.server.secret_access_key)
    url, endpoint = bucket.attributes["url"], bucket.server.endpoint
    good = examined(capfd, tmp_path, url, endpoint, 6)  # there is no daemon
    levels = {name: good[name]["level"] for name in ("name", "listing", "clock")}
    assert levels == {"name": "ok", "listing": "ok", "clock": "ok"}
    assert "lists its first 3 objects" in good["listing"]["text"]
    assert good["read"]["text"].startswith("the first byte of an object came")
    assert (good["daemon"]["level"], good["daemon"]["remedy"][:8]) == ("problem", "Start it")
    environment.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret-of-it")
    bad = examined(capfd, tmp_path, url, endpoint, 6)
    assert bad["listing"]["level"] == "problem"
    assert "credentials" in bad["listing"]["remedy"]
    assert "not-the-secret-of-it" not in json.dumps(bad)


def test_an_endpoint_that_nothing_listens_at_is_found(environment: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = DatasetUrl.parse(f"http://127.0.0.1:{port}/data/")
    found = {one.check: one for one in store_checks(url, OPTIONS, Credentials())}
    assert found["connection"].level == "warning"
    assert found["listing"].level == "problem"
    assert "endpoint" in found["listing"].remedy


def test_a_name_without_an_address_is_found(environment: pytest.MonkeyPatch) -> None:
    url = DatasetUrl.parse("http://no-such-host.invalid/data/")
    found = {one.check: one for one in store_checks(url, OPTIONS, Credentials())}
    assert (found["name"].level, "DNS" in found["name"].remedy) == ("problem", True)
    assert "listing" not in found


@contextmanager
def server_with_date(date: str) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(404)
            self.end_headers()

        do_GET = do_HEAD

        def date_time_string(self, timestamp: float | None = None) -> str:
            return date

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_clock_that_is_wrong_is_found(environment: pytest.MonkeyPatch) -> None:
    with server_with_date("Thu, 01 Jan 2015 00:00:00 GMT") as port:
        url = DatasetUrl.parse(f"http://127.0.0.1:{port}/data/")
        found = {one.check: one for one in store_checks(url, OPTIONS, Credentials())}
    assert found["clock"].level == "problem"
    assert "behind the node's" in found["clock"].text
    assert "chrony" in found["clock"].remedy
