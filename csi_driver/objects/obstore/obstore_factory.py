"""Opens obstore's stores with our options. obstore reads the environment for everything that is not said, so
everything is said."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from obstore.store import AzureStore, GCSStore, HTTPStore
from obstore.store import S3Store as ObstoreS3

from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import InvalidParameter
from csi_driver.objects.credentials import S3Identity
from csi_driver.objects.endpoints import (
    DEFAULT_REGION,
    S3Address,
    azure_account,
    check_ca_bundle,
    parse_endpoint,
    s3_address,
    service_endpoint,
)
from csi_driver.objects.error_mapping import Place
from csi_driver.objects.http.connections import CONNECT_TIMEOUT_S, tls_context
from csi_driver.objects.obstore.google_store import GoogleStore
from csi_driver.objects.obstore.obstore_store import ObstoreStore, S3Store
from csi_driver.objects.s3.signed_requests import SignedRequests, find_region, http_pool
from csi_driver.objects.s3.whole_objects import WholeObjects, goes_straight

if TYPE_CHECKING:
    from obstore.store import AzureConfig, ClientConfig, GCSConfig, RetryConfig, S3Credential
    from obstore.store import ObjectStore as Obstore

NO_RETRIES: RetryConfig = {"max_retries": 0, "retry_timeout": timedelta(seconds=1)}
"""Retries are the business of ``retrying.py`` alone; two layers of them multiply."""
LONGEST_TRANSFER = timedelta(hours=6)
"""obstore bounds a whole transfer by default (30 s); ours is bounded by the wait for the next byte instead."""
KEYS_GOOD_FOR = timedelta(minutes=10)
"""Rotating keys are asked for again when half of this has passed: botocore renews them more than ten minutes before
they expire, and obstore asks five minutes before the time it is told."""


def client_options(options: StoreOptions) -> ClientConfig:
    """Time-outs, trust and connections."""
    wait = timedelta(seconds=options.request_timeout_s)
    config: ClientConfig = {
        "allow_http": True,
        "timeout": LONGEST_TRANSFER,
        "read_timeout": wait,
        "connect_timeout": min(wait, timedelta(seconds=CONNECT_TIMEOUT_S)),
        "pool_max_idle_per_host": str(options.max_connections),
        "user_agent": "hayloft",
    }
    trust = check_ca_bundle(options.ca_bundle_pem)
    if trust is not None:
        config["root_certificate"] = trust
    return config


class _KeysForObstore:
    """obstore's credential provider over an S3Identity."""

    def __init__(self, identity: S3Identity) -> None:
        self._identity = identity

    def __call__(self) -> S3Credential:
        keys = self._identity.keys()
        return {
            "access_key_id": keys.access_key_id,
            "secret_access_key": keys.secret_access_key,
            "token": keys.session_token,
            "expires_at": datetime.now(UTC) + KEYS_GOOD_FOR if keys.rotates else None,
        }


def open_s3(url: DatasetUrl, options: StoreOptions, credentials: Credentials) -> S3Store:
    """Blocks on AWS for the bucket's region if none is given. Raises CredentialsRejected, InvalidParameter."""
    check_ca_bundle(options.ca_bundle_pem)
    place = Place(service_endpoint(url, options, credentials), url.bucket)
    identity = _identity(options, credentials)
    address = s3_address(url.bucket, options, _region(url.bucket, options))
    exact = SignedRequests(
        place,
        address,
        identity,
        timeout_s=options.request_timeout_s,
        requester_pays=options.requester_pays,
        ca_bundle_pem=options.ca_bundle_pem,
    )
    whole = None
    if goes_straight(address.base_url):
        whole = WholeObjects(
            place,
            address,
            identity,
            timeout_s=options.request_timeout_s,
            requester_pays=options.requester_pays,
            tls=tls_context(options.ca_bundle_pem) if address.base_url.startswith("https://") else None,
        )
    return S3Store(ObstoreStore(_obstore_s3(url.bucket, options, address, identity), place), exact, whole)


def open_gcs(url: DatasetUrl, options: StoreOptions, credentials: Credentials) -> GoogleStore:
    """Credentials: a service account key from the secret, else Google's application default."""
    store, place = obstore_of(url, options, credentials)
    http = http_pool(place.endpoint, options.request_timeout_s, options.ca_bundle_pem, max_connections=8)
    return GoogleStore(store, place, http, anonymous=options.anonymous)


