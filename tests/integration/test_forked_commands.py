"""What the tests start as forks behaves as the commands do: exit codes, signals, streams, environment, children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.support.all_in_one import AllInOne, is_running, until
from tests.support.forked_command import ForkedCommand


@pytest.mark.parametrize(
    "arguments", [["cache"], ["keeper", "--socket"], ["no-such-command"], ["inspect", "file:///no/such/directory"]]
)
def test_exit_code_and_message_are_those_of_the_command(tmp_path: Path, arguments: list[str]) -> None:
    real = subprocess.run([sys.executable, "-m", "csi_driver.cli", *arguments], capture_output=True, check=False)
    with (tmp_path / "log").open("wb") as log:
        forked = ForkedCommand(arguments, stdout=log, stderr=log)
    assert forked.wait(60) == real.returncode != 0
    assert (tmp_path / "log").read_bytes() == real.stdout + real.stderr
    assert forked.poll() == real.returncode


def is_ready(log: Path) -> bool:
    return b" ready " in log.read_bytes()


def open_files(process: subprocess.Popen[bytes], home: Path) -> list[str]:
    """Without the numbers of pipes and sockets, and the directory of the keeper."""
    names = (os.readlink(link) for link in Path(f"/proc/{process.pid}/fd").iterdir())
    return sorted(name.partition(":[")[0].replace(os.fspath(home), "") for name in names)


def test_it_has_no_descriptor_but_those_of_the_command(tmp_path: Path) -> None:
    found = []
    for forked in (False, True):
        home = tmp_path / str(forked)
        home.mkdir()
        arguments = ["keeper", f"--socket={home / 'socket'}"]
        with (home / "log").open("wb") as log:
            if forked:
                keeper: subprocess.Popen[bytes] = ForkedCommand(arguments, stdout=log, stderr=log)
            else:
                command = [sys.executable, "-m", "csi_driver.cli", *arguments]
                keeper = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            until(partial(is_ready, home / "log"), "the keeper is ready")
            found.append(open_files(keeper, home))
        finally:
            keeper.kill()
            keeper.wait()
    assert found[0] == found[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_the_process_and_is_its_exit_code(tmp_path: Path, number: signal.Signals) -> None:
    socket = tmp_path / "keeper.sock"
    keeper = ForkedCommand(["keeper", f"--socket={socket}"], new_session=True)
    try:
        until(socket.is_socket, "the keeper listens")
        assert keeper.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            keeper.wait(0)
        assert os.getsid(keeper.pid) == keeper.pid
        assert os.readlink(f"/proc/{keeper.pid}/fd/0") == os.devnull
        keeper.send_signal(number)
        assert keeper.wait(60) == (0 if number == signal.SIGTERM else -number)
        assert not is_running(keeper.pid)
    finally:
        keeper.kill()


def test_the_environment_is_that_of_the_test_and_not_of_an_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for level, said in (("loud", b"loud"), ("quiet", b"quiet")):
        monkeypatch.setenv("HAYLOFT_LOG_LEVEL", level)
        with (tmp_path / level).open("wb") as log:
            command = ForkedCommand(["controller", "--endpoint=unix:///x", "--registry=/x"], stderr=log)
        assert command.wait(60) == 2
        assert said in (tmp_path / level).read_bytes()


@pytest.mark.fuse
def test_children_of_all_in_one_are_restarted_and_end_with_it(tmp_path: Path) -> None:
    driver = AllInOne(tmp_path)
    try:
        driver.start()
        first = driver.children()
        assert set(first) == {"keeper", "cache"}
        os.kill(first["cache"], signal.SIGKILL)
        until(lambda: driver.children().get("cache", first["cache"]) != first["cache"], "another daemon is started")
        until(lambda: not is_running(first["cache"]), "the killed one is reaped")
        last = driver.children()
        assert driver.end(signal.SIGKILL) == -signal.SIGKILL
        until(lambda: not any(map(is_running, last.values())), "the kernel ends the children")
    finally:
        driver.close()
