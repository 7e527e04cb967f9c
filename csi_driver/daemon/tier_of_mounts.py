"""Which volumes are read through the tier, and under which names."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from csi_driver import telemetry
from csi_driver.daemon.mount_credentials import MountCredentials
from csi_driver.daemon.mount_records import MountRecord
from csi_driver.daemon.volume_stores import VolumeStore
from csi_driver.model.tenant import Tenant
from csi_driver.objects.lazy_store import LazyStore
from csi_driver.objects.origin_requests import request_signer
from csi_driver.objects.tier.slice_names import SliceNames
from csi_driver.reading.access import Credential
from csi_driver.volumes.parameters import VolumeParameters

if TYPE_CHECKING:
    from csi_driver.objects.tier.replica_set import Tier

logger = logging.getLogger(__name__)

_SIGNING = ("s3", "gs", "gcs", "az")
"""Datasets whose stores sign requests once they are open."""


class TierOfMounts:
    """May be used from any thread."""

    def __init__(self, tier: Tier, credentials: MountCredentials) -> None:
        """``credentials`` are named under the key of the tier: the names are the same on all nodes."""
        self._tier, self._credentials = tier, credentials

    def around(
        self, opened: VolumeStore, parameters: VolumeParameters, secrets: Mapping[str, str], tenant: Tenant
    ) -> VolumeStore:
        """The store behind the tier; as it is, where the tier cannot be asked for its objects. Owns the store, also
        when it raises. Blocks, and raises, as ``MountCredentials.of``."""
        if not self._may_ask(opened, parameters):
            return opened
        try:
            return self._behind(opened, self._credentials.of(parameters, secrets, tenant))
        except BaseException:
            opened.store.close()
            raise

    def around_adopted(
        self, opened: VolumeStore, parameters: VolumeParameters, secrets: Mapping[str, str], record: MountRecord
    ) -> VolumeStore:
        """As ``around``, but waits for no service, and raises nothing. While the identity of the node has no name, the
        volume has a name of its own in the tier, under which it finds only what it has read itself. One whose store
        could not be opened reads through the tier as soon as it can."""
        if not self._may_ask(opened, parameters):
            return opened
        return self._behind(opened, self._credentials.of_record(record, parameters, secrets))

    def _may_ask(self, opened: VolumeStore, parameters: VolumeParameters) -> bool:
        """Replicas resolve names and verify certificates themselves: they are not sent to an endpoint of an untrusted
        author, nor to one that is trusted by a certificate of the volume alone."""
        options = parameters.store_options
        host = urlsplit(opened.store.endpoint).hostname or ""
        will_sign = isinstance(opened.store, LazyStore) and parameters.url.scheme in _SIGNING
        if request_signer(opened.store) is None and not (will_sign and parameters.backend == "auto"):
            reason = "its requests cannot be sent by others"
        elif not options.address_rules.trusts(host):
            reason = "its endpoint is that of an untrusted author"
        elif options.ca_bundle_pem is not None:
            reason = "it has a CA bundle of its own"
        else:
            return True
        facts = telemetry.fields(url=str(parameters.url), reason=reason)
        logger.info("a volume is not read through the cluster's cache", extra=facts)
        return False

    def _behind(self, opened: VolumeStore, credential: Credential) -> VolumeStore:
        """Namespaces that share cached bytes share these, too."""
        from csi_driver.objects.tier.tiered_store import tiered  # a daemon without a tier does without its clients

        store, domain = opened.store, opened.access_domain
        names = SliceNames(self._tier.key, domain, credential.proven_as, store.endpoint, store.bucket)
        return opened._replace(store=tiered(store, self._tier, names))
