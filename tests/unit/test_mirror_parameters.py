"""``mirrors``: how they are written, and that each of them is judged as the URL of a volume is."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.csi.parameter_templates import expand_templates
from csi_driver.model.addresses import ANY_BUT_METADATA
from csi_driver.model.errors import (
    EndpointNotAllowed,
    IdentityNotAllowed,
    InvalidParameter,
    MissingParameter,
    RequestError,
)
from csi_driver.model.tenant import Tenant
from csi_driver.objects.credentials import joint_domain, parse_secret, secret_of_mirror
from csi_driver.settings import PolicySettings, RegistrySettings
from csi_driver.volumes.admission import admit
from csi_driver.volumes.mirror_parameters import mirrors, mirrors_text
from csi_driver.volumes.parameters import VolumeParameters

TEAM = Tenant("team-a", inline=True)
KEYS = {"access_key_id": "one", "secret_access_key": "two"}


def parsed(mirror: str, policy: PolicySettings | None = None, tenant: Tenant = TEAM, **more: str) -> VolumeParameters:
    return VolumeParameters.parse({"url": "s3://data/train", "mirrors": mirror, **more}, policy, tenant)


def test_each_mirror_has_its_own_options_and_inherits_none() -> None:
    parameters = parsed(
        "s3://copies/a?endpoint=http://store:9000&region=eu-west-1,gs://copies/b",
        endpoint="https://first.example.com",
        region="us-east-2",
        requestTimeout="5s",
    )
    first, second = (place for _, place in parameters.places_of_mirrors())
    assert (str(first.url), first.endpoint, first.region) == ("s3://copies/a/", "http://store:9000", "eu-west-1")
    assert (str(second.url), second.endpoint, second.region) == ("gs://copies/b/", None, None)
    assert first.request_timeout_s == second.request_timeout_s == 5
    assert first.mirrors == second.mirrors == ()


_WORDS = st.from_regex(r"[a-z0-9][a-z0-9-]{1,10}", fullmatch=True)
_PATHS = st.sampled_from(["", "a%2Bb", "a;b", "a=b"])


@given(st.lists(st.tuples(_WORDS, _WORDS, _PATHS, st.booleans()), max_size=4, unique_by=lambda drawn: drawn[:2]))
def test_what_is_recorded_is_read_back(drawn: list[tuple[str, str, str, bool]]) -> None:
    text = "\n".join(
        f"s3://{bucket}/{prefix}" + (f"?endpoint=http://store/{path}" if has_endpoint else "")
        for bucket, prefix, path, has_endpoint in drawn
    )
    found = mirrors("mirrors", text)
    assert mirrors("mirrors", mirrors_text(found)) == found
    assert len(found) == len(drawn)


@pytest.mark.promise("S644")
@pytest.mark.parametrize(
    ("mirror", "message"),
    [
        ("ftp://copies/data", "mirrors: 'ftp://copies/data' is not allowed; allowed: URLs that begin with s3://"),
        ("http://copies/data", "allowed: URLs that begin with"),
        ("s3://copies/data?manifest=x", "options of a mirror, each once"),
        ("s3://copies/data?secret_access_key=hush", "keys of the Secret that begin with mirror1"),
        ("s3://copies/data?endpoint=store", "mirrors: s3://copies/data/: endpoint: 'store' is not allowed"),
        ("s3://copies/data?anonymous=yes", "mirrors: s3://copies/data/: anonymous"),
        ("gs://copies/data?requesterPays=true&anonymous=true", "mirrors: gs://copies/data/: requesterPays"),
        ("s3://data/train", "other places than that of url"),
        ("s3://copies/a,s3://copies/a", "each place once"),
        (",".join(f"s3://copies/{number}" for number in range(9)), "at most 8"),
    ],
)
def test_what_cannot_be_a_mirror_is_refused_with_what_is_allowed(mirror: str, message: str) -> None:
    with pytest.raises(InvalidParameter) as raised:
        parsed(mirror)
    assert message in str(raised.value)
    assert "hush" not in str(raised.value)


@pytest.mark.parametrize("url", ["https://example.com/data", "file:///data", "hf://datasets/x"])
def test_datasets_of_other_stores_have_no_mirrors(url: str) -> None:
    with pytest.raises(InvalidParameter, match="mirrors"):
        VolumeParameters.parse({"url": url, "mirrors": "s3://copies/data"})
    with pytest.raises(InvalidParameter, match="mirrorCheck"):
        VolumeParameters.parse({"url": "s3://data/train", "mirrorCheck": "size"})


@pytest.mark.promise("S643")
def test_the_operators_lists_hold_for_each_mirror() -> None:
    endpoints = PolicySettings(allowed_endpoints=("http://store:9000",), trusted_namespaces=("team-a",))
    parsed("s3://copies/data?endpoint=http://store:9000", endpoints)
    with pytest.raises(EndpointNotAllowed, match=r"mirrors: s3://copies/data/: endpoint: 'http://vault'"):
        parsed("s3://copies/data?endpoint=http://vault", endpoints)
    datasets = PolicySettings(allowed_datasets=("team-a=s3://data", "team-a=s3://copies/a"))
    parsed("s3://copies/a/data", datasets)
    with pytest.raises(EndpointNotAllowed, match=r"mirrors: s3://copies/b/: url: .*not allowed in namespace 'team-a'"):
        parsed("s3://copies/b", datasets)


@pytest.mark.promise("S643")
def test_the_addresses_of_a_mirror_are_those_that_its_author_may_have() -> None:
    mirror = "s3://copies/data?endpoint=http://10.0.0.1:9000"
    untrusted = parsed(mirror, PolicySettings())
    (place,) = (place for _, place in untrusted.places_of_mirrors())
    assert place.address_rules.public_only
    adopted = VolumeParameters.parse(untrusted.to_context()).under(PolicySettings(), TEAM)
    assert [one.address_rules for _, one in adopted.places_of_mirrors()] == [place.address_rules]
    trusted = parsed(mirror, PolicySettings(trusted_namespaces=("team-a",)))
    assert not next(iter(trusted.places_of_mirrors()))[1].address_rules.public_only
    unjudged = VolumeParameters.parse(untrusted.to_context())
    assert next(iter(unjudged.places_of_mirrors()))[1].address_rules == ANY_BUT_METADATA


@pytest.mark.promise("S643")
def test_no_mirror_gets_the_nodes_identity_unless_the_volume_may_have_it() -> None:
    mirror = "gs://copies/data"
    with pytest.raises(MissingParameter, match=r"mirrors: gs://copies/data/: secret key service_account_json"):
        admit(parsed(mirror), KEYS, PolicySettings(), TEAM)
    public = parsed("s3://copies/data", anonymous="true")
    with pytest.raises(IdentityNotAllowed, match=r"mirrors: s3://copies/data/: secret: .*the node's own identity"):
        admit(public, {}, PolicySettings(), TEAM)
    admit(public, {}, PolicySettings(trusted_namespaces=("team-a",)), TEAM)


@pytest.mark.promise("S643")
def test_the_driver_s_own_storage_is_no_mirror(tmp_path: Path) -> None:
    policy = PolicySettings(registry=RegistrySettings(location="s3://registry/hayloft"))
    with pytest.raises(EndpointNotAllowed, match=r"mirrors: s3://registry/: .*overlaps the registry"):
        admit(parsed("s3://registry"), KEYS, policy, TEAM)


@pytest.mark.promise("S644")
def test_a_mirror_is_read_with_its_own_keys_or_those_of_the_volume() -> None:
    secret = {**KEYS, "mirror2.access_key_id": "three", "mirror2-secret_access_key": "four"}
    assert parse_secret(secret).values == KEYS
    assert parse_secret(secret_of_mirror(secret, 1)).values == KEYS
    assert parse_secret(secret_of_mirror(secret, 2)).values == {"access_key_id": "three", "secret_access_key": "four"}
    admit(parsed("s3://copies/a,s3://copies/b"), secret, PolicySettings(), TEAM)
    with pytest.raises(InvalidParameter, match="keys of mirror1 to mirror1"):
        admit(parsed("s3://copies/a"), secret, PolicySettings(), TEAM)
    with pytest.raises(InvalidParameter, match="keys of mirrors for a volume with mirrors only"):
        admit(VolumeParameters.parse({"url": "s3://data/train"}), secret, PolicySettings(), TEAM)


@pytest.mark.promise("S644")
def test_the_access_domain_depends_on_each_place_their_order_and_the_check() -> None:
    domains = {
        joint_domain(["a", "b"], "content"),
        joint_domain(["b", "a"], "content"),
        joint_domain(["a", "b"], "size"),
        joint_domain(["a"], "content"),
        joint_domain(["a", "b", "c"], "content"),
    }
    assert len(domains) == 5


@pytest.mark.parametrize(
    "mirror",
    ["s3://copies/a?endpoint=http://${pvc.name}", "${pvc.name}://copies/a", "s3://copies/a,s3://b?region=${pvc.name}"],
)
def test_the_author_of_a_claim_chooses_no_endpoint_of_a_mirror(mirror: str) -> None:
    names = {"csi.storage.k8s.io/pvc/name": "claim", "csi.storage.k8s.io/pvc/namespace": "team-a"}
    with pytest.raises(RequestError, match="templates in buckets and prefixes only"):
        expand_templates({"url": "s3://data/train", "mirrors": mirror, **names})
    allowed = {"url": "s3://data/train", "mirrors": "s3://copies/${pvc.name}?endpoint=http://store", **names}
    assert expand_templates(allowed)["mirrors"] == "s3://copies/claim?endpoint=http://store"
