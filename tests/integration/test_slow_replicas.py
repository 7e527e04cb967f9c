"""Real nginx replicas, one of which is slow: its readers do not wait for it for long."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from csi_driver.daemon.mount_credentials import MountCredentials
from csi_driver.daemon.mount_records import MountRecord
from csi_driver.daemon.tier_of_mounts import TierOfMounts
from csi_driver.daemon.volume_stores import VolumeStore, reopen_volume_store
from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import CredentialsRejected
from csi_driver.model.replica import Replica
from csi_driver.objects.store import read_whole
from csi_driver.objects.store_factory import open_store
from csi_driver.objects.tier.key_file import link_secret
from csi_driver.objects.tier.replica_pace import ANSWERS
from csi_driver.objects.tier.replica_set import Tier, TierIdentity, TierPolicy
from csi_driver.objects.tier.slice_names import LinkSigner, SliceNames
from csi_driver.objects.tier.tiered_store import tiered
from csi_driver.settings import PolicySettings
from csi_driver.volumes.parameters import VolumeParameters
from hayloft_lab.nginx_process import HOST
from hayloft_lab.nginx_replica import NginxReplica
from hayloft_lab.slow_proxy import SlowProxy
from tests.support.hostile_s3 import HostileS3
from tests.support.tier import KEY, members, plain_tier, running_replicas

pytestmark = pytest.mark.nginx

DRAW = random.Random(45)
OBJECTS = {f"set/{number}": DRAW.randbytes(20_000 + number) for number in range(24)}
SECRETS = {"access_key_id": "one", "secret_access_key": "two"}
PAUSE_S = 1.5
"""More than LEAST_S, and than four times what a busy machine takes for an answer."""


def member(replica: NginxReplica, port: int) -> Replica:
    return Replica(replica.address, HOST, port)


@pytest.mark.promise("S689")
def test_a_slow_replica_is_passed_over_after_eight_of_its_hits(tmp_path: Path) -> None:
    with (
        HostileS3(OBJECTS) as bucket,
        running_replicas(tmp_path, 3) as replicas,
        SlowProxy(replicas[0].port, 0.0) as slow,
    ):
        known = (member(replicas[0], slow.port), *members(replicas[1:]))
        identity = TierIdentity(KEY, links=LinkSigner(link_secret(KEY)))
        tier = Tier(identity, TierPolicy(timeout_s=20.0), lambda: known, clock=lambda: 1000.0)  # no pause ends
        url, options = DatasetUrl.parse("s3://data/set"), StoreOptions(endpoint=bucket.endpoint, region="us-east-1")
        first = open_store(url, options, Credentials(SECRETS))
        store = tiered(first, tier, SliceNames(KEY, "domain", b"one", first.endpoint, first.bucket))

        def read_all() -> None:
            for key, content in OBJECTS.items():
                whole = read_whole(store, key, len(content), if_match=bucket.version(key, content))
                assert b"".join(map(bytes, whole.parts)) == content

        for _ in range(4):
            read_all()
        assert slow.requests > ANSWERS, "it has a share of the objects"
        assert tier.report().left_alone == 0, "a replica that is not slow is not left"
        slow.pause_s, before, failures = PAUSE_S, slow.requests, tier.report().failures
        while not tier.report().left_alone:
            read_all()
        assert slow.requests - before <= ANSWERS
        before = slow.requests
        read_all()
        assert slow.requests == before
        assert tier.report().failures == failures
        store.close()
        tier.close()


@pytest.mark.promise("S688")
@pytest.mark.parametrize("mirrors", [False, True])
def test_a_volume_whose_store_could_not_be_opened_at_its_adoption_reads_through_the_tier_as_soon_as_it_can(
    tmp_path: Path, mirrors: bool
) -> None:
    with HostileS3(OBJECTS) as bucket, running_replicas(tmp_path, 2) as replicas:
        tier = plain_tier(members(replicas), timeout_s=20.0)
        given = {"url": "s3://data/set", "endpoint": bucket.endpoint}
        if mirrors:
            given["mirrors"] = "s3://copies/set?endpoint=http://127.0.0.1:9"
        parameters = VolumeParameters.parse(given)
        record = MountRecord("m-1", "volume-1", "/mnt", parameters.to_context(), "snapshot")

        def refusing(parameters: VolumeParameters, secrets: object) -> VolumeStore:
            raise CredentialsRejected("the identity service does not answer")

        opened = reopen_volume_store(record, parameters, SECRETS, refusing)
        of_mounts = TierOfMounts(tier, MountCredentials(PolicySettings(), tier.key))
        store = of_mounts.around_adopted(opened, parameters, SECRETS, record).store
        for _ in range(2):
            for key, content in OBJECTS.items():
                whole = read_whole(store, key, len(content), if_match=bucket.version(key, content))
                assert b"".join(map(bytes, whole.parts)) == content
        assert tier.report().hits >= len(OBJECTS) - 1
        store.close()
        tier.close()