def open_azure(url: DatasetUrl, options: StoreOptions, credentials: Credentials) -> ObstoreStore:
    """Credentials: account key or SAS from the secret, else Azure's environment and managed identity."""
    return ObstoreStore(*obstore_of(url, options, credentials))


def open_http(url: DatasetUrl, options: StoreOptions, credentials: Credentials) -> ObstoreStore:
    """A web server: objects by name, listings where it speaks WebDAV."""
    endpoint = service_endpoint(url, options, credentials)
    store = HTTPStore(endpoint, client_options=client_options(options), retry_config=NO_RETRIES)
    return ObstoreStore(store, Place(endpoint, url.bucket))


def obstore_of(url: DatasetUrl, options: StoreOptions, credentials: Credentials) -> tuple[Obstore, Place]:
    """obstore's own store for ``s3``, ``gs`` or ``az``. Raises CredentialsRejected, InvalidParameter."""
    place = Place(service_endpoint(url, options, credentials), url.bucket)
    if url.scheme == "s3":
        address = s3_address(url.bucket, options, _region(url.bucket, options))
        return _obstore_s3(url.bucket, options, address, _identity(options, credentials)), place
    return (_obstore_azure if url.scheme == "az" else _obstore_gcs)(url.bucket, options, credentials), place


def _identity(options: StoreOptions, credentials: Credentials) -> S3Identity | None:
    if options.anonymous:
        return None
    identity = S3Identity(credentials)
    identity.keys()  # says at once if there are none
    return identity


def with_region(url: DatasetUrl, options: StoreOptions) -> StoreOptions:
    """The options with the region that ``open_s3`` would find, so that it need not be asked for again. May block as
    that does."""
    return dataclasses.replace(options, region=_region(url.bucket, options)) if url.scheme == "s3" else options


def _region(bucket: str, options: StoreOptions) -> str:
    if options.region:
        return options.region
    found = None if options.endpoint else find_region(bucket, min(CONNECT_TIMEOUT_S, options.request_timeout_s))
    return found or DEFAULT_REGION


def _obstore_s3(bucket: str, options: StoreOptions, address: S3Address, identity: S3Identity | None) -> ObstoreS3:
    # In virtual-hosted style obstore wants the bucket in the endpoint, in path style it adds it.
    endpoint = address.base_url if address.virtual_hosted else address.base_url.removesuffix(f"/{bucket}")
    return ObstoreS3(
        bucket,
        config={
            "endpoint": endpoint,
            "aws_endpoint_url_s3": endpoint,
            "region": address.region,
            "virtual_hosted_style_request": address.virtual_hosted,
            "skip_signature": identity is None,
            "request_payer": options.requester_pays,
            "conditional_put": "etag",
        },
        client_options=client_options(options),
        retry_config=NO_RETRIES,
        credential_provider=None if identity is None else _KeysForObstore(identity),
    )


def _obstore_gcs(bucket: str, options: StoreOptions, credentials: Credentials) -> Obstore:
    config: GCSConfig = {"skip_signature": options.anonymous}
    if options.endpoint:
        config["base_url"] = parse_endpoint(options.endpoint)
    if not options.anonymous and "service_account_json" in credentials.values:
        config["service_account_key"] = credentials.values["service_account_json"]
    client = client_options(options)
    try:
        return GCSStore(bucket, config=config, client_options=client, retry_config=NO_RETRIES)
    except Exception:  # noqa: BLE001 - obstore raises bare types here, with the key in their text
        allowed = "the JSON text of a service account key"
        raise InvalidParameter("secret key service_account_json", "(hidden)", allowed) from None


def _obstore_azure(container: str, options: StoreOptions, credentials: Credentials) -> Obstore:
    config: AzureConfig = {"account_name": azure_account(credentials), "skip_signature": options.anonymous}
    if not options.anonymous and "account_key" in credentials.values:
        config["account_key"] = credentials.values["account_key"]
    if not options.anonymous and "sas_token" in credentials.values:
        config["sas_key"] = credentials.values["sas_token"]
    if options.endpoint:
        config["endpoint"] = parse_endpoint(options.endpoint)
    client = client_options(options)
    try:
        return AzureStore(container, config=config, client_options=client, retry_config=NO_RETRIES)
    except Exception:  # noqa: BLE001 - obstore raises bare types here, with the key in their text
        allowed = "as Azure shows it for the storage account"
        raise InvalidParameter("secret key account_key or sas_token", "(hidden)", allowed) from None
