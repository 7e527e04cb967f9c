"""How fast a bucket is listed over a path with delay: by several requests at a time, beside page after page.

Run it as ``python -m hayloft_bench.micro.listing_rate --objects 1000000 --delay-ms 50``. Pairs, in alternating order;
each listing runs in a process of its own, which also builds the manifest, with a server of its own. It prints seconds
until the manifest is written, objects a second, processor time of both, requests and peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hayloft_bench.micro.synthetic_listing import LAYOUTS, PAGE_OBJECTS, PREFIX

WAYS = ("page after page", "in ranges")


def _listing(port: int, way: str, target: Path, *, journaled: bool) -> dict[str, Any]:
    from csi_driver.catalog.builder import build_manifest
    from csi_driver.catalog.listing_journal import ListingJournal
    from csi_driver.model.dataset import Credentials, Dataset, DatasetUrl, StoreOptions
    from csi_driver.objects.listing_pages import resumable_lister
    from csi_driver.objects.parallel_listing import range_lister
    from csi_driver.objects.store_factory import open_store
    from hayloft_bench.micro.catalog_scale import memory_mb

    options = StoreOptions(
        endpoint=f"http://127.0.0.1:{port}", region="us-east-1", anonymous=True, addressing_style="path"
    )
    dataset = Dataset(DatasetUrl.parse(f"s3://scale/{PREFIX}"))
    store = open_store(dataset.url, options, Credentials())
    ranges = range_lister(store)
    assert ranges is not None
    began = time.perf_counter()
    pages = ranges.list_in_ranges(PREFIX) if way == WAYS[1] else store.list(PREFIX)
    journal = target.with_name("journal")
    if journaled and (resumable := resumable_lister(store)) is not None:
        pages = resumable.list_logged(PREFIX, ListingJournal(journal), in_ranges=way == WAYS[1])
    manifest = build_manifest(pages, dataset, target)
    seconds = time.perf_counter() - began
    journal_bytes = journal.stat().st_size if journal.exists() else 0
    figures = {"seconds": seconds, "files": manifest.file_count, "cpu_s": time.process_time(), **memory_mb()}
    return {**figures, "journal_bytes": journal_bytes / manifest.file_count}


def _served(objects: int, layout: str, delay_ms: float, way: str, *, journaled: bool) -> dict[str, Any]:
    """One listing, with a server of its own."""
    command = [sys.executable, "-m", "hayloft_bench.micro.listing_server", "--objects", str(objects)]
    command += ["--layout", layout, "--delay-ms", str(delay_ms)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        port = server.stdout.readline().strip()
        with tempfile.TemporaryDirectory(prefix="hayloft-listing-") as home:
            child = [sys.executable, "-m", "hayloft_bench.micro.listing_rate", "--way", way, "--port", port]
            child += ["--target", f"{home}/manifest.arrow", *(["--journal"] if journaled else [])]
            done = subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True)
    finally:
        server.stdin.close()
        server.wait(timeout=10)
    requests, cpu_s = server.stdout.read().split()
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["files"] == objects
    return {**found, "requests": int(requests), "server_cpu_s": float(cpu_s)}


def _run(objects: int, layout: str, delay_ms: float, pairs: int, ways: tuple[str, ...], *, journaled: bool) -> None:
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(pairs):
        for way in ways if number % 2 else reversed(ways):
            found = _served(objects, layout, delay_ms, way, journaled=journaled)
            seconds[way].append(found["seconds"])
            print(
                f"{way:16} {found['seconds']:7.1f} s {objects / found['seconds']:9.0f} objects/s "
                f"{found['cpu_s']:6.1f} s of processor time, {found['server_cpu_s']} s of the server, "
                f"{found['requests']} requests, {found['peak_mb']:7.0f} MB, "
                f"{found['journal_bytes']:.0f} B of journal an object, load {os.getloadavg()[0]}",
                flush=True,
            )
    if len(ways) == len(WAYS):
        faster = [serial / parallel for serial, parallel in zip(*seconds.values(), strict=True)]
        print(f"in ranges, × page after page: {statistics.median(faster):.2f} (median of {pairs})")
    else:
        waits_s = -(-objects // PAGE_OBJECTS) * delay_ms / 1000
        print(f"page after page, the delays alone: {waits_s:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--layout", choices=LAYOUTS[:2], default="classes")
    parser.add_argument("--delay-ms", type=float, default=50.0)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--journal", action="store_true", help="keep the pages, as the driver does")
    parser.add_argument("--in-ranges-only", action="store_true", help="not page after page, which may take long")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--target", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(_listing(arguments.port, arguments.way, arguments.target, journaled=arguments.journal)))
        return
    ways = WAYS[1:] if arguments.in_ranges_only else WAYS
    _run(arguments.objects, arguments.layout, arguments.delay_ms, arguments.pairs, ways, journaled=arguments.journal)


if __name__ == "__main__":
    main()
