"""The rounds of the workload ``tenants``: a daemon, a victim and one attack each.

Each round has a node of its own, so that no attack outlives its round. The victim's volumes are mounted before the
attack begins; then its files are read for the first time, read again from the cache, and a small volume is mounted and
unmounted a few times. Reads, a mount and an unmount that have not ended after ``LIMIT_S`` count as that long, and the
row says so.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hayloft_bench.errors import ProcessFailed
from hayloft_bench.results.model import DatasetFile, Measurement, Phase
from hayloft_bench.results.tenants import ALONE, ATTACKS, READ_PARTS, Part
from hayloft_bench.run.progress import Steps
from hayloft_bench.run.row_builder import Where, of_latencies
from hayloft_bench.run.stopping import Stopping
from hayloft_bench.tenants.programs import Programs, lines_within
from hayloft_bench.workloads.sharding import shuffled
from hayloft_bench.workloads.tenants import READ_BYTES
from hayloft_lab.emulated_kubelet import CallRefused, EmulatedKubelet, Volume
from hayloft_lab.node_driver import NodeDriver
from hayloft_lab.seaweedfs import SeaweedFsServer

NAMESPACE = "victim"
LIMIT_S = 20.0
"""Of one pass of reads, and of one mount or unmount: four times what is promised for a mount."""
MOUNTS = 5
CACHE_BYTES = 4 << 30
ATTACK_START_S = 60.0
HOT_PASSES = 5
"""One takes a fraction of a second: what happens in it by chance would decide."""

PHASES: tuple[Phase, ...] = ("cold", "hot")

Read = tuple[str, int, int]
"""Path, offset, length."""


@dataclass(frozen=True)
class Rounds:
    """``where`` is the row of the run; attack, part, phase and time are filled in."""

    where: Where
    files: Sequence[DatasetFile]
    server: SeaweedFsServer
    directory: Path
    """Its path must be short: it holds the sockets of the driver."""
    scale: float
    seed: int
    steps: Steps
    stopping: Stopping
    add_row: Callable[[Measurement], None]

    def run(self, repetitions: int) -> None:
        """Alone and under each attack, ``repetitions`` times. Raises DriverFailed, ProcessFailed, HayloftError."""
        for repetition in range(repetitions):
            for attack in (ALONE, *ATTACKS):
                with self.steps.step(f"tenants, repetition {repetition + 1}: {attack}"):
                    self._round(attack, replace(self.where, repetition=repetition, started_at=time.time()))

    def _round(self, attack: str, where: Where) -> None:
        directory = self.directory / f"{attack}{where.repetition}"
        with contextlib.ExitStack() as stack:
            port = _free_port()
            programs = Programs(self.stopping)
            stack.callback(programs.close)  # after the end of the driver
            driver = NodeDriver(directory, _flags(port))
            with self.stopping.shield():
                stack.callback(driver.stop)
                driver.start()
            kubelet = EmulatedKubelet(driver.endpoint, driver.kubelet_directory)
            stack.callback(kubelet.close)
            driver.wait_until_ready(kubelet)
            try:
                roots = {part: self._mounted(kubelet, part).target_path for part in READ_PARTS}
            except CallRefused as refused:
                raise ProcessFailed(f"the victim's volume: {refused}") from None
            if attack != ALONE:
                names = [name for name in ATTACKS if name != "all"] if attack == "all" else [attack]
                stack.enter_context(self._attacked(names, programs, driver, port))
            for phase in PHASES:
                for part, root in roots.items():
                    self.add_row(self._reads(attack, part, phase, root, programs, where))
            self.add_row(self._mounts(attack, kubelet, where))

    def _mounted(self, kubelet: EmulatedKubelet, part: str, timeout_s: float = LIMIT_S) -> Volume:
        """Raises CallRefused."""
        attributes = {"url": f"s3://bench/data/{part}", "endpoint": self.server.endpoint, "region": "us-east-1"}
        attributes |= {"addressingStyle": "path", "snapshotMaxAge": "0s", "view": "fuse"}
        secrets = {
            "access_key_id": self.server.access_key_id,
            "secret_access_key": self.server.secret_access_key,
        }
        return kubelet.inline(NAMESPACE, attributes, secrets, timeout_s)

    # -- the attack ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _attacked(
        self, names: Sequence[str], programs: Programs, driver: NodeDriver, metrics_port: int
    ) -> Iterator[None]:
        """The attacks are in force in the block. Raises ProcessFailed."""
        wanted = {
            "attacks": names,
            "endpoint": driver.endpoint,
            "kubelet_directory": str(driver.kubelet_directory),
            "metrics_port": metrics_port,
            "cache_limit_bytes": CACHE_BYTES,
            "scale": self.scale,
        }
        with programs.running("attacker_process", wanted) as process:
            line = next(lines_within(process, ATTACK_START_S), None)
            if line is None and process.poll() is not None:
                raise ProcessFailed(f"the attacker's process ended: {process.wait()}")
            refused = json.loads(line)["refused"] if line else {}
            if line is None:
                self.steps.note("the attack was not complete after a minute; the reads begin")
            if refused:
                answers = ", ".join(f"{count} × {code}" for code, count in sorted(refused.items()))
                self.steps.note(f"the driver's answers to the attacker: {answers}")
            yield

    # -- the victim ---------------------------------------------------------------------------------------------------

    def _reads(
        self, attack: str, part: Part, phase: Phase, root: Path, programs: Programs, where: Where
    ) -> Measurement:
        """``hot``: cached by the driver; the pages of the mount are dropped before each of ``HOT_PASSES`` passes."""
        reads, passes = self._order(part, root), HOT_PASSES if phase == "hot" else 1
        limit_s, begun_s = passes * LIMIT_S, time.monotonic()
        wanted = {"reads": reads, "passes": passes, "evict": phase == "hot"}
        with programs.running("victim_process", wanted) as process:
            latencies_s = [float(line) for line in lines_within(process, limit_s)]
        reason, missing = "", passes * len(reads) - len(latencies_s)
        if missing:
            timed_out = time.monotonic() - begun_s > limit_s
            reason = f"{len(latencies_s)} of {passes * len(reads)} reads, then "
            reason += f"{limit_s:.0f} s were over" if timed_out else "a read failed"
            self.steps.note(f"{attack}, {part}, {phase}: {reason}")
            latencies_s += [LIMIT_S] * missing
        row = of_latencies(replace(where, phase=phase), latencies_s, reason)
        return replace(row, attack=attack, part=part)

    def _order(self, part: Part, root: Path) -> list[Read]:
        chosen = [file for file in self.files if file.path.startswith(f"{part}/")]
        reads = [
            (str(root / file.path.removeprefix(f"{part}/")), offset, min(READ_BYTES, file.size_bytes - offset))
            for file in chosen
            for offset in range(0, file.size_bytes, READ_BYTES)
        ]
        return shuffled(reads, self.seed, 1)

    def _mounts(self, attack: str, kubelet: EmulatedKubelet, where: Where) -> Measurement:
        """The slowest mount and the slowest unmount of a small volume."""
        mounts_s: list[float] = []
        unmounts_s: list[float] = []
        reason = ""
        for _ in range(MOUNTS):
            begun_s = time.monotonic()
            try:
                volume = self._mounted(kubelet, "mount")
                mounted_s = time.monotonic()
                mounts_s.append(mounted_s - begun_s)
                kubelet.unpublish(volume, LIMIT_S)
                unmounts_s.append(time.monotonic() - mounted_s)
            except CallRefused as refused:
                reason = str(refused)
                slow = unmounts_s if reason.startswith("NodeUnpublish") else mounts_s
                slow.append(max(LIMIT_S, time.monotonic() - begun_s))
                self.steps.note(f"{attack}: {reason}")
                break
        row = of_latencies(where, [], reason)
        return replace(row, attack=attack, part="mount", mount_s=max(mounts_s), unmount_s=max(unmounts_s, default=None))


def _flags(metrics_port: int) -> list[str]:
    return [
        f"--cache-limit={CACHE_BYTES}",
        f"--metrics-port={metrics_port}",
        "--metrics-address=127.0.0.1",
        "--allowed-address=127.0.0.0/8",
    ]


def _free_port() -> int:
    """Below those that the kernel gives to connections, which could take it before the daemon does."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise ProcessFailed("no port between 20000 and 32000 is free for the metrics of the daemon")
