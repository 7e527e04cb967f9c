"""Properties of a manifest of any set of keys: each object is found once, in order, with the same node ids."""

from __future__ import annotations

import random
import threading
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.catalog.etags import decode_etag, encode_etag, encode_etags
from csi_driver.catalog.key_names import shown_path
from csi_driver.catalog.manifest import Manifest
from csi_driver.catalog.tree import ROOT_NODE, Tree
from csi_driver.filesystem import inodes as nodes
from csi_driver.model.errors import EmptyDataset
from csi_driver.model.snapshot import ObjectInfo
from tests.support.datasets import CREATED_NS, PREFIX, manifest_of, object_info, walk
from tests.support.examples import examples

# Few and awkward parts, so that keys share directories, conflict with them, and need every rule.
PARTS = st.sampled_from(
    ["a", "b", "a!", "A", "", ".", "..", "%2F", "%2E", "n\0", "n%00", "\udcff", "é", "new\nline", "x" * 256, "~"]
) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/"), min_size=1, max_size=3)
KEYS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
OBJECTS = st.lists(
    st.builds(
        object_info,
        KEYS,
        st.integers(0, 2**40),
        st.sampled_from([None, "", "d41d8cd98f00b204e9800998ecf8427e-12", '0x8DC"x', "ABCDEF"]),
        st.integers(0, 2**62),
    ),
    max_size=40,
    unique_by=lambda info: info.key,
)


def built(objects: list[ObjectInfo], directory: str) -> Manifest | None:
    try:
        return manifest_of(objects, Path(directory))
    except EmptyDataset:
        return None


def shown(info: ObjectInfo) -> bytes:
    return shown_path(info.key.removeprefix(PREFIX).encode("utf-8", "surrogateescape")).path


@examples(150)
@given(OBJECTS)
def test_every_object_is_found_once_or_reported(objects: list[ObjectInfo]) -> None:
    with TemporaryDirectory() as directory:
        manifest = built(objects, directory)
        if manifest is None:
            assert all(info.key.endswith("/") for info in objects)
            return
        tree, report = manifest.tree, manifest.key_report()
        found = {tree.key(node): node for _, node in walk(tree)}
        assert Counter(tree.key(node) for _, node in walk(tree)).most_common(1)[0][1] == 1
        left_out = {PREFIX + entry.key.decode("utf-8", "surrogateescape") for entry in report.left_out}
        for info in objects:
            if info.key.endswith("/"):
                assert info.key not in found
                assert (info.key in left_out) == (info.size_bytes > 0)
                continue
            if info.key not in found:  # without bytes, it stands for a directory
                below = shown(info) + b"/"
                assert not info.size_bytes
                assert any(shown(other).startswith(below) for other in objects)
                continue
            row = tree.file(found.pop(info.key))
            assert (row.key, row.size_bytes, row.mtime_ns, row.etag) == (
                info.key,
                info.size_bytes,
                info.mtime_ns,
                info.etag,
            )
        assert not found
        assert report.objects_listed == len(objects)


@pytest.mark.promise("S1")
@examples(150)
@given(OBJECTS)
def test_lookup_children_parent_and_path_agree(objects: list[ObjectInfo]) -> None:
    with TemporaryDirectory() as directory:
        manifest = built(objects, directory)
        if manifest is None:
            return
        tree = manifest.tree
        seen = {ROOT_NODE}
        check_directory(tree, ROOT_NODE, seen)
        assert seen == set(range(1, 1 + tree.file_count + tree.directory_count))
        assert not tree.exists(max(seen) + 1)
        assert sum(tree.size_bytes(node) for node in seen) == tree.total_bytes
        assert [row.node for row in tree.rows()] == list(range(2, 2 + tree.file_count))
        assert list(tree.rows()) == [tree.file(node) for node in range(2, 2 + tree.file_count)]


