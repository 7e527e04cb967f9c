"""``hayloft warm`` finds the daemon of this machine by itself."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from csi_driver.model.errors import DaemonUnavailable, MissingParameter
from csi_driver.wiring.daemon_sockets import find_daemon, run_directories, run_prefix


@pytest.fixture
def base() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hl-") as directory:  # short enough for a socket
        yield Path(directory)


def run_directory(base: Path, process_id: int = 1) -> Path:
    return Path(tempfile.mkdtemp(prefix=run_prefix(process_id), dir=base))


def listening(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.fspath(path))
    listener.listen()
    return listener


@pytest.mark.promise("S286")
def test_the_daemon_of_all_in_one_is_found(base: Path) -> None:
    run_directory(base)  # of a process that was killed before its daemon began
    old = run_directory(base, 2)
    listening(old / "cache.sock").close()
    mine = run_directory(base, 3)
    with closing(listening(mine / "cache.sock")):
        assert find_daemon(base / "none.sock", base) == mine / "cache.sock"
    assert {owner for _, owner in run_directories(base)} == {1, 2, 3}


@pytest.mark.promise("S286")
def test_of_several_daemons_none_is_chosen(base: Path) -> None:
    paths = [base / "node.sock", run_directory(base) / "cache.sock"]
    with ExitStack() as stack:
        for path in paths:
            stack.enter_context(closing(listening(path)))
        with pytest.raises(MissingParameter) as refused:
            find_daemon(paths[0], base)
    assert all(str(path) in str(refused.value) for path in paths)


@pytest.mark.promise("S286")
def test_without_a_daemon_the_places_are_named(base: Path) -> None:
    with pytest.raises(DaemonUnavailable, match="--daemon-socket") as refused:
        find_daemon(base / "node.sock", base)
    assert f"{base}/hayloft-*/cache.sock" in str(refused.value)
