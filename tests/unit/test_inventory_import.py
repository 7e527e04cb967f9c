"""Manifests from inventories: as a listing of the same objects gives them, or refused by name."""

from __future__ import annotations

import csv
import gzip
import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.catalog.inventory_import import build_from_inventory
from csi_driver.catalog.manifest import Manifest
from csi_driver.catalog.manifest_notes import remarks_of
from csi_driver.catalog.version_pinning import pin_versions
from csi_driver.model.errors import AccessDenied, BudgetExceeded, EmptyDataset, InvalidParameter, InventoryUnusable
from csi_driver.model.inventory_url import InventoryUrl
from csi_driver.model.snapshot import ObjectInfo
from hayloft_lab.memory_store import MemoryStore
from tests.support.datasets import dataset, manifest_of, walk
from tests.support.inventories import CREATED_MS, FOLDER, FORMATS, MANIFEST, Row, inventory_of

URL = f"s3://inventories/{MANIFEST}"
KEYS = ["data/a", "data/b/c d+e%2F", 'data/b/ä\n"x', "data/top.jpg"]
MD5 = "0123456789abcdef" * 2


def imported(
    objects: Mapping[str, bytes], directory: Path, url: str = URL, include: Sequence[str] = (), **bounds: Any
) -> Manifest:
    target = directory / "imported.arrow"
    of = dataset(tuple(include))
    return build_from_inventory(MemoryStore(objects), InventoryUrl.parse(url), of, target, **bounds)


def keys_of(manifest: Manifest) -> list[str]:
    tree = manifest.tree
    return sorted(tree.key(node) for _, node in walk(tree) if not tree.is_directory(node))


@pytest.mark.promise("S630")
@pytest.mark.parametrize("form", FORMATS)
def test_an_inventory_gives_the_files_that_a_listing_gives(form: str, tmp_path: Path) -> None:
    rows = [Row(key, size, MD5) for size, key in enumerate(KEYS)]
    manifest = imported(inventory_of(form, rows[:1], rows[1:]), tmp_path)
    listing = [ObjectInfo(row.key, row.size or 0, MD5, row.last_modified_ms * 1_000_000) for row in rows]
    (tmp_path / "other").mkdir()
    listed = manifest_of(listing, tmp_path / "other")
    for name, column in listed.columns.items():
        assert manifest.columns[name].equals(column), name
    assert keys_of(manifest) == sorted(KEYS)
    assert manifest.total_bytes == 6


@pytest.mark.promise("S631")
def test_the_manifest_says_of_what_it_was_imported_and_from_when(tmp_path: Path) -> None:
    rows = [Row("data/a")]
    once = imported(inventory_of("CSV", rows), tmp_path)
    assert once.imported == {"url": URL, "format": "CSV", "date": "2026-11-18T11:06Z"}
    [(reason, sentence)] = remarks_of(once)
    assert reason == "ObjectsImported"
    assert f"that of {URL} (CSV), of 2026-11-18T11:06Z: what was written since then is not shown" in sentence
    later = {"creationTimestamp": str(CREATED_MS + 86_400_000)}
    assert imported(inventory_of("CSV", rows, changed=later), tmp_path).snapshot_id != once.snapshot_id


def test_the_manifest_of_a_snapshot_says_it_too(tmp_path: Path) -> None:
    manifest = imported(inventory_of("CSV", [Row("data/a")]), tmp_path)
    pinned = pin_versions(manifest, None, tmp_path / "pinned.arrow", required=False)
    assert pinned.imported == manifest.imported
    assert [reason for reason, _ in remarks_of(pinned)] == ["ObjectsImported", "ObjectsNotPinned"]


@pytest.mark.promise("S632")
@pytest.mark.parametrize("form", FORMATS)
def test_of_versions_the_latest_is_shown_and_no_delete_marker(form: str, tmp_path: Path) -> None:
    rows = [
        Row("data/a", 1, is_latest=False),
        Row("data/a", 2),
        Row("data/deleted", 3, is_latest=False),
        Row("data/deleted", None, None, is_delete_marker=True),
        Row("other/b", 4),
        Row("data/cold", 5, storage_class="DEEP_ARCHIVE"),
        Row("data/no.tmp", 6),
    ]
    manifest = imported(inventory_of(form, rows), tmp_path, include=["a", "cold"])
    assert keys_of(manifest) == ["data/a", "data/cold"]
    assert manifest.total_bytes == 7
    assert manifest.archived_count == 1


