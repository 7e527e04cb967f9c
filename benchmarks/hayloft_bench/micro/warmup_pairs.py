"""Warmups of one checkout of the driver beside another: processor time, and the first epochs afterwards.

Run it as ``python -m hayloft_bench.micro.warmup_pairs --against CHECKOUT``, as root. Each pair starts the cache daemon
of both checkouts, one after the other and in alternating order, with an empty cache, and warms the same dataset up from
a SeaweedFS server on this machine. Then one reader reads all files in order, twice. It prints for each run, and as
medians, seconds and seconds of processor time for each GB: of the daemon in user mode and in the kernel, and of the
reader.

With ``--cold`` there is no warmup, and the first epoch fetches.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import obstore
from obstore.store import S3Store

from csi_driver.daemon.daemon_client import DaemonClient
from csi_driver.model.errors import DaemonUnavailable
from csi_driver.volumes.data_plane import MountRequest
from csi_driver.volumes.warmup_waiting import wait_until_warm
from hayloft_lab.driver import START_TIMEOUT_S, unmount_below
from hayloft_lab.seaweedfs import SeaweedFsServer

VOLUME, BUCKET = "volume", "warmups"
EPOCHS = 2
_BUFFER_BYTES = 1 << 20
_POLL_S = 0.05
_WARMUP_TIMEOUT_S = 3600.0
_STOP_TIMEOUT_S = 30.0


class Step(NamedTuple):
    """A warmup or an epoch; all but ``seconds`` are seconds of processor time for each GB."""

    seconds: float
    daemon_user: float
    daemon_kernel: float
    reader: float


def _read_all(root: Path) -> None:
    buffer = bytearray(_BUFFER_BYTES)
    for path in sorted(root.iterdir()):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def _daemon_s(pid: int) -> tuple[float, float]:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    ticks = os.sysconf("SC_CLK_TCK")
    return int(fields[11]) / ticks, int(fields[12]) / ticks


@contextmanager
def _measured(steps: list[Step], pid: int, gigabytes: float) -> Iterator[None]:
    user, kernel = _daemon_s(pid)
    began, own = time.perf_counter(), os.times()
    yield
    seconds, now = time.perf_counter() - began, os.times()
    user_after, kernel_after = _daemon_s(pid)
    reader_s = now.user + now.system - own.user - own.system
    used = (user_after - user, kernel_after - kernel, reader_s)
    steps.append(Step(seconds, *(each / gigabytes for each in used)))


def run(checkout: Path, directory: Path, server: SeaweedFsServer, gigabytes: float, *, cold: bool) -> list[Step]:
    """The warmup, unless ``cold``, and the epochs. Blocks."""
    for name in ("cache", "registry", "mount"):
        (directory / name).mkdir(parents=True)
    command = [sys.executable, "-m", "csi_driver.cli", "cache", f"--socket={directory}/cache.sock"]
    command += [f"--{name}={directory}/{folder}" for name, folder in (("cache-dir", "cache"), ("state-dir", "state"))]
    command += [f"--registry={directory}/registry", "--free-floor=64MiB", "--allowed-address=127.0.0.0/8"]
    with (directory / "log").open("wb") as log:
        # In that directory: ``-m`` looks for modules where it is started.
        environment = {**os.environ, "PYTHONPATH": str(checkout)}
        daemon = subprocess.Popen(command, cwd=checkout, env=environment, stdout=log, stderr=log)
    client, steps = DaemonClient(directory / "cache.sock"), list[Step]()
    attributes = {"url": f"s3://{BUCKET}/data", "endpoint": server.endpoint}
    secrets = {"access_key_id": server.access_key_id, "secret_access_key": server.secret_access_key}
    if not cold:
        attributes["warmup"] = "background"
    mount_point = directory / "mount"
    try:
        _wait_until_ready(client, daemon)
        with _measured(steps, daemon.pid, gigabytes):
            client.mount(MountRequest(VOLUME, str(mount_point), attributes, secrets))
            if not cold:
                wait_until_warm(client, VOLUME, _WARMUP_TIMEOUT_S)
        for _ in range(EPOCHS):
            with _measured(steps, daemon.pid, gigabytes):
                _read_all(mount_point)
        client.unmount(VOLUME, str(mount_point))
    finally:
        client.close()
        daemon.terminate()
        daemon.wait(_STOP_TIMEOUT_S)
        unmount_below(directory)
    return steps


def _wait_until_ready(client: DaemonClient, daemon: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while daemon.poll() is None and time.monotonic() < deadline:
        try:
            client.report()
        except DaemonUnavailable:
            time.sleep(_POLL_S)
        else:
            return
    raise DaemonUnavailable("the daemon did not start; see its log")


def _fill(server: SeaweedFsServer, files: int, size_bytes: int) -> None:
    server.create_bucket(BUCKET)
    store = S3Store(
        BUCKET,
        endpoint=server.endpoint,
        access_key_id=server.access_key_id,
        secret_access_key=server.secret_access_key,
        region="us-east-1",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )
    content = random.Random(3).randbytes(size_bytes)
    for number in range(files):
        obstore.put(store, f"data/{number:06}.bin", content[number:] + content[:number])


def main() -> None:
    """One line for each run, and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout; without it this one is measured alone")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--files", type=int, default=16)
    parser.add_argument("--bytes", type=int, default=64 << 20, help="of each file")
    parser.add_argument("--cold", action="store_true", help="no warmup")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="of the cache")  # noqa: S108
    arguments = parser.parse_args()
    here = Path(__file__).resolve().parents[3]
    checkouts = [here] if arguments.against is None else [arguments.against.resolve(), here]
    names = ["mount" if arguments.cold else "warmup", *(f"epoch {number}" for number in range(1, EPOCHS + 1))]
    found: dict[tuple[Path, str], list[Step]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="warm-", dir=arguments.directory) as home,
        SeaweedFsServer(Path(home, "store")) as server,
    ):
        _fill(server, arguments.files, arguments.bytes)
        gigabytes = arguments.files * arguments.bytes / 1e9
        for pair in range(arguments.pairs):
            for number, checkout in enumerate(checkouts if pair % 2 else reversed(checkouts)):
                directory = Path(home, f"{pair}-{number}")
                steps = run(checkout, directory, server, gigabytes, cold=arguments.cold)
                shutil.rmtree(directory / "cache")
                for name, step in zip(names, steps, strict=True):
                    found.setdefault((checkout, name), []).append(step)
                    print(_line(checkout, name, step), flush=True)
    print("medians")
    for (checkout, name), steps in sorted(found.items()):
        print(_line(checkout, name, Step(*map(statistics.median, zip(*steps, strict=True)))))


def _line(checkout: Path, name: str, step: Step) -> str:
    return (
        f"{checkout}, {name}: {step.seconds:.2f} s; processor s/GB: daemon {step.daemon_user + step.daemon_kernel:.2f} "
        f"({step.daemon_kernel:.2f} in the kernel), reader {step.reader:.2f}"
    )


if __name__ == "__main__":
    main()