def check_directory(tree: Tree, directory: int, seen: set[int]) -> None:
    entries = list(tree.children(directory, 0))
    for group in (True, False):
        names = [name for name, _, is_directory, _ in entries if is_directory is group]
        assert names == sorted(set(names))
    assert len({name for name, *_ in entries}) == len(entries)
    assert sum(is_directory for _, _, is_directory, _ in entries) == tree.subdirectory_count(directory)
    for place, (name, node, is_directory, cookie) in enumerate(entries):
        assert 0 < len(name) <= 255
        assert name not in (b".", b"..")
        assert not set(name) & {0, ord("/")}
        assert tree.lookup(directory, name) == node
        assert tree.lookup(directory, name + b"\0") is None
        assert tree.is_directory(node) is is_directory
        assert list(tree.children(directory, cookie)) == entries[place + 1 :]
        assert tree.resolve(tree.path(node)) == node
        assert node not in seen
        seen.add(node)
        if is_directory:
            assert tree.parent(node) == directory
            assert tree.mtime_ns(node) == CREATED_NS
            check_directory(tree, node, seen)


@examples(60)
@given(OBJECTS, st.randoms(use_true_random=False))
def test_order_of_the_listing_changes_nothing(objects: list[ObjectInfo], chance: random.Random) -> None:
    with TemporaryDirectory() as directory:
        one = built(objects, directory)
        shuffled = list(objects)
        chance.shuffle(shuffled)
        other = built(shuffled, directory)
        if one is None or other is None:
            assert one is other
            return
        assert one.snapshot_id == other.snapshot_id
        assert list(walk(one.tree)) == list(walk(other.tree))
        assert one.key_report() == other.key_report()


@examples(60)
@given(OBJECTS.filter(bool), st.data())
def test_snapshot_id_changes_with_any_size_etag_or_key(objects: list[ObjectInfo], data: st.DataObject) -> None:
    with TemporaryDirectory() as directory:
        one = built(objects, directory)
        if one is None:
            return
        row = one.tree.file(data.draw(st.integers(2, 1 + one.file_count)))
        rest = [info for info in objects if info.key != row.key]
        for changed in (
            ObjectInfo(row.key, row.size_bytes + 1, row.etag, row.mtime_ns),
            ObjectInfo(row.key, row.size_bytes, (row.etag or "") + "x", row.mtime_ns),
            ObjectInfo(row.key + "x", row.size_bytes, row.etag, row.mtime_ns),
        ):
            other = built([*rest, changed], directory)
            assert other is not None
            assert other.snapshot_id != one.snapshot_id


@pytest.mark.promise("S145")
def test_mtime_counts_for_the_snapshot_only_where_there_is_no_strong_etag(tmp_path: Path) -> None:
    def id_of(etag: str | None, mtime_ns: int) -> str:
        return manifest_of([object_info("a", 1, etag, mtime_ns)], tmp_path).snapshot_id

    assert id_of("e", 1) == id_of("e", 2)
    assert id_of(None, 1) != id_of(None, 2)
    assert id_of("W/e", 1) != id_of("W/e", 2)


def test_bytes_moved_between_neighbouring_names_change_the_snapshot(tmp_path: Path) -> None:
    assert manifest_of(["ab", "c"], tmp_path).snapshot_id != manifest_of(["a", "bc"], tmp_path).snapshot_id


def test_parts_are_sorted_not_whole_paths(tmp_path: Path) -> None:
    """'!' sorts before '/', so that a!/x lies between a and a/x when whole keys are compared."""
    manifest = manifest_of(["a!/x", "a/x", "a/y/z", "a!/y/z"], tmp_path)
    assert [manifest.tree.path(row.node) for row in manifest.tree.rows()] == [b"a/x", b"a/y/z", b"a!/x", b"a!/y/z"]


