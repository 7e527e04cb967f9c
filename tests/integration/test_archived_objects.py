"""Objects that lie in an archive of their store: counted where a dataset is listed, and named where they are read."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from csi_driver.model.chunk import ByteRange
from csi_driver.model.conditions import OBJECTS_ARCHIVED
from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import ObjectArchived
from csi_driver.model.tenant import ADMINISTRATOR
from csi_driver.objects.error_mapping import from_status
from csi_driver.objects.store_factory import open_store
from csi_driver.objects.store_location import StoreLocation
from csi_driver.settings import RegistrySettings
from csi_driver.volumes.dataset_snapshots import SnapshotService
from csi_driver.volumes.dynamic_volumes import DynamicVolumes
from csi_driver.volumes.parameters import VolumeParameters
from csi_driver.volumes.registry import open_registry
from csi_driver.wiring.dataset_inspection import inspect
from csi_driver.wiring.listing_store import open_listing_store
from tests.support.daemons import Bucket, DaemonBench
from tests.support.hostile_s3 import HostileS3
from tests.support.listers import LocalLister

CLASSES = {"glacier": "GLACIER", "deep": "DEEP_ARCHIVE", "instant": "GLACIER_IR", "rare": "STANDARD_IA"}
SIZES = {"glacier": 1000, "deep": 6 << 20, "instant": 1000, "rare": 6 << 20, "plain": 1000}
PAIR = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "x"}


@pytest.fixture
def store() -> Iterator[HostileS3]:
    with HostileS3({f"data/{name}": os.urandom(size) for name, size in SIZES.items()}) as server:
        server.storage_classes = {f"data/{name}": kind for name, kind in CLASSES.items()}
        yield server


def inspected(store: HostileS3, include: list[str]) -> dict[str, object]:
    text = io.StringIO()
    options = StoreOptions(endpoint=store.endpoint)
    inspect("s3://data/data", include, [], options, Credentials(PAIR), Console(file=text), as_json=True)
    found: dict[str, object] = json.loads(text.getvalue())
    return found


@pytest.mark.promise("S215")
def test_inspect_counts_the_archived_objects_that_are_selected(store: HostileS3) -> None:
    assert inspected(store, [])["archived"] == 2
    assert "2 objects are archived" in str(inspected(store, [])["notes"])
    assert inspected(store, ["deep", "plain"])["archived"] == 1
    assert inspected(store, ["plain"])["notes"] == []


@pytest.mark.promise("S215")
@pytest.mark.parametrize("key", ["data/glacier", "data/deep"])
def test_the_error_says_that_the_object_is_to_be_restored(store: HostileS3, key: str) -> None:
    opened = open_store(DatasetUrl.parse("s3://data/"), StoreOptions(endpoint=store.endpoint), Credentials(PAIR))
    with pytest.raises(ObjectArchived, match=r"is archived .*restore it") as caught:
        list(opened.read_range(key, ByteRange(0, 1000), if_match=None))
    assert "permission" not in str(caught.value)


@pytest.mark.promise("S215")
@pytest.mark.parametrize(
    ("status", "code"), [(403, "InvalidObjectState"), (409, "BlobArchived"), (409, "BlobBeingRehydrated")]
)
def test_the_codes_of_all_stores_are_known(status: int, code: str) -> None:
    assert isinstance(from_status(StoreLocation("https://store", "bucket"), "key", status, code), ObjectArchived)


@pytest.mark.promise("S215")
def test_create_volume_counts_the_archived_objects(
    store: HostileS3, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry = open_registry(RegistrySettings(location=str(tmp_path / "registry")))
    snapshots = SnapshotService(registry, LocalLister(open_listing_store), tmp_path)
    parameters = VolumeParameters.parse({"url": "s3://data/data", "endpoint": store.endpoint})
    with caplog.at_level(logging.WARNING):
        DynamicVolumes(registry, snapshots).ensure(parameters, PAIR, ADMINISTRATOR)
    assert "2 objects are archived" in caplog.text


@pytest.mark.fuse
@pytest.mark.promise("S215")
def test_a_mount_reads_the_others_and_reports_the_archived(
    store: HostileS3, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bench = DaemonBench(tmp_path, keep=False)
    try:
        bench.start()
        mount = bench.mount(Bucket(store, store.bucket, {}), addressingStyle="path")  # type: ignore[arg-type]
        for name in ("instant", "rare", "plain"):
            assert (mount / name).read_bytes() == store.content(f"data/{name}")
        for name in ("glacier", "deep"):
            with pytest.raises(OSError, match="No data available") as caught:
                (mount / name).read_bytes()
            assert caught.value.errno == errno.ENODATA
        with bench.client() as client:
            report = client.volume("volume-1")
    finally:
        bench.close()
    assert report.conditions == (OBJECTS_ARCHIVED,)
    assert "2 objects are archived in the store" in capfd.readouterr().err
