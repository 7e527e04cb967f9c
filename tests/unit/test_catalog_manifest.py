"""Manifest files: written atomically, and rejected if damaged."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from csi_driver.catalog import manifest_format as layout
from csi_driver.catalog.builder import build_from_store, build_manifest
from csi_driver.catalog.manifest import Manifest
from csi_driver.catalog.tree import Tree
from csi_driver.model.errors import AccessDenied, EmptyDataset, ManifestInvalid, NotADirectory, StoreUnavailable
from csi_driver.model.snapshot import ObjectInfo, ObjectPage
from hayloft_lab.memory_store import MemoryStore
from tests.support.datasets import CREATED_NS, dataset, manifest_of, object_info, pages_of, walk

KEYS = [f"d{number % 4}/e{number % 3}/f{number}" for number in range(120)] + ["a//b", "c", "c/x", "top"]


def test_a_reopened_manifest_is_equal(tmp_path: Path) -> None:
    built = manifest_of(KEYS, tmp_path, dataset(include=("**",), exclude=("*.tmp",)))
    opened = Manifest.open(built.path, snapshot_id=built.snapshot_id)
    assert list(walk(opened.tree)) == list(walk(built.tree))
    assert opened.url == "s3://bucket/data/"
    assert (opened.prefix, opened.include, opened.exclude) == ("data/", ("**",), ("*.tmp",))
    assert opened.created_ns == CREATED_NS
    assert opened.file_count == len(KEYS)
    assert opened.total_bytes == 3 * len(KEYS)
    assert opened.tree.snapshot_id == opened.snapshot_id


@pytest.mark.promise("S5")
def test_same_listing_gives_the_same_file_byte_for_byte(tmp_path: Path) -> None:
    once = manifest_of(KEYS, tmp_path).path.read_bytes()
    assert manifest_of(KEYS[::-1], tmp_path).path.read_bytes() == once


def test_any_arrow_reader_reads_the_file(tmp_path: Path) -> None:
    path = manifest_of(["a", "b/c"], tmp_path).path
    with pa.memory_map(str(path)) as source:
        batch = pa.ipc.open_file(source).get_batch(0)
        assert [entry["name"] for entry in batch.column("files")[0].as_py()] == [b"a", b"c"]
        assert [entry["name"] for entry in batch.column("directories")[0].as_py()] == [b"", b"b"]


def test_tree_outlives_the_file_under_its_name(tmp_path: Path) -> None:
    manifest = manifest_of(KEYS, tmp_path)
    expected = list(walk(manifest.tree))
    manifest_of(["other"], tmp_path)
    os.unlink(manifest.path)
    assert list(walk(manifest.tree)) == expected


def test_a_truncated_file_is_rejected(tmp_path: Path) -> None:
    path = manifest_of(KEYS, tmp_path).path
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 61), *range(len(whole) - 64, len(whole))]:
        path.write_bytes(whole[:length])
        with pytest.raises(ManifestInvalid):
            Manifest.open(path)


def test_a_flipped_bit_is_detected_anywhere(tmp_path: Path) -> None:
    path = manifest_of(KEYS, tmp_path).path
    whole = path.read_bytes()
    chance = random.Random(7)
    ends = [*range(1500), *range(len(whole) - 3000, len(whole))]
    for place in [*chance.sample(ends, 500), *chance.sample(range(len(whole)), 300)]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(ManifestInvalid):
            Manifest.open(path)


def test_wrong_columns_with_a_right_checksum_never_raise_anything_else(tmp_path: Path) -> None:
    """As another program, or a defect, might write them: bits are flipped, then the checksum is corrected."""
    path = manifest_of(KEYS, tmp_path).path
    whole = path.read_bytes()
    chance = random.Random(11)
    for _ in range(600):
        damaged = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            damaged[chance.randrange(2000, len(whole) - 3500)] = chance.randrange(256)
        path.write_bytes(damaged)
        put_checksum_right(path)
        try:
            tree = Manifest.open(path).tree
        except ManifestInvalid:
            continue
        list(walk_bounded(tree))


def walk_bounded(tree: Tree) -> Iterator[object]:
    """Calls every method for every node once: in a damaged tree a directory may contain itself."""
    for node in range(1, 1 + tree.file_count + tree.directory_count):
        if tree.is_directory(node):
            for name, child, _, _ in tree.children(node, 0):
                yield tree.lookup(node, name), child
            yield tree.parent(node), tree.path(node)
        else:
            yield tree.file(node)


def put_checksum_right(path: Path) -> None:
    with path.open("r+b") as file:
        places = layout._checksum_places(file)
        checksum = b"%08x" % layout._checksum(file, places)
        for place in places:
            file.seek(place)
            file.write(checksum)


def test_foreign_files_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "manifest.arrow"
    for content in (b"", b"hello", b"ARROW1\0\0" * 50, os.urandom(5000)):
        path.write_bytes(content)
        with pytest.raises(ManifestInvalid, match=r"manifest\.arrow"):
            Manifest.open(path)
    table = pa.table({"x": [1, 2, 3]})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ManifestInvalid):
        Manifest.open(path)


def test_another_format_version_is_rejected_by_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "FORMAT_VERSION", 99)
    with pytest.raises(ManifestInvalid, match="format version 99"):
        manifest_of(KEYS, tmp_path)


def test_another_snapshot_is_rejected(tmp_path: Path) -> None:
    path = manifest_of(KEYS, tmp_path).path
    with pytest.raises(ManifestInvalid, match="is of snapshot"):
        Manifest.open(path, snapshot_id="0" * 32)


def test_a_missing_file_is_a_file_not_found_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Manifest.open(tmp_path / "none.arrow")


def test_globs_that_look_like_the_checksum_are_harmless(tmp_path: Path) -> None:
    globs = ("\x01crc32c\x0112345678", "crc32c", "**")
    manifest = manifest_of(["\x01crc32c\x0100000000", "a"], tmp_path, dataset(include=globs))
    assert Manifest.open(manifest.path).file_count == 2
    assert Manifest.open(manifest.path).include == globs


def test_a_failed_listing_leaves_no_file(tmp_path: Path) -> None:
    def broken() -> Iterator[ObjectPage]:
        yield from pages_of([object_info("a")])
        raise StoreUnavailable("gone")

    with pytest.raises(StoreUnavailable):
        build_manifest(broken(), dataset(), tmp_path / "manifest.arrow")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_disk_leaves_only_the_old_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = manifest_of(["old"], tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        manifest_of(["new"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [old.path.name]
    assert Manifest.open(old.path).tree.resolve(b"old") is not None


def test_progress_counts_the_objects_listed(tmp_path: Path) -> None:
    seen: list[int] = []
    pages = pages_of([object_info(str(number)) for number in range(20)], page_objects=8)
    build_manifest(pages, dataset(exclude=("1*",)), tmp_path / "manifest.arrow", progress=seen.append)
    assert seen == [8, 16, 20]


def test_store_is_listed_below_the_prefix(tmp_path: Path) -> None:
    store = MemoryStore({"data/a": b"x", "data/b/c": b"yy", "database": b"no"})
    manifest = build_from_store(store, dataset(), tmp_path / "manifest.arrow")
    assert [path for path, _ in walk(manifest.tree)] == [b"b/c", b"a"]
    assert manifest.total_bytes == 3


def test_the_url_of_one_object_is_rejected_with_the_remedy(tmp_path: Path) -> None:
    store = MemoryStore({"data/one.tar": b"x"})
    with pytest.raises(NotADirectory, match=r"s3://bucket/data/ as the URL.*/one\.tar"):
        build_from_store(store, dataset(url="s3://bucket/data/one.tar"), tmp_path / "manifest.arrow")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_prefix_is_rejected_by_name(tmp_path: Path) -> None:
    for url in ("s3://bucket/nothing", "s3://bucket"):
        with pytest.raises(EmptyDataset, match=url):
            build_from_store(MemoryStore({}), dataset(url=url), tmp_path / "manifest.arrow")
    assert list(tmp_path.iterdir()) == []


def test_globs_that_select_nothing_are_rejected_by_name(tmp_path: Path) -> None:
    store = MemoryStore({"data/a": b"x"})
    with pytest.raises(EmptyDataset, match=r"1 objects.*\*\.jpg"):
        build_from_store(store, dataset(include=("*.jpg",)), tmp_path / "manifest.arrow")


def test_markers_alone_are_an_empty_dataset(tmp_path: Path) -> None:
    with pytest.raises(EmptyDataset, match="markers"):
        build_from_store(MemoryStore({"data/": b"", "data/x/": b""}), dataset(), tmp_path / "manifest.arrow")


class Secretive(MemoryStore):
    """Allows listings, but denies stat."""

    def stat(self, key: str) -> ObjectInfo:
        raise AccessDenied(f"{key}: may not be read")


def test_an_empty_dataset_is_reported_without_permission_to_stat(tmp_path: Path) -> None:
    with pytest.raises(EmptyDataset):
        build_from_store(Secretive({}), dataset(), tmp_path / "manifest.arrow")
