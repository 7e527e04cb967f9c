"""The rules of docs/keys.md, one by one."""

from __future__ import annotations

from pathlib import Path

import pytest

from csi_driver.catalog.builder import build_manifest
from csi_driver.catalog.key_names import NAME_LIMIT_BYTES, Reason, marked, shown_path
from csi_driver.catalog.key_report import EXAMPLES
from csi_driver.catalog.manifest import Manifest
from csi_driver.model.errors import EmptyDataset
from csi_driver.model.snapshot import ObjectInfo, ObjectPage
from tests.support.datasets import dataset, manifest_of, object_info, shown_keys, walk


def reasons(manifest: Manifest) -> dict[str, Reason]:
    report = manifest.key_report()
    entries = [(entry.key, entry.reason) for entry in report.renamed]
    entries += [(entry.key, entry.reason) for entry in report.left_out]
    return {key.decode("utf-8", "surrogateescape"): reason for key, reason in entries}


def test_plain_keys_are_shown_as_they_are(tmp_path: Path) -> None:
    keys = ["a", "b/c", "b/d/e.jpg", "é/ü", ".hidden", "a b", "x:y*?\"'\\", "%2F", "...", "a./b"]
    manifest = manifest_of(keys, tmp_path)
    assert shown_keys(manifest) == {key: key for key in keys}
    assert manifest.key_report().renamed_total == manifest.key_report().left_out_total == 0


@pytest.mark.parametrize(
    ("key", "path", "reason"),
    [
        ("a//b", "a/%2F/b", Reason.EMPTY_PART),
        ("/a", "%2F/a", Reason.EMPTY_PART),
        ("//a", "%2F/%2F/a", Reason.EMPTY_PART),
        ("./a", "%2E/a", Reason.DOT_PART),
        ("a/../b", "a/%2E%2E/b", Reason.DOT_PART),
        ("../../etc/passwd", "%2E%2E/%2E%2E/etc/passwd", Reason.DOT_PART),
        ("a/..", "a/%2E%2E", Reason.DOT_PART),
        (".", "%2E", Reason.DOT_PART),
        ("n\0u", "n%00u", Reason.NUL_BYTE),
        ("\0", "%00", Reason.NUL_BYTE),
    ],
)
def test_illegal_part_is_shown_with_percent_escapes_and_reported(
    key: str, path: str, reason: Reason, tmp_path: Path
) -> None:
    manifest = manifest_of([key, "other"], tmp_path)
    assert shown_keys(manifest) == {path: key, "other": "other"}
    assert reasons(manifest) == {key: reason}


def test_control_characters_and_newlines_are_shown_raw(tmp_path: Path) -> None:
    keys = ["new\nline", "bell\x07", "tab\t/x", "del\x7f"]
    manifest = manifest_of(keys, tmp_path)
    assert shown_keys(manifest) == {key: key for key in keys}
    assert not reasons(manifest)


def test_bytes_that_are_not_utf_8_are_shown_raw(tmp_path: Path) -> None:
    manifest = manifest_of(["\udcff\udcfe/x\udc80"], tmp_path)
    node = manifest.tree.resolve(b"\xff\xfe/x\x80")
    assert node is not None
    assert manifest.tree.key(node) == "data/\udcff\udcfe/x\udc80"


@pytest.mark.promise("S214")
@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (object_info("odd\ud800", etag=None), Reason.NO_TEXT),
        (ObjectInfo("other/odd", 1, None, 0), Reason.OUTSIDE_PREFIX),
        (ObjectInfo("", 1, None, 0), Reason.OUTSIDE_PREFIX),
        (object_info("odd", size_bytes=-1), Reason.NO_SIZE),
        (object_info("odd", size_bytes=1 << 62), Reason.NO_SIZE),
        (object_info("odd", size_bytes=1 << 200), Reason.NO_SIZE),
        (object_info("odd", mtime_ns=16_725_225_600 * 10**9), None),
        (object_info("odd", mtime_ns=-62_135_596_800 * 10**9), None),
        (object_info("odd", mtime_ns=1 << 200), None),
        (object_info("odd", etag="a\ud800"), None),
        (object_info("odd", etag="x" * 100_000), None),
    ],
    ids=lambda value: None if isinstance(value, ObjectInfo) else str(value),
)
def test_no_entry_of_a_listing_keeps_the_others_from_being_shown(
    tmp_path: Path, entry: ObjectInfo, reason: Reason | None
) -> None:
    manifest = manifest_of(["a", entry, "z"], tmp_path)
    assert {"a", "z"} <= set(shown_keys(manifest))
    report = manifest.key_report()
    assert report.left_out_counts == ({} if reason is None else {reason: 1})
    assert ("odd" in shown_keys(manifest)) == (reason is None)


