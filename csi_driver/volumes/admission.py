"""Whether a volume with its Secret may be listed and mounted, decided before any request: to a store, to the metadata
service, to a source of credentials."""

from __future__ import annotations

from collections.abc import Mapping

from csi_driver.model.dataset import Credentials
from csi_driver.model.errors import IdentityNotAllowed, InvalidParameter
from csi_driver.model.tenant import ADMINISTRATOR, Tenant
from csi_driver.objects.credentials import mirror_of_key, parse_secret, secret_of_mirror
from csi_driver.objects.endpoints import service_endpoint
from csi_driver.objects.node_identity import names_azure_account, needs_node_identity
from csi_driver.settings import PolicySettings
from csi_driver.volumes.mirror_parameters import named
from csi_driver.volumes.operator_policy import is_listed
from csi_driver.volumes.own_storage import check_not_own
from csi_driver.volumes.parameters import VolumeParameters

_SIGNED = frozenset({"s3"})
"""Requests to S3 carry a signature, which is of no use for another request; those to Google and Azure carry a token,
which its receiver can use until it expires."""


def admit(
    parameters: VolumeParameters, secrets: Mapping[str, str], policy: PolicySettings, tenant: Tenant = ADMINISTRATOR
) -> None:
    """For parameters that were parsed with the same policy and tenant.

    Raises EndpointNotAllowed, IdentityNotAllowed, InvalidParameter, MissingParameter.
    """
    _check_keys_of_mirrors(secrets, len(parameters.mirrors))
    _admit_place(parameters, parse_secret(secrets), policy, tenant)
    for number, (mirror, place) in enumerate(parameters.places_of_mirrors(), 1):
        with named(mirror.place):
            _admit_place(place, parse_secret(secret_of_mirror(secrets, number)), policy, tenant)


def _check_keys_of_mirrors(secrets: Mapping[str, str], count: int) -> None:
    """Raises InvalidParameter for keys of a mirror that the volume does not have."""
    for name in secrets:
        if (mirror_of_key(name) or 0) > count:
            allowed = f"keys of mirror1 to mirror{count}" if count else "keys of mirrors for a volume with mirrors only"
            raise InvalidParameter("secret key", name, allowed)


def _admit_place(
    parameters: VolumeParameters, credentials: Credentials, policy: PolicySettings, tenant: Tenant
) -> None:
    """Of the URL, or of a mirror."""
    role = parameters.pod_role
    if role is not None:  # of no account but the one that the parameters name, and never the node's
        account = {"account_name": role.azure_storage_account} if role.azure_storage_account else {}
        _check_not_own(parameters, Credentials(account), policy)
        return
    _check_not_own(parameters, credentials, policy)
    if not needs_node_identity(parameters.url, parameters.store_options, credentials):
        return
    if not policy.lends_identity(tenant):
        kind, secret = ("an inline volume", "nodePublishSecretRef") if tenant.inline else ("a volume", "in its class")
        flag = "identity" if policy.identity_namespaces else "trusted"
        raise IdentityNotAllowed(
            f"secret: the {parameters.url.scheme}:// dataset would be read with the node's own identity, which {kind} "
            f"of namespace {tenant.namespace!r} does not get. Name a Secret with credentials ({secret}), set "
            "anonymous: true for a public dataset, or ask the operator of the driver for "
            f"--{flag}-namespace={tenant.namespace}"
        )
    _check_receiver(parameters, credentials, policy)


def _check_not_own(parameters: VolumeParameters, credentials: Credentials, policy: PolicySettings) -> None:
    for place in parameters.places:
        field = "url" if place == parameters.url else "inventory"
        check_not_own(place, parameters.endpoint, credentials, policy, field)


def _check_receiver(parameters: VolumeParameters, credentials: Credentials, policy: PolicySettings) -> None:
    """Whether the service may get the node's own identity. Raises IdentityNotAllowed."""
    signed = parameters.url.scheme in _SIGNED
    if signed and not policy.identity_endpoints:
        return
    field = "endpoint" if parameters.endpoint else None
    if field is None and parameters.url.scheme == "az" and names_azure_account(credentials):
        field = "secret key account_name"
    if field is not None:
        receiver = service_endpoint(parameters.url, parameters.store_options, credentials)
        if not is_listed(receiver, policy.identity_endpoints):
            raise IdentityNotAllowed(
                f"{field}: the volume names no credentials, and the node's own identity is not sent to {receiver!r}, "
                "which the volume names. Name a Secret with credentials, or ask the operator of the driver for "
                f"--identity-endpoint={receiver}"
            )
    if parameters.ca_bundle is not None and not signed:
        raise IdentityNotAllowed(
            "caBundle: the volume names no credentials, and the node's own identity is sent over connections only that "
            "the node itself trusts. Name a Secret with credentials, or ask the operator of the driver to add the "
            "certificates to those of the node"
        )
