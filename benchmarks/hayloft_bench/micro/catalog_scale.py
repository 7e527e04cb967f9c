"""The cost of a large dataset: listing it, building and opening its manifest, lookups, and memory.

Run it as ``python -m hayloft_bench.micro.catalog_scale --objects 1000000``; it needs loopback alone, and root for the
step ``mount``. Every step runs in its own process, so that its peak memory is its own. ``--output FILE`` adds the
figures to a JSON file; the kept ones are ``benchmarks/results/catalog_scale.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hayloft_bench.micro import synthetic_listing
from hayloft_bench.micro.synthetic_listing import LAYOUTS, PREFIX

LOOKUPS = 100_000
STATS = 20_000


def memory_mb() -> dict[str, float]:
    """Resident memory of this process in MiB: now, the part that is mapped from files, and the peak."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    names = {"resident_mb": "VmRSS", "of_it_mapped_mb": "RssFile", "peak_mb": "VmHWM"}
    return {name: round(int(fields[field].split()[0]) / 1024, 1) for name, field in names.items()}


# -- steps, each in its own process -----------------------------------------------------------------------------------


def build_step(target: Path, objects: int, layout: str, port: int | None) -> dict[str, Any]:
    """Builds the manifest from pages in memory, or from the listing server at ``port``."""
    from csi_driver.catalog.builder import build_manifest
    from csi_driver.model.dataset import Credentials, Dataset, DatasetUrl, StoreOptions

    dataset = Dataset(DatasetUrl.parse(f"s3://scale/{PREFIX}"))
    if port is None:
        listing = synthetic_listing.pages(objects, layout)
    else:
        from csi_driver.objects.store_factory import open_store

        options = StoreOptions(
            endpoint=f"http://127.0.0.1:{port}", region="us-east-1", anonymous=True, addressing_style="path"
        )
        listing = open_store(dataset.url, options, Credentials()).list(PREFIX)
    waited_s = 0.0

    def timed() -> Iterator[Any]:
        nonlocal waited_s
        while True:
            began = time.perf_counter()
            page = next(listing, None)
            waited_s += time.perf_counter() - began
            if page is None:
                return
            yield page

    began = time.perf_counter()
    manifest = build_manifest(timed(), dataset, target)
    total_s = time.perf_counter() - began
    assert manifest.file_count == objects
    return {
        "listing_s": round(waited_s, 2),
        "build_s": round(total_s - waited_s, 2),
        "file_mb": round(target.stat().st_size / 1e6, 1),
        "directories": manifest.directory_count,
        **memory_mb(),
    }


def lookup_step(target: Path, objects: int, layout: str, port: int | None) -> dict[str, Any]:
    """Opens the manifest in a fresh process, then resolves random paths and reads their attributes."""
    began = time.perf_counter()
    from csi_driver.catalog.manifest import Manifest

    imported = time.perf_counter()
    manifest = Manifest.open(target)
    opened = time.perf_counter()
    tree = manifest.tree
    chance = random.Random(5)
    paths = []
    for _ in range(LOOKUPS):
        path = synthetic_listing.key_of(chance.randrange(objects), layout).removeprefix(PREFIX).encode()
        folder, _, name = path.rpartition(b"/")
        paths.append((tree.resolve(folder), name))
    after_open = memory_mb()
    cpu_began = time.process_time()
    lookups_s = _timed(lambda: [tree.lookup(parent, name) for parent, name in paths if parent is not None])
    lookups_cpu_s = time.process_time() - cpu_began
    nodes = [node for parent, name in paths if parent is not None and (node := tree.lookup(parent, name)) is not None]
    assert len(nodes) == LOOKUPS
    row_s = _timed(lambda: [tree.file(node) for node in nodes])
    return {
        "import_s": round(imported - began, 2),
        "open_s": round(opened - imported, 3),
        "lookup_us": round(lookups_s / LOOKUPS * 1e6, 2),
        "lookup_cpu_us": round(lookups_cpu_s / LOOKUPS * 1e6, 2),
        "file_row_us": round(row_s / LOOKUPS * 1e6, 2),
        "resident_after_open_mb": after_open["resident_mb"],
        **memory_mb(),
    }


def walk_step(target: Path, objects: int, layout: str, port: int | None) -> dict[str, Any]:
    """Reads the largest directory from its first entry to its last, and all rows in order."""
    from csi_driver.catalog.manifest import Manifest

    tree = Manifest.open(target).tree
    directory = tree.resolve(b"train")
    assert directory is not None
    entries = 0
    began = time.perf_counter()
    for _ in tree.children(directory, 0):
        entries += 1
    readdir_s = time.perf_counter() - began
    rows_s = _timed(lambda: sum(1 for _ in tree.rows()))
    return {"entries": entries, "readdir_s": round(readdir_s, 2), "all_rows_s": round(rows_s, 2), **memory_mb()}