def test_the_sizes_of_all_objects_together_are_bounded_too(tmp_path: Path) -> None:
    manifest = manifest_of([object_info(f"{number:02}", size_bytes=1 << 60) for number in range(12)], tmp_path)
    assert manifest.file_count == 7
    assert manifest.key_report().left_out_counts == {Reason.NO_SIZE: 5}


def test_keys_that_differ_in_case_are_both_shown(tmp_path: Path) -> None:
    assert sorted(shown_keys(manifest_of(["Readme", "README", "readme"], tmp_path))) == ["README", "Readme", "readme"]


def test_part_of_255_bytes_is_kept_and_one_of_256_is_cut(tmp_path: Path) -> None:
    fits, long = "a" * 255, "b" * 252 + ".jpg"
    manifest = manifest_of([fits, long], tmp_path)
    renamed, kept = sorted(shown_keys(manifest), key=lambda path: path == fits)
    assert kept == fits
    assert len(renamed.encode()) == NAME_LIMIT_BYTES
    assert renamed.startswith("bbb")
    assert renamed.endswith(".jpg")
    assert reasons(manifest) == {long: Reason.LONG_PART}


def test_files_of_one_overlong_directory_stay_together_and_of_two_apart(tmp_path: Path) -> None:
    one, two = "d" * 300, "d" * 301
    manifest = manifest_of([f"{one}/x", f"{one}/y", f"{two}/x"], tmp_path)
    assert manifest.directory_count == 3
    assert sorted(shown_keys(manifest).values()) == sorted([f"{one}/x", f"{one}/y", f"{two}/x"])


def test_a_name_is_cut_between_characters() -> None:
    name = marked(("é" * 200).encode(), b"key", 8)
    assert len(name) <= NAME_LIMIT_BYTES
    assert name.decode()[0] == "é"


def test_a_long_suffix_is_not_treated_as_an_extension() -> None:
    assert marked(b"a." + b"x" * 40, b"key", 8).startswith(b"a." + b"x" * 40 + b"~")


def test_path_that_is_too_long_is_left_out_and_reported(tmp_path: Path) -> None:
    long = "/".join(["d" * 200] * 20)
    manifest = manifest_of([long, "a"], tmp_path)
    assert shown_keys(manifest) == {"a": "a"}
    assert reasons(manifest) == {long: Reason.LONG_PATH}


def test_directory_wins_over_the_file_of_its_name(tmp_path: Path) -> None:
    manifest = manifest_of(["a", "a/b", "data.parquet", "data.parquet/part-0"], tmp_path)
    shown = shown_keys(manifest)
    assert {path: key for path, key in shown.items() if path == key} == {
        "a/b": "a/b",
        "data.parquet/part-0": "data.parquet/part-0",
    }
    (renamed_a,) = (path for path, key in shown.items() if key == "a")
    (renamed_parquet,) = (path for path, key in shown.items() if key == "data.parquet")
    assert renamed_a == marked(b"a", b"a", 8).decode()
    assert renamed_parquet.startswith("data~")
    assert renamed_parquet.endswith(".parquet")
    assert reasons(manifest) == {"a": Reason.DIRECTORY_TOO, "data.parquet": Reason.DIRECTORY_TOO}


def test_an_escaped_name_gives_precedence_to_the_key_of_that_name(tmp_path: Path) -> None:
    manifest = manifest_of(["a//b", "a/%2F/b"], tmp_path)
    shown = shown_keys(manifest)
    assert shown["a/%2F/b"] == "a/%2F/b"
    assert shown["a/%2F/b~9b9c779d"] == "a//b"
    assert sorted(shown.values()) == ["a/%2F/b", "a//b"]
    assert reasons(manifest) == {"a//b": Reason.NAME_TAKEN}


