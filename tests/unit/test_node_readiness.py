"""What becomes of the Node when kubelet has registered the driver."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from csi_driver.csi.registration_service import RegistrationService
from csi_driver.kubernetes.api_server import MERGE_PATCH, STRATEGIC_MERGE_PATCH, Answer
from csi_driver.kubernetes.own_node import READY_CONDITION, STARTUP_TAINT
from csi_driver.model.errors import DaemonUnavailable, InvalidParameter
from csi_driver.rpc.pb import plugin_registration_pb2 as messages
from csi_driver.wiring import node_process, node_readiness
from csi_driver.wiring.node_readiness import NodeReadiness

OURS = {"key": STARTUP_TAINT, "effect": "NoSchedule"}
OTHER = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}


class NodeTwin:
    """An API server with the Node ``gpu-1``. Answers to the first requests are ``answers``, if any are left."""

    def __init__(self, *taints: Mapping[str, str]) -> None:
        self.taints: list[Mapping[str, str]] = list(taints)
        self.version = 7
        self.conditions: dict[str, Mapping[str, str]] = {"Ready": {"type": "Ready", "status": "True"}}
        self.answers: list[Answer] = []
        self.changes = 0
        self.meanwhile: Mapping[str, str] | None = None
        """A taint that another one adds after the Node was read."""

    def send(self, method: str, path: str, body: Mapping[str, Any], content_type: str = "application/json") -> Answer:
        assert method == "PATCH"
        if self.answers:
            return self.answers.pop(0)
        if path == "/api/v1/nodes/gpu-1/status":
            assert content_type == STRATEGIC_MERGE_PATCH
            self.conditions |= {one["type"]: one for one in body["status"]["conditions"]}
            return Answer(200, {})
        if path != "/api/v1/nodes/gpu-1":
            return Answer(404, {"reason": "NotFound"})
        assert content_type == MERGE_PATCH
        if body:
            if body["metadata"]["resourceVersion"] != f"{self.version}":
                return Answer(409, {"reason": "Conflict"})
            self.taints = body["spec"]["taints"] or []
            self.version += 1
            self.changes += 1
        node = {"metadata": {"resourceVersion": f"{self.version}"}, "spec": {"taints": self.taints}}
        if self.meanwhile is not None:
            self.taints, self.version, self.meanwhile = [*self.taints, self.meanwhile], self.version + 1, None
        return Answer(200, node)


def readiness(
    api: NodeTwin, *, ready: Any = lambda: None, accepted: threading.Event | None = None, **asked: bool
) -> NodeReadiness:
    asked = {"remove_taint": True, "report_condition": False, **asked}
    return NodeReadiness(
        api, "gpu-1", accepted or threading.Event(), ready, now=lambda: datetime(2026, 1, 2, tzinfo=UTC), **asked
    )


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_readiness, "FIRST_BACKOFF_S", 0.0)
    monkeypatch.setattr(node_readiness, "_DAEMON_POLL_S", 0.0)


@pytest.mark.promise("S506")
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([OURS], []),
        ([OTHER, OURS, {**OURS, "effect": "NoExecute"}], [OTHER]),
        ([OTHER], [OTHER]),
        ([], []),
    ],
)
def test_the_startup_taint_is_removed_and_no_other(
    before: list[Mapping[str, str]], after: list[Mapping[str, str]]
) -> None:
    api = NodeTwin(*before)
    readiness(api).change_node()
    assert api.taints == after
    assert api.changes == (before != after), "nothing is written without need"


@pytest.mark.promise("S506")
def test_a_taint_that_another_one_adds_meanwhile_stays() -> None:
    api = NodeTwin(OURS)
    api.meanwhile = OTHER
    readiness(api).change_node()
    assert api.taints == [OTHER]


@pytest.mark.promise("S506")
def test_it_is_retried_until_the_api_server_takes_it_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    api = NodeTwin(OURS)
    api.answers = [Answer(0, {}, "no route"), Answer(403, {"message": "no right"}), Answer(200, {}), Answer(500, {})]
    api.answers[2] = Answer(200, {"metadata": {"resourceVersion": "7"}, "spec": {"taints": [OURS]}})
    with caplog.at_level(logging.WARNING, "csi_driver"):
        readiness(api).change_node()
    assert api.taints == []
    (line,) = caplog.messages
    assert STARTUP_TAINT in line


@pytest.mark.promise("S506")
def test_it_stays_until_the_cache_daemon_answers() -> None:
    api = NodeTwin(OURS)
    asked: list[bool] = []

    def ready() -> None:
        asked.append(OURS in api.taints)
        if len(asked) < 3:
            raise DaemonUnavailable("it starts")

    readiness(api, ready=ready).change_node()
    assert asked == [True, True, True]
    assert api.taints == []


@pytest.mark.promise("S506")
def test_each_registration_by_kubelet_has_the_node_looked_at() -> None:
    api = NodeTwin(OURS)
    service = RegistrationService("/csi.sock")
    done = threading.Event()

    def ready() -> None:
        done.set()

    with readiness(api, ready=ready, accepted=service.accepted, report_condition=True).following():
        service.NotifyRegistrationStatus(messages.RegistrationStatus(plugin_registered=False, error="no"), None)
        assert not service.accepted.is_set()
        for _ in range(2):
            done.clear()
            service.NotifyRegistrationStatus(messages.RegistrationStatus(plugin_registered=True), None)
            assert done.wait(30)


@pytest.mark.promise("S506")
def test_the_condition_is_reported_and_others_stay() -> None:
    api = NodeTwin(OURS)
    readiness(api, remove_taint=False, report_condition=True).change_node()
    assert api.taints == [OURS]
    assert set(api.conditions) == {"Ready", READY_CONDITION}
    assert (api.conditions[READY_CONDITION]["status"], api.conditions[READY_CONDITION]["lastTransitionTime"]) == (
        "True",
        "2026-01-02T00:00:00Z",
    )


@pytest.mark.parametrize("flag", ["remove_startup_taint", "ready_condition"])
@pytest.mark.parametrize(
    ("directory", "what"), [(None, "--registration-dir"), (Path("/var/lib/kubelet/plugins_registry"), "API server")]
)
def test_a_node_that_would_keep_its_taint_for_ever_is_refused(
    flag: str, directory: Path | None, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    settings = node_process.NodeSettings(f"unix://{tmp_path}/csi.sock", "gpu-1", tmp_path / "cache.sock")
    settings = replace(settings, registration_directory=directory, **{flag: True})  # type: ignore[arg-type]
    with pytest.raises(InvalidParameter) as refused:
        node_process.run(settings)
    assert refused.value.field == f"--{flag.replace('_', '-')}"
    assert what in str(refused.value)
