"""The parameter ``mirrors``: other places of a dataset, each with what is needed to reach it.

A mirror is written as the dataset's URL is, and has its own options after a question mark:
``s3://copies/train?endpoint=https://s3.example.com&region=eu-west-1``. It inherits none of them: what is not written is
the default. Its own credentials are keys of the same Secret that begin with ``mirror1.``, ``mirror2.`` and so on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote

from csi_driver.model.dataset import DatasetUrl, StoreOptions, without_query
from csi_driver.model.errors import InvalidParameter, RequestError
from csi_driver.volumes import parameter_text as text

MOST_MIRRORS = 8
SCHEMES = ("s3", "gs", "gcs", "az")
"""Stores with ETags and checksums that can be compared."""

_OPTIONS = {
    "endpoint": ("endpoint", text.endpoint),
    "region": ("region", text.region),
    "addressingStyle": ("addressing_style", lambda name, given: text.choice(name, given, ("auto", "path", "virtual"))),
    "anonymous": ("anonymous", text.boolean),
    "requesterPays": ("requester_pays", text.boolean),
    "billingProject": ("billing_project", text.project),
}
_EXAMPLE = "s3://bucket/prefix?endpoint=https://s3.example.com&region=eu-west-1"
_DEFAULTS = StoreOptions()


@dataclass(frozen=True, slots=True)
class Mirror:
    """One place of a dataset's copy, as it was written."""

    url: DatasetUrl
    options: tuple[tuple[str, str], ...] = ()
    """Names and texts."""

    def __str__(self) -> str:
        query = "&".join(f"{name}={quote(value, safe=':/.-_~')}" for name, value in self.options)
        return f"{self.url}?{query}" if query else str(self.url)

    @property
    def place(self) -> str:
        """As errors name it."""
        return f"mirrors: {self.url}"

    @property
    def fields(self) -> dict[str, Any]:
        """By the fields of VolumeParameters, all that say where a store is."""
        given = dict(self.options)
        values: dict[str, Any] = {"url": self.url}
        for name, (field, parse) in _OPTIONS.items():
            values[field] = parse(name, given[name]) if name in given else getattr(_DEFAULTS, field)
        return values


def mirrors(name: str, given: str) -> tuple[Mirror, ...]:
    """One a line or, in a text of one line, separated by commas. Raises InvalidParameter."""
    found = tuple(_mirror(name, part) for part in text.globs(name, given))
    if len(found) > MOST_MIRRORS:
        raise InvalidParameter(name, f"{len(found)} mirrors", f"at most {MOST_MIRRORS}")
    if len(set(found)) < len(found):
        twice = next(mirror for mirror in found if found.count(mirror) > 1)
        raise InvalidParameter(name, str(twice), "each place once")
    return found


def mirrors_text(found: tuple[Mirror, ...]) -> str:
    """The inverse of ``mirrors``."""
    return text.globs_text(tuple(map(str, found)))


def _mirror(name: str, given: str) -> Mirror:
    place, _, query = given.partition("?")
    url = text.dataset_url(name, place)
    if url.scheme not in SCHEMES:
        allowed = f"URLs that begin with {', '.join(f'{scheme}://' for scheme in SCHEMES)}, such as {_EXAMPLE}"
        raise InvalidParameter(name, without_query(given), allowed)
    options = parse_qsl(query, keep_blank_values=True)
    names = [option for option, _ in options]
    for option in names:
        if option not in _OPTIONS or names.count(option) > 1:
            allowed = f"options of a mirror, each once: {', '.join(_OPTIONS)}"
            remedy = "Credentials of the first mirror are keys of the Secret that begin with mirror1."
            raise InvalidParameter(name, f"{url}?…", allowed, remedy)
    mirror = Mirror(url, tuple(sorted(options)))
    with named(mirror.place):
        _ = mirror.fields
    return mirror


@contextmanager
def named(what: str) -> Iterator[None]:
    """Errors of the body say which place of the volume they are about, as ``Mirror.place`` does."""
    try:
        yield
    except RequestError as error:
        error.args = (f"{what}: {error}",)
        raise


def check_mirrors(url: DatasetUrl, endpoint: str | None, given: tuple[Mirror, ...]) -> None:
    """Raises InvalidParameter for what cannot be mirrored, or is the dataset itself."""
    if not given:
        return
    if url.scheme not in SCHEMES:
        allowed = f"set for datasets of {', '.join(f'{scheme}://' for scheme in SCHEMES)} only"
        raise InvalidParameter("mirrors", str(given[0]), allowed)
    for mirror in given:
        if mirror.url == url and mirror.fields["endpoint"] == endpoint:
            raise InvalidParameter("mirrors", str(mirror), "other places than that of url")
