"""What a process imports is what it uses. The processes are real; Python prints what it imports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

TRACES = ("opentelemetry",)
"""Of a process whose environment names no receiver of spans."""
STORES = ("aiobotocore", "aiohttp", "azure", "botocore", "fsspec", "google.auth", "obstore", "s3fs", "urllib3")
ARROW = ("numpy", "pyarrow")
COMMAND_LINE = ("rich", "typer")

UNUSED = {
    "cache": (*STORES, *ARROW, *COMMAND_LINE, *TRACES, "csi_driver.wiring.web_page", "csi_driver.wiring.web_documents"),
    "controller": (*STORES, *ARROW, *COMMAND_LINE, *TRACES, "prometheus_client", "sqlite3"),
    "node": (*STORES, *ARROW, *COMMAND_LINE, *TRACES, "prometheus_client", "pydantic", "sqlite3"),
}
"""By process: what it must not have imported when it is ready and has no volume yet."""

PYTHON = (sys.executable, "-X", "importtime", "-m", "csi_driver.cli")


def arguments(process: str, directory: Path) -> list[str]:
    (directory / "cache").mkdir()
    registry = f"--registry={directory}/registry"
    if process == "cache":
        state = f"--state-dir={directory}/state"
        return ["cache", f"--socket={directory}/cache.sock", state, f"--cache-dir={directory}/cache", registry]
    if process == "controller":
        return ["controller", f"--endpoint=unix://{directory}/csi.sock", registry]
    return ["node", f"--endpoint=unix://{directory}/csi.sock", "--node-id=n", f"--daemon-socket={directory}/cache.sock"]


def imported(lines: Iterator[str]) -> Iterator[str]:
    """The names in ``import time: self [us] | cumulative | imported package``."""
    for line in lines:
        if line.startswith("import time:"):
            yield line.rpartition("|")[2].strip()


def having(modules: set[str], libraries: tuple[str, ...]) -> set[str]:
    return {library for library in libraries if any(f"{name}.".startswith(f"{library}.") for name in modules)}


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HAYLOFT_", "OTEL_"))}
    process = subprocess.Popen(
        (*PYTHON, *command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


@pytest.mark.promise("S285", "S655", "S673")
@pytest.mark.parametrize("process", list(UNUSED))
def test_an_idle_process_has_imported_what_it_uses_and_nothing_else(process: str, tmp_path: Path) -> None:
    with started(arguments(process, tmp_path)) as running:
        assert running.stderr is not None
        until_ready = []
        for line in running.stderr:
            until_ready.append(line)
            if " ready " in line:
                break
        assert running.poll() is None, "".join(until_ready[-5:])
    modules = set(imported(iter(until_ready)))
    assert "grpc" in modules
    assert having(modules, UNUSED[process]) == set()


def run(*words: str) -> tuple[set[str], subprocess.CompletedProcess[str]]:
    done = subprocess.run((*PYTHON, *words), capture_output=True, text=True, timeout=100, check=False)
    return set(imported(iter(done.stderr.splitlines()))), done


@pytest.mark.promise("S285")
def test_inspect_imports_the_client_of_one_kind_of_store_alone(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    modules, done = run("inspect", f"file://{tmp_path}")
    assert done.returncode == 0
    assert "pyarrow" in modules
    assert having(modules, (*STORES, "grpc", "numpy.version", "pandas.core", "pydantic", "typer")) == set()


@pytest.mark.promise("S285")
def test_warm_imports_no_store_and_no_settings(tmp_path: Path) -> None:
    modules, done = run("warm", "--volume=v", f"--daemon-socket={tmp_path}/cache.sock")
    assert done.returncode == 3
    assert "grpc" in modules
    assert having(modules, (*STORES, *ARROW, *COMMAND_LINE, "pydantic")) == set()


@pytest.mark.promise("S285")
@pytest.mark.parametrize("command", ["status", "ls", "top"])
def test_a_command_that_asks_the_daemon_imports_no_store_and_no_settings(command: str, tmp_path: Path) -> None:
    words = (command, "volume") if command == "ls" else (command,)
    modules, done = run(*words, f"--daemon-socket={tmp_path}/cache.sock")
    assert done.returncode == 3
    assert having(modules, (*STORES, *ARROW, *COMMAND_LINE, "pydantic")) == set()
