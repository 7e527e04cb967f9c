"""Which proxy a request goes through: one rule for every client, of the variables that the environment has for it.

``http_proxy`` is for http:// and ``https_proxy`` for https://, ``all_proxy`` for both where theirs is not set; each in
lower case or, where that is not set, in upper case. An empty variable counts as not set. ``no_proxy`` lists what is
dialled directly, separated by commas or spaces:

| entry | what it means |
|---|---|
| ``*`` | everything |
| ``store.example``, ``.store.example``, ``*.store.example`` | that host and all below it |
| ``10.0.0.7``, ``fd00::7`` | that address, where the URL names an address |
| ``10.0.0.0/8``, ``fd00::/8`` | the addresses of a network, in the same way: names are not resolved for it |
| ``store.example:9000``, ``[fd00::7]:9000`` | that port alone |
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import unquote, urlsplit

from csi_driver.model.errors import InvalidParameter

_DEFAULT_PORTS = {"http": 80, "https": 443}
_SEPARATORS = re.compile(r"[\s,]+")
_NEVER_BY_PROXY = (
    *("169.254.169.254", "169.254.170.2", "169.254.170.23", "fd00:ec2::254", "fd00:ec2::23"),  # AWS
    *("metadata.google.internal", "168.63.129.16"),  # Google, Azure
)
"""Services that hand out the node's identity: through a proxy they would hand out that of the proxy's machine."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that the environment names."""

    url: str
    """Without user and password; for messages too."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What it is sent, with the credentials that the environment has for it."""
    full_url: str = field(default="", repr=False)
    """With them."""


def proxy_for(url: str, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy for requests to ``url``; None: they go directly. Raises InvalidParameter for a proxy that is none of
    HTTP."""
    parts = urlsplit(url)
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        return None
    variable, value = _first(environment, f"{parts.scheme}_proxy", "all_proxy")
    if not value or is_direct(parts.hostname, parts.port or _DEFAULT_PORTS[parts.scheme], environment):
        return None
    return _parse(variable, value)


def is_direct(host: str, port: int, environment: Mapping[str, str]) -> bool:
    """Whether ``no_proxy`` lists the host, or the address, at this port."""
    host = host.strip("[]").rstrip(".").lower()
    return any(_covers(entry, host, port) for entry in _entries(_first(environment, "no_proxy")[1]))


def uniform_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The same rule for libraries that read the environment by themselves, each in its own way: variables in both
    cases, one for each scheme, and names without dots and stars before them. To be set at the start of the process;
    empty without a proxy."""
    found = {scheme: _first(environment, f"{scheme}_proxy", "all_proxy")[1] for scheme in _DEFAULT_PORTS}
    if not any(found.values()):
        return {}
    variables = {f"{scheme}_proxy": value for scheme, value in found.items() if value}
    entries = [entry.removeprefix("*").lstrip(".") or "*" for entry in _entries(_first(environment, "no_proxy")[1])]
    variables["no_proxy"] = ",".join(dict.fromkeys([*entries, *_NEVER_BY_PROXY]))
    return variables | {name.upper(): value for name, value in variables.items()}


def _first(environment: Mapping[str, str], *names: str) -> tuple[str, str]:
    """The first variable that is set, with its name."""
    for name in names:
        for spelling in (name, name.upper()):
            if value := environment.get(spelling, "").strip():
                return spelling, value
    return "", ""


def _entries(text: str) -> list[str]:
    return [entry for entry in _SEPARATORS.split(text.lower()) if entry]


def _covers(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    address = _address(host)
    try:
        network = ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        pass
    else:
        return address is not None and address.version == network.version and address in network
    name, colon, digits = entry.rpartition(":")
    if colon and digits.isascii() and digits.isdigit():
        if int(digits) != port:
            return False
        entry = name.strip("[]")
    if address is not None:
        return _address(entry) == address
    name = entry.removeprefix("*").strip(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _parse(variable: str, value: str) -> Proxy:
    allowed = "a URL of a proxy such as http://user:password@proxy:3128"
    full = value if "://" in value else f"http://{value}"
    try:
        parts = urlsplit(full)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise InvalidParameter(variable, "(hidden)", allowed) from None
    if parts.scheme not in _DEFAULT_PORTS or not host:
        shown = f"{parts.scheme}://{host or ''}"
        raise InvalidParameter(variable, shown, allowed, "only proxies of HTTP are used, not those of SOCKS")
    url = f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{'' if port is None else f':{port}'}"
    headers = {}
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Proxy-Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
    return Proxy(url, headers, full)
