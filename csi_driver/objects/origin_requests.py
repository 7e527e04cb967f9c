"""Requests for objects that another program sends: authorised here, for any part of the object and any condition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, cast

from csi_driver.objects.http.service_answers import ServiceAnswers


class OriginRequest(NamedTuple):
    """A GET of an object. Neither a Range nor an If-Match is part of what authorises it. Good for some minutes."""

    url: str
    """Holds no secret."""
    headers: Mapping[str, str]
    """Those that authorise it, among others. Printable ASCII."""
    if_match: str
    """The value of the header If-Match; empty where the condition is in the URL."""
    answers: ServiceAnswers


class SignsRequests(Protocol):
    """A store whose objects another program can GET."""

    @property
    def signs_requests(self) -> bool:
        """False for a wrapper around a store without them, and as long as it is not known."""

    def origin_request(self, key: str, if_match: str, *, whole: bool, may_block: bool) -> OriginRequest | None:
        """Of that version. ``whole``: with the checksum that the store keeps. None: there is none for this object, or
        the credentials would have to be waited for and ``may_block`` is False. Raises CredentialsRejected,
        TransientStoreError."""


def request_signer(store: object) -> SignsRequests | None:
    """The store if it signs requests. Called for every request: as ``store.whole_reader``."""
    return cast(SignsRequests, store) if getattr(store, "signs_requests", False) else None