def mount_step(target: Path, objects: int, layout: str, port: int | None) -> dict[str, Any]:
    """Mounts the stored manifest in a fresh process; another process then stats files through the mount. Needs root.
    ``ready_s`` is the time until the mount answers."""
    from csi_driver.cache.chunk_store import ChunkStore
    from csi_driver.catalog.manifest import Manifest
    from csi_driver.daemon.mount_records import MountRecord, MountRecords
    from csi_driver.daemon.served_mount import ServedMount
    from csi_driver.daemon.volume_stores import VolumeStore
    from csi_driver.event_loop.event_loop import EventLoop
    from csi_driver.filesystem.descriptor_budget import DescriptorBudget
    from csi_driver.fuse import mounting
    from csi_driver.reading.read_through_cache import ReadThroughCache
    from csi_driver.settings import ChunkStoreSettings, FuseSettings, ReadingSettings
    from csi_driver.volumes.parameters import VolumeParameters
    from hayloft_lab.memory_store import MemoryStore

    with tempfile.TemporaryDirectory(prefix="hayloft-scale-mount-") as home:
        cache, mount_point = Path(home) / "cache", Path(home) / "mount"
        cache.mkdir()
        mount_point.mkdir()
        chunk_store = ChunkStore(ChunkStoreSettings(directory=cache))
        event_loop = EventLoop()
        read_through_cache = ReadThroughCache(chunk_store, ReadingSettings(), event_loop)
        event_loop.start()
        records = MountRecords(Path(home) / "state")
        record = MountRecord(MountRecord.new_id(), "scale", str(mount_point), {"url": f"s3://scale/{PREFIX}"}, "")
        began = time.perf_counter()
        records.store_manifest(record.mount_id, target)
        record = replace(record, snapshot_id=Manifest.open(target).snapshot_id)
        served = ServedMount(
            record,
            VolumeParameters.parse(record.attributes),
            records,
            read_through_cache,
            event_loop,
            VolumeStore(MemoryStore(), "scale"),
            DescriptorBudget.of_this_process(),
        )
        served.begin(FuseSettings())
        try:
            first = subprocess.run(
                ["stat", "--format=%F", str(mount_point)], check=True, capture_output=True, text=True
            )
            ready_s = time.perf_counter() - began
            assert first.stdout.strip() == "directory"
            chance = random.Random(7)
            paths = [synthetic_listing.key_of(chance.randrange(objects), layout) for _ in range(STATS)]
            listed = Path(home) / "paths"
            listed.write_text("\n".join(str(mount_point / path.removeprefix(PREFIX)) for path in paths))
            script = "import os, sys, time; p = open(sys.argv[1]).read().split('\\n'); t = time.perf_counter(); "
            script += "[os.stat(x) for x in p]; print(time.perf_counter() - t)"
            done = subprocess.run(
                [sys.executable, "-c", script, str(listed)], check=True, capture_output=True, text=True
            )
            stat_us = round(float(done.stdout) / STATS * 1e6, 1)
            return {"ready_s": round(ready_s, 3), "cold_stat_us": stat_us, **memory_mb()}
        finally:
            mounting.unmount(mount_point, lazy=True)
            served.close()
            event_loop.close()
            read_through_cache.close()
            chunk_store.close()


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


STEPS = {"build": build_step, "lookup": lookup_step, "walk": walk_step, "mount": mount_step}


# -- the run ----------------------------------------------------------------------------------------------------------


def run_step(step: str, target: Path, objects: int, layout: str, port: int | None = None) -> dict[str, Any]:
    command = [sys.executable, "-m", "hayloft_bench.micro.catalog_scale", "--step", step, "--target", str(target)]
    command += ["--objects", str(objects), "--layout", layout, *(["--port", str(port)] if port else [])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return {"step": step, "layout": layout, "origin": "S3 on loopback" if port else "memory", **found}


def run(objects: int, *, over_s3: bool) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory(prefix="hayloft-scale-") as directory:
        target = Path(directory) / "manifest.arrow"
        for layout in ("shuffled", "flat", "classes"):
            rows.append(run_step("build", target, objects, layout))
            if layout == "flat":
                rows += [run_step(step, target, objects, layout) for step in ("lookup", "walk")]
        rows.append(run_step("lookup", target, objects, "classes"))
        if os.geteuid() == 0:
            rows.append(run_step("mount", target, objects, "classes"))
        if over_s3:
            rows.append(_over_s3(target, objects))
    return rows


def _over_s3(target: Path, objects: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "hayloft_bench.micro.listing_server", "--objects", str(objects)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        return run_step("build", target, objects, "classes", port=int(server.stdout.readline()))
    finally:
        assert server.stdin is not None
        server.stdin.close()
        server.wait(timeout=10)


def show(rows: list[dict[str, Any]], objects: int, console: Console) -> None:
    table = Table("step", "layout", "listing from", "figures", title=f"{objects:,} objects")
    for row in rows:
        figures = ", ".join(f"{name} {value}" for name, value in row.items() if name not in _LABELS)
        table.add_row(row["step"], row["layout"], row["origin"], figures)
    console.print(table)


_LABELS = ("step", "layout", "origin")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--no-s3", action="store_true", help="leave out the listing over HTTP")
    parser.add_argument("--output", type=Path, help="JSON file to which the figures are added")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--target", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--layout", choices=LAYOUTS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        found = STEPS[arguments.step](arguments.target, arguments.objects, arguments.layout, arguments.port)
        print(json.dumps(found))
        return
    rows = run(arguments.objects, over_s3=not arguments.no_s3)
    show(rows, arguments.objects, Console())
    if arguments.output is None:
        return
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "kernel": platform.release()}
    results = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    results[str(arguments.objects)] = {"machine": machine, "rows": rows}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
