"""Who may use the node's own identity, where it may go, and what is never a dataset: decided before any request."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.model.errors import EndpointNotAllowed, HayloftError, IdentityNotAllowed, InvalidParameter
from csi_driver.model.tenant import ADMINISTRATOR, Tenant
from csi_driver.settings import CacheDaemonSettings, ChunkStoreSettings, PolicySettings, RegistrySettings
from csi_driver.volumes.admission import admit
from csi_driver.volumes.parameters import VolumeParameters
from tests.support.secrets_of_stores import AZURE_KEY_SECRET, AZURE_SAS_SECRET, S3_SECRET, google_secret
from tests.support.tls import trusted_tls

POD = Tenant("team-a", inline=True)
TRUSTED = PolicySettings(trusted_namespaces=("team-a",))
OTHERS = PolicySettings(trusted_namespaces=("team-b",))
EVERYBODY = PolicySettings(trusted_namespaces=("*",))
EVIL = "https://evil.example"
MINIO = "http://minio.stores.svc:9000"
ACCOUNT_ONLY = {"account_name": "tenant1"}


@pytest.fixture(autouse=True)
def _no_account_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT"):
        monkeypatch.delenv(name, raising=False)


def admitted(
    attributes: Mapping[str, str],
    policy: PolicySettings,
    tenant: Tenant = POD,
    secrets: Mapping[str, str] | None = None,
) -> VolumeParameters:
    parameters = VolumeParameters.parse(attributes, policy, tenant)
    admit(parameters, secrets or {}, policy, tenant)
    return parameters


WITHOUT_CREDENTIALS = [
    ({"url": "s3://b/x"}, {}),
    ({"url": "s3://b/x", "endpoint": EVIL}, {}),
    ({"url": "s3://b/x", "endpoint": EVIL, "backend": "s3fs"}, {}),
    ({"url": "gs://b/x"}, {}),
    ({"url": "gcs://b/x", "endpoint": EVIL}, {}),
    ({"url": "gs://b/x", "endpoint": EVIL}, {}),
    ({"url": "az://c/x"}, {}),
    ({"url": "az://c/x"}, ACCOUNT_ONLY),
    ({"url": "az://c/x", "endpoint": EVIL}, ACCOUNT_ONLY),
    ({"url": "abfs://c/x"}, AZURE_KEY_SECRET),  # its client reads the environment too
    ({"url": "hf://datasets/o/r"}, {}),
    ({"url": "sftp://host/x"}, {}),
    ({"url": "sftp://host/x"}, {"username": "u"}),
    ({"url": "webhdfs://host:50070/x"}, {}),
    ({"url": "webhdfs://host:50070/x"}, {"username": "u", "password": "p"}),
    ({"url": "hdfs://host/x"}, {}),
    ({"url": "oss://b/x"}, {}),
    ({"url": "oci://b/x"}, {}),
    ({"url": "hdfs://host/x", "anonymous": "true"}, {}),
]
WITH_CREDENTIALS = [
    ({"url": "s3://b/x", "endpoint": EVIL}, S3_SECRET),
    ({"url": "s3://b/x", "anonymous": "true", "endpoint": EVIL}, {}),
    ({"url": "gs://b/x", "endpoint": EVIL}, google_secret()),
    ({"url": "gs://b/x", "anonymous": "true"}, {}),
    ({"url": "az://c/x", "endpoint": EVIL}, AZURE_KEY_SECRET),
    ({"url": "az://c/x"}, AZURE_SAS_SECRET),
    ({"url": "az://c/x", "anonymous": "true"}, ACCOUNT_ONLY),
    ({"url": "hf://datasets/o/r"}, {"token": "hf_x"}),
    ({"url": "hf://datasets/o/r", "anonymous": "true"}, {}),
    ({"url": "sftp://host/x"}, {"username": "u", "password": "p"}),
    ({"url": "ftp://host/x"}, {}),
    ({"url": "http://host/x"}, {}),
    ({"url": "memory://x/y"}, {}),
]


@pytest.mark.promise("S121")
@pytest.mark.parametrize("policy", [PolicySettings(), OTHERS, PolicySettings(identity_endpoints=(EVIL,))])
@pytest.mark.parametrize(("attributes", "secrets"), WITHOUT_CREDENTIALS)
def test_an_inline_volume_does_not_get_the_nodes_identity(
    attributes: dict[str, str], secrets: dict[str, str], policy: PolicySettings
) -> None:
    # A library that dials by itself is refused before.
    message = r"secret: .*--trusted-namespace=team-a|endpoint: .*--allowed-endpoint"
    with pytest.raises((IdentityNotAllowed, EndpointNotAllowed), match=message):
        admitted(attributes, policy, POD, secrets)


@pytest.mark.promise("S121")
@pytest.mark.parametrize(("attributes", "secrets"), WITH_CREDENTIALS)
def test_an_inline_volume_with_credentials_of_its_own_needs_no_permission(
    attributes: dict[str, str], secrets: dict[str, str]
) -> None:
    listed = (EVIL, "http://host", "ftp://host", "sftp://host", "hf://datasets")
    admitted(attributes, PolicySettings(allowed_endpoints=listed), POD, secrets)


@pytest.mark.parametrize(("policy", "tenant"), [(TRUSTED, POD), (EVERYBODY, POD), (PolicySettings(), ADMINISTRATOR)])
@pytest.mark.parametrize("url", ["s3://b/x", "gs://b/x", "hf://datasets/o/r", "hdfs://host/x"])
def test_the_nodes_identity_is_for_administrators_and_trusted_namespaces(
    url: str, policy: PolicySettings, tenant: Tenant
) -> None:
    admitted({"url": url}, policy, tenant)


def test_an_administrator_names_an_s3_service_whose_requests_are_signed_by_the_node() -> None:
    """A signature is of no use for another request: MinIO in the cluster with the node's keys goes on working."""
    for tenant, policy in ((ADMINISTRATOR, PolicySettings()), (POD, TRUSTED)):
        admitted({"url": "s3://b/x", "endpoint": MINIO}, policy, tenant)


