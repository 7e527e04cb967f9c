"""Opens a container of Azure Blob Storage with its three clients."""

from __future__ import annotations

import os
from collections.abc import Mapping

from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import InvalidParameter
from csi_driver.objects.azure.azure_clients import AzureRangeClient, AzureRestClient, AzureSmallObjectClient
from csi_driver.objects.azure.azure_signers import AzureSigner, Bearer, SharedAccessSignature, SharedKey
from csi_driver.objects.bearer_tokens import BearerTokens, given_token
from csi_driver.objects.endpoints import azure_account, check_ca_bundle, service_endpoint, storage_account
from csi_driver.objects.http.connection_pool import proxy_name
from csi_driver.objects.http.connections import tls_context
from csi_driver.objects.s3.s3_store import ThreeClientStore
from csi_driver.objects.secret_values import checked_value
from csi_driver.objects.store_location import StoreLocation

_ENVIRONMENT = {
    "account_key": ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_KEY"),
    "sas_token": ("AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY"),
}
"""Where the node's environment may hold what a Secret holds."""


class AzureStore(ThreeClientStore):
    """Without checksums: the service keeps at most an MD5 that the writer sent."""


def open_azure(url: DatasetUrl, options: StoreOptions, credentials: Credentials) -> AzureStore:
    """Credentials: account key, SAS or token from the secret, else Azure's environment and managed identity. Sends
    nothing. Raises AddressNotAllowed, InvalidParameter, MissingParameter."""
    check_ca_bundle(options.ca_bundle_pem)
    endpoint = service_endpoint(url, options, credentials)
    proxy = proxy_name(endpoint, options.address_rules)
    location = StoreLocation(endpoint, url.bucket, options.anonymous, proxy)
    signer = _signer(options, credentials)
    rest = AzureRestClient(location, options, signer)
    if proxy:
        return AzureStore(rest)  # the other two speak to no proxy
    tls = tls_context(options.ca_bundle_pem) if location.endpoint.startswith("https://") else None
    ranges = AzureRangeClient(location, options, signer, tls)
    return AzureStore(rest, ranges, AzureSmallObjectClient(location, options, signer, tls))


def _signer(options: StoreOptions, credentials: Credentials) -> AzureSigner:
    account = azure_account(credentials)
    if options.anonymous:
        return SharedAccessSignature()
    return _of_values(account, credentials.values) or _of_node(account)


def _of_values(account: str, values: Mapping[str, str]) -> AzureSigner | None:
    """None: there is no credential among them. Raises InvalidParameter."""
    if "account_key" in values:
        key = checked_value("account_key", "account_key", values["account_key"])
        try:
            return SharedKey(account, key)
        except ValueError:
            raise InvalidParameter("secret key account_key", "(hidden)", "base64, as Azure shows it") from None
    if "sas_token" in values:
        return SharedAccessSignature(checked_value("sas_token", "sas_token", values["sas_token"]))
    if "access_token" in values:
        given = checked_value("access_token", "access_token", values["access_token"])
        return Bearer(BearerTokens(lambda: given_token(given)))
    return None


def _of_node(account: str) -> AzureSigner:
    """A key or signature of the environment, for the account of the environment; else an identity of Azure."""
    if account == storage_account(Credentials()):
        found = {name: next(filter(None, map(os.environ.get, names)), "") for name, names in _ENVIRONMENT.items()}
        own = _of_values(account, {name: value for name, value in found.items() if value})
        if own is not None:
            return own
    # Imported here: Azure's library takes 0.1 s and 10 MB, and few nodes read its service.
    from csi_driver.objects.azure.azure_identity import node_tokens

    return Bearer(node_tokens())
