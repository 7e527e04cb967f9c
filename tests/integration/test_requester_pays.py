"""Buckets whose readers pay: of S3, of Google Cloud Storage, and of stores that have no such thing."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from csi_driver.model.chunk import ByteRange
from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import InvalidParameter, MissingParameter
from csi_driver.objects.checksums import ChecksumProvider
from csi_driver.objects.store import read_whole
from csi_driver.objects.store_factory import open_store
from tests.support.attacker import service_account
from tests.support.hostile_clouds import HostileGoogle
from tests.support.hostile_s3 import Fault, Request, Status
from tests.support.random_bytes import random_bytes

pytestmark = pytest.mark.promise("S268")

OBJECTS = {"small": random_bytes(1, 3_000), "large": random_bytes(2, 6 << 20)}
KEY = json.loads(service_account())
OPTIONS = StoreOptions(requester_pays=True, deadline_s=5, request_timeout_s=5)


class BillingGoogle(HostileGoogle):
    """Refuses requests that name no project, as Google does for such a bucket."""

    def log(self, request: Request) -> Fault | None:
        fault = super().log(request)
        return fault if request.query.get("userProject") else Status(400, "required", kinds=(request.kind,))


def secret(**fields: str) -> Credentials:
    return Credentials({"service_account_json": json.dumps(KEY | fields)})


@pytest.mark.parametrize(
    ("credentials", "parameter", "billed"),
    [
        (secret(project_id="of-the-key"), None, "of-the-key"),
        (secret(project_id="of-the-key"), "named-1", "named-1"),
        (secret(), "example.com:team", "example.com:team"),
    ],
)
def test_each_request_to_google_names_the_project_that_pays(
    credentials: Credentials, parameter: str | None, billed: str
) -> None:
    with BillingGoogle(OBJECTS) as server:
        options = replace(OPTIONS, endpoint=server.endpoint, billing_project=parameter)
        store = open_store(DatasetUrl.parse("gs://data"), options, credentials)
        etag = store.stat("small").etag
        assert [key for page in store.list("") for key in page.keys] == ["large", "small"]
        assert b"".join(read_whole(store, "small", 3_000, if_match=etag).parts) == OBJECTS["small"]
        assert b"".join(store.read_range("large", ByteRange(0, 5 << 20), if_match=None)) == OBJECTS["large"][: 5 << 20]
        assert isinstance(store, ChecksumProvider)
        store.checksum("small", if_match=etag)
        assert [request.query.get("userProject") for request in server.requests] == [billed] * len(server.requests)
        assert len(server.requests) >= 5


def test_without_a_project_to_bill_the_volume_is_refused() -> None:
    for credentials in (secret(), Credentials()):
        with pytest.raises(MissingParameter, match="billingProject"):
            open_store(DatasetUrl.parse("gs://data"), OPTIONS, credentials)


def test_no_project_is_named_where_the_owner_pays() -> None:
    with HostileGoogle(OBJECTS) as server:
        options = replace(OPTIONS, endpoint=server.endpoint, requester_pays=False)
        list(open_store(DatasetUrl.parse("gs://data"), options, secret(project_id="of-the-key")).list(""))
        assert "userProject" not in server.requests[0].query


@pytest.mark.parametrize("url", ["az://data/x", "https://store.example/x", "file:///x", "hf://datasets/a/b"])
def test_stores_that_know_no_payer_refuse_it(url: str) -> None:
    with pytest.raises(InvalidParameter, match=r"requesterPays.*s3:// and gs://"):
        open_store(DatasetUrl.parse(url), OPTIONS, Credentials())
