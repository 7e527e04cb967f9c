"""What ``hayloft inspect`` prints."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.console import Console

from csi_driver.model.dataset import Credentials, StoreOptions
from csi_driver.model.errors import EmptyDataset, InvalidParameter
from csi_driver.model.inventory_url import InventoryUrl
from csi_driver.wiring.dataset_inspection import inspect, inspect_store
from hayloft_lab.memory_store import MemoryStore
from tests.support.datasets import dataset
from tests.support.inventories import MANIFEST, Row, inventory_of

OBJECTS = {
    "data/plain.jpg": b"12345",
    "data/a": b"1",
    "data/a/b": b"22",
    "data/a//[bold]c": b"333",
    "data/" + "long" * 80 + ".jpg": b"1",
    "data/m/": b"bytes",
    "data/esc\x1b[2J//\udcff": b"1",
}


def printed(objects: Mapping[str, bytes], *, as_json: bool = False, include: tuple[str, ...] = ()) -> str:
    text = io.StringIO()
    inspect_store(MemoryStore(objects), dataset(include), Console(file=text, width=60), as_json=as_json)
    return text.getvalue()


def test_totals_and_every_odd_key_are_printed_on_lines_of_their_own() -> None:
    lines = printed(OBJECTS).splitlines()
    assert lines[0] == "s3://bucket/data/"
    assert any(line.split() == ["files", "6"] for line in lines)
    assert any(line.split() == ["renamed", "4"] for line in lines)
    assert any(line.split() == ["left", "out", "1"] for line in lines)
    assert "renamed: a//[bold]c -> a/%2F/[bold]c (a part of the key is empty)" in lines
    assert any(line.startswith("renamed: a -> a~") and "directory of other keys" in line for line in lines)
    assert any(line.startswith("renamed: " + "long" * 80 + ".jpg -> long") for line in lines)
    assert any(line.startswith("left out: m/ ") for line in lines)


def test_a_key_cannot_control_the_terminal() -> None:
    text = printed(OBJECTS)
    assert "\x1b" not in text
    assert r"renamed: esc\x1b[2J//\xff -> esc\x1b[2J/%2F/\xff" in text


def test_json_holds_the_same_report() -> None:
    found = json.loads(printed(OBJECTS, as_json=True))
    assert (found["files"], found["bytes"], found["directories"]) == (6, 13, 6)
    assert found["renamed_total"] == 4
    assert found["left_out"] == [{"key": "data/m/", "reason": "marker-with-bytes"}]
    assert {"key": "data/a//[bold]c", "shown_as": "a/%2F/[bold]c", "reason": "empty-part"} in found["renamed"]
    assert any(entry["key"] == "data/esc\x1b[2J//\udcff" for entry in found["renamed"])


def test_a_clean_dataset_has_no_table_of_reasons() -> None:
    text = printed({"data/x": b"1"})
    assert "reason" not in text
    assert "renamed:" not in text


def test_keys_excluded_by_globs_are_counted() -> None:
    assert json.loads(printed(OBJECTS, as_json=True, include=("*.jpg",)))["not_selected"] == 5


def test_errors_are_raised_to_the_command() -> None:
    with pytest.raises(EmptyDataset):
        printed({})
    console = Console(file=io.StringIO())
    with pytest.raises(InvalidParameter):
        inspect("no-url", (), (), StoreOptions(), Credentials(), console)


def test_a_directory_of_files_is_inspected_by_url(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x.bin").write_bytes(b"1234")
    text = io.StringIO()
    inspect(tmp_path.as_uri(), (), (), StoreOptions(), Credentials(), Console(file=text), as_json=True)
    found = json.loads(text.getvalue())
    assert (found["files"], found["bytes"]) == (1, 4)


@pytest.mark.promise("S592")
def test_sizes_are_shown_by_class_with_the_time_of_the_listing() -> None:
    objects = {"data/empty": b"", "data/a": b"1", "data/b": bytes(4096), "data/c": bytes(4097), "data/d": bytes(70_000)}
    found = json.loads(printed(objects, as_json=True))
    by_bound = {one["up_to_bytes"]: (one["files"], one["bytes"]) for one in found["sizes"]}
    assert {bound: counts for bound, counts in by_bound.items() if counts[0]} == {
        0: (1, 0),
        4 << 10: (2, 4097),
        64 << 10: (1, 4097),
        1 << 20: (1, 70_000),
    }
    assert sum(files for files, _ in by_bound.values()) == found["files"]
    assert sum(size for _, size in by_bound.values()) == found["bytes"]
    assert found["listing_s"] >= 0
    lines = [line.split() for line in printed(objects).splitlines()]
    assert any(line[:3] == ["objects", "listed", "5,"] for line in lines)
    assert any("KiB" in line and "2" in line and "40.0%" in line for line in lines)
    assert not any("GiB" in line for line in lines)


@pytest.mark.promise("S631")
def test_a_dataset_of_an_inventory_says_of_which_and_from_when() -> None:
    rows = [Row("data/a", 1), Row("data/b", 2)]
    inventory = (MemoryStore(inventory_of("Parquet", rows)), InventoryUrl.parse(f"s3://lists/{MANIFEST}"))
    text, plain = io.StringIO(), io.StringIO()
    inspect_store(MemoryStore(), dataset(), Console(file=text), inventory, as_json=True)
    report = json.loads(text.getvalue())
    assert (report["files"], report["bytes"]) == (2, 3)
    assert report["inventory"] == {"url": f"s3://lists/{MANIFEST}", "format": "Parquet", "date": "2026-11-18T11:06Z"}
    inspect_store(MemoryStore(), dataset(), Console(file=plain), inventory)
    assert f"note: the list of objects is that of s3://lists/{MANIFEST} (Parquet), of 2026-11-18T11:06Z" in (
        plain.getvalue()
    )


def test_an_inventory_of_another_kind_of_store_is_refused() -> None:
    with pytest.raises(InvalidParameter, match=r"--inventory: 'gs://b/all\.csv' is not allowed; allowed: a s3:// URL"):
        inspect("s3://b/x", (), (), StoreOptions(), Credentials(), Console(), inventory="gs://b/all.csv")
