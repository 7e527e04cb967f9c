"""Pools of connections for requests that may block, and whether requests go through a proxy.

No request follows a redirect: each passes ``redirect=False``.
"""

from __future__ import annotations

import os
import socket
from functools import partial
from typing import Any, cast

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from csi_driver.model.addresses import ANY_BUT_METADATA, AddressRules
from csi_driver.objects.http.connections import CONNECT_TIMEOUT_S, handshake, tls_context
from csi_driver.objects.http.dialling import check_endpoint, dial
from csi_driver.objects.http.proxies import Proxy, proxy_for
from csi_driver.objects.http.timed_response import TimedResponse


def connection_pool(
    base_url: str,
    timeout_s: float,
    ca_bundle_pem: str | None,
    max_connections: int,
    address_rules: AddressRules = ANY_BUT_METADATA,
) -> urllib3.PoolManager:
    """Trusts the system's authorities and ``ca_bundle_pem``; uses the proxy that the environment names, as far as the
    rules allow it (``proxy_of``), else dials by the rules.

    ``timeout_s`` bounds each wait for bytes, not a complete transfer. Raises AddressNotAllowed if a proxy would have to
    dial an address that is refused; without a proxy the requests raise it. Raises InvalidParameter for a proxy that
    cannot be used.
    """
    timeout = urllib3.Timeout(connect=min(CONNECT_TIMEOUT_S, timeout_s), read=timeout_s)
    proxy = proxy_of(base_url, address_rules)
    # Reading the system's authorities takes a third of the processor time of a short listing. A bundle is always looked
    # at, so that a wrong one is refused.
    over_tls = any(url.startswith("https:") for url in (base_url, "" if proxy is None else proxy.url))
    context = tls_context(ca_bundle_pem) if over_tls or ca_bundle_pem is not None else None
    pools: Any
    if proxy is not None:
        check_endpoint(address_rules, base_url)
        manager: urllib3.PoolManager = urllib3.ProxyManager(
            proxy.url,
            proxy_headers=proxy.headers,
            ssl_context=context,
            timeout=timeout,
            maxsize=max_connections,
            proxy_ssl_context=context,
        )
        pools = _PROXIED_POOLS
    else:
        manager = urllib3.PoolManager(ssl_context=context, timeout=timeout, maxsize=max_connections)
        pools = {scheme: partial(pool, address_rules=address_rules) for scheme, pool in _POOLS.items()}
    manager.pool_classes_by_scheme = pools
    return manager


def proxy_of(base_url: str, address_rules: AddressRules = ANY_BUT_METADATA) -> Proxy | None:
    """The proxy that requests go through; None: they go directly to the store. A proxy resolves names itself, where no
    rule holds, and it may reach what the node does not: so an endpoint that a tenant named is dialled directly. Raises
    InvalidParameter for a proxy that cannot be used."""
    netloc = base_url.partition("://")[2].partition("/")[0]
    if not address_rules.trusts(_host(netloc)):
        return None
    return proxy_for(base_url, os.environ)  # part of the node's network, not a setting


def proxy_name(base_url: str, address_rules: AddressRules = ANY_BUT_METADATA) -> str:
    """The URL of that proxy without credentials, for messages; empty: there is none. Raises as ``proxy_of``."""
    proxy = proxy_of(base_url, address_rules)
    return "" if proxy is None else proxy.url


class IdentityServices:
    """For a library that asks several servers for an identity: each through its own proxy, and a metadata service,
    which alone speaks plain HTTP, directly. It follows no redirect and retries nothing. It is urllib3's ``PoolManager``
    as far as google-auth uses one."""

    def __init__(self) -> None:
        self._managers: dict[str, urllib3.PoolManager] = {}
        """By the URL of the proxy. Only single steps of a dictionary: no lock."""

    def request(self, method: str, url: str, **more: Any) -> Any:
        """Raises as urllib3, and InvalidParameter for a proxy that cannot be used."""
        proxy = None if url.startswith("http:") else proxy_of(url)
        name = "" if proxy is None else proxy.url
        manager = self._managers.get(name)
        if manager is None:
            manager = (
                urllib3.PoolManager(retries=False)
                if proxy is None
                else urllib3.ProxyManager(proxy.url, proxy_headers=proxy.headers, retries=False)
            )
            self._managers[name] = manager
        return manager.request(method, url, **more)


def _host(netloc: str) -> str:
    return netloc.rpartition(":")[0] if netloc.rsplit(":", 1)[-1].isdigit() else netloc


class _TimedHTTPConnection(HTTPConnection):
    response_class = TimedResponse


class _TimedHTTPSConnection(HTTPSConnection):
    response_class = TimedResponse

    def connect(self) -> None:
        """As urllib3 does. Raises HandshakeFailed where there is no TLS at all, or none that both sides speak."""
        with handshake():
            super().connect()


class _TimedHTTPPool(HTTPConnectionPool):
    ConnectionCls = _TimedHTTPConnection


class _TimedHTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _TimedHTTPSConnection


class _Judged:
    """A connection of urllib3 that dials an address which the rules allow, of the one resolution that they judged."""

    def __init__(self, *arguments: Any, address_rules: AddressRules, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._address_rules = address_rules

    def _new_conn(self) -> socket.socket:
        """With the errors of urllib3's own method. AddressNotAllowed passes through urllib3 as it is."""
        connection = cast(HTTPConnection, self)
        host, timeout_s = connection._dns_host.strip("[]"), connection.timeout
        try:
            dialled = dial(self._address_rules, host, connection.port, timeout_s)
        except socket.gaierror as error:
            raise urllib3.exceptions.NameResolutionError(host, connection, error) from error
        except TimeoutError as error:
            raise urllib3.exceptions.ConnectTimeoutError(connection, f"no connection to {host} in time") from error
        except OSError as error:
            raise urllib3.exceptions.NewConnectionError(connection, f"no connection to {host}") from error
        dialled.settimeout(timeout_s)
        return dialled


class _JudgedHTTPConnection(_Judged, _TimedHTTPConnection):
    pass


class _JudgedHTTPSConnection(_Judged, _TimedHTTPSConnection):
    pass


class _JudgedHTTPPool(HTTPConnectionPool):
    ConnectionCls = _JudgedHTTPConnection


class _JudgedHTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _JudgedHTTPSConnection


_POOLS = {"http": _JudgedHTTPPool, "https": _JudgedHTTPSPool}
_PROXIED_POOLS = {"http": _TimedHTTPPool, "https": _TimedHTTPSPool}
