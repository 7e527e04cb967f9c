"""The operator's policy for the addresses that are dialled for a volume."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from csi_driver.model.addresses import AddressRules, parse_network
from csi_driver.model.dataset import DatasetUrl, StoreOptions
from csi_driver.model.errors import EndpointNotAllowed
from csi_driver.model.tenant import Tenant
from csi_driver.volumes.operator_policy import is_listed, requested_places

if TYPE_CHECKING:
    from csi_driver.settings import PolicySettings

_OWN_CLIENTS = frozenset({"s3", "gs", "gcs", "az", "http", "https"})
"""URLs that are read without fsspec, by clients that dial by the rules."""

_WITHOUT_HOST = frozenset({"hf", "memory", "file"})
"""Schemes with a host that the volume cannot choose, or with none."""


def address_rules(url: DatasetUrl, options: StoreOptions, policy: PolicySettings, tenant: Tenant) -> AddressRules:
    """The addresses that the volume's store may have. The names of a provider's own service are made by this driver,
    and the cluster's operator decides where they lead, such as to a private endpoint in the cloud's network."""
    places = requested_places(url, options)
    listed = (urlsplit(place).hostname for place in places if is_listed(place, policy.allowed_endpoints))
    return AddressRules(
        public_only=bool(places) and url.scheme not in _WITHOUT_HOST and not policy.trusts(tenant),
        allowed=tuple(map(parse_network, policy.allowed_addresses)),
        refused=tuple(map(parse_network, policy.refused_addresses)),
        listed_hosts=frozenset(host for host in listed if host),
    )


def check_library(url: DatasetUrl, options: StoreOptions, policy: PolicySettings, tenant: Tenant) -> None:
    """s3fs and fsspec's other libraries resolve names and dial by themselves, where no rule of addresses holds. Raises
    EndpointNotAllowed for an inline volume, unless the operator lists its endpoint."""
    dials_by_rules = url.scheme in _OWN_CLIENTS and (options.backend != "s3fs" or options.endpoint is None)
    if dials_by_rules or url.scheme in _WITHOUT_HOST or policy.trusts(tenant):
        return
    for place in requested_places(url, options) or [str(url)]:
        if not is_listed(place, policy.allowed_endpoints):
            raise EndpointNotAllowed(
                f"endpoint: {place!r} would be read by a library that dials any address, which an inline volume may "
                "use for listed endpoints only. Ask the operator of the driver to add it by --allowed-endpoint"
            )
