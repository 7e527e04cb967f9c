"""A read that fails leaves a trace: in the condition of the volume, in the daemon's log, and on the metrics port."""

from __future__ import annotations

import errno
import random
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.model import conditions
from csi_driver.volumes.data_plane import VolumeReport
from tests.support.daemons import Bucket, DaemonBench, wait_until
from tests.support.hostile_s3 import Hang, HostileS3, Status

pytestmark = pytest.mark.fuse

TIMES = {"requestTimeout": "1s", "deadline": "1s"}

ANSWERS = {
    "EACCES": Status(403, "AccessDenied"),
    "EKEYREJECTED": Status(403, "InvalidAccessKeyId"),
    "ETIMEDOUT": Status(503, "SlowDown"),
    "EIO": Status(418, "Teapot"),
}
CONDITIONS = {
    "EACCES": conditions.ACCESS_DENIED,
    "EKEYREJECTED": conditions.CREDENTIALS_REJECTED,
    "ETIMEDOUT": conditions.STORE_FAILING,
    "EIO": conditions.READS_FAILING,
}


class LoggedDaemon(DaemonBench):
    """Logs to a file, and has a metrics port."""

    def start_process(self, *arguments: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "csi_driver.cli", *arguments]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
        self.processes.append(process)
        return process

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def lines(self, volume_id: str) -> list[str]:
        lines = self.log.read_text().splitlines()
        return [line for line in lines if "a read of a volume failed" in line and f"volume_id={volume_id} " in line]

    def report(self, volume_id: str) -> VolumeReport:
        with self.client() as client:
            return client.volume(volume_id)


@pytest.fixture(scope="module")
def metrics_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, metrics_port: int) -> Iterator[LoggedDaemon]:
    flags = ("--free-floor=0", f"--metrics-port={metrics_port}", "--metrics-address=127.0.0.1")
    bench = LoggedDaemon(tmp_path_factory.mktemp("daemon"), flags=flags, keep=False)
    bench.start()
    yield bench
    bench.close()


def failures(port: int, name: str) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(f'hayloft_read_errors_total{{errno="{name}"}}'):
                return int(float(line.split()[-1]))
    return 0


@pytest.mark.promise("S222")
@pytest.mark.parametrize("small", [True, False], ids=["open", "read"])
@pytest.mark.parametrize("name", ANSWERS)
def test_a_failed_read_is_in_condition_log_and_metrics_while_it_lasts(
    bench: LoggedDaemon, metrics_port: int, name: str, small: bool
) -> None:
    volume_id = f"{name}-{small}"
    objects = {"a.bin": random.Random(volume_id).randbytes(100_000 if small else 6 << 20)}
    objects["large"] = random.Random(1).randbytes(8 << 20)  # so that this is no dataset that is read without opens
    with HostileS3({f"data/{path}": data for path, data in objects.items()}) as store:
        mount_point = bench.mount(Bucket(store, store.bucket, objects), volume_id, **TIMES)  # type: ignore[arg-type]
        assert not bench.report(volume_id).abnormal
        store.fail_all(ANSWERS[name])
        before = failures(metrics_port, name)
        for _ in range(2):
            with pytest.raises(OSError, match=rf"^\[Errno {getattr(errno, name)}\]"):
                (mount_point / "a.bin").read_bytes()
        report = bench.report(volume_id)
        assert CONDITIONS[name] in report.conditions
        assert set(report.conditions) <= {CONDITIONS[name], conditions.STORE_SLOW}, "readahead may still wait"
        assert failures(metrics_port, name) >= before + 2
        (line,) = bench.lines(volume_id)
        assert f"errno={name}" in line
        assert "data/a.bin" in line
        store.fail_all(None)
        assert (mount_point / "a.bin").read_bytes() == objects["a.bin"]
        wait_until(lambda: not bench.report(volume_id).abnormal)
        bench.unmount(mount_point, volume_id)


FAULT = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    sys.stdout.buffer.write(memory[5 << 20 : (5 << 20) + 100])
"""


@pytest.mark.promise("S226")
def test_a_page_fault_of_a_failing_store_is_sigbus_after_one_deadline(bench: LoggedDaemon) -> None:
    content = random.Random(5).randbytes(8 << 20)
    with HostileS3({"data/large": content}) as store:
        bucket = Bucket(store, store.bucket, {"large": content})  # type: ignore[arg-type]
        mount_point = bench.mount(bucket, "mapped", requestTimeout="1s", deadline="3s")
        store.fail_all(Hang(60))
        command = [sys.executable, "-c", FAULT, str(mount_point / "large")]
        assert subprocess.run(command, check=False, stdout=subprocess.PIPE).returncode == -signal.SIGBUS
        ranges = [request.headers["range"].removeprefix("bytes=").split("-") for request in store.seen("GET")]
        tries = sum(int(first) <= 5 << 20 <= int(last) for first, last in ranges)
        assert 3 <= tries <= 6, "three or four until the deadline, and one for each of the two repeats of the kernel"
        store.fail_all(None)
        assert subprocess.check_output(command) == content[5 << 20 : (5 << 20) + 100]
        bench.unmount(mount_point, "mapped")
