"""What was read from which place, without a name that grows or tells."""

from __future__ import annotations

import pytest

from csi_driver.daemon.measurements import Measurements
from csi_driver.model.errors import TransientStoreError
from csi_driver.objects.mirrors.mirror_counts import MirrorCounts, PlaceNumbers
from csi_driver.objects.mirrors.mirror_reports import MirrorReports
from csi_driver.objects.mirrors.same_object import SameBy
from csi_driver.rpc.call_counts import CallCounts
from csi_driver.wiring.exposition import metrics_page
from csi_driver.wiring.metrics import daemon_values
from tests.support.data_planes import InMemoryDataPlane

pytestmark = pytest.mark.promise("S687")


def test_places_are_counted_of_all_volumes_together() -> None:
    counts = MirrorCounts()
    assert counts.numbers() == {}
    for volume in ("one", "two"):
        reports = MirrorReports([f"s3://{volume}/data?sig=SECRET", f"s3://{volume}-copy/data"], counts=counts)
        for _ in range(3):
            reports.failed(0, TransientStoreError("503"))
        reports.works(0)
        reports.accepted(1, "key", SameBy.ETAG)
        reports.refused(1, "key", "the mirror lacks it")
        counts.read(1, 1000)
        counts.read(1, 10, is_complete=False)
    assert counts.numbers() == {"url": PlaceNumbers(failovers=2), "mirror1": PlaceNumbers(2, 2020, 0, 2)}


def test_the_page_tells_places_apart_by_number() -> None:
    counts = MirrorCounts()
    counts.read(2, 1000)
    counts.failed(0)
    measured = Measurements(mirrors=counts.numbers())
    page = metrics_page(lambda: daemon_values(InMemoryDataPlane(), {}, lambda: measured, CallCounts()))().body.decode()
    assert 'hayloft_mirror_bytes_total{place="mirror2"} 1000.0' in page
    assert 'hayloft_mirror_failovers_total{place="url"} 1.0' in page
    assert "s3://" not in page