@pytest.mark.parametrize("form", FORMATS)
def test_columns_that_an_inventory_may_lack(form: str, tmp_path: Path) -> None:
    manifest = imported(inventory_of(form, [Row("data/a", 1)], columns=("bucket", "key", "size")), tmp_path)
    file = manifest.tree.file(2)
    assert (file.size_bytes, file.etag, file.mtime_ns) == (1, None, 0)
    assert manifest.unversioned_count == 1


def test_a_folder_means_the_newest_inventory_in_it(tmp_path: Path) -> None:
    older = inventory_of("CSV", [Row("data/old")], manifest=f"{FOLDER}2026-11-17T01-00Z/manifest.json")
    newest = inventory_of("Parquet", [Row("data/new")])
    manifest = imported({**older, **newest, f"{FOLDER}2027/manifest.json": b"no"}, tmp_path, f"s3://i/{FOLDER}")
    assert keys_of(manifest) == ["data/new"]
    assert manifest.imported is not None
    assert manifest.imported["url"] == f"s3://i/{MANIFEST}"


def test_a_data_file_is_found_where_the_manifest_lost_a_slash(tmp_path: Path) -> None:
    """S3 writes one slash where the destination's prefix ends with one, and two are in the keys."""
    objects = inventory_of("CSV", [Row("data/a")], folder="lists//bucket/daily/", manifest="lists//bucket/daily/x/m")
    text = objects.pop("lists//bucket/daily/x/m").replace(b"lists//", b"lists/")
    key = "lists//bucket/daily/2026-11-18T11-06Z/manifest.json"
    assert keys_of(imported({**objects, key: text}, tmp_path, f"s3://i/{key}")) == ["data/a"]


_CHANGED: Mapping[str, tuple[dict[str, Any], str]] = {
    "of another bucket": (
        {"sourceBucket": "other"},
        "is of bucket 'other', and the volume's url names bucket 'bucket'",
    ),
    "of an unknown format": ({"fileFormat": "Avro"}, "has fileFormat 'Avro'; allowed: CSV, ORC, Parquet"),
    "without files": ({"files": []}, "names no data file"),
    "with a file that lacks its size": ({"files": [{"key": f"{FOLDER}data/part-0.csv.gz"}]}, "is no manifest of S3"),
    "with a missing file": (
        {"files": [{"key": f"{FOLDER}data/gone.csv.gz", "size": 3, "MD5checksum": MD5}]},
        "names the data file 'lists/bucket/daily/data/gone.csv.gz', which does not exist",
    ),
    "with a file of elsewhere": (
        {"files": [{"key": "secret/x.csv.gz", "size": 3, "MD5checksum": MD5}]},
        "names the data file 'lists/bucket/daily/data/x.csv.gz', which does not exist",
    ),
    "without a date": ({"creationTimestamp": "yesterday"}, "is no manifest of S3 Inventory"),
    "of a date that no calendar has": ({"creationTimestamp": "9" * 30}, "is no manifest of S3 Inventory"),
    "of an infinite date": ({"creationTimestamp": float("inf")}, "is no manifest of S3 Inventory"),
    "with an infinite file": (
        {"files": [{"key": f"{FOLDER}data/part-0.csv.gz", "size": float("inf")}]},
        "is no manifest of S3 Inventory",
    ),
}


@pytest.mark.promise("S633")
@pytest.mark.parametrize("what", _CHANGED)
def test_a_manifest_is_refused_that_is(what: str, tmp_path: Path) -> None:
    changed, expected = _CHANGED[what]
    objects = {**inventory_of("CSV", [Row("data/a")], changed=changed), "secret/x.csv.gz": b"abc"}
    with pytest.raises(InventoryUnusable, match=expected):
        imported(objects, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.promise("S633")
def test_a_manifest_of_lists_within_lists_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InventoryUnusable, match="is no manifest of S3 Inventory"):
        imported({MANIFEST: b"[" * 200_000}, tmp_path)


