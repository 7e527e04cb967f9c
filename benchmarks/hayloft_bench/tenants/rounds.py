"""The rounds of the workload ``tenants``: two daemons, a victim and one attack each.

Each round has nodes of its own, so that no attack outlives its round. One of them is attacked, the other is the
control. The victim's volumes are mounted on both before the attack begins; then its files are read for the first time,
read again from the cache, each read of one node and of the other in turns, and a small volume is mounted and unmounted
a few times on the attacked node. Reads, a mount and an unmount that have not ended after ``LIMIT_S`` count as that
long, and the row says so.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import subprocess
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

Read = tuple[list[str], int, int]
"""A path on each node, offset, length."""


@dataclass(frozen=True)
class _Node:
    """A daemon, its node plugin, and the victim's volumes there."""

    driver: NodeDriver
    kubelet: EmulatedKubelet
    metrics_port: int
    roots: dict[Part, Path]


@dataclass(frozen=True)
class _Counts:
    """What the attacker had done at a time."""

    at_s: float
    calls: int
    requests: int


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
    attacks: Sequence[str]

    def run(self, repetitions: int) -> None:
        """Alone and under each attack, ``repetitions`` times. Raises DriverFailed, ProcessFailed, HayloftError."""
        for repetition in range(repetitions):
            for attack in (ALONE, *self.attacks):
                with self.steps.step(f"tenants, repetition {repetition + 1}: {attack}"):
                    self._round(attack, replace(self.where, repetition=repetition, started_at=time.time()))

    def _round(self, attack: str, where: Where) -> None:
        with contextlib.ExitStack() as stack:
            programs = Programs(self.stopping)
            stack.callback(programs.close)  # after the end of the drivers
            name = f"{attack}{where.repetition}"
            # The same reads, at the same time, of a daemon that is not attacked: what the machine alone costs.
            attacked, control = (self._node(stack, self.directory / f"{name}{side}") for side in ("a", "c"))
            attackers = None
            if attack != ALONE:
                names = [name for name in ATTACKS if name != "all"] if attack == "all" else [attack]
                attackers = stack.enter_context(self._attacked(names, programs, attacked))
            before = _counts(attackers)
            for phase in PHASES:
                for part in READ_PARTS:
                    for row in self._reads(attack, part, phase, (attacked, control), programs, where):
                        self.add_row(row)
            row = self._mounts(attack, attacked.kubelet, where)
            self.add_row(_with_rates(row, before, _counts(attackers)))

    def _node(self, stack: contextlib.ExitStack, directory: Path) -> _Node:
        """With the volumes of the victim. Raises DriverFailed, ProcessFailed."""
        port = _free_port()
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
        return _Node(driver, kubelet, port, roots)

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
    def _attacked(self, names: Sequence[str], programs: Programs, node: _Node) -> Iterator[subprocess.Popen[bytes]]:
        """The attacks are in force in the block. Raises ProcessFailed."""
        wanted = {
            "attacks": names,
            "endpoint": node.driver.endpoint,
            "kubelet_directory": str(node.driver.kubelet_directory),
            "metrics_port": node.metrics_port,
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
            yield process

    # -- the victim ---------------------------------------------------------------------------------------------------

    def _reads(
        self, attack: str, part: Part, phase: Phase, nodes: Sequence[_Node], programs: Programs, where: Where
    ) -> list[Measurement]:
        """Of each node, the attacked one first. ``hot``: cached by the driver; the pages of the mounts are dropped
        before each of ``HOT_PASSES`` passes."""
        reads, passes = self._order(part, nodes), HOT_PASSES if phase == "hot" else 1
        limit_s, begun_s = passes * LIMIT_S, time.monotonic()
        wanted = {"reads": reads, "passes": passes, "evict": phase == "hot"}
        with programs.running("victim_process", wanted) as process:
            lines = [[float(number) for number in line.split()] for line in lines_within(process, limit_s)]
        reason, missing = "", passes * len(reads) - len(lines)
        if missing:
            timed_out = time.monotonic() - begun_s > limit_s
            reason = f"{len(lines)} of {passes * len(reads)} reads, then "
            reason += f"{limit_s:.0f} s were over" if timed_out else "a read failed"
            self.steps.note(f"{attack}, {part}, {phase}: {reason}")
            lines += [[LIMIT_S] * len(nodes)] * missing
        rows = [
            of_latencies(replace(where, phase=phase), latencies_s, reason) for latencies_s in zip(*lines, strict=True)
        ]
        return [replace(row, attack=attack, part=part, control=index > 0) for index, row in enumerate(rows)]

    def _order(self, part: Part, nodes: Sequence[_Node]) -> list[Read]:
        chosen = [file for file in self.files if file.path.startswith(f"{part}/")]
        reads = [
            (
                [str(node.roots[part] / file.path.removeprefix(f"{part}/")) for node in nodes],
                offset,
                min(READ_BYTES, file.size_bytes - offset),
            )
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


def _counts(attackers: subprocess.Popen[bytes] | None) -> _Counts | None:
    """None: there is no attacker, or it does not answer."""
    if attackers is None or attackers.stdin is None:
        return None
    with contextlib.suppress(OSError):
        attackers.stdin.write(b"\n")
        attackers.stdin.flush()
    line = next(lines_within(attackers, LIMIT_S), None)
    found = json.loads(line) if line else {}
    return _Counts(time.monotonic(), found["calls"], found["requests"]) if "calls" in found else None


def _with_rates(row: Measurement, before: _Counts | None, after: _Counts | None) -> Measurement:
    """With what the attacker did in each second between the two."""
    if before is None or after is None:
        return row
    seconds = after.at_s - before.at_s
    calls, requests = after.calls - before.calls, after.requests - before.requests
    return replace(row, attack_calls_per_s=calls / seconds, attack_requests_per_s=requests / seconds)


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
