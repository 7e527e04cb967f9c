"""The Pod Security level and the network policy of each pod are those of docs/security.md."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.architecture.driver_manifests import of_kind, workloads
from tests.architecture.kubernetes_files import DEPLOY, Document, documents, pod_spec
from tests.architecture.pod_security import missed_of_baseline, missed_of_restricted
from tests.architecture.source_tree import REPOSITORY

DRIVER = [one for one in documents(DEPLOY / "kubernetes") if one.path.parent == DEPLOY / "kubernetes"]
PAGE = (REPOSITORY / "docs" / "security.md").read_text()
LEVELS = {
    cells[0].strip("` "): (cells[1].strip("` "), set(re.findall(r"`([^`]+)`", cells[2])))
    for line in PAGE.partition("## Pod security levels")[2].partition("\n## ")[0].splitlines()
    if line.startswith("| `hayloft-") and len(cells := line.strip("|").split("|")) == 4
}
"""By pod: the strictest level that it passes, and what keeps it from the next one."""


def spec_of(name: str, among: list[Document]) -> dict[str, Any]:
    (found,) = (one for one in workloads(among) if one.name == name)
    return pod_spec(found)


def check_level(page: str, name: str, among: list[Document]) -> None:
    level, missed = LEVELS[page]
    spec = spec_of(name, among)
    if level == "privileged":
        assert missed_of_baseline(spec) == missed
    else:
        assert level == "baseline"
        assert missed_of_baseline(spec) == set()
        assert missed_of_restricted(spec) == missed


@pytest.mark.promise("S413")
@pytest.mark.parametrize("name", ["hayloft-node", "hayloft-keeper", "hayloft-controller"])
def test_each_pod_passes_its_level_and_misses_the_next_for_the_reasons_on_the_page(name: str) -> None:
    check_level(name + (" with a registry on the node" if name == "hayloft-controller" else ""), name, DRIVER)


@pytest.mark.promise("S413")
def test_every_pod_has_one_network_policy_that_admits_what_the_page_says() -> None:
    policies = of_kind("NetworkPolicy", among=DRIVER)
    for workload in workloads(DRIVER):
        labels = workload.body["spec"]["template"]["metadata"]["labels"]
        chosen = [
            policy.body["spec"]
            for policy in policies
            if policy.body["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
        ]
        assert len(chosen) == 1, workload
        expected = ["Ingress", "Egress"] if workload.name == "hayloft-keeper" else ["Ingress"]
        assert chosen[0]["policyTypes"] == expected
        assert "egress" not in chosen[0]
        admitted = {"hayloft-node": ["metrics", "healthz"], "hayloft-controller": ["healthz"]}.get(workload.name)
        if admitted:
            (rule,) = chosen[0]["ingress"]
            assert rule["ports"] == [{"protocol": "TCP", "port": port} for port in admitted]
            assert len(rule["from"]) == 1
        else:
            assert "ingress" not in chosen[0]


HARMLESS: dict[str, Any] = {
    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    "volumes": [{"name": "a", "emptyDir": {}}],
    "containers": [{"securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}}],
}


@pytest.mark.parametrize(
    ("change", "baseline", "restricted"),
    [
        ({}, set(), set()),
        ({"hostPID": True}, {"hostPID"}, {"hostPID"}),
        ({"volumes": [{"name": "a", "hostPath": {"path": "/"}}]}, {"hostPath"}, {"hostPath", "volume types"}),
        (
            {"containers": [{"securityContext": {"privileged": True}}]},
            {"privileged"},
            {"privileged", "allowPrivilegeEscalation", "capabilities"},
        ),
        ({"securityContext": {}}, set(), {"runAsNonRoot", "seccompProfile"}),
    ],
)
def test_the_levels_are_told_apart(change: dict[str, Any], baseline: set[str], restricted: set[str]) -> None:
    spec = {**HARMLESS, **change}
    assert missed_of_baseline(spec) == baseline
    assert missed_of_restricted(spec) == restricted
