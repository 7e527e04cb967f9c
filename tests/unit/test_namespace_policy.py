"""What the operator allows to the volumes of a namespace: datasets, endpoints, the driver's own identity."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from csi_driver.model.errors import EndpointNotAllowed, IdentityNotAllowed, RequestError
from csi_driver.model.tenant import ADMINISTRATOR, Tenant
from csi_driver.settings import PolicySettings
from csi_driver.volumes.admission import admit
from csi_driver.volumes.parameters import VolumeParameters
from tests.support.secrets_of_stores import S3_SECRET

POD, CLAIM = Tenant("team-a", inline=True), Tenant("team-a")
RULES = PolicySettings(
    allowed_datasets=(
        "team-a=s3://team-a-data",
        "team-a=s3://shared/team-a/",
        "team-a=https://minio.team-a.svc:9000",
        "team-b=gs://team-b",
        "admins=*",
        "*=s3://public",
    ),
    allowed_addresses=("0.0.0.0/0",),
)


def parsed(attributes: Mapping[str, str], tenant: Tenant, policy: PolicySettings = RULES) -> VolumeParameters:
    return VolumeParameters.parse(attributes, policy, tenant)


@pytest.mark.promise("S411")
@pytest.mark.parametrize("tenant", [POD, CLAIM])
@pytest.mark.parametrize(
    "attributes",
    [
        {"url": "s3://team-a-data"},
        {"url": "s3://team-a-data/train/x"},
        {"url": "s3a://team-a-data/train"},
        {"url": "s3://shared/team-a"},
        {"url": "s3://shared/team-a/x"},
        {"url": "s3://public/x"},
        {"url": "s3://team-a-data/x", "endpoint": "https://minio.team-a.svc:9000"},
        {"url": "https://minio.team-a.svc:9000/data"},
    ],
)
def test_a_namespace_names_what_is_listed_for_it_or_for_all(attributes: dict[str, str], tenant: Tenant) -> None:
    parsed(attributes, tenant)


@pytest.mark.promise("S411")
@pytest.mark.parametrize("tenant", [POD, CLAIM])
@pytest.mark.parametrize(
    "attributes",
    [
        {"url": "s3://team-a-data2/x"},
        {"url": "s3://team-a"},
        {"url": "s3://Team-a-data/x"},
        {"url": "s3://shared/team-ab/x"},
        {"url": "s3://shared"},
        {"url": "s3://shared/team-a/../team-b"},
        {"url": "gs://team-a-data/x"},
        {"url": "gs://team-b/x"},
        {"url": "az://team-a-data/x"},
        {"url": "s3://team-a-data/x", "endpoint": "https://minio.team-b.svc:9000"},
        {"url": "s3://team-a-data/x", "endpoint": "http://minio.team-a.svc:9000"},
        {"url": "https://files.example.com/x"},
    ],
)
def test_everything_else_is_refused_by_name_with_what_would_allow_it(
    attributes: dict[str, str], tenant: Tenant
) -> None:
    with pytest.raises(EndpointNotAllowed, match=r"(url|endpoint): .*'team-a'.*--allowed-dataset=team-a="):
        parsed(attributes, tenant)


@pytest.mark.promise("S411")
def test_a_namespace_without_a_rule_names_what_is_for_all_alone() -> None:
    parsed({"url": "s3://public/x"}, Tenant("team-c"))
    parsed({"url": "gcs://team-b/x"}, Tenant("team-b"))
    parsed({"url": "s3://anything/x", "endpoint": "https://any.example"}, Tenant("admins", inline=True))
    with pytest.raises(EndpointNotAllowed, match="allowed: s3://public"):
        parsed({"url": "s3://team-a-data/x"}, Tenant("team-c"))
    with pytest.raises(EndpointNotAllowed, match="allowed: nothing"):
        parsed({"url": "s3://b/x"}, Tenant("team-c"), PolicySettings(allowed_datasets=("team-a=s3://b",)))


@pytest.mark.promise("S411")
def test_a_volume_that_an_administrator_wrote_by_hand_and_a_policy_without_rules_are_not_bounded() -> None:
    parsed({"url": "s3://anything/x"}, ADMINISTRATOR)
    parsed({"url": "s3://anything/x"}, POD, PolicySettings())


@pytest.mark.parametrize(
    "rule", ["team-a", "=s3://b", "Team=s3://b", "team-a=b", "team-a=s3://", "a=s3://b?x", "a=s3://u@b", "a b=s3://b"]
)
def test_a_rule_of_another_form_is_refused(rule: str) -> None:
    with pytest.raises(ValidationError, match="NAMESPACE=URL"):
        PolicySettings(allowed_datasets=(rule,))


@pytest.mark.promise("S411")
@given(path=st.text(alphabet="ab/.%", max_size=12), bucket=st.sampled_from(["b", "ba", "b.a", "a"]))
def test_no_spelling_of_a_url_leaves_its_prefix(path: str, bucket: str) -> None:
    policy = PolicySettings(allowed_datasets=("team-a=s3://b/a/b",))
    try:
        found = parsed({"url": f"s3://{bucket}/{path}"}, POD, policy)
    except RequestError:
        return
    assert (found.url.bucket, found.url.prefix[:4]) == ("b", "a/b/")
    assert ".." not in found.url.prefix.split("/")


IDENTITY = PolicySettings(identity_namespaces=("team-a",), trusted_namespaces=("team-b",))


@pytest.mark.promise("S412")
@pytest.mark.parametrize("tenant", [POD, CLAIM, ADMINISTRATOR])
def test_a_listed_namespace_and_an_administrator_use_the_drivers_identity(tenant: Tenant) -> None:
    admit(parsed({"url": "s3://b/x"}, tenant, IDENTITY), {}, IDENTITY, tenant)


@pytest.mark.promise("S412")
@pytest.mark.parametrize("tenant", [Tenant("team-b"), Tenant("team-b", inline=True), Tenant("team-c")])
def test_other_namespaces_need_a_secret(tenant: Tenant) -> None:
    parameters = parsed({"url": "s3://b/x"}, tenant, IDENTITY)
    with pytest.raises(IdentityNotAllowed, match=f"--identity-namespace={tenant.namespace}"):
        admit(parameters, {}, IDENTITY, tenant)
    admit(parameters, S3_SECRET, IDENTITY, tenant)
    admit(parsed({"url": "s3://b/x", "anonymous": "true"}, tenant, IDENTITY), {}, IDENTITY, tenant)