@pytest.mark.promise("S633")
def test_damaged_files_are_refused_before_they_are_read(tmp_path: Path) -> None:
    objects = inventory_of("Parquet", [Row("data/a")])
    (data,) = (key for key in objects if key.endswith(".parquet"))
    flipped = bytes([objects[data][0] ^ 1]) + objects[data][1:]
    with pytest.raises(InventoryUnusable, match=r"part-0.parquet' does not have the MD5 of the manifest"):
        imported({**objects, data: flipped}, tmp_path)
    with pytest.raises(InventoryUnusable, match=r"part-0.parquet' has \d+ bytes, and the manifest says \d+"):
        imported({**objects, data: flipped + b"x"}, tmp_path)
    with pytest.raises(InventoryUnusable, match=r"does not have the MD5 of its manifest\.checksum"):
        imported({**objects, MANIFEST: objects[MANIFEST] + b" "}, tmp_path)
    without = {key: text for key, text in objects.items() if not key.endswith("checksum")}
    assert keys_of(imported(without, tmp_path)) == ["data/a"]


def test_a_role_that_may_not_list_gets_403_for_a_missing_checksum(tmp_path: Path) -> None:
    class Forbidding(MemoryStore):
        def stat(self, key: str) -> ObjectInfo:
            if key.endswith("checksum"):
                raise AccessDenied(key)
            return super().stat(key)

    store, location = Forbidding(inventory_of("CSV", [Row("data/a")])), InventoryUrl.parse(URL)
    assert build_from_inventory(store, location, dataset(), tmp_path / "m.arrow").file_count == 1


@pytest.mark.promise("S633")
def test_rows_of_another_bucket_and_missing_columns_are_refused(tmp_path: Path) -> None:
    rows = [Row("data/a"), Row("data/b", bucket="other")]
    with pytest.raises(InventoryUnusable, match="lists objects of bucket 'other', and the manifest says 'bucket'"):
        imported(inventory_of("ORC", rows), tmp_path)
    with pytest.raises(InventoryUnusable, match="lacks the columns size; it has 'bucket, key'; add the field Size"):
        imported(inventory_of("Parquet", rows, columns=("bucket", "key")), tmp_path)
    with pytest.raises(InventoryUnusable, match=r"part-0.csv.gz' cannot be read as CSV"):
        imported(inventory_of("CSV", [Row("data/a", "many")]), tmp_path)  # type: ignore[arg-type]
    with pytest.raises(InventoryUnusable, match="there is no object 'lists/bucket/daily/2026-11-18T11-06Z/manifest"):
        imported({}, tmp_path)
    with pytest.raises(InventoryUnusable, match="has no folder such as 2026-11-28T01-00Z/"):
        imported({}, tmp_path, f"s3://i/{FOLDER}")


def test_what_selects_nothing_says_of_which_inventory_that_is(tmp_path: Path) -> None:
    with pytest.raises(EmptyDataset, match=r"no object lies below it.*\(by the inventory s3://.*of 2026-11-18T11:06Z"):
        imported(inventory_of("CSV", [Row("other/a")]), tmp_path)


def test_an_inventory_is_bounded_as_a_listing_is(tmp_path: Path) -> None:
    objects = inventory_of("CSV", [Row(f"data/{number}") for number in range(9)])
    with pytest.raises(BudgetExceeded, match="more than 8 objects"):
        imported(objects, tmp_path, most_objects=8)
    with pytest.raises(BudgetExceeded, match=r"data file .* and may have 10 on the disk"):
        imported(objects, tmp_path, most_bytes=10)


def own_csv(rows: Sequence[Sequence[str]], ending: str = "\n") -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=ending).writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


@pytest.mark.promise("S634")
def test_a_list_of_ones_own_in_csv(tmp_path: Path) -> None:
    rows = [
        ["note", "Key", "size", "etag", "last_modified", "version_id"],
        ["x", "data/a b+c%20.txt", "7", '"abc"', "2026-11-18T11:06:40.5+01:00", ""],
        ["", "data/line\nbreak,\udcff", "8", "", "", "v1"],
    ]
    for name, content in (("list.csv", own_csv(rows, "\r\n")), ("list.csv.gz", gzip.compress(own_csv(rows)))):
        manifest = imported({f"lists/{name}": content}, tmp_path, f"s3://i/lists/{name}")
        assert keys_of(manifest) == ["data/a b+c%20.txt", "data/line\nbreak,\udcff"]
        files = [manifest.tree.file(node) for node in (2, 3)]
        assert [(file.size_bytes, file.etag) for file in files] == [(7, "abc"), (8, None)]
        assert files[0].mtime_ns == 1_794_996_400_500_000_000
        assert manifest.imported is not None
        assert manifest.imported["format"] == "CSV"


