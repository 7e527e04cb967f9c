"""Small datasets and listings for tests of the catalog."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from csi_driver.catalog.builder import build_manifest
from csi_driver.catalog.manifest import Manifest
from csi_driver.catalog.tree import ROOT_NODE, Tree
from csi_driver.model.dataset import Dataset, DatasetUrl
from csi_driver.model.snapshot import ObjectInfo, ObjectPage

PREFIX = "data/"
CREATED_NS = 1_700_000_000_000_000_000


def dataset(include: tuple[str, ...] = (), exclude: tuple[str, ...] = (), url: str = "s3://bucket/data") -> Dataset:
    return Dataset(DatasetUrl.parse(url), include, exclude)


def object_info(key: str, size_bytes: int = 3, etag: str | None = "", mtime_ns: int = 5) -> ObjectInfo:
    """An object below ``PREFIX``; ``etag`` "": the MD5 of the key."""
    if etag == "":
        etag = hashlib.md5(key.encode("utf-8", "surrogateescape"), usedforsecurity=False).hexdigest()
    return ObjectInfo(PREFIX + key, size_bytes, etag, mtime_ns)


def pages_of(objects: Iterable[ObjectInfo], page_objects: int = 7) -> Iterator[ObjectPage]:
    found = list(objects)
    for start in range(0, len(found), page_objects):
        part = found[start : start + page_objects]
        yield ObjectPage(
            [info.key for info in part],
            [info.size_bytes for info in part],
            [info.etag for info in part],
            [info.mtime_ns for info in part],
        )


def manifest_of(objects: Iterable[ObjectInfo | str], directory: Path, of: Dataset | None = None) -> Manifest:
    infos = [object_info(entry) if isinstance(entry, str) else entry for entry in objects]
    return build_manifest(pages_of(infos), of or dataset(), directory / "manifest.arrow", created_ns=CREATED_NS)


def walk(tree: Tree, directory: int = ROOT_NODE) -> Iterator[tuple[bytes, int]]:
    """(path, node) of every file, found through ``children`` alone."""
    for name, node, is_directory, _ in tree.children(directory, 0):
        if is_directory:
            for path, below in walk(tree, node):
                yield name + b"/" + path, below
        else:
            yield name, node


def shown_keys(manifest: Manifest) -> dict[str, str]:
    """Path -> key below the prefix, of every file."""
    return {
        path.decode("utf-8", "surrogateescape"): manifest.tree.key(node).removeprefix(manifest.prefix)
        for path, node in walk(manifest.tree)
    }
