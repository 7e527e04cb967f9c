"""Opens a bucket of Google Cloud Storage with its three clients."""

from __future__ import annotations

import json

from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import MissingParameter
from csi_driver.objects.bearer_tokens import BearerTokens
from csi_driver.objects.checksums import StoredChecksum
from csi_driver.objects.endpoints import check_ca_bundle, service_endpoint
from csi_driver.objects.google.google_clients import GoogleRangeClient, GoogleRestClient, GoogleSmallObjectClient
from csi_driver.objects.http.connection_pool import proxy_name
from csi_driver.objects.http.connections import tls_context
from csi_driver.objects.s3.s3_store import ThreeClientStore
from csi_driver.objects.store_location import StoreLocation


class GoogleStore(ThreeClientStore):
    """With checksums: the service keeps a CRC32C of every object."""

    md5_up_to_bytes = 0
    """A generation is no MD5."""

    lists_ranges = True

    def checksum(self, key: str, *, if_match: str | None) -> StoredChecksum:
        return self._rest.checksum(key, if_match=if_match)


def open_gcs(url: DatasetUrl, options: StoreOptions, credentials: Credentials) -> GoogleStore:
    """Credentials: a service account key from the secret, else Google's application default. Sends nothing. Raises
    AddressNotAllowed, InvalidParameter, MissingParameter."""
    check_ca_bundle(options.ca_bundle_pem)
    endpoint = service_endpoint(url, options, credentials)
    proxy = proxy_name(endpoint, options.address_rules)
    location = StoreLocation(endpoint, url.bucket, options.anonymous, proxy)
    payer = _payer(options, credentials)
    tokens = _tokens(options, credentials)
    rest = GoogleRestClient(location, options, tokens, payer)
    if proxy:
        return GoogleStore(rest)  # the other two speak to no proxy
    tls = tls_context(options.ca_bundle_pem) if location.endpoint.startswith("https://") else None
    ranges = GoogleRangeClient(location, options, tokens, tls, payer)
    return GoogleStore(rest, ranges, GoogleSmallObjectClient(location, options, tokens, tls, payer))


def _payer(options: StoreOptions, credentials: Credentials) -> str | None:
    """The project that pays for requests. Raises MissingParameter if one has to, and none is known."""
    if not options.requester_pays:
        return None
    found = options.billing_project or _project_of_key(credentials)
    if found is None:
        raise MissingParameter(
            "billingProject",
            "With requesterPays Google bills a project: name it, or use a key of a service account with project_id; "
            "the account needs the permission serviceusage.services.use there",
        )
    return found


def _project_of_key(credentials: Credentials) -> str | None:
    text = credentials.values.get("service_account_json")
    found = None if text is None else json.loads(text).get("project_id")  # checked by ``parse_secret``
    return str(found) if found else None


def _tokens(options: StoreOptions, credentials: Credentials) -> BearerTokens | None:
    if options.anonymous:
        return None
    # Imported here: Google's library takes 0.2 s and 25 MB, and few nodes read its service.
    from csi_driver.objects.google.google_identity import open_tokens

    return open_tokens(credentials)
