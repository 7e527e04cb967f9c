"""Objects that become columns together: the same as one after the other, whatever their keys, sizes and ETags are."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.catalog import verified_files
from csi_driver.catalog.etags import encode_etags
from csi_driver.catalog.manifest import Manifest
from csi_driver.catalog.page_collector import PageCollector
from csi_driver.catalog.plain_batches import MOST_OBJECT_BYTES, ColumnPage, columns_of, encoded_etags, plain_batch
from csi_driver.catalog.selection import Selection
from csi_driver.model.errors import ManifestInvalid
from csi_driver.model.snapshot import MOST_TIME_NS, ObjectPage
from tests.support.datasets import dataset, manifest_of

KEYS = st.one_of(
    st.text(st.sampled_from("/.ab-é\U0001f600"), max_size=8),
    st.text(st.sampled_from("/.a%\0\udcff\ud800 "), max_size=8),
    st.sampled_from(["a/_$folder$", "a_$folder$", "x" * 255, "x" * 256, "d" * 255 + "/e", "/".join(["d" * 250] * 16)]),
)
PLAIN_KEYS = st.text(st.sampled_from("abc/é"), min_size=1, max_size=6).map(lambda key: f"k/{key.strip('/')}x")
ETAGS = st.one_of(
    st.none(),
    st.text("0123456789abcdef", min_size=32, max_size=32),
    st.sampled_from(["", "W/x", "A" * 32, "0" * 32 + "-7", "0" * 31 + " ", "é" * 32, "é" * 16, "0" * 31 + "G"]),
)
SIZES = st.sampled_from([0, 1, 7, MOST_OBJECT_BYTES, MOST_OBJECT_BYTES + 1, -1, (1 << 63) - 1, 1 << 64])
TIMES = st.sampled_from([0, 5, -5, MOST_TIME_NS, -MOST_TIME_NS, -MOST_TIME_NS - 1, 1 << 64])


def _page(keys: list[str], draw: st.DrawFn, *, odd: bool) -> ObjectPage:
    def values(strategy: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(strategy, min_size=len(keys), max_size=len(keys)))

    sizes, times = (values(SIZES), values(TIMES)) if odd else ([7] * len(keys), [5] * len(keys))
    archived = draw(st.lists(st.sampled_from(keys), max_size=2)) if keys else []
    return ObjectPage(keys, sizes, values(ETAGS), times, ["unreadable"] if odd else (), archived)


@st.composite
def listings(draw: st.DrawFn) -> tuple[str, list[ObjectPage]]:
    """A prefix, and pages of which most, but not all, have it."""
    prefix = draw(st.sampled_from(["", "p/", "p", "é/", "p/q/"]))
    pages = []
    for _ in range(draw(st.integers(1, 3))):
        odd = draw(st.booleans())
        keys = draw(st.lists(KEYS if odd else PLAIN_KEYS, max_size=6))
        pages.append(_page([(prefix if draw(st.integers(0, 9)) else "") + key for key in keys], draw, odd=odd))
    return prefix, pages


def _collected(collector: PageCollector) -> tuple[Any, ...]:
    rows, renamed, markers = collector.tables()
    places = renamed.to_pylist()
    found = [
        tuple({**row, "renamed": tuple(places[row["renamed"]].values()) if row["renamed"] >= 0 else ()}.values())
        for row in rows.to_pylist()
    ]
    return sorted(found), markers, dict(+collector.counts), dict(collector.left_out.counts)


@pytest.mark.promise("S690")
@given(listings(), st.sampled_from([(), ("**/*x",), ("a*",)]))
def test_columns_are_those_of_one_object_after_the_other(
    listing: tuple[str, list[ObjectPage]], include: tuple[str, ...]
) -> None:
    prefix, pages = listing
    selection = Selection.of(dataset(include=include))
    together, singly = PageCollector(prefix, selection), PageCollector(prefix, selection)
    for page in pages:
        together.add(page)
        singly.counts["objects_listed"] += len(page)
        for key in page.unreadable:
            singly.add(ObjectPage((), (), (), (), [key]))
        singly._add_one_by_one([page])
    assert _collected(together) == _collected(singly)


@pytest.mark.parametrize(
    ("prefix", "key"),
    [("", "/a"), ("p/", "p//a"), ("p", "p/a"), ("p/", "p/"), ("p/", "q/a"), ("p/", "p/../a"), ("p/", "p/a/.")],
)
def test_a_key_that_is_no_path_is_left_to_the_slow_way(prefix: str, key: str) -> None:
    columns = columns_of([ObjectPage([key, "p/ok"], [1, 1], [None, None], [0, 0])])
    assert columns is not None
    assert plain_batch(columns, prefix.encode(), 1 << 40) is None


def test_plain_keys_take_the_fast_way() -> None:
    for prefix, key in (("", "a"), ("", "a/b"), ("p/", "p/b"), ("p/", "p/a/b"), ("p", "pa/b")):
        columns = columns_of([ObjectPage([key], [1], ["0" * 32], [0])])
        assert columns is not None
        assert plain_batch(columns, prefix.encode(), 1 << 40).num_rows == 1


def test_objects_of_more_bytes_together_than_can_be_counted_are_not_taken_together() -> None:
    columns = columns_of([ObjectPage(["a", "b"], [1 << 40] * 2, [None] * 2, [0] * 2)])
    assert columns is not None
    assert plain_batch(columns, b"", 1 << 40) is None


@given(st.lists(ETAGS, max_size=9), st.integers(0, 3))
def test_etags_of_columns_are_encoded_as_those_of_objects(etags: list[str | None], start: int) -> None:
    column = pa.array(etags, pa.large_string()).cast(pa.large_binary()).slice(start)
    assert encoded_etags(column).to_pylist() == encode_etags(etags[start:])


def test_columns_become_objects_again() -> None:
    page = ColumnPage(
        pa.array([b"a\xff"], pa.large_binary()), pa.array([3]), pa.array([None], pa.large_binary()), pa.array([5])
    )
    assert page.as_objects() == ObjectPage(["a\udcff"], [3], [None], [5])


# -- files that were verified before ----------------------------------------------------------------------------------


def _settled(path: Path) -> None:
    """As if it had been written a minute ago."""
    written_ns = os.stat(path).st_mtime_ns - 60 * 10**9
    os.utime(path, ns=(written_ns, written_ns))


def _damage(path: Path) -> None:
    """In place, in the middle, with the time of before."""
    before = os.stat(path)
    content = path.read_bytes()
    middle = content.index(b"a-name") + 2
    with path.open("r+b") as file:
        file.seek(middle)
        file.write(bytes([content[middle] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def manifest_path(tmp_path: Path) -> Path:
    path = manifest_of(["d/a-name", "d/b"], tmp_path).path
    _settled(path)
    return path


@pytest.mark.promise("S691")
def test_a_manifest_that_was_verified_is_not_read_again(manifest_path: Path) -> None:
    Manifest.open(manifest_path)
    link = manifest_path.with_name("link")
    os.link(manifest_path, link)
    _damage(manifest_path)  # which nothing does to a file: it shows that the file was not read
    assert Manifest.open(link).tree.resolve(b"d/b") is not None
    os.removexattr(manifest_path, "user.hayloft.verified")
    with pytest.raises(ManifestInvalid, match="checksum"):
        Manifest.open(link)


@pytest.mark.promise("S691")
def test_a_manifest_that_has_changed_since_is_verified_again(manifest_path: Path) -> None:
    Manifest.open(manifest_path)
    _damage(manifest_path)
    os.utime(manifest_path)
    with pytest.raises(ManifestInvalid, match="checksum"):
        Manifest.open(manifest_path)


@pytest.mark.promise("S691")
def test_a_copy_is_verified_even_if_it_has_the_attributes_and_times(manifest_path: Path) -> None:
    Manifest.open(manifest_path)
    copy = Path(shutil.copy2(manifest_path, manifest_path.with_name("copy")))
    assert os.getxattr(copy, "user.hayloft.verified")
    _damage(copy)
    with pytest.raises(ManifestInvalid, match="checksum"):
        Manifest.open(copy)


@pytest.mark.promise("S691")
def test_a_manifest_that_was_written_just_now_is_verified_again(tmp_path: Path) -> None:
    path = manifest_of(["d/a-name"], tmp_path).path
    Manifest.open(path)
    assert not os.listxattr(path)


@pytest.mark.promise("S691")
@pytest.mark.parametrize(
    "noted",
    [b"", b"x", b"\xff", b"another-boot {rest}", b"{identity} 0", b"{identity} 99999999999", b"{identity} nan"],
)
def test_a_note_of_another_boot_or_week_does_not_count(manifest_path: Path, noted: bytes) -> None:
    Manifest.open(manifest_path)
    identity = os.getxattr(manifest_path, "user.hayloft.verified").rpartition(b" ")[0]
    rest = identity.partition(b" ")[2] + b" 1"
    os.setxattr(manifest_path, "user.hayloft.verified", noted.replace(b"{identity}", identity).replace(b"{rest}", rest))
    with manifest_path.open("rb") as file:
        assert not verified_files.is_remembered(file.fileno())