@pytest.mark.promise("S122")
@pytest.mark.parametrize(
    ("attributes", "secrets", "field", "receiver"),
    [
        ({"url": "gs://b/x", "endpoint": EVIL}, {}, "endpoint", EVIL),
        ({"url": "az://c/x", "endpoint": EVIL}, ACCOUNT_ONLY, "endpoint", EVIL),
        ({"url": "az://c/x"}, ACCOUNT_ONLY, "account_name", "https://tenant1.blob.core.windows.net"),
    ],
)
@pytest.mark.parametrize(("more", "tenant"), [({}, ADMINISTRATOR), ({"trusted_namespaces": ("*",)}, POD)])
def test_a_token_of_the_node_goes_only_to_services_that_the_operator_lists(
    attributes: dict[str, str],
    secrets: dict[str, str],
    field: str,
    receiver: str,
    more: dict[str, tuple[str, ...]],
    tenant: Tenant,
) -> None:
    with pytest.raises(IdentityNotAllowed, match=rf"{field}: .*--identity-endpoint={receiver}"):
        admitted(attributes, PolicySettings(**more), tenant, secrets)  # type: ignore[arg-type]
    listing = PolicySettings(identity_endpoints=(receiver,), **more)  # type: ignore[arg-type]
    admitted(attributes, listing, tenant, secrets)


@pytest.mark.promise("S122")
@pytest.mark.parametrize("url", ["gs://b/x", "az://c/x"])
def test_a_token_of_the_node_is_sent_over_no_connection_that_a_volume_vouches_for(
    url: str, monkeypatch: pytest.MonkeyPatch, ca_pem: str
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "ours")
    with pytest.raises(IdentityNotAllowed, match="caBundle"):
        admitted({"url": url, "caBundle": ca_pem}, PolicySettings(), ADMINISTRATOR)
    admitted({"url": url}, PolicySettings(), ADMINISTRATOR)


@pytest.fixture(scope="module")
def ca_pem() -> str:
    with trusted_tls() as (_, pem):
        return pem


def test_the_account_of_the_nodes_environment_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "tenant1")
    admitted({"url": "az://c/x"}, PolicySettings(), ADMINISTRATOR, ACCOUNT_ONLY)
    admitted({"url": "az://c/x"}, PolicySettings(), ADMINISTRATOR)