def test_a_conflict_of_two_escaped_names_is_resolved_by_key_order(tmp_path: Path) -> None:
    keys = ["x\0%00", "x%00\0"]
    one = shown_keys(manifest_of(keys, tmp_path))
    other = shown_keys(manifest_of(keys[::-1], tmp_path))
    assert one == other
    assert one["x%00%00"] == min(keys)


def test_marks_grow_until_the_name_is_free(tmp_path: Path) -> None:
    taken = [marked(b"a", b"a", digits).decode() for digits in (8, 16)]
    shown = shown_keys(manifest_of(["a", "a/b", *taken], tmp_path))
    assert shown[marked(b"a", b"a", 32).decode()] == "a"
    assert all(shown[name] == name for name in taken)


def test_an_object_without_any_free_name_is_left_out_and_reported(tmp_path: Path) -> None:
    taken = [marked(b"a", b"a", digits).decode() for digits in (8, 16, 32, 64)]
    manifest = manifest_of(["a", "a/b", *taken], tmp_path)
    assert sorted(shown_keys(manifest).values()) == sorted(["a/b", *taken])
    assert reasons(manifest) == {"a": Reason.NO_FREE_NAME}


def test_a_marked_name_that_is_a_directory_is_changed_too(tmp_path: Path) -> None:
    directory = marked(b"a", b"a", 8).decode()
    shown = shown_keys(manifest_of(["a", "a/b", f"{directory}/c"], tmp_path))
    assert shown[marked(b"a", b"a", 16).decode()] == "a"


def test_marker_makes_an_empty_directory_and_no_file(tmp_path: Path) -> None:
    marker = object_info("empty/deep/", size_bytes=0)
    manifest = manifest_of([marker, "a", object_info("", size_bytes=0)], tmp_path)
    assert shown_keys(manifest) == {"a": "a"}
    node = manifest.tree.resolve(b"empty/deep")
    assert node is not None
    assert manifest.tree.is_directory(node)
    assert not list(manifest.tree.children(node, 0))
    assert manifest.key_report().directory_markers == 2
    assert not reasons(manifest)


def test_marker_with_bytes_is_reported_as_left_out(tmp_path: Path) -> None:
    manifest = manifest_of([object_info("m/", size_bytes=9), "m/x"], tmp_path)
    assert shown_keys(manifest) == {"m/x": "m/x"}
    assert reasons(manifest) == {"m/": Reason.MARKER_WITH_BYTES}


@pytest.mark.promise("S10")
def test_marker_of_an_illegal_directory_stays_in_the_mount(tmp_path: Path) -> None:
    manifest = manifest_of([object_info("a/../", size_bytes=0), object_info("/", size_bytes=0), "a/x"], tmp_path)
    assert manifest.tree.resolve(b"a/%2E%2E") is not None
    assert manifest.tree.resolve(b"%2F") is not None


def test_a_file_is_renamed_for_an_empty_directory_of_a_marker(tmp_path: Path) -> None:
    manifest = manifest_of(["a", object_info("a/", size_bytes=0)], tmp_path)
    assert reasons(manifest) == {"a": Reason.DIRECTORY_TOO}
    assert list(shown_keys(manifest).values()) == ["a"]


@pytest.mark.promise("S191")
@pytest.mark.parametrize("exclude", [(), ("*.tmp",)])
def test_an_object_without_bytes_that_stands_for_a_directory_is_no_file(
    tmp_path: Path, exclude: tuple[str, ...]
) -> None:
    """The markers of consoles, Hadoop, and tools that write the name of a directory as an object."""
    keys = ["cats/", "dir_$folder$", "deep/er_$folder$", "a/_$folder$", "_$folder$", "dogs", "x/y"]
    markers = [object_info(key, size_bytes=0) for key in keys]
    manifest = manifest_of([*markers, "cats/1", "dogs/1", "x/y/1", "a/1"], tmp_path, dataset(exclude=exclude))
    assert shown_keys(manifest) == {key: key for key in ("cats/1", "dogs/1", "x/y/1", "a/1")}
    for directory in (b"cats", b"dir", b"deep/er", b"dogs", b"x/y", b"a"):
        node = manifest.tree.resolve(directory)
        assert node is not None
        assert manifest.tree.is_directory(node)
    assert manifest.key_report().directory_markers == len(keys)
    assert not reasons(manifest)


