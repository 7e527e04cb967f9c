"""A port or socket that cannot be listened on ends a process with one line that names the flag."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hl-") as name:  # short enough for a socket
        (Path(name) / "cache").mkdir()
        (Path(name) / "file").write_text("")
        yield Path(name)


PROCESSES = {
    "controller": (["controller", "--registry={d}/registry"], "--endpoint"),
    "node": (["node", "--node-id=n", "--daemon-socket={d}/cache.sock"], "--endpoint"),
    "all-in-one": (["all-in-one", "--registry={d}/registry", "--cache-dir={d}/cache"], "--endpoint"),
    "cache": (["cache", "--state-dir={d}/state", "--cache-dir={d}/cache", "--registry={d}/registry"], "--socket"),
    "keeper": (["keeper"], "--socket"),
}


def refusal(words: list[str]) -> str:
    """The last line on standard error: before it there may be lines of the log."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HAYLOFT_")}
    command = (sys.executable, "-m", "csi_driver.cli", *words, "--log-level=error")
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=environment)
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.promise("S291")
@pytest.mark.parametrize(
    ("process", "place"),
    [
        *((process, "served") for process in PROCESSES),
        *((process, place) for process in ("node", "keeper") for place in ("file", "missing/c.sock", "x" * 120)),
        ("cache", "x" * 120),
    ],
)
def test_a_socket_that_cannot_be_made_is_named_with_its_flag(process: str, place: str, directory: Path) -> None:
    words, flag = PROCESSES[process]
    path = directory / place
    kind = socket.SOCK_SEQPACKET if process == "keeper" else socket.SOCK_STREAM
    with closing(socket.socket(socket.AF_UNIX, kind)) as served:
        served.bind(os.fspath(directory / "served"))
        served.listen()
        value = path if flag == "--socket" else f"unix://{path}"
        line = refusal([word.format(d=directory) for word in words] + [f"{flag}={value}"])
    assert line.startswith(f"hayloft: {flag}: ")
    assert place in line


@pytest.mark.promise("S291")
@pytest.mark.parametrize("process", ["cache", "all-in-one"])
def test_a_metrics_port_in_use_is_named_with_its_flag(process: str, directory: Path) -> None:
    words, flag = PROCESSES[process]
    value = directory / "c.sock" if flag == "--socket" else f"unix://{directory}/c.sock"
    with closing(socket.create_server(("0.0.0.0", 0))) as served:
        port = served.getsockname()[1]
        words = [word.format(d=directory) for word in words]
        line = refusal([*words, f"{flag}={value}", f"--metrics-port={port}"])
    assert line == (f"hayloft: --metrics-port: {port} is not allowed; allowed: a port that no other process uses at ::")
