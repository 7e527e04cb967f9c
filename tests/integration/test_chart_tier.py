"""The objects of the cluster's cache in the chart, and what the driver and nginx make of them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from csi_driver.cli.application import run_command
from csi_driver.model.errors import InvalidParameter
from csi_driver.settings import TierSettings
from csi_driver.wiring.tier_members import ClientCertificates
from tests.architecture.driver_manifests import driver_container, of_kind
from tests.architecture.kubernetes_files import CHART, Document, containers, pod_spec
from tests.architecture.pod_security import missed_of_restricted
from tests.support.chart_cases import CASES, S3, rendered, run_helm

pytestmark = pytest.mark.helm

TIER = CASES["a tier"]
ON_NODES = CASES["a tier on nodes"]
PLAIN = CASES["a tier without TLS"]


def one(kind: str, name: str, among: list[Document]) -> Document:
    (found,) = (document for document in of_kind(kind, among=among) if document.name == name)
    return found


@pytest.mark.promise("S570")
def test_there_is_no_tier_unless_one_value_turns_it_on() -> None:
    assert not [document for document in rendered(S3) if "tier" in document.name]
    driver = rendered(TIER)
    names = {(document.kind, document.name) for document in driver}
    assert {
        ("Service", "hayloft-tier"),
        ("StatefulSet", "hayloft-tier"),
        ("PodDisruptionBudget", "hayloft-tier"),
        ("NetworkPolicy", "hayloft-tier"),
        ("Secret", "hayloft-tier-key"),
        ("Secret", "hayloft-tier-server"),
        ("Secret", "hayloft-tier-client"),
    } <= names
    config = one("ConfigMap", "hayloft-config", driver).body["data"]
    assert config["HAYLOFT_TIER_SERVICE"] == "storage/hayloft-tier"
    assert config["HAYLOFT_TIER_SERVER_NAME"] == "hayloft-tier.storage.svc"
    assert driver_container(driver, "hayloft-node", "cache").flags["--tier-zone"] == "$(NODE_ZONE)"


@pytest.mark.promise("S570")
@pytest.mark.parametrize("case", [TIER, ON_NODES, PLAIN], ids=["tier", "on nodes", "plain"])
def test_the_daemon_has_the_files_that_its_settings_name(case: dict[str, Any]) -> None:
    driver = rendered(case)
    config = one("ConfigMap", "hayloft-config", driver).body["data"]
    cache = driver_container(driver, "hayloft-node", "cache")
    mounts = [mount["mountPath"] for mount in cache.body["volumeMounts"]]
    files = [config[name] for name in config if name in ("HAYLOFT_TIER_KEY", "HAYLOFT_TIER_CA", "HAYLOFT_TIER_CERT")]
    assert len(files) == (1 if case is PLAIN else 3)
    for file in files:
        assert str(Path(file).parent) in mounts
    assert "/var/run/secrets/kubernetes.io/serviceaccount" in mounts


@pytest.mark.promise("S570")
def test_the_right_of_the_daemon_is_to_list_endpoint_slices_in_its_own_namespace() -> None:
    driver = rendered(TIER)
    role = one("Role", "hayloft-node-tier", driver)
    assert role.body["rules"] == [
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]}
    ]
    assert role.namespace == "storage"
    (subject,) = one("RoleBinding", "hayloft-node-tier", driver).body["subjects"]
    assert subject["name"] == "hayloft-node"
    assert one("ServiceAccount", "hayloft-tier", driver).body["automountServiceAccountToken"] is False


@pytest.mark.promise("S570")
def test_replicas_are_restricted_pods_that_the_daemons_alone_reach() -> None:
    driver = rendered(TIER)
    assert missed_of_restricted(pod_spec(one("StatefulSet", "hayloft-tier", driver))) == set()
    policy = one("NetworkPolicy", "hayloft-tier", driver).body["spec"]
    (source,) = policy["ingress"][0]["from"]
    assert source["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "node"
    blocks = [block["ipBlock"] for block in policy["egress"][0]["to"]]
    assert "169.254.0.0/16" in blocks[0]["except"], "no metadata service"


@pytest.mark.promise("S571")
def test_replicas_are_spread_one_is_disrupted_at_a_time_and_left_before_it_ends() -> None:
    driver = rendered(TIER)
    spec = pod_spec(one("StatefulSet", "hayloft-tier", driver))
    assert [each["topologyKey"] for each in spec["topologySpreadConstraints"]] == [
        "topology.kubernetes.io/zone",
        "kubernetes.io/hostname",
    ]
    assert one("PodDisruptionBudget", "hayloft-tier", driver).body["spec"]["maxUnavailable"] == 1
    (nginx,) = (each for each in spec["containers"] if each["name"] == "nginx")
    assert 5 < nginx["lifecycle"]["preStop"]["sleep"]["seconds"] < spec["terminationGracePeriodSeconds"]
    assert not one("Service", "hayloft-tier", driver).body["spec"].get("publishNotReadyAddresses")


@pytest.mark.promise("S570")
@pytest.mark.parametrize("case", [TIER, ON_NODES, PLAIN], ids=["tier", "on nodes", "plain"])
def test_the_arguments_of_the_chart_make_a_configuration(
    case: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (config,) = (each for each in containers(rendered(case)) if each.name == "config")
    (tmp_path / "key").write_bytes(b"x" * 48)
    arguments = [
        argument.replace("/config/", f"{tmp_path}/").replace("/key/key", f"{tmp_path}/key")
        for argument in config.body["args"]
    ]
    assert run_command([*arguments, "--resolver=10.96.0.10"]) == 0
    made = (tmp_path / "nginx.conf").read_text()
    assert ("ssl_verify_client on;" in made) == (case is not PLAIN)
    assert ("secure_link" in made) == (case is PLAIN)
    assert (r"my\-bucket" in made) == (case is ON_NODES)
    assert (tmp_path / "nginx.conf").stat().st_mode & 0o777 == 0o600


@pytest.mark.promise("S564")
def test_certificates_that_the_chart_makes_are_of_one_authority_and_fit_their_keys(tmp_path: Path) -> None:
    driver = rendered(TIER)
    authorities = set()
    for name in ("hayloft-tier-server", "hayloft-tier-client"):
        data = one("Secret", name, driver).body["data"]
        for file, content in data.items():
            (tmp_path / f"{name}-{file}").write_bytes(base64.b64decode(content))
        ClientCertificates(*(tmp_path / f"{name}-{file}" for file in ("ca.crt", "tls.crt", "tls.key")))
        authorities.add(data["ca.crt"])
    assert len(authorities) == 1
    with pytest.raises(InvalidParameter, match="--tier-cert"):
        ClientCertificates(
            tmp_path / "hayloft-tier-client-ca.crt",
            tmp_path / "hayloft-tier-client-tls.crt",
            tmp_path / "hayloft-tier-server-tls.key",
        )
    assert TierSettings().enabled is False


@pytest.mark.promise("S572")
@pytest.mark.parametrize(
    ("tier", "named"),
    [
        ({"enabled": True, "kind": "DaemonSet"}, "tier.nodeSelector"),
        ({"enabled": True, "tls": {"mode": "certManager"}}, "tier.tls.issuer.name"),
        ({"enabled": True, "size": "many"}, "size"),
        ({"enabled": True, "slice": "3MiB"}, "slice"),
        ({"enabled": True, "replicas": 0}, "replicas"),
        ({"enabled": True, "tls": {"mode": "off"}}, "mode"),
        ({"on": True}, "on"),
    ],
)
def test_values_that_make_no_tier_are_refused_by_name(tier: dict[str, Any], named: str) -> None:
    result = run_helm("template", "hayloft", str(CHART), values={"tier": tier})
    assert result.returncode != 0
    assert named in result.stderr
