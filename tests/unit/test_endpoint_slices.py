"""Replicas as EndpointSlices list them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from queue import SimpleQueue
from typing import Any

import pytest

from csi_driver.kubernetes import endpoint_slices
from csi_driver.kubernetes.api_server import Answer
from csi_driver.kubernetes.endpoint_slices import EndpointSlices, members_of
from csi_driver.model.errors import KubernetesUnavailable
from csi_driver.model.replica import Replica
from tests.support.daemons import wait_until


def endpoint(number: int, **more: Any) -> dict[str, Any]:
    made = {"addresses": [f"10.0.0.{number}"], "hostname": f"hayloft-tier-{number}", "conditions": {"ready": True}}
    return {**made, **more}


def slice_of(*endpoints: dict[str, Any], name: str = "a", version: str = "1") -> dict[str, Any]:
    metadata = {"name": name, "resourceVersion": version}
    return {"metadata": metadata, "ports": [{"name": "tier", "port": 8443}], "endpoints": list(endpoints)}


@pytest.mark.promise("S571")
def test_ready_endpoints_are_members_by_the_names_of_their_pods() -> None:
    slices = [
        slice_of(endpoint(2, zone="eu-1b"), endpoint(1, zone="eu-1a")),
        slice_of(endpoint(3), name="b"),
    ]
    assert members_of(slices, "tier") == (
        Replica("hayloft-tier-1", "10.0.0.1", 8443, "eu-1a"),
        Replica("hayloft-tier-2", "10.0.0.2", 8443, "eu-1b"),
        Replica("hayloft-tier-3", "10.0.0.3", 8443),
    )


@pytest.mark.promise("S571")
@pytest.mark.parametrize(
    "conditions",
    [{"ready": False}, {"ready": False, "serving": True, "terminating": True}, {"ready": True, "terminating": True}],
)
def test_one_that_is_not_ready_or_is_ending_is_left(conditions: dict[str, bool]) -> None:
    found = members_of([slice_of(endpoint(1), endpoint(2, conditions=conditions))], "tier")
    assert [replica.name for replica in found] == ["hayloft-tier-1"]


def test_conditions_that_are_not_known_count_as_ready_and_pods_of_a_daemon_set_are_named_by_their_nodes() -> None:
    found = members_of([slice_of({"addresses": ["10.0.0.9"], "nodeName": "node-9", "conditions": {}})], "tier")
    assert found == (Replica("node-9", "10.0.0.9", 8443),)


def test_slices_without_endpoints_addresses_or_the_port_have_no_members() -> None:
    other = {**slice_of(endpoint(1)), "ports": [{"name": "other", "port": 80}]}
    assert members_of([other, {"endpoints": None, "ports": None}, slice_of(endpoint(1, addresses=[]))], "tier") == ()


class FakeCluster:
    """An API server with scripted answers."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self.status = 200
        self.lists = 0
        self.events: SimpleQueue[Mapping[str, Any] | Exception | None] = SimpleQueue()
        """None ends a watch; an exception breaks it."""
        self.watched: list[str] = []

    def get(self, path: str) -> Answer:
        self.lists += 1
        assert "labelSelector=kubernetes.io%2Fservice-name%3Dhayloft-tier" in path
        body = {"metadata": {"resourceVersion": "5"}, "items": self.items, "message": "forbidden"}
        return Answer(self.status, body if self.status == 200 else {"message": "forbidden"})

    def watch(self, path: str, timeout_s: float) -> Iterator[Mapping[str, Any]]:
        self.watched.append(path)
        while (event := self.events.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    monkeypatch.setattr(endpoint_slices, "FIRST_PAUSE_S", 0.01)
    return FakeCluster()


@pytest.fixture
def watching(cluster: FakeCluster) -> Iterator[EndpointSlices]:
    cluster.items = [slice_of(endpoint(1), endpoint(2))]
    slices = EndpointSlices(cluster, "storage", "hayloft-tier")
    slices.start()
    yield slices
    slices.close()
    cluster.events.put(None)


def names(slices: EndpointSlices) -> list[str]:
    return [replica.name.removeprefix("hayloft-tier-") for replica in slices.members]


@pytest.mark.promise("S571")
def test_members_follow_the_events_of_the_watch(cluster: FakeCluster, watching: EndpointSlices) -> None:
    wait_until(lambda: names(watching) == ["1", "2"])
    known = watching.members
    cluster.events.put({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "6"}}})
    cluster.events.put({"type": "MODIFIED", "object": slice_of(endpoint(1), version="7")})
    wait_until(lambda: names(watching) == ["1"])
    assert watching.members is not known
    cluster.events.put({"type": "ADDED", "object": slice_of(endpoint(3), name="b", version="8")})
    wait_until(lambda: names(watching) == ["1", "3"])
    cluster.events.put({"type": "DELETED", "object": slice_of(name="a", version="9")})
    wait_until(lambda: names(watching) == ["3"])
    cluster.events.put(None)
    wait_until(lambda: len(cluster.watched) == 2)
    assert "resourceVersion=9" in cluster.watched[1], "the next watch goes on where this one has ended"
    assert cluster.lists == 1


@pytest.mark.promise("S571")
@pytest.mark.parametrize(
    "event",
    [
        {"type": "ERROR", "object": {"code": 410, "message": "too old resource version"}},
        {"type": "ERROR", "object": {"code": 500}},
        KubernetesUnavailable("cut"),
    ],
    ids=["gone", "error", "cut"],
)
def test_after_a_watch_that_broke_all_is_listed_again(
    cluster: FakeCluster, watching: EndpointSlices, event: Mapping[str, Any] | Exception
) -> None:
    wait_until(lambda: names(watching) == ["1", "2"])
    cluster.items = [slice_of(endpoint(7))]
    cluster.events.put(event)
    wait_until(lambda: names(watching) == ["7"])


@pytest.mark.promise("S571")
def test_while_the_api_server_refuses_the_members_stay(
    cluster: FakeCluster, watching: EndpointSlices, caplog: pytest.LogCaptureFixture
) -> None:
    wait_until(lambda: names(watching) == ["1", "2"])
    cluster.status = 403
    cluster.events.put(KubernetesUnavailable("cut"))
    wait_until(lambda: cluster.lists >= 4)
    assert names(watching) == ["1", "2"]
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1, "once, and not at each try"
    cluster.status = 200
    cluster.items = [slice_of(endpoint(2))]
    wait_until(lambda: names(watching) == ["2"])


@pytest.mark.promise("S571")
def test_an_object_of_an_unknown_form_does_not_end_the_watch(
    cluster: FakeCluster, watching: EndpointSlices, caplog: pytest.LogCaptureFixture
) -> None:
    wait_until(lambda: names(watching) == ["1", "2"])
    cluster.items = [slice_of(endpoint(4))]
    cluster.events.put({"type": "MODIFIED", "object": {"metadata": {"name": "a"}, "endpoints": ["text"], "ports": [1]}})
    wait_until(lambda: names(watching) == ["4"])
    assert "unexpected error" in caplog.text
