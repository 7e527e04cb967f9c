"""Bounds of a listing: a store, which a tenant may run, does not decide how many pages and objects are read."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import TypeVar

from csi_driver.model.dataset import Dataset
from csi_driver.model.errors import BudgetExceeded

Page = TypeVar("Page", bound=Sized)

_SMALL_PAGES = 10_000
"""So many pages may be of any size. S3 fills pages with 1,000 objects; it sends shorter ones where many objects were
deleted."""

_LEAST_OBJECTS_PER_PAGE = 100
"""On average, of the pages that follow."""


def bounded(pages: Iterator[Page], dataset: Dataset, most_objects: int) -> Iterator[Page]:
    """The pages. Raises BudgetExceeded after too many objects or too many nearly empty pages."""
    objects = 0
    for number, page in enumerate(pages, start=1):
        objects += len(page)
        if objects > most_objects:
            raise BudgetExceeded(
                f"{dataset.url}: has more than {most_objects} objects, the most that may be listed; name a longer "
                "prefix, or have the operator raise --listing-objects"
            )
        if number > _SMALL_PAGES + objects // _LEAST_OBJECTS_PER_PAGE:
            raise BudgetExceeded(
                f"{dataset.url}: the store lists {objects} objects in {number} pages; a listing may have "
                f"{_SMALL_PAGES} pages, and one more for each {_LEAST_OBJECTS_PER_PAGE} objects"
            )
        yield page
