"""The identities that a cloud gives to the driver's own pods, and those that it gives for the token of another pod,
each from an emulated service that refuses any request of another form."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from csi_driver.model.chunk import ByteRange
from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import CredentialsRejected, HayloftError, InvalidParameter, TransientStoreError
from csi_driver.model.pod_role import PodRole
from csi_driver.objects.pod_identity import keys_of_pod
from csi_driver.objects.store_factory import open_store
from tests.support.guarded_s3 import GuardedS3
from tests.support.hostile_clouds import HostileAzure, HostileGoogle
from tests.support.hostile_s3 import HostileS3
from tests.support.metadata_services import KEY, POD_TOKEN, SECRET, SESSION, TOKEN, MetadataServices
from tests.support.tls import trusted_tls
from tests.support.token_services import (
    ACCOUNT,
    AWS,
    AZURE,
    CLIENT,
    PROVIDER,
    ROLE,
    TENANT,
    TokenServices,
    make_token,
    subject,
)

DRIVER = subject("hayloft-node", "hayloft")
TRUSTED = {
    ROLE: {DRIVER, subject("trainer")},
    ACCOUNT: {DRIVER, subject("trainer")},
    CLIENT: {DRIVER, subject("trainer")},
}


@pytest.fixture(autouse=True)
def _no_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_", "GCE_", "IDENTITY_", "MSI_")):
            monkeypatch.delenv(name)
    for name, value in {
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "CLOUDSDK_CONFIG": "/nonexistent",
        "NO_GCE_CHECK": "true",
        "no_proxy": "*",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def metadata() -> Iterator[MetadataServices]:
    with MetadataServices() as services:
        yield services


@pytest.fixture(scope="module")
def tokens() -> Iterator[TokenServices]:
    with TokenServices(TRUSTED) as services:
        yield services


@pytest.fixture(scope="module")
def entra(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TokenServices, Path]]:
    """Azure's service, over TLS, and the authority of its certificate."""
    authority_file = tmp_path_factory.mktemp("azure") / "ca.pem"
    with trusted_tls() as (context, authority), TokenServices(TRUSTED, tls=context) as services:
        authority_file.write_text(authority)
        yield services, authority_file


Surroundings = Callable[[pytest.FixtureRequest, Path], Mapping[str, str]]


def irsa(request: pytest.FixtureRequest, home: Path) -> Mapping[str, str]:
    """IAM roles for service accounts: a token in a file, which STS exchanges."""
    (home / "token").write_text(make_token("hayloft-node", AWS, namespace="hayloft"))
    more = {
        "AWS_ROLE_ARN": ROLE,
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(home / "token"),
        "AWS_ROLE_SESSION_NAME": "hayloft",
    }
    return request.getfixturevalue("tokens").environment() | more


def eks_pod_identity(request: pytest.FixtureRequest, home: Path) -> Mapping[str, str]:
    (home / "eks-token").write_text(POD_TOKEN)
    return {
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://{request.getfixturevalue('metadata').host}/v1/credentials",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(home / "eks-token"),
    }


def instance_role(request: pytest.FixtureRequest, home: Path) -> Mapping[str, str]:
    endpoint = f"http://{request.getfixturevalue('metadata').host}/"
    return {"AWS_EC2_METADATA_DISABLED": "false", "AWS_EC2_METADATA_SERVICE_ENDPOINT": endpoint}


def google_federation(request: pytest.FixtureRequest, home: Path) -> Mapping[str, str]:
    """A file of ``gcloud iam workload-identity-pools create-cred-config``."""
    services = request.getfixturevalue("tokens")
    (home / "token").write_text(make_token("hayloft-node", f"https:{PROVIDER}", namespace="hayloft"))
    impersonation = f"{services.url}/v1/projects/-/serviceAccounts/{ACCOUNT}:generateAccessToken"
    (home / "google.json").write_text(
        json.dumps(
            {
                "type": "external_account",
                "audience": PROVIDER,
                "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
                "token_url": f"{services.url}/v1/token",
                "service_account_impersonation_url": impersonation,
                "credential_source": {"file": str(home / "token"), "format": {"type": "text"}},
            }
        )
    )
    return {"GOOGLE_APPLICATION_CREDENTIALS": str(home / "google.json")}


