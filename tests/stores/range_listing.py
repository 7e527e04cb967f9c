"""Listings by several requests at a time, of a store that other people wrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest

from csi_driver.objects import parallel_listing
from csi_driver.objects.credentials import parse_secret
from csi_driver.objects.google.google_clients import GoogleRestClient
from csi_driver.objects.parallel_listing import KeysNotInOrder, range_lister
from csi_driver.objects.s3.rest_client import RestClient
from csi_driver.objects.store_factory import open_store
from csi_driver.volumes.parameters import VolumeParameters
from tests.stores.store_server import StoreCannot, StoreServer

PAGE_KEYS = 5
NAMES = ("a", "a-b", "a.b", "a/1", "a/2", "a0", "b", "c/d/e", "c/d-e", "~", "é")


class RangeListing:
    """Inherit beside ``StoreConformance``. Pages are short, so that few objects are a long listing."""

    @pytest.mark.promise("S622")
    def test_listing_in_ranges(self, server: StoreServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(parallel_listing, "PAGES_BEFORE", 1)
        _shorten_pages(monkeypatch)
        for name in (*NAMES, *(f"n/{number % 5}/{number:04}" for number in range(120))):
            with suppress(StoreCannot):
                server.put(f"in-ranges/{name}", b"x")
        volume = server.volume("in-ranges/")
        parameters = VolumeParameters.parse(volume.attributes)
        store = open_store(parameters.url, parameters.store_options, parse_secret(volume.secrets))
        listed: Counter[str] = Counter()
        try:
            ranges = range_lister(store)
            assert ranges is not None
            for page in ranges.list_in_ranges("in-ranges/"):
                listed.update(page.keys)
        except KeysNotInOrder:
            in_order = [key for page in store.list("in-ranges/") for key in page.keys]
            assert in_order != sorted(in_order), "the store keeps the order, and was taken for one that does not"
            return
        finally:
            store.close()
        assert listed == Counter(server.keys("in-ranges/"))


def _shorten_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    for client, name in ((RestClient, "max-keys"), (GoogleRestClient, "maxResults")):
        fetch = client._fetch

        def short(
            self: Any, method: str, key: str | None, query: Mapping[str, str], fetch: Any = fetch, name: str = name
        ) -> bytes:
            listing = key is None and "prefix" in query
            body: bytes = fetch(self, method, key, {**query, name: str(PAGE_KEYS)} if listing else query)
            return body

        monkeypatch.setattr(client, "_fetch", short)
