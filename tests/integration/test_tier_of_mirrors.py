"""A dataset with mirrors behind the cluster's cache: real nginx replicas in front of two servers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.model.chunk import ByteRange
from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.objects.mirrors.mirror_factory import MirrorPlace, mirrored_store
from csi_driver.objects.store import read_whole
from csi_driver.objects.store_factory import open_store
from csi_driver.objects.tier.replica_set import Tier
from csi_driver.objects.tier.slice_names import SliceNames
from csi_driver.objects.tier.tiered_store import Tiered, tiered
from hayloft_lab.nginx_replica import NginxReplica
from tests.support.daemons import wait_until
from tests.support.hostile_s3 import HostileS3
from tests.support.tier import members, plain_tier, running_replicas

pytestmark = pytest.mark.nginx

DRAW = random.Random(38)
SMALL, LARGE = DRAW.randbytes(60_000), DRAW.randbytes(9 << 20)
KEYS = Credentials({"access_key_id": "one", "secret_access_key": "two"})
OPTIONS = {"region": "us-east-1", "request_timeout_s": 20.0, "deadline_s": 60.0}


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[list[NginxReplica]]:
    with running_replicas(tmp_path, 2) as running:
        yield running


def node(bucket: HostileS3, mirror: HostileS3, tier: Tier) -> Tiered:
    """As a daemon opens the store of a volume."""
    url, options = DatasetUrl.parse("s3://data/set"), StoreOptions(endpoint=bucket.endpoint, **OPTIONS)  # type: ignore[arg-type]
    of_mirror = StoreOptions(endpoint=mirror.endpoint, **OPTIONS)  # type: ignore[arg-type]
    place = MirrorPlace(DatasetUrl.parse("s3://data/copy"), of_mirror, lambda: KEYS)
    store, _ = mirrored_store(url, options, open_store(url, options, KEYS), [place])
    return tiered(store, tier, SliceNames(tier.key, "domain", b"one", store.endpoint, store.bucket))


def read(store: Tiered, bucket: HostileS3) -> tuple[bytes, bytes]:
    whole = read_whole(store, "set/small", len(SMALL), if_match=bucket.version("set/small", SMALL))
    pieces = store.read_range("set/large", ByteRange(0, len(LARGE)), if_match=bucket.version("set/large", LARGE))
    return b"".join(map(bytes, whole.parts)), b"".join(map(bytes, pieces))


@pytest.mark.promise("S647")
def test_while_the_bucket_is_away_the_tier_is_filled_from_the_mirror_under_the_same_names(
    replicas: list[NginxReplica],
) -> None:
    with (
        HostileS3({"set/small": SMALL, "set/large": LARGE}) as bucket,
        HostileS3({"copy/small": SMALL, "copy/large": LARGE}) as mirror,
    ):
        tier = plain_tier(members(replicas), timeout_s=20.0)
        bucket.go_away()
        first = node(bucket, mirror, tier)
        assert read(first, bucket) == (SMALL, LARGE)  # finds out that the bucket is away

        def is_read_from_the_tier() -> bool:
            """What the mirror has sent once is a hit. The replicas that have found the bucket away are left alone for
            a second."""
            before = len(mirror.seen("GET"))
            assert read(first, bucket) == (SMALL, LARGE)
            return len(mirror.seen("GET")) == before

        wait_until(is_read_from_the_tier)
        second = node(bucket, mirror, tier)
        bucket.come_back()
        hits = tier.report().hits
        assert read(second, bucket) == (SMALL, LARGE)
        assert tier.report().hits > hits, "and stays one when the bucket is back"
        assert {request.headers["range"] for request in bucket.seen("GET")} <= {"bytes=0-0"}, (
            "but for looks whether it is back"
        )
        for store in (first, second):
            store.close()
