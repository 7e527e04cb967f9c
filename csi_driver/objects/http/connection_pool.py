"""Pools of connections for requests that may block, and whether requests go through a proxy."""

from __future__ import annotations

from urllib.request import getproxies, proxy_bypass

import urllib3

from csi_driver.objects.http.connections import CONNECT_TIMEOUT_S, tls_context


def connection_pool(
    base_url: str, timeout_s: float, ca_bundle_pem: str | None, max_connections: int
) -> urllib3.PoolManager:
    """Trusts the system's authorities and ``ca_bundle_pem``; uses the proxy that the environment names.

    ``timeout_s`` bounds each wait for bytes, not a complete transfer.
    """
    context = tls_context(ca_bundle_pem)
    timeout = urllib3.Timeout(connect=min(CONNECT_TIMEOUT_S, timeout_s), read=timeout_s)
    scheme = base_url.partition("://")[0]
    if is_direct(base_url):
        return urllib3.PoolManager(ssl_context=context, timeout=timeout, maxsize=max_connections)
    return urllib3.ProxyManager(
        getproxies()[scheme], ssl_context=context, timeout=timeout, maxsize=max_connections, proxy_ssl_context=context
    )


def is_direct(base_url: str) -> bool:
    """Whether requests go directly to the store, without a proxy."""
    scheme, _, rest = base_url.partition("://")
    return not getproxies().get(scheme) or bool(proxy_bypass(rest.partition("/")[0]))
