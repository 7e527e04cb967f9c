"""Lists a dataset of a web server: by WebDAV, by index pages, or by a list of files.

An index rarely says what pins an object: sizes are missing or rounded, times have minutes. So each object is asked for
by HEAD, unless the index (or list) says as much, and agrees with the server's answer to the first HEAD.

The server may be a tenant's. Every page is bounded, and so are depth and number of directories; what cannot be listed
is reported, and does not keep the rest from being shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import NamedTuple, TypeVar

from csi_driver.model.dataset import DatasetUrl
from csi_driver.model.errors import (
    AccessDenied,
    BudgetExceeded,
    HayloftError,
    ObjectChanged,
    ObjectNotFound,
    StoreProtocolError,
    TransientStoreError,
)
from csi_driver.model.snapshot import ObjectInfo, ObjectPage
from csi_driver.objects.retrying import RetryPolicy
from csi_driver.objects.web import webdav
from csi_driver.objects.web.bucket_pages import bucket_pages, is_bucket
from csi_driver.objects.web.file_lists import FIELD, MOST_BYTES, parse_list
from csi_driver.objects.web.index_pages import ACCEPTED, HTML, WebEntry, parse_index
from csi_driver.objects.web.web_client import Page, WebClient
from csi_driver.objects.web.web_urls import listed_key
from csi_driver.objects.web.web_versions import checksum_of, is_same, seconds_of, version_of

PAGE_OBJECTS = 1000
IN_FLIGHT = 16
"""Requests of one listing: a few browsers' worth, which every server takes."""
MOST_DIRECTORIES = 100_000
MOST_DEPTH = 64
"""Of directories below the URL. A link to a directory above it makes a tree without an end; the kernel of a server
follows 40 links in one path."""

A = TypeVar("A")
T = TypeVar("T")
_OF_ONE_ENTRY = (ObjectNotFound, ObjectChanged, AccessDenied, StoreProtocolError)
"""Errors of an entry that say nothing about the others."""


class Description(NamedTuple):
    """What a server says of an object, in answer to HEAD."""

    size_bytes: int | None
    headers: Mapping[str, str]
    is_directory: bool = False
    """It redirects to the path of a directory."""


