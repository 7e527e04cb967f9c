"""``python -m benchmarks.compare``: Hayloft beside plain files, obstore alone, JuiceFS and rclone, on one store.

Runs are interleaved: each target of a case is measured once, in turn, before the next run begins, in an order that
shifts by one from run to run. Before a cold measurement the peer is stopped, its cache directory removed, the page
cache dropped, the store's own files read back into it (the store shall not be what is measured), and the peer started
again; afterwards the store's counter must say that the bytes came from it. A warm measurement follows a reading that
is not counted. Needs root and the extra ``bench``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks import dataset
from benchmarks.cases import (
    AIMS,
    CASES,
    GET_THREADS,
    OBSTORE,
    PLAIN,
    RANGE_BYTES,
    RANGE_THREADS,
    TARGETS,
    Case,
    Figure,
    median,
    ratios,
)
from benchmarks.peers import BUCKET, PEERS, PREFIX, Peer, Place
from csi_driver.demo.crew import Crew, Reading
from csi_driver.demo.driver import unmount_below
from csi_driver.demo.errors import DemoFailed, Stopped
from csi_driver.demo.stopping import Stopping
from csi_driver.demo.upload import upload
from csi_driver.demo.workloads import shuffled_shares
from csi_driver.wiring.s3_server import S3Server

COLD_SHARE = 0.95
SETTLE_S = 0.3
"""The store raises its counter a moment after the last byte; a cache may still be reading ahead."""
PIECE_BYTES = 8 << 20
WORK = Path("/var/tmp")  # noqa: S108 - a new directory of mode 0700 is made in it


class Comparison:
    """One dataset in one store, and the peers that are asked for."""

    def __init__(self, place: Place, made: dataset.BenchDataset, peers: dict[str, Peer], crew: Crew) -> None:
        self._place, self._made, self._peers, self._crew = place, made, peers, crew
        self._roots: dict[str, Path] = {}
        self.figures: list[Figure] = []

    def run(self, cases: Sequence[Case], targets: Sequence[str], run: int) -> None:
        """One run of all cases: the cold ones each with a fresh start, the warm ones with everything mounted."""
        for case in (case for case in cases if case.state == "cold"):
            for target in self._order(case, targets, run):
                with self._fresh(target):
                    self._measure(case, target, run)
        warm = [case for case in cases if case.state == "warm"]
        wanted = {target for case in warm for target in self._order(case, targets, run)}
        with contextlib.ExitStack() as stack:
            for target in sorted(wanted - {PLAIN}):
                stack.enter_context(self._fresh(target))
            for case in warm:
                order = self._order(case, targets, run)
                for target in order:
                    self._read(case, target)
                for number in range(run * case.rounds, (run + 1) * case.rounds):
                    for target in self._order(case, targets, number):
                        self._measure(case, target, number)

    def _order(self, case: Case, targets: Sequence[str], run: int) -> list[str]:
        order = [target for target in case.targets if target in targets]
        return order[run % len(order) :] + order[: run % len(order)] if order else []

    @contextlib.contextmanager
    def _fresh(self, target: str) -> Any:
        """The target with nothing cached anywhere but in the store."""
        peer = self._peers.get(target)
        if peer is not None:
            peer.clear()
        drop_page_cache()
        _read_back(self._place.work / "store")
        if peer is None:
            yield
            return
        try:
            self._roots[target] = peer.start()
            yield
            peer.stop()
        finally:
            peer.tear_down()
            peer.clear()

    def _measure(self, case: Case, target: str, run: int) -> None:
        before_bytes = self._place.server.bytes_sent()
        reading = self._read(case, target)
        time.sleep(SETTLE_S)
        origin_bytes = self._place.server.bytes_sent() - before_bytes
        dataset_bytes = sum(self._made.size_bytes(folder) for folder in case.folders)
        expected_bytes = dataset_bytes * case.passes * (1 if case.split else case.readers)
        if reading.read_bytes != expected_bytes:
            raise DemoFailed(f"{case.name}, {target}: {reading.read_bytes} bytes were read of {expected_bytes}")
        if case.state == "cold" and origin_bytes < COLD_SHARE * dataset_bytes:
            raise DemoFailed(f"{case.name}, {target}: not cold: the store sent {origin_bytes} of {dataset_bytes} bytes")
        self.figures.append(
            Figure(
                case=case.name,
                target=target,
                run=run,
                dataset_bytes=dataset_bytes,
                bytes=reading.read_bytes,
                samples=reading.samples,
                seconds=reading.seconds,
                p50_ms=reading.percentile_ms(50),
                p99_ms=reading.percentile_ms(99),
                origin_bytes=origin_bytes,
            )
        )
        say(f"  {case.name:12} {target:8} {self.figures[-1].bytes_per_s / 1e6:8,.0f} MB/s")

    def _read(self, case: Case, target: str) -> Reading:
        files = [file for folder in case.folders for file in self._made.below(folder)]
        if target == OBSTORE:
            return self._read_by_obstore(case, [(file.path, file.size_bytes) for file in files])
        root = str(self._place.plain if target == PLAIN else self._roots[target])
        paths = [file.path for file in files]
        if case.split:
            dealt = shuffled_shares(paths, case.readers, dataset.SEED, 0)
        else:
            dealt = [shuffled_shares(paths, 1, dataset.SEED, 0)[0]] * case.readers
        return self._crew.run(
            "benchmarks.readers:files", [{"root": root, "items": items * case.passes} for items in dealt]
        )

    def _read_by_obstore(self, case: Case, files: list[tuple[str, int]]) -> Reading:
        server = self._place.server
        share: dict[str, Any] = {
            "endpoint": server.endpoint,
            "access_key_id": server.access_key_id,
            "secret_access_key": server.secret_access_key,
            "bucket": BUCKET,
            "prefix": PREFIX,
        }
        if case.folders == ("small",):
            share |= {"items": [path for path, _ in files], "threads": GET_THREADS}
            return self._crew.run("benchmarks.readers:obstore_gets", [share])
        into = self._place.work / OBSTORE
        share |= {"items": files, "into": str(into), "threads": RANGE_THREADS, "range_bytes": RANGE_BYTES}
        try:
            reading = self._crew.run("benchmarks.readers:obstore_ranges", [share])
        finally:
            shutil.rmtree(into, ignore_errors=True)
        # Its samples are ranges; a sample of the others is a file.
        return Reading(reading.read_bytes, len(files), reading.seconds, reading.latencies_s)


def drop_page_cache() -> None:
    """The whole machine's. Raises PermissionError without root."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def _read_back(directory: Path) -> None:
    buffer = bytearray(PIECE_BYTES)
    for path in sorted(directory.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


def say(text: str) -> None:
    """To standard error: standard output has the table alone."""
    print(text, file=sys.stderr, flush=True)


def results_table(figures: Sequence[Figure]) -> Table:
    """Medians per case and target."""
    table = Table(title="Medians", title_justify="left", box=SIMPLE_HEAD)
    for name in ("case", "target", "MB/s", "files/s", "p50 ms", "p99 ms", "store ÷ dataset"):
        table.add_column(name, justify="left" if name in ("case", "target") else "right")
    for case in CASES.values():
        for target in case.targets:
            mine = [figure for figure in figures if (figure.case, figure.target) == (case.name, target)]
            if not mine:
                continue
            table.add_row(
                case.title,
                target,
                f"{median(figure.bytes_per_s for figure in mine) / 1e6:,.0f}",
                f"{median(figure.samples / figure.seconds for figure in mine):,.0f}",
                f"{median(figure.p50_ms for figure in mine):,.2f}",
                f"{median(figure.p99_ms for figure in mine):,.2f}",
                f"{median(figure.origin_bytes / figure.dataset_bytes for figure in mine):.3f}",
            )
        table.add_section()
    return table


def aims_table(figures: Sequence[Figure]) -> Table:
    """Hayloft against the others, with what is aimed at."""
    table = Table(title="Hayloft against", title_justify="left", box=SIMPLE_HEAD)
    for name in ("", "median", "least to most", "aim", "holds"):
        table.add_column(name, justify="left" if not name else "right")
    for aim in AIMS:
        values = ratios(figures, aim)
        if values:
            sign = "≥" if aim.at_least else "≤"
            holds = "yes" if aim.holds(median(values)) else "no"
            spread = f"{min(values):.2f} to {max(values):.2f}"
            table.add_row(aim.wording(), f"{median(values):.3f}", spread, f"{sign} {aim.bound}", holds)
    return table


def document(figures: Sequence[Figure], scale: float) -> dict[str, Any]:
    """What ``--out`` gets: the machine, the settings of each peer, every figure, every ratio."""
    compared = [(aim, ratios(figures, aim)) for aim in AIMS]
    return {
        "machine": {"kernel": platform.release(), "processors": os.cpu_count(), "python": platform.python_version()},
        "scale": scale,
        "settings": {name: peer.settings for name, peer in PEERS.items()},
        "figures": [asdict(figure) for figure in figures],
        "ratios": [
            {**asdict(aim), "median": median(values), "values": values, "holds": aim.holds(median(values))}
            for aim, values in compared
            if values
        ],
    }


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Unknown names are refused by argparse."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--workloads", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="1: a file of 1 GiB, 4 shards, 2,400 small files")
    parser.add_argument("--out", type=Path, help="a JSON file for every figure")
    parser.add_argument("--directory", type=Path, default=WORK, help="on the disk to measure, not a tmpfs")
    return parser.parse_args(arguments)


