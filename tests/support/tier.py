"""A cluster's cache for tests: real nginx replicas, and daemons or stores that ask them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.tier import Replica
from csi_driver.objects.credentials import access_domain
from csi_driver.objects.store_factory import open_store
from csi_driver.objects.tier.key_file import link_secret
from csi_driver.objects.tier.slice_names import LinkSigner, SliceNames
from csi_driver.objects.tier.tier import Tier, TierIdentity, TierPolicy
from csi_driver.objects.tier.tiered_store import Tiered, tiered
from hayloft_lab.nginx_replica import HOST, NginxReplica
from hayloft_lab.seaweedfs import SeaweedFsServer

KEY = b"the key of a cluster of the tests, 32 bytes and more"


@contextmanager
def running_replicas(directory: Path, count: int, **options: Any) -> Iterator[list[NginxReplica]]:
    """With signed paths, unless ``tls`` is given."""
    options = {} if "tls" in options else {"link_secret": link_secret(KEY)} | options
    replicas = [NginxReplica(directory / f"replica-{number}", **options) for number in range(count)]
    try:
        for replica in replicas:
            replica.start()
        yield replicas
    finally:
        for replica in replicas:
            replica.stop()


def members(replicas: Sequence[NginxReplica]) -> tuple[Replica, ...]:
    return tuple(Replica(replica.address, HOST, replica.port) for replica in replicas)


def plain_tier(replicas: Sequence[Replica], **policy: Any) -> Tier:
    """As a daemon with ``--tier`` and ``--tier-key`` has it."""
    fixed = tuple(replicas)
    return Tier(TierIdentity(KEY, links=LinkSigner(link_secret(KEY))), TierPolicy(**policy), lambda: fixed)


def tiered_store(
    server: SeaweedFsServer, bucket: str, tier: Tier, credential: bytes = b"one", domain: str = "", **options: Any
) -> Tiered:
    """A bucket of the server behind the tier."""
    url = DatasetUrl("s3", bucket, "")
    store_options = StoreOptions(endpoint=server.endpoint, region="us-east-1", **options)
    credentials = Credentials({"access_key_id": server.access_key_id, "secret_access_key": server.secret_access_key})
    store = open_store(url, store_options, credentials)
    domain = domain or access_domain(url, store_options, credentials)
    return tiered(store, tier, SliceNames(tier.key, domain, credential, store.endpoint, store.bucket))
