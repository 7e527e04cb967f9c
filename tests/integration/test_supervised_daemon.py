"""Readers of a daemon that is killed and started again by its supervisor, and of one that is upgraded."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.daemons import DaemonBench, wait_until

pytestmark = pytest.mark.fuse

KILLS = int(os.environ.get("HAYLOFT_FAULT_COUNT", "5"))
FLAGS = ("--supervise", "--standby", "--allow-file-urls", "--no-passthrough", "--no-openless", "--free-floor=64MiB")
READY = " cache csi_driver.wiring.cache_process ready "
PIECE_BYTES = 4096


@dataclass
class Dataset:
    attributes: Mapping[str, str]
    content: bytes
    secrets: Mapping[str, str] = field(default_factory=dict)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[DaemonBench]:
    bench = DaemonBench(tmp_path, flags=FLAGS, log_path=tmp_path / "log")
    yield bench
    bench.close()


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    content = random.Random(5).randbytes(1 << 20)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_bytes(content)
    return Dataset({"url": f"file://{tmp_path / 'data'}"}, content)


class Reader:
    """Reads a file at random places, past the page cache of its inode, until ``finish``."""

    def __init__(self, path: Path, content: bytes) -> None:
        self._file = os.open(path, os.O_RDONLY)
        self._content = content
        self._end = threading.Event()
        self._failures: list[BaseException | str] = []
        self.reads = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        draw = random.Random(6)
        try:
            while not self._end.is_set():
                offset = draw.randrange(len(self._content) // PIECE_BYTES) * PIECE_BYTES
                os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_DONTNEED)
                if os.pread(self._file, PIECE_BYTES, offset) != self._content[offset : offset + PIECE_BYTES]:
                    self._failures.append(f"wrong bytes at {offset}")
                self.reads += 1
        except BaseException as error:  # noqa: BLE001  # the test shows it
            self._failures.append(error)

    def goes_on(self) -> None:
        """Returns after further reads."""
        before = self.reads
        wait_until(lambda: self.reads > before + 5 or self._failures)
        assert self._failures == []

    def finish(self) -> None:
        self._end.set()
        self._thread.join(60)
        os.close(self._file)
        assert self._failures == []


def daemon_of(supervisor: subprocess.Popen[bytes]) -> int:
    children = Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children").read_text().split()
    return int(children[0]) if children else 0


@pytest.mark.promise("S380")
def test_readers_see_a_pause_and_no_error_however_often_the_daemon_is_killed(
    bench: DaemonBench, dataset: Dataset, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    bench.flags = (*FLAGS, f"--metrics-port={port}", "--metrics-address=127.0.0.1")
    supervisor = bench.start()
    reader = Reader(bench.mount(dataset) / "file", dataset.content)
    for number in range(1, KILLS + 1):
        reader.goes_on()
        victim = daemon_of(supervisor)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: (tmp_path / "log").read_text().count(READY) == number + 1)  # noqa: B023
        assert daemon_of(supervisor) != victim
    reader.goes_on()
    reader.finish()
    assert supervisor.poll() is None
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as page:
        metrics = page.read().decode()
    assert f'hayloft_daemon_restarts_total{{cause="SIGKILL"}} {float(KILLS)}' in metrics


@pytest.mark.promise("S382")
@pytest.mark.promise("S388")
def test_readers_see_a_pause_and_no_error_while_the_daemon_is_replaced(
    bench: DaemonBench, dataset: Dataset, tmp_path: Path
) -> None:
    """In order; with the supervisor killed; and with the old daemon killed while the new one waits."""
    log = tmp_path / "log"
    old = bench.start()
    reader = Reader(bench.mount(dataset) / "file", dataset.content)
    for number, how in enumerate(("SIGTERM", "supervisor killed", "daemon killed"), start=1):
        reader.goes_on()
        new = bench.start_again()
        wait_until(lambda: log.read_text().count("this one takes over when that one has ended") == number)  # noqa: B023
        assert new.poll() is None
        reader.goes_on()
        if how == "SIGTERM":
            old.terminate()
            assert old.wait(60) == 0
        elif how == "supervisor killed":
            old.kill()
            old.wait(60)
        else:
            os.kill(daemon_of(old), signal.SIGKILL)
        wait_until(lambda: log.read_text().count(READY) == number + 1)  # noqa: B023
        if how == "daemon killed":  # its supervisor has started another one, which waits in its turn
            wait_until(lambda: log.read_text().count("this one takes over when that one has ended") == number + 1)  # noqa: B023
            old.terminate()
            old.wait(60)
        old = new
    reader.goes_on()
    reader.finish()
    holders = {int(pid) for pid in re.findall(r"holder_pid=(\d+)", log.read_text())}
    assert set(filter(is_alive, holders)) == {daemon_of(old)}


def is_alive(pid: int) -> bool:
    """Not a process that has ended, and waits for its parent to notice."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.promise("S381")
def test_a_daemon_that_cannot_use_its_cache_ends_the_container(bench: DaemonBench, tmp_path: Path) -> None:
    (bench.cache / "format.json").write_text('{"format": 99}')
    supervisor = bench.start_again()
    assert supervisor.wait(60) == 1
    assert (tmp_path / "log").read_text().rstrip().splitlines()[-1].startswith("hayloft: cache directory")