def test_a_list_of_identity_endpoints_bounds_s3_as_well() -> None:
    policy = PolicySettings(identity_endpoints=(MINIO, "https://*.stores.example"))
    admitted({"url": "s3://b/x"}, policy, ADMINISTRATOR)
    admitted({"url": "s3://b/x", "endpoint": MINIO}, policy, ADMINISTRATOR)
    admitted({"url": "s3://b/x", "endpoint": "https://a.b.stores.example"}, policy, ADMINISTRATOR)
    for endpoint in (
        EVIL,
        MINIO.replace("9000", "9001"),
        "https://stores.example",
        "https://a.stores.example.evil.example",
    ):
        with pytest.raises(IdentityNotAllowed, match="identity-endpoint"):
            admitted({"url": "s3://b/x", "endpoint": endpoint}, policy, ADMINISTRATOR)


@pytest.mark.parametrize(("url", "key"), [("s3://b/x", "access_key_id"), ("gs://b/x", "service_account_json")])
def test_a_secret_of_another_kind_of_store_is_not_replaced_by_the_nodes_identity(url: str, key: str) -> None:
    with pytest.raises(HayloftError, match=key):
        admitted({"url": url}, PolicySettings(), ADMINISTRATOR, {"token": "x"})


# -- spellings of places ----------------------------------------------------------------------------------------------


@pytest.mark.promise("S120")
@pytest.mark.parametrize(
    ("attributes", "field"),
    [
        ({"url": "s3://b/x", "endpoint": "https://good.example\\.evil.example"}, "endpoint"),
        ({"url": "s3://b/x", "endpoint": "https://good.example/a\\..\\b"}, "endpoint"),
        ({"url": "s3://b/x", "endpoint": "https://%65vil.example"}, "endpoint"),
        ({"url": "s3://b/x", "endpoint": "https://g\u043e\u043ed.example"}, "endpoint"),
        ({"url": "s3://b/x", "endpoint": "https://good.example/../x"}, "endpoint"),
        ({"url": "s3://b/x", "endpoint": "https://user@evil.example"}, "endpoint"),
        ({"url": "s3://b/x", "region": "x.evil.example/"}, "region"),
        ({"url": "s3://b/x", "region": "x.evil.example"}, "region"),
        ({"url": "s3://b/x", "region": "-x"}, "region"),
        ({"url": "s3://b/x", "region": "EU"}, "region"),
        ({"url": "s3://evil_x/x", "addressingStyle": "virtual"}, "addressingStyle"),
        ({"url": "s3://a..b/x", "addressingStyle": "virtual"}, "addressingStyle"),
        ({"url": "s3://a.-b/x", "addressingStyle": "virtual", "endpoint": "https://good.example"}, "endpoint|address"),
        ({"url": "s3://a@b/x"}, "url"),
        ({"url": "s3://a#b/x"}, "url"),
        ({"url": "gs://a?b/x"}, "url"),
        ({"url": "oss://evil.example#/x"}, "url"),
        ({"url": "abfs://a%2fb/x"}, "url"),
        ({"url": "hf://a\\b/x"}, "url"),
        ({"url": "az://container@account/x"}, "url"),
        ({"url": "abfs://container@account.dfs.core.windows.net/x"}, "url"),
        ({"url": "ftp://user:password@host/x"}, "url"),
        ({"url": "sftp://user@host/x"}, "url"),
        ({"url": "webhdfs://user@host/x"}, "url"),
        ({"url": "http://user:password@host/x"}, "url"),
        ({"url": "http://good.example\\.evil.example/x"}, "url"),
        ({"url": "http://%65vil.example/x"}, "url"),
        ({"url": "ftp://host:123456/x"}, "url"),
        ({"url": "http://host:99999/x"}, "url"),
        ({"url": "http://host:/x"}, "url"),
    ],
)
@pytest.mark.parametrize("listed", [(), ("https://good.example", "http://good.example")])
def test_a_place_that_two_clients_would_read_differently_is_refused(
    attributes: dict[str, str], field: str, listed: tuple[str, ...]
) -> None:
    policy = PolicySettings(allowed_endpoints=listed)
    with pytest.raises((InvalidParameter, EndpointNotAllowed), match=f"{field}|endpoint") as caught:
        VolumeParameters.parse(attributes, policy, POD)
    assert "password" not in str(caught.value)


