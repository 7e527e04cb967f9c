"""Opens a dataset of a web server."""

from __future__ import annotations

from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.objects.endpoints import service_endpoint
from csi_driver.objects.http.connection_pool import proxy_name
from csi_driver.objects.web.file_lists import FIELD
from csi_driver.objects.web.web_client import WebClient
from csi_driver.objects.web.web_store import WebStore
from csi_driver.objects.web.web_urls import WebLocation, listed_key


def open_web(url: DatasetUrl, options: StoreOptions, credentials: Credentials) -> WebStore:
    """Credentials: user name and password, or a token, from the secret; else none. Sends no request. Raises
    AddressNotAllowed, InvalidParameter, MissingParameter."""
    endpoint = service_endpoint(url, options, credentials)
    location = WebLocation(endpoint, url.bucket, proxy=proxy_name(endpoint, options.address_rules))
    listed_by = None if options.manifest is None else (url, listed_key(url, options.manifest, FIELD))
    return WebStore(
        WebClient(location, options, credentials),
        deadline_s=options.deadline_s,
        page_bytes=options.page_bytes,
        max_connections=options.max_connections,
        listed_by=listed_by,
    )
