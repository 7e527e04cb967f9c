"""Opens a dataset of a web server."""

from __future__ import annotations

from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.objects.endpoints import service_endpoint
from csi_driver.objects.http.connection_pool import proxy_name
from csi_driver.objects.http.connections import tls_context
from csi_driver.objects.web.file_lists import FIELD
from csi_driver.objects.web.web_client import WebClient
from csi_driver.objects.web.web_heads import WebHeadClient
from csi_driver.objects.web.web_socket_clients import WebRangeClient, WebSmallObjectClient
from csi_driver.objects.web.web_store import FastClients, WebStore
from csi_driver.objects.web.web_urls import WebLocation, listed_key
from csi_driver.objects.web.web_versions import PinnedAnswers


def open_web(url: DatasetUrl, options: StoreOptions, credentials: Credentials) -> WebStore:
    """Credentials: user name and password, or a token, from the secret; else none. Sends no request. Raises
    AddressNotAllowed, InvalidParameter, MissingParameter."""
    endpoint = service_endpoint(url, options, credentials)
    location = WebLocation(endpoint, url.bucket, proxy=proxy_name(endpoint, options.address_rules))
    listed_by = None if options.manifest is None else (url, listed_key(url, options.manifest, FIELD))
    client, pins = WebClient(location, options, credentials), PinnedAnswers()
    fast = None
    if not location.proxy:  # the fast clients speak to no proxy
        tls = tls_context(options.ca_bundle_pem) if endpoint.startswith("https://") else None
        given = location, options, client.headers, pins, tls
        fast = FastClients(WebRangeClient(*given), WebSmallObjectClient(*given), WebHeadClient(*given))
    return WebStore(
        client,
        deadline_s=options.deadline_s,
        page_bytes=options.page_bytes,
        max_connections=options.max_connections,
        listed_by=listed_by,
        pins=pins,
        fast=fast,
    )
