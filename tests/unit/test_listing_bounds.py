"""How much a store may list."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from csi_driver.catalog.listing_bounds import bounded
from csi_driver.model.errors import BudgetExceeded
from csi_driver.model.snapshot import ObjectPage
from tests.support.datasets import dataset


def pages(objects_per_page: int) -> Iterator[ObjectPage]:
    """Without end."""
    count = objects_per_page
    for number in itertools.count():
        yield ObjectPage([f"{number}-{one}" for one in range(count)], [1] * count, [None] * count, [0] * count)


@pytest.mark.promise("S153")
@pytest.mark.parametrize(("objects_per_page", "text"), [(1000, "--listing-objects"), (1, "pages"), (0, "pages")])
def test_a_listing_without_an_end_is_refused(objects_per_page: int, text: str) -> None:
    with pytest.raises(BudgetExceeded, match=text):
        for _ in bounded(pages(objects_per_page), dataset(), 50_000):
            pass


def test_a_listing_within_its_limits_is_unchanged() -> None:
    listed = list(itertools.islice(pages(1000), 50))
    assert list(bounded(iter(listed), dataset(), 50_000)) == listed
