"""The credential that a mount reads with, by its secret and the operator's policy."""

from __future__ import annotations

import json
import logging
import secrets as random
from collections.abc import Mapping

from csi_driver import telemetry
from csi_driver.daemon.mount_records import MountRecord
from csi_driver.daemon.pod_sessions import PodSession
from csi_driver.model.errors import RequestError, StoreError
from csi_driver.model.tenant import Tenant
from csi_driver.objects.credentials import CREDENTIAL_BYTES, credential_id, keyed_digest, parse_secret, secret_of_mirror
from csi_driver.objects.retrying import RetryPolicy
from csi_driver.reading.access import Credential
from csi_driver.settings import PolicySettings
from csi_driver.volumes.parameters import VolumeParameters

logger = logging.getLogger(__name__)

_ALWAYS_S = 1000 * 365 * 86_400.0
"""The age of a proof that does not expire."""


class MountCredentials:
    """Names the credentials of mounts under the key of the cache directory."""

    def __init__(self, policy: PolicySettings, key: bytes) -> None:
        self._policy = policy
        self._key = key

    def of(self, parameters: VolumeParameters, secrets: Mapping[str, str], tenant: Tenant) -> Credential:
        """For a new mount. Blocks, and raises, as ``credential_id``, which is retried until the volume's deadline."""
        policy = RetryPolicy(parameters.store_options.deadline_s)
        return self._credential(policy.call(lambda: self._own(parameters, secrets)), tenant)

    def _own(self, parameters: VolumeParameters, secrets: Mapping[str, str]) -> bytes:
        session = PodSession.of(secrets)
        if session is not None:  # the keys change each hour; the identity that the provider has verified does not
            return keyed_digest(json.dumps([parameters.url.scheme, "pod", *session.identity]), self._key)
        own = credential_id(parameters.url, parameters.store_options, parse_secret(secrets), self._key)
        return self._with_mirrors(own, parameters, secrets) if parameters.mirrors else own

    def _with_mirrors(self, own: bytes, parameters: VolumeParameters, secrets: Mapping[str, str]) -> bytes:
        """Each place may let read what another one refuses, so that all credentials together are one. The identity of a
        mirror that cannot be named now has no name: the volume reads from its other places."""
        names = [own.hex()]
        for number, (_, place) in enumerate(parameters.places_of_mirrors(), 1):
            credentials = parse_secret(secret_of_mirror(secrets, number))
            try:
                names.append(credential_id(place.url, place.store_options, credentials, self._key).hex())
            except StoreError as error:
                logger.warning("the identity for the mirror %s is not available: %s", place.url, error)
                names.append("")
        return keyed_digest(json.dumps(names), self._key)

    def of_record(self, record: MountRecord, parameters: VolumeParameters, secrets: Mapping[str, str]) -> Credential:
        """For a mount that is adopted. While the service that names the node's identity is unavailable, or for a Secret
        that this version refuses, the identity counts as that of the mount; one that an earlier version did not name
        has to prove its access to every object."""
        try:
            return self._credential(self._own(parameters, secrets), record.tenant)
        except (StoreError, RequestError) as error:
            facts = telemetry.fields(volume_id=record.volume_id, error=str(error))
            logger.warning("the identity of an adopted volume is not available; it counts as unchanged", extra=facts)
        own = bytes.fromhex(record.credential) if record.credential else random.token_bytes(CREDENTIAL_BYTES)
        return self._credential(own, record.tenant)

    def _credential(self, own: bytes, tenant: Tenant) -> Credential:
        if self._policy.shares_cache(tenant):
            # One name for all of them: what the store let one read, all read, and for good.
            return Credential(own, keyed_digest("namespaces that share cached bytes", self._key), _ALWAYS_S)
        return Credential(own, own, self._policy.access_check_age_s)