def test_the_list_covers_the_host_of_a_bucket_only_where_it_says_so() -> None:
    attributes = {"url": "s3://metadata.google/x", "endpoint": "https://internal", "addressingStyle": "virtual"}
    with pytest.raises(EndpointNotAllowed, match=r"https://metadata\.google\.internal"):
        VolumeParameters.parse(attributes, PolicySettings(allowed_endpoints=("https://internal",)))
    listed = PolicySettings(allowed_endpoints=("https://internal", "https://*.internal"))
    VolumeParameters.parse(attributes, listed)


@given(st.text(alphabet="ab.%\\/@:#?-_E\u043e ", max_size=12), st.sampled_from(["s3", "gs", "http", "ftp"]))
def test_no_endpoint_region_or_bucket_leaves_its_place_in_a_url(text: str, scheme: str) -> None:
    for attributes in (
        {"url": f"{scheme}://{text}/x", "addressingStyle": "virtual"},
        {"url": "s3://b/x", "region": text},
        {"url": "s3://b/x", "endpoint": f"https://{text}"},
    ):
        try:
            parameters = VolumeParameters.parse(attributes, PolicySettings(), POD)
        except HayloftError:
            continue
        place = parameters.url.bucket + (parameters.region or "") + (parameters.endpoint or "")
        assert not set("@%\\#? ") & set(place.removeprefix("https://"))
        assert place.isascii()


# -- the driver's own storage -----------------------------------------------------------------------------------------


def protecting(location: str, endpoint: str | None = None, *directories: Path) -> PolicySettings:
    policy = PolicySettings(allow_file_urls=True)
    return policy.protecting(RegistrySettings(location=location, endpoint=endpoint), *directories)


AWS = ("s3://hayloft/registry", None)
OWN = ("s3://hayloft/registry", "http://minio.stores.svc:9000")
BEHIND_A_PATH = ("s3://hayloft/registry", "https://gateway.example/s3")
GOOGLE = ("gs://hayloft/registry", None)
AZURE = ("az://hayloft/registry", None)