def azure_workload(request: pytest.FixtureRequest, home: Path) -> Mapping[str, str]:
    services, authority_file = request.getfixturevalue("entra")
    (home / "token").write_text(make_token("hayloft-node", AZURE, namespace="hayloft"))
    more = {"AZURE_TENANT_ID": TENANT, "AZURE_CLIENT_ID": CLIENT, "AZURE_FEDERATED_TOKEN_FILE": str(home / "token")}
    return more | azure_trust(services, authority_file)


def azure_managed(request: pytest.FixtureRequest, home: Path) -> Mapping[str, str]:
    host = f"http://{request.getfixturevalue('metadata').host}"
    return {"AZURE_POD_IDENTITY_AUTHORITY_HOST": host, "AZURE_STORAGE_ACCOUNT": "nodesown"}


def azure_trust(services: TokenServices, authority_file: Path) -> dict[str, str]:
    return {
        "AZURE_AUTHORITY_HOST": services.url,
        "REQUESTS_CA_BUNDLE": str(authority_file),
        "AZURE_STORAGE_ACCOUNT": "nodesown",
    }


def read_all(scheme: str) -> HostileS3:
    """Lists and reads with the identity of this process. Returns what the store was asked."""
    server: HostileS3
    with ExitStack() as stack:
        if scheme == "s3":
            server = stack.enter_context(GuardedS3({"dir/a": b"0123456789"}, {KEY: SECRET}))
        else:
            server = stack.enter_context({"gs": HostileGoogle, "az": HostileAzure}[scheme]({"dir/a": b"0123456789"}))
        options = StoreOptions(endpoint=server.endpoint, region="us-east-1", deadline_s=2, request_timeout_s=2)
        store = open_store(DatasetUrl.parse(f"{scheme}://data/dir"), options, Credentials())
        list(store.list("dir/"))
        assert b"".join(store.read_range("dir/a", ByteRange(2, 5), if_match=None)) == b"234"
        store.close()
    return server


@pytest.mark.promise("S409")
@pytest.mark.parametrize(
    ("scheme", "surroundings", "sent"),
    [
        ("s3", eks_pod_identity, SESSION),
        ("s3", instance_role, SESSION),
        ("gs", google_federation, "Bearer google-"),
        ("az", azure_workload, "Bearer azure-"),
        ("az", azure_managed, f"Bearer {TOKEN}"),
    ],
)
def test_the_identity_of_the_drivers_pod_is_found_and_used(
    scheme: str,
    surroundings: Surroundings,
    sent: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    metadata: MetadataServices,
) -> None:
    refused_before = len(metadata.refused)
    for name, value in surroundings(request, tmp_path).items():
        monkeypatch.setenv(name, value)
    server = read_all(scheme)
    assert server.requests
    for asked in server.requests:
        assert sent in asked.headers.get("x-amz-security-token", asked.headers["authorization"])
    assert metadata.refused[refused_before:] == []


@pytest.mark.promise("S409")
def test_a_role_for_a_service_account_is_assumed_with_the_token_of_its_file(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: TokenServices
) -> None:
    for name, value in irsa(request, tmp_path).items():
        monkeypatch.setenv(name, value)
    tokens.asked.clear()
    with GuardedS3({"dir/a": b"0123456789"}, {}) as server:
        monkeypatch.setattr(tokens, "issued", lambda key, secret: server.secrets.update({key: secret}))
        server.readers.add("ASIA1")
        options = StoreOptions(endpoint=server.endpoint, region="us-east-1", deadline_s=2, request_timeout_s=2)
        store = open_store(DatasetUrl.parse("s3://data/dir"), options, Credentials())
        assert b"".join(store.read_range("dir/a", ByteRange(2, 5), if_match=None)) == b"234"
        store.close()
    ((_, form),) = tokens.asked
    assert form["RoleArn"] == ROLE


# -- tokens of other pods ----------------------------------------------------------------------------------------------

ROLES = {
    "aws": (PodRole(aws_role_arn=ROLE), AWS),
    "google": (PodRole(google_workload_provider=PROVIDER, google_service_account=ACCOUNT), f"https:{PROVIDER}"),
    "google without an account": (PodRole(google_workload_provider=PROVIDER), f"https:{PROVIDER}"),
    "azure": (
        PodRole(azure_tenant_id=TENANT, azure_client_id=CLIENT, azure_storage_account="traindata"),
        AZURE,
    ),
}


