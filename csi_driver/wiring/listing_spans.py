"""A listing as a span: how many objects were listed by when."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from csi_driver import telemetry
from csi_driver.model import spans
from csi_driver.volumes.dataset_lister import ListingFacts, ListingRequest
from csi_driver.wiring.listing_messages import Message

PAGES = "pages"
"""In a request: the process is to report pages, too."""


def listing_span(request: ListingRequest) -> AbstractContextManager[object]:
    """The body lists the dataset of the request, on this thread."""
    if not spans.is_on():
        return nullcontext()
    dataset = telemetry.shown_url(str(request.parameters.url), request.secrets)
    return spans.span("listing", {"hayloft.dataset": dataset})


def with_pages(message: Message) -> Message:
    """The request as it is sent to the process of the listing."""
    return {**message, PAGES: True} if spans.is_on() else message


def note_page(listed: int) -> None:
    """So many objects, with this page."""
    spans.current().event("page", {"hayloft.objects": listed})


def note_facts(facts: ListingFacts) -> None:
    """The listing is complete."""
    spans.current().set({"hayloft.files": facts.file_count, "hayloft.bytes": facts.total_bytes})


class PageMarks:
    """Which pages are reported: the first one, and each that doubles the number of objects, so that a listing of a
    billion objects has 30."""

    def __init__(self) -> None:
        self._next = 1

    def reached(self, listed: int) -> bool:
        """Whether the page with which so many objects were listed is one."""
        if listed < self._next:
            return False
        self._next = 2 * listed
        return True