@pytest.mark.promise("S123")
@pytest.mark.parametrize(
    ("registry", "attributes"),
    [
        (AWS, {"url": "s3://hayloft/registry"}),
        (AWS, {"url": "s3://hayloft/registry/manifests"}),
        (AWS, {"url": "s3://hayloft/registry/volumes/"}),
        (AWS, {"url": "s3://hayloft"}),
        (AWS, {"url": "s3a://hayloft/"}),
        (AWS, {"url": "S3://hayloft/./registry"}),
        (AWS, {"url": "s3://hayloft//registry"}),
        (AWS, {"url": "s3://hayloft/x/../registry"}),
        (AWS, {"url": "s3://other/../hayloft/registry"}),
        (AWS, {"url": "s3://hayloft", "backend": "s3fs"}),
        (AWS, {"url": "s3://hayloft", "endpoint": "https://s3.us-east-1.amazonaws.com"}),
        (AWS, {"url": "s3://hayloft", "endpoint": "https://S3.AmazonAWS.com:443/", "region": "us-east-1"}),
        (AWS, {"url": "s3://registry", "endpoint": "https://hayloft.s3.amazonaws.com"}),
        (AWS, {"url": "s3://registry/volumes", "endpoint": "https://s3.amazonaws.com/hayloft"}),
        (AWS, {"url": "https://hayloft.s3.amazonaws.com/registry/"}),
        (AWS, {"url": "https://s3.amazonaws.com/hayloft/registry/"}),
        (OWN, {"url": "s3://hayloft/registry", "endpoint": "http://minio.stores.svc:9000"}),
        (OWN, {"url": "s3://hayloft/registry", "endpoint": "HTTP://Minio.Stores.SVC:9000/"}),
        (OWN, {"url": "s3://hayloft/registry", "endpoint": "http://minio.stores.svc.:9000"}),
        (OWN, {"url": "s3://hayloft/registry", "endpoint": "http://minio.stores.svc.cluster.local:9000"}),
        (OWN, {"url": "s3://hayloft/registry", "endpoint": "https://10.0.0.7"}),
        (OWN, {"url": "s3://registry/x", "endpoint": "http://hayloft.minio.stores.svc:9000"}),
        (OWN, {"url": "http://minio.stores.svc:9000/hayloft/registry/"}),
        (OWN, {"url": "http://minio.stores.svc:9000/"}),
        (BEHIND_A_PATH, {"url": "s3://hayloft", "endpoint": "https://gateway.example/s3/"}),
        (BEHIND_A_PATH, {"url": "s3://registry", "endpoint": "https://gateway.example/s3/hayloft"}),
        (GOOGLE, {"url": "gs://hayloft/registry/volumes"}),
        (GOOGLE, {"url": "gcs://hayloft"}),
        (GOOGLE, {"url": "s3://hayloft", "endpoint": "https://storage.googleapis.com"}),
        (GOOGLE, {"url": "https://storage.googleapis.com/hayloft/registry/volumes/"}),
        (GOOGLE, {"url": "https://hayloft.storage.googleapis.com/registry/"}),
        (AZURE, {"url": "az://hayloft/registry"}),
        (AZURE, {"url": "az://hayloft", "endpoint": "https://ours.blob.core.windows.net"}),
        (AZURE, {"url": "https://ours.blob.core.windows.net/hayloft/registry/"}),
    ],
)
@pytest.mark.parametrize(("secrets", "tenant"), [({}, ADMINISTRATOR), (S3_SECRET, POD), (AZURE_KEY_SECRET, POD)])
def test_the_registry_is_never_a_dataset(
    registry: tuple[str, str | None],
    attributes: dict[str, str],
    secrets: dict[str, str],
    tenant: Tenant,
) -> None:
    with pytest.raises(EndpointNotAllowed, match=r"registry of this driver.*--registry") as caught:
        admitted(attributes, protecting(*registry), tenant, secrets)
    assert "hayloft/registry" not in str(caught.value).replace(attributes["url"], "")


@pytest.mark.parametrize(
    ("registry", "attributes"),
    [
        (AWS, {"url": "s3://hayloft/registry-2"}),
        (AWS, {"url": "s3://hayloft/data"}),
        (AWS, {"url": "s3://hayloft-2/registry"}),
        (AWS, {"url": "s3://data/hayloft/registry"}),
        (AWS, {"url": "gs://hayloft/registry"}),
        (AWS, {"url": "s3://hayloft/registry", "endpoint": MINIO}),
        (AWS, {"url": "https://files.s3.amazonaws.com/"}),
        (OWN, {"url": "s3://hayloft/registry"}),
        (OWN, {"url": "http://files.example/hayloft/registry/"}),
        (OWN, {"url": "s3://data/train", "endpoint": MINIO}),
        (GOOGLE, {"url": "s3://hayloft/registry"}),
        (AZURE, {"url": "hf://datasets/hayloft/registry"}),
    ],
)
def test_other_prefixes_and_services_are_datasets(registry: tuple[str, str | None], attributes: dict[str, str]) -> None:
    admitted(attributes, protecting(*registry), ADMINISTRATOR, {"token": "x"} if "hf" in attributes["url"] else {})


def test_a_container_of_another_account_is_a_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "ours")
    policy = protecting(*AZURE)
    admitted({"url": "az://hayloft/registry"}, policy, POD, AZURE_KEY_SECRET)
    with pytest.raises(EndpointNotAllowed):
        admitted({"url": "az://hayloft/registry"}, policy, POD, AZURE_KEY_SECRET | {"account_name": "ours"})


