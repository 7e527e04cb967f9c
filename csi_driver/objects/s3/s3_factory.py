"""Opens an S3 bucket with its three clients."""

from __future__ import annotations

from typing import TypeVar

from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.objects.endpoints import aws_domain, check_ca_bundle, service_endpoint
from csi_driver.objects.http.connection_pool import proxy_name
from csi_driver.objects.http.connections import tls_context
from csi_driver.objects.s3.addressing import s3_address
from csi_driver.objects.s3.identity import S3Identity, open_identity
from csi_driver.objects.s3.region import bucket_region
from csi_driver.objects.s3.rest_client import METADATA_CONNECTIONS, RestClient
from csi_driver.objects.s3.s3_clients import S3RangeClient, S3SmallObjectClient
from csi_driver.objects.s3.s3_store import S3Clients, S3Store
from csi_driver.objects.store_location import StoreLocation

Client = TypeVar("Client", S3RangeClient, S3SmallObjectClient)


def open_s3(url: DatasetUrl, options: StoreOptions, credentials: Credentials) -> S3Store:
    """Blocks on AWS for the bucket's region if none is given. Raises CredentialsRejected, InvalidParameter."""
    check_ca_bundle(options.ca_bundle_pem)
    endpoint = service_endpoint(url, options, credentials)
    identity = open_identity(options, credentials)
    region = bucket_region(url.bucket, options)

    def in_region(named: str) -> S3Clients | None:
        if named == region or aws_domain(named) != aws_domain(region):
            return None
        return _clients(url.bucket, options, identity, endpoint, named)

    return S3Store(_clients(url.bucket, options, identity, endpoint, region), in_region)


def _clients(bucket: str, options: StoreOptions, identity: S3Identity | None, endpoint: str, region: str) -> S3Clients:
    """Sends nothing. ``endpoint`` names the service. Raises AddressNotAllowed, InvalidParameter."""
    address = s3_address(bucket, options, region)
    proxy = proxy_name(address.base_url, options.address_rules)
    location = StoreLocation(endpoint, bucket, options.anonymous, proxy)
    rest = RestClient(
        location,
        address,
        identity,
        timeout_s=options.request_timeout_s,
        requester_pays=options.requester_pays,
        ca_bundle_pem=options.ca_bundle_pem,
        max_connections=options.max_connections if proxy else METADATA_CONNECTIONS,
        page_bytes=options.page_bytes,
        address_rules=options.address_rules,
    )
    if proxy:
        return S3Clients(rest)  # the other two speak to no proxy
    tls = tls_context(options.ca_bundle_pem) if address.base_url.startswith("https://") else None

    def client(kind: type[Client]) -> Client:
        return kind(
            location,
            address,
            identity,
            timeout_s=options.request_timeout_s,
            requester_pays=options.requester_pays,
            tls=tls,
            address_rules=options.address_rules,
        )

    return S3Clients(rest, client(S3RangeClient), client(S3SmallObjectClient))
