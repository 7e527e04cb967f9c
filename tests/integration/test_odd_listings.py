"""Single entries of a listing that nothing can be made of, on a mount: the others are shown and read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemons import Bucket, DaemonBench
from tests.support.hostile_s3 import HostileS3

pytestmark = pytest.mark.fuse

GOOD = {"data/a": b"first", "data/z": b"last" * 1_000_000}
ODD = b"an object of its own"
NUMBERS = iter(range(1000))


def entry(**fields: str) -> str:
    known = {
        "Key": "data/odd",
        "LastModified": "2026-01-02T03:04:05.000Z",
        "ETag": "&quot;e05ba2f6fb5d3b0a3e1a9b1b0fd1e3a1&quot;",
        "Size": str(len(ODD)),
        "StorageClass": "STANDARD",
    }
    texts = {name: text for name, text in (known | fields).items() if text != "absent"}
    return "<Contents>" + "".join(f"<{name}>{text}</{name}>" for name, text in texts.items()) + "</Contents>"


SHOWN = {
    "year-2500": entry(LastModified="2500-01-01T00:00:00.000Z"),
    "year-1": entry(LastModified="0001-01-01T00:00:00.000Z"),
    "year-99999": entry(LastModified="99999-01-01T00:00:00.000Z"),
    "negative-year": entry(LastModified="-0044-03-15T00:00:00.000Z"),
    "no-time": entry(LastModified="absent"),
    "text-for-a-time": entry(LastModified="the day before yesterday"),
    "no-etag": entry(ETag="absent"),
    "odd-etag": entry(ETag="&quot;a&#10;b&quot;"),
    "long-etag": entry(ETag="x" * 20_000),
    "odd-class": entry(StorageClass="&#1;&lt;"),
    "no-class": entry(StorageClass="absent"),
}
LEFT_OUT = {
    "no-size": entry(Size="absent"),
    "text-for-a-size": entry(Size="large"),
    "negative-size": entry(Size="-5"),
    "size-beyond-64-bits": entry(Size="9" * 30),
    "size-of-5000-digits": entry(Size="9" * 5000),
    "no-key": entry(Key="absent"),
    "key-outside-the-prefix": entry(Key="other/odd"),
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonBench]:
    bench = DaemonBench(tmp_path_factory.mktemp("odd"), keep=False)
    bench.start()
    yield bench
    bench.close()


@pytest.fixture
def store() -> Iterator[HostileS3]:
    with HostileS3(GOOD) as server:
        yield server


def mounted(bench: DaemonBench, store: HostileS3, **attributes: str) -> Path:
    bucket = Bucket(store, store.bucket, {})  # type: ignore[arg-type]
    return bench.mount(bucket, f"odd-{next(NUMBERS)}", addressingStyle="path", **attributes)


@pytest.mark.promise("S214")
@pytest.mark.parametrize("odd", SHOWN.values(), ids=SHOWN)
def test_an_object_of_an_odd_time_etag_or_class_is_shown_with_the_others(
    bench: DaemonBench, store: HostileS3, odd: str
) -> None:
    store.odd_entries = odd
    mount = mounted(bench, store)
    assert sorted(os.listdir(mount)) == ["a", "odd", "z"]
    assert [(mount / name).read_bytes() for name in ("a", "z")] == list(GOOD.values())
    assert (mount / "odd").stat().st_size == len(ODD)


@pytest.mark.promise("S214")
@pytest.mark.parametrize("odd", ["year-2500", "year-1", "year-99999", "text-for-a-time", "no-time"])
def test_s3fs_reads_a_listing_with_an_odd_time_too(bench: DaemonBench, store: HostileS3, odd: str) -> None:
    store.odd_entries = SHOWN[odd]
    mount = mounted(bench, store, backend="s3fs")
    assert sorted(os.listdir(mount)) == ["a", "odd", "z"]


@pytest.mark.promise("S214")
@pytest.mark.parametrize("odd", LEFT_OUT.values(), ids=LEFT_OUT)
def test_an_object_without_a_size_or_key_is_left_out_and_the_others_are_shown(
    bench: DaemonBench, store: HostileS3, odd: str
) -> None:
    store.odd_entries = odd
    mount = mounted(bench, store)
    assert sorted(os.listdir(mount)) == ["a", "z"]
    assert [(mount / name).read_bytes() for name in ("a", "z")] == list(GOOD.values())
