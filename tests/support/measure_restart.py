"""Measures how long readers of served files wait while the cache daemon is killed, and while it is upgraded.

    .venv/bin/python -m tests.support.measure_restart --objects 100000 --kills 5

Fills a cache with small objects, mounts a dataset of this machine without passthrough, and reads it with O_DIRECT, so
that every read is answered by the daemon. Kills the daemon five times in a row; then starts a second one beside it, as
the pod of an upgrade, and ends the first. Prints the longest wait of a reader each time, and the steps of the daemon's
log. Needs root and /dev/fuse.
"""

from __future__ import annotations

import argparse
import itertools
import mmap
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.model.snapshot import ObjectVersion
from csi_driver.settings import ChunkStoreSettings
from tests.support.daemons import DaemonBench, wait_until

FILES, FILE_BYTES, READ_BYTES = 16, 8 << 20, 64 << 10
READY = " cache csi_driver.wiring.cache_process ready "
STEPS = re.compile(
    "ended unexpectedly|limits of the cache|adopted|ready|takes over|listing-server|uses the cache directory|stopping"
)


class LocalDataset:
    """A directory of files, as a ``Mountable``."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        draw = random.Random(1)
        for number in range(FILES):
            (directory / f"{number}.bin").write_bytes(draw.randbytes(FILE_BYTES))
        self.attributes = {"url": f"file://{directory}"}
        self.secrets: dict[str, str] = {}


class Reader(threading.Thread):
    """Reads at random places until ``end`` is set; ``ends_s`` are the times of its reads' ends."""

    def __init__(self, root: Path) -> None:
        super().__init__(daemon=True)
        self.files = [os.open(path, os.O_RDONLY | os.O_DIRECT) for path in sorted(root.iterdir())]
        self.ends_s: list[float] = []
        self.end = threading.Event()

    def run(self) -> None:
        draw, page = random.Random(2), mmap.mmap(-1, READ_BYTES)
        while not self.end.is_set():
            offset = draw.randrange(FILE_BYTES // READ_BYTES) * READ_BYTES
            if os.preadv(draw.choice(self.files), [page], offset) != READ_BYTES:
                raise AssertionError("a short read")
            self.ends_s.append(time.monotonic())
            time.sleep(0.002)

    def longest_wait_s(self, since_s: float) -> float:
        times = [at for at in self.ends_s if at >= since_s - 0.05]
        return max((later - earlier for earlier, later in itertools.pairwise(times)), default=0.0)


def report(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def fill(directory: Path, objects: int) -> None:
    store = ChunkStore(ChunkStoreSettings(directory=directory, scrub_bytes_per_s=0, free_floor_bytes=1 << 20))
    content = memoryview(bytes(512))
    for number in range(objects):
        version = ObjectVersion("domain", "endpoint", "bucket", f"{number:08}", f'"{number:032x}"', len(content))
        store.add_whole(version, [content]).release()
    store.close()


def worker_of(supervisor_pid: int) -> int:
    children = Path(f"/proc/{supervisor_pid}/task/{supervisor_pid}/children").read_text().split()
    return int(children[0]) if children else 0


def cpu_s(*pids: int) -> float:
    """User and system time that processes have used."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def pss_kib(pid: int) -> int:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)[1])  # type: ignore[index]


def steps(log: Path, position: int, since: datetime) -> list[str]:
    found = []
    with log.open() as file:
        file.seek(position)
        for line in file:
            stamp, _, rest = line.partition("Z ")
            if STEPS.search(rest) and re.match(r"\d{4}-", stamp):
                after_s = (datetime.fromisoformat(stamp).replace(tzinfo=UTC) - since).total_seconds()
                found.append(f"      {after_s:6.3f} s  {' '.join(rest.split()[3:])[:100]}")
    return found


def kill(bench: DaemonBench, supervisor: subprocess.Popen[bytes], reader: Reader, log: Path, number: int) -> float:
    position, since, since_s = log.stat().st_size, datetime.now(UTC), time.monotonic()
    victim = worker_of(supervisor.pid)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: worker_of(supervisor.pid) not in (0, victim))
    wait_until(lambda: READY in log.read_text()[position:])
    wait_until(lambda: reader.ends_s[-1] > since_s + 0.01 and time.monotonic() - reader.ends_s[-1] < 0.5)
    time.sleep(0.3)
    wait_s = reader.longest_wait_s(since_s)
    used_s = cpu_s(worker_of(supervisor.pid))
    report(f"  kill {number}: {wait_s:.2f} s; {used_s:.2f} s of processor time for the new daemon")
    report("\n".join(steps(log, position, since)))
    return wait_s


def upgrade(
    bench: DaemonBench, supervisor: subprocess.Popen[bytes], reader: Reader, log: Path, arguments: tuple[str, ...]
) -> float:
    position, since, since_s = log.stat().st_size, datetime.now(UTC), time.monotonic()
    bench.start_process("cache", *arguments)
    wait_until(lambda: "uses the cache directory" in log.read_text()[position:])
    time.sleep(2)
    since, since_s = datetime.now(UTC), time.monotonic()
    supervisor.send_signal(signal.SIGTERM)
    wait_until(lambda: READY in log.read_text()[position:])
    time.sleep(1)
    wait_s = reader.longest_wait_s(since_s)
    report(f"  upgrade: {wait_s:.2f} s; the old daemon ended with {supervisor.wait(30)}")
    report("\n".join(steps(log, position, since)))
    return wait_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--objects", type=int, default=100_000, help="objects in the cache")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--fill", type=Path, help="only fill this new cache directory, for --cache")
    parser.add_argument("--cache", type=Path, help="a cache directory that --fill has made, in place of a new one")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on ext4 or xfs")
    given = parser.parse_args()
    if given.fill is not None:
        given.fill.mkdir()
        fill(given.fill, given.objects)
        return
    home = Path(tempfile.mkdtemp(prefix="hayloft-restart-", dir=given.directory))
    log = home / "log"
    bench = DaemonBench(home, log_path=log)
    arguments = (
        *("--supervise", "--standby", "--allow-file-urls", "--no-passthrough", "--no-openless", "--free-floor=64MiB"),
        *(f"--socket={bench.run / 'cache.sock'}", f"--keeper-socket={bench.run / 'keeper.sock'}"),
        *(
            f"--state-dir={home / 'state'}",
            f"--cache-dir={given.cache or bench.cache}",
            f"--registry={home / 'registry'}",
        ),
    )
    try:
        if given.cache is None:
            fill(bench.cache, given.objects)
        supervisor = bench.start_process("cache", *arguments)
        wait_until(lambda: READY in log.read_text())
        time.sleep(0.5)
        mount_point = bench.mount(LocalDataset(home / "dataset"))
        reader = Reader(mount_point)
        reader.start()
        time.sleep(1)
        report(f"  PSS: supervisor {pss_kib(supervisor.pid)} KiB, daemon {pss_kib(worker_of(supervisor.pid))} KiB")
        waits = [kill(bench, supervisor, reader, log, number) for number in range(1, given.kills + 1)]
        waits.append(upgrade(bench, supervisor, reader, log, arguments))
        reader.end.set()
        reader.join(10)
        report(f"longest wait: {max(waits):.2f} s")
    finally:
        bench.close()
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
