"""Opens an S3 bucket with its three clients."""

from __future__ import annotations

from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.objects.endpoints import check_ca_bundle, service_endpoint
from csi_driver.objects.http.connection_pool import is_direct
from csi_driver.objects.http.connections import tls_context
from csi_driver.objects.obstore.obstore_factory import obstore_s3
from csi_driver.objects.obstore.obstore_store import ObstoreStore
from csi_driver.objects.s3.addressing import s3_address
from csi_driver.objects.s3.identity import open_identity
from csi_driver.objects.s3.region import bucket_region
from csi_driver.objects.s3.rest_client import RestClient
from csi_driver.objects.s3.s3_store import S3Store
from csi_driver.objects.s3.small_object_client import SmallObjectClient
from csi_driver.objects.store_location import StoreLocation


def open_s3(url: DatasetUrl, options: StoreOptions, credentials: Credentials) -> S3Store:
    """Blocks on AWS for the bucket's region if none is given. Raises CredentialsRejected, InvalidParameter."""
    check_ca_bundle(options.ca_bundle_pem)
    location = StoreLocation(service_endpoint(url, options, credentials), url.bucket)
    identity = open_identity(options, credentials)
    address = s3_address(url.bucket, options, bucket_region(url.bucket, options))
    rest = RestClient(
        location,
        address,
        identity,
        timeout_s=options.request_timeout_s,
        requester_pays=options.requester_pays,
        ca_bundle_pem=options.ca_bundle_pem,
    )
    small = None
    if is_direct(address.base_url):  # it speaks to no proxy
        small = SmallObjectClient(
            location,
            address,
            identity,
            timeout_s=options.request_timeout_s,
            requester_pays=options.requester_pays,
            tls=tls_context(options.ca_bundle_pem) if address.base_url.startswith("https://") else None,
        )
    return S3Store(ObstoreStore(obstore_s3(url.bucket, options, address, identity), location), rest, small)
