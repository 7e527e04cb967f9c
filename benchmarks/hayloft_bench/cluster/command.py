"""``hayloft bench cluster``: what several nodes cost a bucket that read one dataset at the same time, without the
cluster's cache and with it, and what a node costs it that joins later."""

from __future__ import annotations

import hashlib
import json
import random
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import obstore
from obstore.store import S3Store
from rich.console import Console
from rich.table import Table

from csi_driver.objects.tier.key_file import link_secret
from hayloft_bench.cluster.nodes import Node, cpu_s
from hayloft_bench.errors import MissingPrerequisite, ProcessFailed
from hayloft_bench.network import shaped_path
from hayloft_lab.nginx_process import find_nginx
from hayloft_lab.nginx_replica import NginxReplica
from hayloft_lab.seaweedfs import HOST, SeaweedFsServer
from hayloft_lab.slow_proxy import SlowProxy

BUCKET = "cluster"
MIB = 1 << 20
SETTLE_S = 1.0
"""Until the counters of the bucket have the last answers."""


@dataclass(frozen=True)
class Options:
    """What is measured."""

    nodes: int = 4
    replicas: int = 3
    dataset_mib: int = 256
    network: str | None = None
    """The path to the bucket; the nodes reach the replicas by loopback."""
    directory: Path = Path("/var/tmp")  # noqa: S108 - a real disk
    seed: int = 2024
    slow_ms: int = 0
    """By so much each request to the first replica is passed on later, in one more epoch; 0: no such epoch."""


@dataclass(frozen=True)
class Epoch:
    """Nodes with empty caches have read the complete dataset, each in another order."""

    name: str
    nodes: int
    datasets_sent: float
    """What the bucket has sent, in datasets."""
    requests: int
    """That the bucket has answered."""
    small_p99_ms: float
    """Of the reads of small objects, from open to close, over all nodes."""
    last_byte_s: float
    """From the start of all readers to the last byte of the last one."""
    daemon_cpu_s_per_gb: float
    """Of the bytes that the node has read."""
    bucket_cpu_s: float
    tier_cpu_s: float