class WebListing:
    """One listing, used by one thread."""

    def __init__(
        self,
        client: WebClient,
        describe: Callable[[str], Description],
        describe_many: Callable[[Sequence[str], Executor, int], Sequence[Description | None]],
        *,
        deadline_s: float,
        page_bytes: int,
        most_in_flight: int = IN_FLIGHT,
    ) -> None:
        """``describe`` asks for one object, and is retried until ``deadline_s``, as every request. ``describe_many``
        asks for many, with so many requests in flight, and has None where ``describe`` has to."""
        self._client, self._describe, self._describe_many = client, describe, describe_many
        self._retries = RetryPolicy(deadline_s)
        self._page_bytes = page_bytes
        self._in_flight = max(1, min(IN_FLIGHT, most_in_flight))
        self._by_webdav = self._is_bucket = False
        self._root: str | None = None
        """The directory that is walked; None: the dataset is listed by a list of files."""
        self._waiting: list[str] = []
        """Directories that are still to be read."""
        self._seen: set[str] = set()
        self._exact: bool | None = None
        """Whether entries are as exact as HEAD. None: not known yet."""
        self._listed = 0
        self._failure: HayloftError | None = None
        """Of the first entry that could not be listed."""

    def of_directory(self, prefix: str) -> Iterator[ObjectPage]:
        """Pages of the objects whose keys begin with the prefix; none if the server has no such directory. Raises what
        ``ObjectStore.list`` raises, and BudgetExceeded."""
        self._root = root = prefix[: prefix.rfind("/") + 1]
        first = self._read_root(root)
        if first is None:
            return
        if self._is_bucket:
            yield from bucket_pages(self._fetch_bucket, self._client.location, root)
            return
        self._seen.add(root)
        with ThreadPoolExecutor(self._in_flight, "web-listing") as executor:
            yield from self._pages(self._files_of(first), prefix, executor)
            while self._waiting:  # again: a HEAD of the last file may have shown that it is a directory
                yield from self._pages(self._walk(executor), prefix, executor)
        self._raise_if_nothing()

    def of_list(self, url: DatasetUrl, key: str, prefix: str) -> Iterator[ObjectPage]:
        """Pages of the files that the list ``key`` names. Raises InvalidParameter for an entry that does not lie below
        the URL, and as ``of_directory``."""
        page = self._fetch("GET", key, {}, None, MOST_BYTES)
        listed = parse_list(page.body)
        entries = (WebEntry(listed_key(url, one.place, FIELD), one.size_bytes, one.version) for one in listed)
        with ThreadPoolExecutor(self._in_flight, "web-listing") as executor:
            yield from self._pages(entries, prefix, executor)
        self._raise_if_nothing()

    def _raise_if_nothing(self) -> None:
        """An error of every entry is one of the dataset."""
        if not self._listed and self._failure is not None:
            raise self._failure

    # -- directories --------------------------------------------------------------------------------------------------

    def _walk(self, executor: ThreadPoolExecutor) -> Iterator[WebEntry | str]:
        """Files, and the keys of what cannot be listed, until no directory is waiting."""
        while self._waiting:
            batch = [self._waiting.pop() for _ in range(min(self._in_flight, len(self._waiting)))]
            for directory, found in zip(batch, executor.map(_caught(self._read), batch), strict=True):
                if isinstance(found, HayloftError):
                    self._failure = self._failure or found
                    yield directory
                else:
                    yield from self._files_of(found)

    def _files_of(self, found: Iterable[WebEntry | str]) -> Iterator[WebEntry | str]:
        """Without directories, which wait for being read."""
        for entry in found:
            if isinstance(entry, WebEntry) and entry.key.endswith("/"):
                self._found(entry.key)
            else:
                yield entry

    def _found(self, directory: str) -> None:
        if directory in self._seen:
            return
        if len(self._seen) >= MOST_DIRECTORIES:
            raise BudgetExceeded(
                f"{self._client.location.name(directory)}: the dataset has more than {MOST_DIRECTORIES} directories, "
                "the most that are listed; name one below, or give a list of files (manifest)"
            )
        self._seen.add(directory)
        self._waiting.append(directory)

    def _read_root(self, root: str) -> list[WebEntry | str] | None:
        """None: the server has no such directory, but perhaps an object of that name."""
        self._by_webdav = self._speaks_webdav(root)
        try:
            found = self._read_page(root)
        except _OF_ONE_ENTRY as error:
            if isinstance(error, ObjectNotFound) or self._is_object(root, answers_any_path=False):
                return None
            raise
        if found is None or not (found or self._by_webdav or self._is_bucket):
            if self._is_object(root, answers_any_path=True):
                return None
            raise self._no_index(root)
        return found

    def _is_object(self, root: str, *, answers_any_path: bool) -> bool:
        """Whether the URL names an object. ``answers_any_path``: it has an answer with a slash behind it as well. Some
        servers send the object there too; others have a page, or nothing, for every path that they do not know."""
        key = root.removesuffix("/")
        if not key:
            return False
        try:
            described = self._retries.call(lambda: self._describe(key))
        except _OF_ONE_ENTRY:
            return False
        is_page = Page(described.headers, b"").media_type in HTML
        is_nothing = not described.size_bytes and version_of(described.headers) is None
        return not (described.is_directory or (answers_any_path and (is_page or is_nothing)))

    def _speaks_webdav(self, root: str) -> bool:
        """Servers have many ways to say that they do not, and some hang up."""
        try:
            response = self._client.send("PROPFIND", root, webdav.HEADERS, webdav.REQUEST)
        except TransientStoreError:
            return False
        response.close()
        return response.status == webdav.MULTISTATUS

    def _read(self, directory: str) -> list[WebEntry | str]:
        """Entries, and keys that cannot be read."""
        if directory.count("/") - (self._root or "").count("/") > MOST_DEPTH:
            name = self._client.location.name(directory)
            raise StoreProtocolError(f"{name}: lies more than {MOST_DEPTH} directories deep")
        found = self._read_page(directory)
        if found is None:
            raise self._no_index(directory)
        return found

    def _read_page(self, directory: str) -> list[WebEntry | str] | None:
        """The entries of a directory. None: its page is no index."""
        location = self._client.location
        if self._by_webdav:
            page = self._fetch("PROPFIND", directory, webdav.HEADERS, webdav.REQUEST, self._page_bytes)
            return webdav.parse_multistatus(page.body, location, directory)
        for accepted in ACCEPTED:
            page = self._fetch("GET", directory, {"Accept": accepted}, None, self._page_bytes)
            if directory == self._root and is_bucket(page):
                self._is_bucket = True
                return []
            found = parse_index(page, location, directory)
            if found is not None:
                return [*found]
        return None

    def _no_index(self, directory: str) -> StoreProtocolError:
        return StoreProtocolError(
            f"{self._client.location.name(directory)}: no index of a directory was found (a page with links to files "
            "below it, or WebDAV); name a directory with an index, one object, or give a list of files (manifest)"
        )

    def _fetch(self, method: str, key: str, headers: Mapping[str, str], body: bytes | None, most_bytes: int) -> Page:
        return self._retries.call(lambda: self._client.fetch(method, key, headers, most_bytes, body))

    def _fetch_bucket(self, query: str) -> Page:
        root = self._root or ""
        return self._retries.call(lambda: self._client.fetch("GET", root, {}, self._page_bytes, None, query))

    # -- objects ------------------------------------------------------------------------------------------------------

    def _pages(
        self, found: Iterable[WebEntry | str], prefix: str, executor: ThreadPoolExecutor
    ) -> Iterator[ObjectPage]:
        left = iter(found)
        while batch := list(islice(left, PAGE_OBJECTS)):
            page = self._page(batch, prefix, executor)
            if len(page) or page.unreadable:
                yield page

    def _page(self, batch: list[WebEntry | str], prefix: str, executor: ThreadPoolExecutor) -> ObjectPage:
        unreadable = [key for key in batch if isinstance(key, str)]
        infos: list[ObjectInfo] = []

        def add(entry: WebEntry, found: ObjectInfo | HayloftError | None) -> None:
            if isinstance(found, ObjectInfo):
                infos.append(found)
            elif found is None:
                self._found(f"{entry.key}/")
            else:
                self._failure = self._failure or found
                unreadable.append(entry.key)

        entries = iter([entry for entry in batch if isinstance(entry, WebEntry) and entry.key.startswith(prefix)])
        asked = []
        for entry in entries:
            if entry.size_bytes is None or entry.version is None or self._exact is False:
                asked.append(entry)
            elif self._exact is None:
                add(entry, _caught(self._compared)(entry))
            else:
                infos.append(ObjectInfo(entry.key, entry.size_bytes, entry.version, entry.mtime_ns))
        left = []
        for entry, described in zip(
            asked, self._describe_many([entry.key for entry in asked], executor, self._in_flight), strict=True
        ):
            if described is None:
                left.append(entry)
            else:
                add(entry, _caught(partial(self._info, described=described))(entry))
        for entry, found in zip(left, executor.map(_caught(self._asked), left), strict=True):
            add(entry, found)
        self._listed += len(infos)
        keys, sizes_bytes = [info.key for info in infos], [info.size_bytes for info in infos]
        etags, mtimes_ns = [info.etag for info in infos], [info.mtime_ns for info in infos]
        return ObjectPage(keys, sizes_bytes, etags, mtimes_ns, unreadable=unreadable)

    def _compared(self, entry: WebEntry) -> ObjectInfo | None:
        """The first exact entry, which shows whether the others may be trusted."""
        described = self._retries.call(lambda: self._describe(entry.key))
        # The same size, and a version of the same kind: an index that has times does not pin what has ETags.
        same_kind = is_same(entry.version, version_of(described.headers)) or checksum_of(entry.version) is not None
        self._exact = described.size_bytes == entry.size_bytes and same_kind
        return self._info(entry, described)

    def _asked(self, entry: WebEntry) -> ObjectInfo | None:
        return self._info(entry, self._retries.call(lambda: self._describe(entry.key)))

    def _info(self, entry: WebEntry, described: Description) -> ObjectInfo | None:
        """None for a directory. Raises StoreProtocolError without a size, or for another size than the one that a
        checksum was published with; ObjectNotFound for a directory in a list of files."""
        if described.is_directory and self._root is not None:
            return None
        if described.is_directory:
            raise ObjectNotFound(f"{self._client.location.name(entry.key)} is a directory")
        checksum = checksum_of(entry.version)
        size_bytes = entry.size_bytes if described.size_bytes is None else described.size_bytes
        if size_bytes is None:
            raise unknown_size(self._client.location.name(entry.key))
        if checksum is not None and entry.size_bytes not in (None, size_bytes):
            raise StoreProtocolError(
                f"{self._client.location.name(entry.key)}: has {size_bytes} bytes, and {entry.size_bytes} in the list "
                "of files"
            )
        version = version_of(described.headers) if checksum is None else entry.version
        seconds = seconds_of(described.headers.get("last-modified"))
        return ObjectInfo(entry.key, size_bytes, version, entry.mtime_ns if seconds is None else seconds * 10**9)


def unknown_size(name: str) -> StoreProtocolError:
    """The error for an object whose size the server does not say."""
    return StoreProtocolError(f"{name}: the server does not say its size; give it in a list of files (manifest)")


def _caught(action: Callable[[A], T]) -> Callable[[A], T | HayloftError]:
    """Errors of one entry as values."""

    def run(argument: A) -> T | HayloftError:
        try:
            return action(argument)
        except _OF_ONE_ENTRY as error:
            return error

    return run
