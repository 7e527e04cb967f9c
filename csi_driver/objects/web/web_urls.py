"""Keys of objects and their URLs: the one place where a text of a web server, or of a list of files, becomes a key.

A key is the path of a URL, decoded. What leaves the directory that names it becomes no key: another server, another
scheme, ``..`` in any spelling, a query, which may ask the server for anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote, unquote, urljoin, urlsplit

from csi_driver.model.dataset import DatasetUrl, without_query
from csi_driver.model.errors import InvalidParameter
from csi_driver.objects.store_location import StoreLocation

_SAFE_IN_PATH = "/-_.~"
_DEFAULT_PORTS = {"http": 80, "https": 443}
_UNQUOTED = str.maketrans({"\t": "%09", "\n": "%0A", "\r": "%0D"})
"""Characters that urlsplit would leave out."""


@dataclass(frozen=True, slots=True)
class WebLocation(StoreLocation):
    """One web server, as an endpoint with the path that all of its objects share. ``bucket`` is its host."""

    def name(self, key: str | None) -> str:
        return f"{self.endpoint}/" if key is None else f"{self.endpoint}/{_quoted(key)}"

    def target(self, key: str) -> str:
        """What a request line names."""
        return f"{_path_of(self.endpoint)}/{_quoted(key)}"

    def key_of(self, link: str, directory: str) -> str | None:
        """The key of a link in the index of a directory; a directory below it ends in a slash. None: the link leads
        elsewhere, or no key can name what it leads to."""
        # urljoin leaves out a semicolon at the end.
        link = link.strip(" \t\r\n\f\v").translate(_UNQUOTED).replace(";", "%3B")
        try:
            resolved = urlsplit(urljoin(self.name(directory), link))
            if "?" in link or "#" in link or _origin(resolved) != _origin(urlsplit(self.endpoint)):
                return None
        except ValueError:  # a port or an IPv6 address that is none
            return None
        base = f"{urlsplit(self.endpoint).path}/"
        if not resolved.path.startswith(base) or "%2f" in resolved.path.lower():
            return None
        return below(directory, unquote(resolved.path[len(base) :], errors="surrogateescape"))


def below(directory: str, key: str) -> str | None:
    """The key if it lies below the directory, by parts that no server reads as another path."""
    rest = key[len(directory) :]
    if not key.startswith(directory) or "\0" in rest:
        return None
    parts = rest.removesuffix("/").split("/")
    return None if any(part in ("", ".", "..") for part in parts) else key


def listed_key(url: DatasetUrl, entry: str, field: str) -> str:
    """The key of an entry in a list of files: a URL, or a path below the dataset's URL, which is taken as it stands.
    Raises InvalidParameter for one that does not lie below the dataset's URL."""
    key = None
    if "://" in entry:
        location = WebLocation(f"{url.scheme}://{url.bucket}", url.bucket)
        key = location.key_of(entry, url.prefix)
    elif not entry.startswith("/"):
        key = below(url.prefix, url.prefix + entry.removeprefix("./"))
    elif not entry.startswith("//"):
        key = below(url.prefix, entry[1:])
    if key is None or key.endswith("/"):
        remedy = "Requests go to the server of the URL alone; name a URL above all files, and make a volume per server"
        raise InvalidParameter(
            field, without_query(entry[:200]), f"paths and URLs of files below {url}, without a query", remedy
        )
    return key


@lru_cache(maxsize=64)
def _path_of(endpoint: str) -> str:
    return urlsplit(endpoint).path


def _quoted(key: str) -> str:
    return quote(key, safe=_SAFE_IN_PATH, errors="surrogateescape")


def _origin(parts: object) -> tuple[str, str, int | None]:
    scheme, host, port = parts.scheme, parts.hostname, parts.port  # type: ignore[attr-defined]
    return scheme, host or "", port or _DEFAULT_PORTS.get(scheme)