@pytest.mark.promise("S634")
def test_a_list_of_ones_own_in_parquet(tmp_path: Path) -> None:
    columns = {
        "key": pa.array(["data/a", "data/b"]).dictionary_encode(),
        "size": pa.array([1, 2], pa.uint32()),
        "last_modified": pa.array([1_000_000, None], pa.timestamp("us")),
        "more": pa.array([[1], None]),
        "intelligent_tiering_access_tier": pa.array(["ARCHIVE_INSTANT_ACCESS", "DEEP_ARCHIVE"]),
    }
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, row_group_size=1)
    manifest = imported({"list.parquet": sink.getvalue()}, tmp_path, "s3://i/list.parquet")
    assert [manifest.tree.file(node).mtime_ns for node in (2, 3)] == [10**9, 0]
    assert manifest.archived_count == 1
    sink = io.BytesIO()
    pq.write_table(pa.table({**columns, "last_modified": pa.array([1, 2])}), sink)
    with pytest.raises(InventoryUnusable, match=r"last_modified in 'list.parquet' is int64; allowed: timestamps"):
        imported({"list.parquet": sink.getvalue()}, tmp_path, "s3://i/list.parquet")
    with pytest.raises(InventoryUnusable, match=r"list.orc' cannot be read as ORC"):
        imported({"list.orc": sink.getvalue()}, tmp_path, "s3://i/list.orc")
    with pytest.raises(InventoryUnusable, match=r"list.csv' lacks the columns key, size; it has 'a, b'"):
        imported({"list.csv": b"a,b\n1,2\n"}, tmp_path, "s3://i/list.csv")


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=12)


@given(st.lists(st.tuples(NAMES, st.integers(0, 1 << 40)), min_size=1, max_size=20), st.sampled_from(FORMATS))
def test_any_keys_are_as_in_a_listing(found: list[tuple[str, int]], form: str) -> None:
    rows = [Row(f"data/{name}", size, MD5) for name, size in dict(found).items()]
    with tempfile.TemporaryDirectory() as directory:
        listing = [ObjectInfo(row.key, row.size or 0, MD5, row.last_modified_ms * 1_000_000) for row in rows]
        try:
            listed = manifest_of(listing, Path(directory))
        except EmptyDataset:
            return
        manifest = imported(inventory_of(form, rows), Path(directory))
        assert all(manifest.columns[name].equals(column) for name, column in listed.columns.items())


@given(st.binary(max_size=200), st.sampled_from(["parquet", "orc", "csv", "csv.gz"]), st.booleans())
def test_any_bytes_are_a_list_or_refused_by_name(content: bytes, ending: str, zipped: bool) -> None:
    key = f"list.{ending}"
    with tempfile.TemporaryDirectory() as directory:
        try:
            imported({key: gzip.compress(content) if zipped else content}, Path(directory), f"s3://i/{key}")
        except (InventoryUnusable, EmptyDataset) as error:
            message = str(error)
        else:
            message = key
        assert key in message


@pytest.mark.parametrize(
    "url", ["s3://b", "s3://b/", "s3://b/list.txt", "s3://b/x/manifest.checksum", "https://h/list.csv", "x", "s3:///a/"]
)
def test_urls_that_name_no_inventory(url: str) -> None:
    with pytest.raises(InvalidParameter):
        InventoryUrl.parse(url)


def test_the_folder_of_an_inventory() -> None:
    folders = {
        "s3://b/p/src/daily/": "p/src/daily/",
        "s3://b/p/src/daily/2026-11-28T01-00Z/manifest.json": "p/src/daily/",
        "s3://b/x/manifest.json": "",
        "s3://b/manifest.json": "",
        "s3a://b/lists/all.parquet": "lists/",
        "s3://b/all.parquet": "",
        "file:///srv/lists/all.csv": "srv/lists/",
    }
    for url, folder in folders.items():
        parsed = InventoryUrl.parse(url)
        assert parsed.folder == folder
        assert InventoryUrl.parse(str(parsed)) == parsed
