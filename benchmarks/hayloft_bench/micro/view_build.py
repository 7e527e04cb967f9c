"""The cost of a materialised view: building it, building it again, removing it, and reading it beside plain files.

Run it as ``python -m hayloft_bench.micro.view_build --directory /mnt/nvme --objects 1000000``. It makes that many
object files (sparse: their bytes need no space), links them by the manifest of a synthetic dataset with the code of the
daemon, and removes everything. With ``--read-files N`` it also writes N real files of 110 kB twice, as object files and
as plain files, and reads both in turn. ``--output FILE`` writes the figures as JSON; the kept ones are
``benchmarks/results/view_build.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from csi_driver.cache.hard_links import LinkGuard
from csi_driver.cache.views import Views
from csi_driver.catalog.builder import build_manifest
from csi_driver.catalog.tree import Tree
from csi_driver.daemon.view_publisher import view_parts
from csi_driver.model.chunk import CHUNK_BYTES, OBJECT_FILE_MODE
from csi_driver.model.dataset import Dataset, DatasetUrl
from csi_driver.model.snapshot import CacheScope
from csi_driver.mounts import bind_mounts
from hayloft_bench.micro import synthetic_listing
from hayloft_bench.micro.synthetic_listing import LAYOUTS, PREFIX

SCOPE = CacheScope("benchmark", "https://s3.example.com", "scale", CHUNK_BYTES)
FILE_BYTES = 110_000
ROUNDS = 7
READERS = 2


def make_objects(tree: Tree, objects: Path, content: bytes | None) -> None:
    """Object files as the chunk store makes them; sparse without ``content``."""
    for number in range(256):
        (objects / f"{number:02x}").mkdir(parents=True)
    for row in tree.rows():
        digest = SCOPE.digest(row.key, row.etag, row.size_bytes)
        path = f"{objects}/{digest[:2]}/{digest}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, OBJECT_FILE_MODE)
        if content is None:
            os.ftruncate(descriptor, row.size_bytes)
        else:
            os.write(descriptor, content)
        os.close(descriptor)


@contextmanager
def dataset(directory: Path, objects: int, layout: str, content: bytes | None = None) -> Iterator[tuple[Tree, Views]]:
    home = Path(tempfile.mkdtemp(prefix="view-build-", dir=directory))
    try:
        listing = synthetic_listing.pages(objects, layout)
        manifest = build_manifest(listing, Dataset(DatasetUrl.parse(f"s3://scale/{PREFIX}")), home / "manifest")
        make_objects(manifest.tree, home / "objects", content)
        yield manifest.tree, Views(home / "views", home / "objects", LinkGuard(), lambda digest: True)
    finally:
        shutil.rmtree(home)


def build(tree: Tree, views: Views, threads: int) -> float:
    began = time.perf_counter()
    parts = view_parts(tree, SCOPE)
    assert views.build("view", parts, directory_mode=0o555, directory_mtime_ns=tree.created_ns, threads=threads)
    return time.perf_counter() - began


def remove(views: Views) -> float:
    began = time.perf_counter()
    views.remove("view")
    views.clear()
    return time.perf_counter() - began


def measure_building(tree: Tree, views: Views) -> dict[str, Any]:
    """The first view sets the modification times of the object files; later views find them set."""
    threads = os.cpu_count() or 1
    figures: dict[str, Any] = {"files": tree.file_count, "directories": tree.directory_count}
    figures["first_build_s"] = round(build(tree, views, threads=min(4, threads)), 2)
    figures["removal_s"] = round(remove(views), 2)
    for count in sorted({1, 2, min(4, threads)}):
        figures[f"build_again_{count}_threads_s"] = round(build(tree, views, threads=count), 2)
        remove(views)
    return figures


def read_all(paths: list[str]) -> float:
    """Files per second: open, read, close."""

    def read(part: list[str]) -> None:
        for path in part:
            descriptor = os.open(path, os.O_RDONLY)
            while os.read(descriptor, 1 << 20):
                pass
            os.close(descriptor)

    began = time.perf_counter()
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(read, [paths[start::READERS] for start in range(READERS)]))
    return len(paths) / (time.perf_counter() - began)


def files_below(root: Path) -> list[str]:
    return sorted(os.path.join(place, name) for place, _, names in os.walk(root) for name in names)


def measure_reading(directory: Path, count: int) -> dict[str, Any]:
    """Reads through the mount that a pod gets and through plain copies, in turn; everything is in the page cache."""
    content = os.urandom(FILE_BYTES)
    with dataset(directory, count, "classes", content) as (tree, views):
        build(tree, views, threads=0)
        plain, target = views.directory.parent / "plain", views.directory.parent / "target"
        for place in sorted({os.path.dirname(path) for path in files_below(views.path("view"))}):
            (plain / os.path.relpath(place, views.path("view"))).mkdir(parents=True)
        for path in files_below(views.path("view")):
            (plain / os.path.relpath(path, views.path("view"))).write_bytes(content)
        bind_mounts.ensure_directory(target)
        bind_mounts.bind_read_only(views.path("view"), target)
        try:
            trees = {"view": files_below(target), "plain": files_below(plain)}
            rates: dict[str, list[float]] = {name: [] for name in trees}
            for paths in trees.values():
                read_all(paths)
            for _ in range(ROUNDS):
                for name, paths in trees.items():
                    rates[name].append(read_all(paths))
        finally:
            bind_mounts.unmount(target)
            remove(views)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "read_files": count,
        **{f"{name}_files_per_s": round(value) for name, value in medians.items()},
        "view_of_plain": round(medians["view"] / medians["plain"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), help="on the disk of the cache")
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--layout", choices=LAYOUTS, default="classes")
    parser.add_argument("--read-files", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    figures: dict[str, Any] = {
        "kernel": platform.release().partition("-")[0],
        "cores": os.cpu_count(),
        "layout": options.layout,
    }
    if options.objects:
        with dataset(options.directory, options.objects, options.layout) as (tree, views):
            figures |= measure_building(tree, views)
    if options.read_files:
        figures |= measure_reading(options.directory, options.read_files)
    if options.output is not None:
        options.output.write_text(json.dumps(figures, indent=1) + "\n")
    for name, value in figures.items():
        print(f"{name:>26} {value}")


if __name__ == "__main__":
    main()