@pytest.fixture
def services(
    provider: str, tokens: TokenServices, entra: tuple[TokenServices, Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[TokenServices]:
    chosen = entra[0] if provider == "azure" else tokens
    for name, value in (chosen.environment() | azure_trust(*entra)).items():
        monkeypatch.setenv(name, value)
    yield chosen
    chosen.failure = None


@pytest.mark.promise("S403")
@pytest.mark.parametrize("provider", ROLES)
def test_the_token_of_a_pod_becomes_keys_that_name_the_verified_service_account(
    provider: str, services: TokenServices
) -> None:
    role, audience = ROLES[provider]
    first = keys_of_pod(role, make_token("trainer", audience))
    again = keys_of_pod(role, make_token("trainer", audience, serial=2))
    assert first.identity == again.identity
    assert subject("trainer") in first.identity
    assert 3000 < first.life_s <= 3600
    assert set(first.values) == {
        "aws": {"access_key_id", "secret_access_key", "session_token"},
        "azure": {"account_name", "access_token"},
    }.get(provider, {"access_token"})
    for secret in first.values.values():
        assert secret not in repr(first)


@pytest.mark.promise("S404")
@pytest.mark.parametrize("provider", ROLES)
def test_a_token_that_the_cluster_has_not_signed_gets_no_keys(provider: str, services: TokenServices) -> None:
    role, audience = ROLES[provider]
    for token in (make_token("trainer", audience, key=b"forged"), make_token("trainer", "another audience")):
        with pytest.raises(CredentialsRejected, match=r"HTTP 40[01].*check") as caught:
            keys_of_pod(role, token)
        assert token not in str(caught.value)
        assert "quoted" not in str(caught.value)


@pytest.mark.promise("S406")
@pytest.mark.parametrize("provider", ["aws", "google", "azure"])
def test_a_service_account_without_the_role_is_refused_by_name(provider: str, services: TokenServices) -> None:
    role, audience = ROLES[provider]
    with pytest.raises(CredentialsRejected) as caught:
        keys_of_pod(role, make_token("stranger", audience))
    assert subject("stranger") in str(caught.value)
    assert str(role) in str(caught.value)


@pytest.mark.promise("S405")
@pytest.mark.parametrize("provider", ROLES)
def test_a_service_that_is_unavailable_is_worth_a_retry(provider: str, services: TokenServices) -> None:
    role, audience = ROLES[provider]
    services.failure = (503, "{}")
    with pytest.raises(TransientStoreError) as caught:
        keys_of_pod(role, make_token("trainer", audience))
    assert caught.value.when_exhausted is CredentialsRejected


@pytest.mark.promise("S405")
@pytest.mark.parametrize("provider", ["aws", "google", "azure"])
def test_a_service_that_cannot_be_reached_is_worth_a_retry(
    provider: str, services: TokenServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    role, audience = ROLES[provider]
    for name, value in services.environment().items():
        if "://" in value:
            monkeypatch.setenv(name, value.partition("://")[0] + "://127.0.0.1:1")
    with pytest.raises(TransientStoreError, match=r"cannot be (reached|used)"):
        keys_of_pod(role, make_token("trainer", audience))


@pytest.mark.promise("S408")
@pytest.mark.parametrize(
    "text",
    ["", "x", "a.b", "a.b.c", "....", "eyJ.eyJ.x", f"{'a' * 9000}.b.c", make_token("trainer").replace(".", "!")],
)
def test_a_text_that_is_no_token_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(InvalidParameter, match="hidden") as caught:
        keys_of_pod(PodRole(aws_role_arn=ROLE), text)
    assert len(text) < 3 or text not in str(caught.value)


@pytest.mark.promise("S408")
@pytest.mark.parametrize("provider", ROLES)
@pytest.mark.parametrize(
    "failure",
    [
        (400, "not json {token}"),
        (200, "<x/>"),
        (200, '{"access_token": {}}'),
        (403, '{"error": "{token}", "error_description": "{token}"}'),
        (301, "{token}"),
        (200, ""),
    ],
)
def test_no_answer_of_a_service_shows_the_token(
    provider: str, services: TokenServices, failure: tuple[int, str]
) -> None:
    role, audience = ROLES[provider]
    token = make_token("trainer", audience)
    services.failure = (failure[0], failure[1].replace("{token}", token))
    with pytest.raises(HayloftError) as caught:
        keys_of_pod(role, token)
    assert token not in str(caught.value)
    assert token.split(".")[2] not in str(caught.value)