@pytest.mark.promise("S123")
def test_the_drivers_own_directories_are_never_a_dataset(tmp_path: Path) -> None:
    for name in ("registry/volumes", "cache/objects", "state", "data", "registry-2"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "cache")
    settings = CacheDaemonSettings(
        socket=tmp_path / "socket",
        state_directory=tmp_path / "state",
        chunk_store=ChunkStoreSettings(directory=tmp_path / "cache"),
        registry=RegistrySettings(location=str(tmp_path / "registry")),
        policy=PolicySettings(allow_file_urls=True),
    )
    own = (
        "",
        "/",
        "registry",
        "registry/volumes",
        "registry/none",
        "cache",
        "cache/objects",
        "state/x",
        "data/../state",
    )
    for name in (*own, "link", "link/objects", "registry/../link/objects"):
        for url in (f"file://{tmp_path}/{name}", f"file://localhost{tmp_path}/{name}"):
            with pytest.raises(EndpointNotAllowed, match="of this driver"):
                admitted({"url": url}, settings.volume_policy, ADMINISTRATOR)
    with pytest.raises(EndpointNotAllowed, match="of this driver"):
        admitted({"url": "file:///"}, settings.volume_policy, ADMINISTRATOR)
    for name in ("data", "registry-2", "none"):
        admitted({"url": f"file://{tmp_path}/{name}"}, settings.volume_policy, ADMINISTRATOR)


def test_a_registry_that_is_a_file_url_is_a_directory(tmp_path: Path) -> None:
    with pytest.raises(EndpointNotAllowed, match="registry"):
        admitted({"url": f"file://{tmp_path}"}, protecting(f"file://{tmp_path}/registry"), ADMINISTRATOR)
    admitted({"url": "s3://b/x"}, protecting(f"file://{tmp_path}/registry"), ADMINISTRATOR)


# -- time-outs --------------------------------------------------------------------------------------------------------

URL = {"url": "http://host/x"}


@pytest.mark.promise("S124")
@pytest.mark.parametrize(
    ("attributes", "field", "flag"),
    [
        ({"requestTimeout": "61s"}, "requestTimeout", "--inline-request-timeout"),
        ({"requestTimeout": "1h", "deadline": "1h"}, "requestTimeout", "--inline-request-timeout"),
        ({"deadline": "301s"}, "deadline", "--inline-deadline"),
        ({"deadline": "1d"}, "deadline", "--inline-deadline"),
    ],
)
def test_an_inline_volume_cannot_wait_longer_than_the_operator_allows(
    attributes: dict[str, str], field: str, flag: str
) -> None:
    with pytest.raises(InvalidParameter, match=rf"{field}: .*{flag}"):
        admitted({**URL, **attributes}, PolicySettings())
    admitted({**URL, **attributes}, TRUSTED)
    admitted({**URL, **attributes}, PolicySettings(), ADMINISTRATOR)


def test_bounds_below_the_defaults_lower_them() -> None:
    tight = PolicySettings(inline_request_timeout_s=40, inline_deadline_s=20)
    parameters = admitted(URL, tight)
    assert (parameters.request_timeout_s, parameters.deadline_s) == (20, 20)
    assert VolumeParameters.parse(parameters.to_context()).to_context() == parameters.to_context()
    with pytest.raises(InvalidParameter, match="deadline"):
        admitted({**URL, "requestTimeout": "30s"}, tight)
    unbounded = admitted(URL, tight, ADMINISTRATOR)
    assert (unbounded.request_timeout_s, unbounded.deadline_s) == (30, 120)


@pytest.mark.promise("S123")
@pytest.mark.parametrize("path", ["hayloft/%72egistry/", "%68ayloft/registry", "hayloft%20/../hayloft/registry"])
def test_no_spelling_of_a_web_url_reaches_the_registry(path: str) -> None:
    with pytest.raises((EndpointNotAllowed, InvalidParameter), match="url"):
        admitted({"url": f"http://minio.stores.svc:9000/{path}"}, protecting(*OWN), ADMINISTRATOR, {})


@pytest.mark.promise("S240")
@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("my%20data", True),
        ("my data/x", True),
        ("m%79%20data", True),
        ("my%20data2", False),
        ("my", False),
        ("my%2520data", False),
        ("", False),
    ],
)
def test_a_listed_endpoint_covers_a_web_url_however_it_is_spelled(path: str, allowed: bool) -> None:
    policy = PolicySettings(allowed_endpoints=("https://host/my%20data",))
    attributes = {"url": f"https://host/{path}", "manifest": "LIST"}
    if allowed:
        VolumeParameters.parse(attributes, policy)
    else:
        with pytest.raises(EndpointNotAllowed):
            VolumeParameters.parse(attributes, policy)