@pytest.mark.promise("S2")
def test_flat_directory_resumes_anywhere(tmp_path: Path) -> None:
    manifest = manifest_of([f"{number:06d}" for number in range(3000)], tmp_path)
    entry = next(manifest.tree.children(ROOT_NODE, 1234))
    assert entry == (b"001234", 1236, False, 1235)
    assert not list(manifest.tree.children(ROOT_NODE, 3000))
    assert not list(manifest.tree.children(ROOT_NODE, 10**9))


@pytest.mark.promise("S5")
def test_node_numbers_follow_the_agreed_rule(tmp_path: Path) -> None:
    tree = manifest_of(["b", "a/x", "c/d/y"], tmp_path).tree
    assert ROOT_NODE == nodes.ROOT_NODE
    assert [tree.resolve(path) for path in (b"", b"b", b"a/x", b"c/d/y")] == [1, 2, 3, 4]
    assert [tree.resolve(path) for path in (b"a", b"c", b"c/d")] == [5, 6, 7]
    assert tree.resolve(b"b/x") is None
    assert tree.resolve(b"nothing/at/all") is None


def test_a_node_that_does_not_exist_raises_key_error(tmp_path: Path) -> None:
    tree = manifest_of(["a/b"], tmp_path).tree
    for node in (-1, 0, 4, 2**63):
        assert not tree.exists(node)
        assert not tree.is_directory(node)
        assert tree.lookup(node, b"a") is None
        for ask in (tree.file, tree.size_bytes, tree.mtime_ns, tree.path, tree.parent, tree.key):
            with pytest.raises(KeyError):
                ask(node)
        with pytest.raises(KeyError):
            next(tree.children(node, 0))


def test_many_threads_look_up_in_one_tree(tmp_path: Path) -> None:
    tree = manifest_of([f"d{number % 7}/f{number}" for number in range(2000)], tmp_path).tree
    wrong: list[int] = []

    def look(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(1500):
            number = chance.randrange(2000)
            node = tree.resolve(f"d{number % 7}/f{number}".encode())
            if node is None or tree.key(node) != f"{PREFIX}d{number % 7}/f{number}":
                wrong.append(number)

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


ETAGS = st.one_of(
    st.none(),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40),
    st.binary(min_size=16, max_size=16).map(bytes.hex),
    st.tuples(st.binary(min_size=16, max_size=16), st.integers(1, 10_000)).map(
        lambda pair: f"{pair[0].hex()}-{pair[1]}"
    ),
    st.binary(min_size=16, max_size=16).map(lambda digest: digest.hex().upper()),
)


@given(st.lists(ETAGS, max_size=5))
def test_etags_are_decoded_unchanged(etags: list[str | None]) -> None:
    packed = encode_etags(etags)
    assert [decode_etag(value) for value in packed] == etags
    assert packed == [encode_etag(etag or "") for etag in etags]


def test_etags_that_only_have_the_length_of_an_md5_are_decoded_unchanged() -> None:
    for etag in (" " * 32, "g" * 32, "ab" * 15 + "a\n", "é" * 32, "٣" * 32):
        assert decode_etag(encode_etags([etag])[0]) == etag


@examples(150)
@given(OBJECTS)
def test_the_files_below_a_directory_are_one_range_of_rows(objects: list[ObjectInfo]) -> None:
    with TemporaryDirectory() as directory:
        manifest = built(objects, directory)
        if manifest is None:
            return
        tree = manifest.tree
        below: dict[int, set[int]] = {}

        def collect(node: int) -> set[int]:
            rows = set()
            for _, child, is_directory, _ in tree.children(node):
                rows |= collect(child) if is_directory else {child - 2}
            below[node] = rows
            return rows

        collect(ROOT_NODE)
        for node, rows in below.items():
            found = tree.rows_below(node)
            assert set(found) == rows
            assert tree.bytes_in_rows(found) == sum(tree.size_bytes(row + 2) for row in rows)
        assert all(list(tree.rows_below(row + 2)) == [row] for row in below[ROOT_NODE])