def main() -> int:
    """0 when everything was measured, whatever the figures say."""
    arguments, stopping = parse_arguments(), Stopping()
    with stopping.watching(), contextlib.ExitStack() as stack:
        try:
            with stopping.shield():
                work = Path(tempfile.mkdtemp(prefix="hayloft-bench-", dir=arguments.directory)).resolve()
                stack.callback(_remove, work)
            figures = _compare(arguments, work, stopping, stack)
        except Stopped as stopped:
            return 128 + stopped.signal_number
        except (DemoFailed, OSError) as error:
            say(f"benchmarks.compare: {error}")
            return 1
        finally:
            stopping.stop_listening()
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(results_table(figures))
    console.print(aims_table(figures))
    if arguments.out:
        arguments.out.write_text(json.dumps(document(figures, arguments.scale), indent=1) + "\n")
    return 0


def _compare(
    arguments: argparse.Namespace, work: Path, stopping: Stopping, stack: contextlib.ExitStack
) -> list[Figure]:
    say("making the dataset")
    made = dataset.make(work / "plain", arguments.scale)
    with stopping.shield():
        server = stack.enter_context(S3Server(work / "store"))
    server.create_bucket(BUCKET)
    say("uploading it")
    keys = {"access_key_id": server.access_key_id, "secret_access_key": server.secret_access_key}
    upload(
        work / "plain",
        made.files,
        endpoint=server.endpoint,
        **keys,
        bucket=BUCKET,
        prefix=PREFIX,
        advance=lambda size_bytes: None,
    )
    place = Place(work / "plain", server, work)
    peers: dict[str, Peer] = {}
    for name in arguments.targets:
        if name in PEERS:
            if not PEERS[name].is_installed():
                raise DemoFailed(f"{name} is not installed: pip install 'hayloft[bench]', or leave it out of --targets")
            say(f"setting up {name}")
            peers[name] = PEERS[name](place)
            stack.callback(peers[name].tear_down)
            peers[name].set_up()
    comparison = Comparison(place, made, peers, Crew(stopping))
    for run in range(arguments.runs):
        say(f"run {run + 1} of {arguments.runs}")
        comparison.run([CASES[name] for name in arguments.workloads], arguments.targets, run)
    return comparison.figures


def _remove(work: Path) -> None:
    left = unmount_below(work)
    if left:
        say(f"still mounted, so {work} stays: {', '.join(left)}")
    else:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