@pytest.mark.promise("S191")
def test_an_object_with_bytes_is_a_file_whatever_its_name(tmp_path: Path) -> None:
    shown = shown_keys(manifest_of(["dir_$folder$", "dogs", "dogs/1", object_info("empty", size_bytes=0)], tmp_path))
    assert shown == {"dir_$folder$": "dir_$folder$", marked(b"dogs", b"dogs", 8).decode(): "dogs"} | {
        key: key for key in ("dogs/1", "empty")
    }


def test_the_marker_of_a_directory_hides_no_key_that_has_its_marked_name(tmp_path: Path) -> None:
    """Only the name of the key itself stands for a directory, not one that the rules made."""
    empty = object_info("a//b", size_bytes=0)
    shown = shown_keys(manifest_of([empty, "a/%2F/c"], tmp_path))
    assert shown == {"a/%2F/b": "a//b", "a/%2F/c": "a/%2F/c"}


def test_a_listing_with_keys_outside_the_prefix_alone_shows_nothing(tmp_path: Path) -> None:
    page = ObjectPage(["other/a"], [1], [None], [0])
    with pytest.raises(EmptyDataset, match="not below the prefix"):
        build_manifest([page], dataset(), tmp_path / "manifest.arrow")


def test_key_listed_twice_is_shown_once_in_its_newer_version(tmp_path: Path) -> None:
    old, new = object_info("a", 1, "old", mtime_ns=1), object_info("a", 2, "new", mtime_ns=2)
    for objects in ([old, new, object_info("b")], [new, object_info("b"), old]):
        manifest = manifest_of(objects, tmp_path)
        assert [row.etag for row in manifest.tree.rows() if row.name == b"a"] == ["new"]
        assert manifest.file_count == 2
        assert manifest.key_report().duplicates == 1


def test_illegal_key_listed_twice_is_shown_once(tmp_path: Path) -> None:
    manifest = manifest_of(["a//b", "a//b", "c", "c/d", "c"], tmp_path)
    assert sorted(key for key in shown_keys(manifest).values()) == ["a//b", "c", "c/d"]
    assert manifest.key_report().duplicates == 2


def test_a_listing_given_twice_gives_the_same_snapshot(tmp_path: Path) -> None:
    keys = [f"d{number % 5}/f{number}" for number in range(300)]
    once = manifest_of(keys, tmp_path).snapshot_id
    twice = manifest_of(keys * 2, tmp_path)
    assert twice.snapshot_id == once
    assert twice.key_report().duplicates == 300


def test_counts_include_all_keys_and_examples_the_first_thousand(tmp_path: Path) -> None:
    keys = [f"d//{number:05d}" for number in range(EXAMPLES + 200)]
    markers = [object_info(f"m{number:05d}/", size_bytes=1) for number in range(2 * EXAMPLES + 200)]
    report = manifest_of([*keys, *reversed(markers)], tmp_path).key_report()
    assert report.renamed_counts == {Reason.EMPTY_PART: EXAMPLES + 200}
    assert report.left_out_counts == {Reason.MARKER_WITH_BYTES: 2 * EXAMPLES + 200}
    assert [entry.key.decode() for entry in report.renamed] == keys[:EXAMPLES]
    assert [entry.key for entry in report.left_out] == [f"m{number:05d}/".encode() for number in range(EXAMPLES)]


@pytest.mark.promise("S9")
def test_every_shown_name_is_legal_whatever_the_key() -> None:
    for key in (b"", b"/", b"a/./b", b"..", b"\0\0", b"x" * 9000, b"." * 300, b"\0" * 200, b"a//../\0"):
        for part in shown_path(key).path.split(b"/"):
            assert 0 < len(part) <= NAME_LIMIT_BYTES
            assert part not in (b".", b"..")
            assert b"\0" not in part


def test_walk_finds_each_file_once(tmp_path: Path) -> None:
    manifest = manifest_of(["a", "a/b", "a//b", "c/../d"], tmp_path)
    paths = [path for path, _ in walk(manifest.tree)]
    assert len(paths) == len(set(paths)) == 4
