"""Opens obstore's stores, one of which may hold the registry. obstore reads the environment for each option that is
not set, so all options are set, and credentials of a secret are given as a provider: only a provider keeps obstore from
preferring those of the node."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import unquote

from obstore.store import AzureStore, GCSStore
from obstore.store import S3Store as ObstoreS3

from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import InvalidParameter
from csi_driver.objects.endpoints import azure_account, check_ca_bundle, parse_endpoint, service_endpoint
from csi_driver.objects.http.connection_pool import proxy_name, proxy_of
from csi_driver.objects.http.connections import CONNECT_TIMEOUT_S
from csi_driver.objects.s3.addressing import S3Address, s3_address
from csi_driver.objects.s3.identity import S3Identity, open_identity
from csi_driver.objects.s3.region import bucket_region
from csi_driver.objects.secret_values import checked_value
from csi_driver.objects.store_location import StoreLocation

if TYPE_CHECKING:
    from obstore.store import (
        AzureAccessKey,
        AzureConfig,
        AzureCredential,
        AzureSASToken,
        ClientConfig,
        GCSConfig,
        RetryConfig,
        S3Credential,
    )
    from obstore.store import ObjectStore as Obstore

NO_RETRIES: RetryConfig = {"max_retries": 0, "retry_timeout": timedelta(seconds=1)}
"""``retrying.py`` alone retries: two layers of retries multiply."""
LONGEST_TRANSFER = timedelta(hours=6)
"""obstore's default bounds a complete transfer (30 s); here the wait for the next byte is bounded instead."""
KEYS_VALID_FOR = timedelta(minutes=10)
"""At most. Rotating keys are requested again after half of this: obstore requests them five minutes before the expiry
that it gets from here."""


_EVERY_HOST = "*,0.0.0.0/0,::/0"


def client_options(options: StoreOptions, base_url: str) -> ClientConfig:
    """Timeouts, trusted certificates, connections and the proxy. Raises InvalidParameter."""
    wait = timedelta(seconds=options.request_timeout_s)
    config: ClientConfig = {
        "allow_http": True,
        "timeout": LONGEST_TRANSFER,
        "read_timeout": wait,
        "connect_timeout": min(wait, timedelta(seconds=CONNECT_TIMEOUT_S)),
        "pool_max_idle_per_host": str(options.max_connections),
        "user_agent": "hayloft",
    }
    proxy = proxy_of(base_url)
    if proxy is not None:
        config["proxy_url"] = proxy.full_url
    else:
        # A proxy that is for no host: without one the library reads the environment by a rule of its own.
        config["proxy_url"], config["proxy_excludes"] = "http://localhost", _EVERY_HOST
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
        valid_for = KEYS_VALID_FOR
        if keys.until_s < time.monotonic() + KEYS_VALID_FOR.total_seconds():
            valid_for = timedelta(seconds=keys.until_s - time.monotonic())
        return {
            "access_key_id": keys.access_key_id,
            "secret_access_key": keys.secret_access_key,
            "token": keys.session_token,
            "expires_at": datetime.now(UTC) + valid_for if keys.rotates else None,
        }


def _azure_provider(values: Mapping[str, str]) -> Callable[[], AzureCredential] | None:
    """None: the secret has no credential. With an account key or a SAS as a plain option, obstore would send
    ``AZURE_STORAGE_TOKEN`` or another identity of the node instead. Raises InvalidParameter: obstore asks the provider
    at the first request only, too late to report a value that is none."""
    credential: AzureAccessKey | AzureSASToken
    if "account_key" in values:
        key = checked_value("account_key", "account_key", values["account_key"])
        credential = {"access_key": key, "expires_at": None}
    elif "sas_token" in values:
        sas = checked_value("sas_token", "sas_token", values["sas_token"])
        pairs = (pair.partition("=") for pair in sas.removeprefix("?").split("&"))
        credential = {"sas_token": [(name, unquote(value)) for name, _, value in pairs], "expires_at": None}
    else:
        return None
    return lambda: credential


def obstore_of(url: DatasetUrl, options: StoreOptions, credentials: Credentials) -> tuple[Obstore, StoreLocation]:
    """obstore's own store for ``s3``, ``gs`` or ``az``, for the driver's own registry: it dials by itself, whatever
    the options' rules. Raises CredentialsRejected, InvalidParameter."""
    endpoint = service_endpoint(url, options, credentials)
    location = StoreLocation(endpoint, url.bucket, proxy=proxy_name(endpoint))
    if url.scheme == "s3":
        address = s3_address(url.bucket, options, bucket_region(url.bucket, options))
        return obstore_s3(url.bucket, options, address, open_identity(options, credentials)), location
    opened = _obstore_azure if url.scheme == "az" else _obstore_gcs
    return opened(url.bucket, options, credentials, endpoint), location


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
        client_options=client_options(options, address.base_url),
        retry_config=NO_RETRIES,
        credential_provider=None if identity is None else _CredentialProvider(identity),
    )


def _obstore_gcs(bucket: str, options: StoreOptions, credentials: Credentials, endpoint: str) -> Obstore:
    config: GCSConfig = {"skip_signature": options.anonymous}
    if options.endpoint:
        config["base_url"] = parse_endpoint(options.endpoint)
    if not options.anonymous and "service_account_json" in credentials.values:
        config["service_account_key"] = credentials.values["service_account_json"]
    client = client_options(options, endpoint)
    try:
        return GCSStore(bucket, config=config, client_options=client, retry_config=NO_RETRIES)
    except Exception:  # noqa: BLE001 - obstore raises bare types here, with the key in their text
        allowed = "the JSON text of a service account key"
        raise InvalidParameter("secret key service_account_json", "(hidden)", allowed) from None


def _obstore_azure(container: str, options: StoreOptions, credentials: Credentials, endpoint: str) -> Obstore:
    config: AzureConfig = {"account_name": azure_account(credentials), "skip_signature": options.anonymous}
    if options.endpoint:
        config["endpoint"] = parse_endpoint(options.endpoint)
    provider = None if options.anonymous else _azure_provider(credentials.values)
    client = client_options(options, endpoint)
    try:
        return AzureStore(
            container,
            config=config,
            client_options=client,
            retry_config=NO_RETRIES,
            credential_provider=provider,
        )
    except Exception:  # noqa: BLE001 - obstore raises bare types here, whose text may show the environment
        raise InvalidParameter("secret key account_name", "(hidden)", "the name of a storage account") from None
