"""Opens obstore's stores. obstore reads the environment for each option that is not set, so all options are set."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from obstore.store import AzureStore, GCSStore, HTTPStore
from obstore.store import S3Store as ObstoreS3

from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import InvalidParameter
from csi_driver.objects.endpoints import azure_account, check_ca_bundle, parse_endpoint, service_endpoint
from csi_driver.objects.http.connection_pool import connection_pool
from csi_driver.objects.http.connections import CONNECT_TIMEOUT_S
from csi_driver.objects.obstore.google_store import GoogleStore
from csi_driver.objects.obstore.obstore_store import ObstoreStore
from csi_driver.objects.s3.addressing import S3Address, s3_address
from csi_driver.objects.s3.identity import S3Identity, open_identity
from csi_driver.objects.s3.region import bucket_region
from csi_driver.objects.store_location import StoreLocation

if TYPE_CHECKING:
    from obstore.store import AzureConfig, ClientConfig, GCSConfig, RetryConfig, S3Credential
    from obstore.store import ObjectStore as Obstore

NO_RETRIES: RetryConfig = {"max_retries": 0, "retry_timeout": timedelta(seconds=1)}
"""``retrying.py`` alone retries: two layers of retries multiply."""
LONGEST_TRANSFER = timedelta(hours=6)
"""obstore's default bounds a complete transfer (30 s); here the wait for the next byte is bounded instead."""
KEYS_VALID_FOR = timedelta(minutes=10)
"""Rotating keys are requested again after half of this: botocore renews them more than ten minutes before they expire,
and obstore requests them five minutes before the expiry that it gets from here."""


def client_options(options: StoreOptions) -> ClientConfig:
    """Timeouts, trusted certificates and connections."""
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


class _CredentialProvider:
    """obstore's credential provider over an S3Identity."""

    def __init__(self, identity: S3Identity) -> None:
        self._identity = identity

    def __call__(self) -> S3Credential:
        keys = self._identity.keys()
        return {
            "access_key_id": keys.access_key_id,
            "secret_access_key": keys.secret_access_key,
            "token": keys.session_token,
            "expires_at": datetime.now(UTC) + KEYS_VALID_FOR if keys.rotates else None,
        }


def open_gcs(url: DatasetUrl, options: StoreOptions, credentials: Credentials) -> GoogleStore:
    """Credentials: a service account key from the secret, else Google's application default."""
    store, location = obstore_of(url, options, credentials)
    http = connection_pool(location.endpoint, options.request_timeout_s, options.ca_bundle_pem, max_connections=8)
    return GoogleStore(store, location, http, anonymous=options.anonymous)


def open_azure(url: DatasetUrl, options: StoreOptions, credentials: Credentials) -> ObstoreStore:
    """Credentials: account key or SAS from the secret, else Azure's environment and managed identity."""
    return ObstoreStore(*obstore_of(url, options, credentials))


def open_http(url: DatasetUrl, options: StoreOptions, credentials: Credentials) -> ObstoreStore:
    """A web server: objects by name, listings if the server supports WebDAV."""
    endpoint = service_endpoint(url, options, credentials)
    store = HTTPStore(endpoint, client_options=client_options(options), retry_config=NO_RETRIES)
    return ObstoreStore(store, StoreLocation(endpoint, url.bucket))


def obstore_of(url: DatasetUrl, options: StoreOptions, credentials: Credentials) -> tuple[Obstore, StoreLocation]:
    """obstore's own store for ``s3``, ``gs`` or ``az``. Raises CredentialsRejected, InvalidParameter."""
    location = StoreLocation(service_endpoint(url, options, credentials), url.bucket)
    if url.scheme == "s3":
        address = s3_address(url.bucket, options, bucket_region(url.bucket, options))
        return obstore_s3(url.bucket, options, address, open_identity(options, credentials)), location
    return (_obstore_azure if url.scheme == "az" else _obstore_gcs)(url.bucket, options, credentials), location


def obstore_s3(bucket: str, options: StoreOptions, address: S3Address, identity: S3Identity | None) -> ObstoreS3:
    # In virtual-hosted style obstore takes the bucket from the endpoint; in path style it appends it.
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
        credential_provider=None if identity is None else _CredentialProvider(identity),
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