class ClusterBench:
    """One bucket, and fleets of nodes that read it."""

    def __init__(self, options: Options, directory: Path, server: SeaweedFsServer, console: Console) -> None:
        self._options, self._directory, self._server, self._console = options, directory, server, console
        self._digests: dict[str, str] = {}
        self._sizes: dict[str, int] = {}

    @property
    def dataset_bytes(self) -> int:
        return sum(self._sizes.values())

    def fill(self) -> None:
        """Half of the bytes are small objects of 110 kB, half are files of 16 MiB."""
        draw = random.Random(self._options.seed)
        large = max(1, self._options.dataset_mib // 32)
        small = self._options.dataset_mib * MIB // 2 // 110_000
        self._server.create_bucket(BUCKET)
        store = S3Store(
            BUCKET,
            endpoint=self._server.endpoint,
            access_key_id=self._server.access_key_id,
            secret_access_key=self._server.secret_access_key,
            region="us-east-1",
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )

        def put(item: tuple[str, int, int]) -> None:
            path, size, seed = item
            content = random.Random(seed).randbytes(size)
            obstore.put(store, f"data/{path}", content)
            self._digests[path] = hashlib.blake2b(content, digest_size=8).hexdigest()
            self._sizes[path] = size

        items = [(f"small/{number:05}", draw.randint(90_000, 130_000), draw.getrandbits(32)) for number in range(small)]
        items += [(f"large/{number:03}", 16 * MIB, draw.getrandbits(32)) for number in range(large)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(put, items))

    @contextmanager
    def tier(self) -> Iterator[tuple[list[NginxReplica], list[str], SlowProxy | None]]:
        """Replicas, the flags with which a daemon asks them, and what makes the first one slow."""
        key = self._directory / "key"
        key.write_text(secrets.token_hex(32))
        size = 4 * self.dataset_bytes + (256 << 20)
        made = [
            NginxReplica(
                self._directory / f"replica-{number}", link_secret=link_secret(key.read_bytes()), size_bytes=size
            )
            for number in range(self._options.replicas)
        ]
        with ExitStack() as stack:
            for replica in made:
                stack.callback(replica.stop)
                replica.start()
            addresses, slow = [replica.address for replica in made], None
            if self._options.slow_ms:
                # All through a hop, so that it is the pause that differs.
                hops = [stack.enter_context(SlowProxy(replica.port, 0.0)) for replica in made]
                addresses, slow = [f"127.0.0.1:{hop.port}" for hop in hops], hops[0]
            yield made, [f"--tier-key={key}", *(f"--tier={address}" for address in addresses)], slow

    def epoch(self, name: str, count: int, flags: Sequence[str], replicas: Sequence[NginxReplica]) -> Epoch:
        """``count`` new nodes read everything. Raises ProcessFailed for a wrong byte or an error."""
        self._console.print(f"{name}: {count} node{'s' if count > 1 else ''}, cold")
        with ExitStack() as stack:
            nodes = []
            for number in range(count):
                directory = self._directory / f"n{secrets.token_hex(3)}{number}"
                directory.mkdir()
                stack.callback(shutil.rmtree, directory, ignore_errors=True)
                node = Node(directory, flags)
                stack.callback(node.close)
                node.start()
                node.mount(
                    {"url": f"s3://{BUCKET}/data", "endpoint": self._server.endpoint},
                    {
                        "access_key_id": self._server.access_key_id,
                        "secret_access_key": self._server.secret_access_key,
                    },
                )
                nodes.append(node)
            before = self._counters(nodes, replicas)
            began_s = time.monotonic()
            ended_s, small_s = self._read(nodes)
            time.sleep(SETTLE_S)
            after = self._counters(nodes, replicas)
        spent = {name: after[name] - before[name] for name in before}
        return Epoch(
            name=name,
            nodes=count,
            datasets_sent=spent["sent"] / self.dataset_bytes,
            requests=int(spent["requests"]),
            small_p99_ms=1000 * sorted(small_s)[int(0.99 * len(small_s))],
            last_byte_s=ended_s - began_s,
            daemon_cpu_s_per_gb=spent["daemons"] / (count * self.dataset_bytes / 1e9),
            bucket_cpu_s=spent["bucket"],
            tier_cpu_s=spent["tier"],
        )

    def _read(self, nodes: Sequence[Node]) -> tuple[float, list[float]]:
        """When the last byte was read, and how long each small object took."""
        readers = [node.reader() for node in nodes]
        try:
            with ThreadPoolExecutor(len(readers)) as pool:
                orders = [sorted(self._digests) for _ in readers]
                for number, order in enumerate(orders):
                    random.Random(self._options.seed + number).shuffle(order)
                texts = list(pool.map(lambda reader, order: reader.communicate(json.dumps(order))[0], readers, orders))
        finally:
            for reader in readers:
                reader.kill()
                reader.wait()
        results: list[Mapping[str, Any]] = [json.loads(text) for text in texts]
        for result in results:
            if result["errors"]:
                raise ProcessFailed(f"a read has failed: {result['errors'][0]}")
            wrong = [path for path, digest in result["digests"].items() if digest != self._digests[path]]
            if wrong:
                raise ProcessFailed(f"{wrong[0]}: other bytes than those that were put")
        small_s = [float(each) for result in results for each in result["small_s"]]
        return max(float(result["ended_s"]) for result in results), small_s

    def _counters(self, nodes: Sequence[Node], replicas: Sequence[NginxReplica]) -> dict[str, float]:
        pid = self._server.pid
        return {
            "sent": self._server.bytes_sent(),
            "requests": self._server.requests(),
            "daemons": sum(node.cpu_s() for node in nodes),
            "bucket": 0.0 if pid is None else cpu_s(pid),
            "tier": sum(replica.cpu_s() for replica in replicas),
        }


def run(options: Options, console: Console) -> list[Epoch]:
    """One node, several without and with the tier, and one that joins later: it is to be compared with the first.
    Raises BenchError."""
    if find_nginx() is None:
        raise MissingPrerequisite("the cluster's cache is nginx, which is not installed: apt-get install nginx")
    directory = Path(tempfile.mkdtemp(prefix="hb-", dir=options.directory))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        path = None if options.network is None else stack.enter_context(shaped_path.shaped(options.network))
        with nullcontext() if path is None else path.inside():
            server = SeaweedFsServer(directory / "bucket", host=HOST if path is None else path.address)
            stack.callback(server.stop)
            server.start()
        bench = ClusterBench(options, directory, server, console)
        bench.fill()
        epochs = [bench.epoch("one node", 1, [], [])]
        epochs.append(bench.epoch("without a tier", options.nodes, [], []))
        with bench.tier() as (replicas, flags, slow):
            epochs.append(bench.epoch("with a tier", options.nodes, flags, replicas))
            epochs.append(bench.epoch("a node that joins", 1, flags, replicas))
            if slow is not None:
                slow.pause_s = options.slow_ms / 1000
                epochs.append(bench.epoch("one more, a replica is slow", 1, flags, replicas))
                slow.pause_s = 0.0
        return epochs


def table(epochs: Sequence[Epoch]) -> Table:
    """What the terminal shows."""
    made = Table(title="Nodes that read one dataset, each all of it, cold")
    for column in (
        "",
        "nodes",
        "sent by the bucket",
        "requests",
        "p99 of small",
        "last byte",
        "daemon",
        "bucket",
        "tier",
    ):
        made.add_column(column, justify="left" if not column else "right")
    for each in epochs:
        made.add_row(
            each.name,
            str(each.nodes),
            f"{each.datasets_sent:.3f} datasets",
            str(each.requests),
            f"{each.small_p99_ms:.1f} ms",
            f"{each.last_byte_s:.1f} s",
            f"{each.daemon_cpu_s_per_gb:.2f} CPU s/GB",
            f"{each.bucket_cpu_s:.1f} CPU s",
            f"{each.tier_cpu_s:.1f} CPU s",
        )
    return made


def write(epochs: Sequence[Epoch], options: Options, directory: Path) -> Path:
    """As JSON; returns the file."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "cluster.json"
    content = {"options": {**asdict(options), "directory": str(options.directory)}, "epochs": [*map(asdict, epochs)]}
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path
