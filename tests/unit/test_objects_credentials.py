"""Secrets in their spellings, the ambient identity, and the access domain."""

from __future__ import annotations

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import CredentialsRejected, InvalidParameter, MissingParameter
from csi_driver.objects.credentials import access_domain, credential_id, parse_secret
from csi_driver.objects.s3.identity import S3Identity
from tests.support.secrets_of_stores import google_secret, service_account

URL = DatasetUrl.parse("s3://bucket/train")
SECRET = "wJalrXUtnFEMIsecret"
PAIR = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": SECRET}


@pytest.fixture(autouse=True)
def no_ambient_identity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Credentials of this machine must not affect a test; nothing listens at the port of the metadata service."""
    for name in (
        "ACCESS_KEY_ID",
        "SECRET_ACCESS_KEY",
        "SESSION_TOKEN",
        "PROFILE",
        "ROLE_ARN",
        "WEB_IDENTITY_TOKEN_FILE",
    ):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    for name in ("FULL_URI", "RELATIVE_URI"):
        monkeypatch.delenv(f"AWS_CONTAINER_CREDENTIALS_{name}", raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1/")


@pytest.mark.parametrize(
    "names",
    [
        ("access_key_id", "secret_access_key"),
        ("accessKeyID", "secretAccessKey"),
        ("key_id", "access_key"),
        ("access_key", "secret_key"),
        ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        ("aws-access-key-id", "aws-secret-access-key"),
        ("accesskey", "secretkey"),
        ("akId", "akSecret"),
        ("accessKeyId", "accessKeySecret"),
        ("accessKeyID", "accessSecretKey"),
        ("fs.s3a.access.key", "fs.s3a.secret.key"),
        ("s3.aws-access-key", "s3.aws-secret-key"),
        ("rootUser", "rootPassword"),
        ("MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD"),
        ("RCLONE_S3_ACCESS_KEY_ID", "RCLONE_S3_SECRET_ACCESS_KEY"),
        ("R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY"),
        ("applicationKeyId", "applicationKey"),
    ],
)
@pytest.mark.promise("S414")
def test_the_common_spellings_of_s3_keys_are_one(names: tuple[str, str]) -> None:
    parsed = parse_secret({names[0]: "AKIDEXAMPLE", names[1]: f"{SECRET}\n"})
    assert parsed == Credentials(PAIR)


@pytest.mark.parametrize("name", ["session_token", "sessionToken", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"])
def test_a_session_token_belongs_to_the_keys(name: str) -> None:
    assert parse_secret(PAIR | {name: "t"}) == Credentials(PAIR | {"session_token": "t"})


def test_google_and_azure_secrets_are_parsed() -> None:
    (key,) = google_secret().values()
    parsed = parse_secret({"service-account.json": f"{key}\n"}).values["service_account_json"]
    assert json.loads(parsed)["client_email"] == service_account()["client_email"]
    azure = {"azurestorageaccountname": "acct", "azurestorageaccountkey": "a2V5"}
    assert parse_secret(azure).values == {"account_name": "acct", "account_key": "a2V5"}


@pytest.mark.promise("S414")
@pytest.mark.parametrize(
    "name",
    [
        *("service_account_json", "credentials.json", "key.json", "sa.json", "service-account.json"),
        *("GOOGLE_CREDENTIALS", "gcpServiceAccountKey", "GOOGLE_APPLICATION_CREDENTIALS_JSON", "gcp-credentials.json"),
    ],
)
def test_the_common_spellings_of_google_keys_are_one(name: str) -> None:
    (key,) = google_secret().values()
    assert set(parse_secret({name: key}).values) == {"service_account_json"}


@pytest.mark.promise("S414")
@pytest.mark.parametrize(
    ("account", "key", "meaning"),
    [
        ("account_name", "account_key", "account_key"),
        ("azurestorageaccountname", "azurestorageaccountkey", "account_key"),
        ("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCESS_KEY", "account_key"),
        ("storageAccountName", "storageAccountKey", "account_key"),
        ("accountName", "storage-key", "account_key"),
        ("azurestorageaccountname", "accessToken", "access_token"),
    ],
)
def test_the_common_spellings_of_azure_keys_are_one(account: str, key: str, meaning: str) -> None:
    assert parse_secret({account: "acct", key: "a2V5"}).values == {"account_name": "acct", meaning: "a2V5"}


@pytest.mark.promise("S414")
@pytest.mark.parametrize("name", ["sas", "sasToken", "AZURE_STORAGE_SAS_TOKEN", "azurestorageaccountsastoken"])
def test_the_common_spellings_of_a_signature_are_one(name: str) -> None:
    assert set(parse_secret({"accountName": "acct", name: "sv=1&sig=eA%3D"}).values) == {"account_name", "sas_token"}


@pytest.mark.promise("S414")
@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("AZURE_STORAGE_CONNECTION_STRING", "account_key"),
        ("AZURE_CLIENT_SECRET", "service principal"),
        ("AWS_ROLE_ARN", "identity: pod"),
        ("hmacSecret", "storage.googleapis.com"),
        ("endpoint", "volume attributes"),
    ],
)
def test_a_key_that_no_store_has_is_refused_with_what_to_give_instead(name: str, remedy: str) -> None:
    with pytest.raises(InvalidParameter, match=rf"secret key: '{name}'.*{remedy}") as caught:
        parse_secret(PAIR | {name: f"{SECRET}-x"})
    assert f"{SECRET}-x" not in str(caught.value)


def test_keys_that_kubelet_adds_to_a_secret_are_ignored() -> None:
    secret = PAIR | {"csi.storage.k8s.io/serviceAccount.tokens": "{}"}
    assert parse_secret(secret) == Credentials(PAIR)


def test_an_empty_secret_means_the_ambient_identity() -> None:
    assert not parse_secret({})


def test_an_unknown_key_is_named_without_its_value() -> None:
    with pytest.raises(InvalidParameter, match="endpointt") as caught:
        parse_secret(PAIR | {"endpointt": SECRET})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("secret", "missing"),
    [
        ({"key_id": "x"}, "secret_access_key"),
        ({"secretAccessKey": SECRET}, "access_key_id"),
        ({"session_token": SECRET}, "access_key_id"),
        ({"account_key": SECRET}, "account_name"),
        ({"access_key_id": "x", "secret_access_key": " \n"}, "secret_access_key"),
    ],
)
def test_half_a_pair_is_rejected_with_the_name_of_the_missing_half(secret: dict[str, str], missing: str) -> None:
    with pytest.raises(MissingParameter, match=missing) as caught:
        parse_secret(secret)
    assert SECRET not in str(caught.value)


def test_two_spellings_with_different_values_are_rejected() -> None:
    with pytest.raises(InvalidParameter, match="two spellings"):
        parse_secret(PAIR | {"AWS_ACCESS_KEY_ID": "another"})


def test_no_repr_shows_a_secret() -> None:
    identity = S3Identity(Credentials(PAIR | {"session_token": "tokentoken"}))
    for thing in (Credentials(PAIR), identity, identity.keys()):
        assert SECRET not in repr(thing)
        assert "tokentoken" not in repr(thing)


def test_the_environment_is_the_ambient_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    identity = S3Identity(Credentials())
    assert (identity.keys().access_key_id, identity.name()) == ("AKENV", "key:AKENV")


def test_replaced_keys_in_a_file_are_read_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    path.write_text("[default]\naws_access_key_id = OLD\naws_secret_access_key = x\n")
    identity = S3Identity(Credentials())
    assert identity.keys().access_key_id == "OLD"
    path.write_text("[default]\naws_access_key_id = NEW\naws_secret_access_key = x\n")
    assert identity.keys().access_key_id == "NEW"


def test_without_any_identity_the_error_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CredentialsRejected, match="anonymous"):
        S3Identity(Credentials()).keys()


def test_a_metadata_service_that_hangs_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}/")
        done = threading.Event()

        def ask() -> None:
            with pytest.raises(CredentialsRejected):
                S3Identity(Credentials()).keys()
            done.set()

        threading.Thread(target=ask, daemon=True).start()
        assert done.wait(20)


def test_container_credentials_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Agent(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(
                {"AccessKeyId": "AKPOD", "SecretAccessKey": SECRET, "Token": "t", "Expiration": "2099-01-01T00:00:00Z"}
            ).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Silence."""

    server = HTTPServer(("127.0.0.1", 0), Agent)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        uri = f"http://127.0.0.1:{server.server_port}/creds"
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri)
        identity = S3Identity(Credentials())
        keys = identity.keys()
        assert (keys.access_key_id, keys.session_token, keys.rotates) == ("AKPOD", "t", True)
        assert identity.name() == f"container:{uri}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class TestAccessDomain:
    def test_an_access_domain_holds_no_secret(self) -> None:
        domain = access_domain(URL, StoreOptions(), Credentials(PAIR))
        assert SECRET not in domain
        assert "AKIDEXAMPLE" not in domain

    def test_a_rotating_session_stays_in_its_domain(self) -> None:
        one = Credentials(PAIR | {"session_token": "one"})
        two = Credentials(PAIR | {"session_token": "two", "secret_access_key": "renewed"})
        assert access_domain(URL, StoreOptions(), one) == access_domain(URL, StoreOptions(), two)

    @pytest.mark.promise("S140")
    def test_connections_that_deserve_other_trust_have_domains_of_their_own(self) -> None:
        own = "http://store:9000"
        options = [
            StoreOptions(),
            StoreOptions(endpoint=own),
            StoreOptions(endpoint="https://store:9000"),
            StoreOptions(endpoint="http://store:9001"),
            StoreOptions(endpoint=f"{own}/path"),
            StoreOptions(endpoint=own, addressing_style="virtual"),
            StoreOptions(endpoint=own, ca_bundle_pem="one authority"),
            StoreOptions(endpoint=own, ca_bundle_pem="another authority"),
            StoreOptions(endpoint=own, verify_checksums="off"),
            StoreOptions(endpoint=own, verify_checksums="full"),
        ]
        domains = [access_domain(URL, each, Credentials(PAIR)) for each in options]
        domains.append(access_domain(DatasetUrl.parse("gs://bucket"), StoreOptions(), Credentials()))
        for account in ("one", "two"):
            secret = Credentials({"account_name": account, "account_key": SECRET})
            for endpoint in (None, own):
                url = DatasetUrl.parse("az://container/x")
                domains.append(access_domain(url, StoreOptions(endpoint=endpoint), secret))
        assert len(set(domains)) == len(domains)

    def test_a_client_that_verifies_no_checksums_shares_with_those_that_verify_none(self) -> None:
        unverified = access_domain(URL, StoreOptions(backend="s3fs"), Credentials(PAIR))
        assert unverified == access_domain(URL, StoreOptions(verify_checksums="off"), Credentials(PAIR))
        assert unverified != access_domain(URL, StoreOptions(), Credentials(PAIR))

    def test_users_of_a_server_with_home_directories_have_domains_of_their_own(self) -> None:
        url = DatasetUrl.parse("sftp://server/data")
        users = [{"username": "one", "password": "x"}, {"username": "two", "password": "x"}, {"token": "long"}, {}]
        assert len({access_domain(url, StoreOptions(), Credentials(user)) for user in users}) == 4

    def test_who_reads_does_not_matter(self) -> None:
        other = Credentials(PAIR | {"access_key_id": "OTHER"})
        one = access_domain(URL, StoreOptions(), Credentials(PAIR))
        assert one == access_domain(URL, StoreOptions(), other)
        assert one == access_domain(URL, StoreOptions(anonymous=True), Credentials())

    def test_spelling_and_path_of_the_url_do_not_matter(self) -> None:
        one = access_domain(URL, StoreOptions(endpoint="HTTP://Store:80/"), Credentials(PAIR))
        two = access_domain(DatasetUrl.parse("s3://other/x"), StoreOptions(endpoint="http://store"), Credentials(PAIR))
        assert one == two

    def test_the_region_does_not_matter(self) -> None:
        one = access_domain(URL, StoreOptions(region="eu-west-1"), Credentials(PAIR))
        assert one == access_domain(URL, StoreOptions(), Credentials(PAIR))


KEY = bytes(range(32))


class TestCredentialId:
    @pytest.mark.promise("S141")
    def test_every_part_of_a_secret_counts(self) -> None:
        secrets = [
            PAIR,
            PAIR | {"secret_access_key": "forged"},
            PAIR | {"access_key_id": "OTHER"},
            PAIR | {"session_token": "one"},
            PAIR | {"session_token": "two"},
        ]
        ids = {credential_id(URL, StoreOptions(), Credentials(each), KEY) for each in secrets}
        ids.add(credential_id(URL, StoreOptions(anonymous=True), Credentials(PAIR), KEY))
        ids.add(credential_id(URL, StoreOptions(requester_pays=True), Credentials(PAIR), KEY))
        assert len(ids) == 7
        assert all(len(each) == 16 for each in ids)

    def test_a_service_account_with_another_key_is_another_credential(self) -> None:
        url = DatasetUrl.parse("gs://bucket/x")
        texts = [json.dumps({"client_email": "a@b", "private_key": key}) for key in "12"]
        ids = [credential_id(url, StoreOptions(), Credentials({"service_account_json": text}), KEY) for text in texts]
        assert ids[0] != ids[1]

    def test_it_reveals_nothing_without_the_key_of_the_node(self) -> None:
        one = credential_id(URL, StoreOptions(), Credentials(PAIR), KEY)
        assert one != credential_id(URL, StoreOptions(), Credentials(PAIR), bytes(32))
        assert one == credential_id(URL, StoreOptions(), Credentials(dict(reversed(PAIR.items()))), KEY)

    def test_a_web_identity_is_its_role(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        ids = set()
        for role in ("arn:aws:iam::1:role/a", "arn:aws:iam::1:role/b"):
            for token in ("one", "two"):
                (tmp_path / "token").write_text(token)
                monkeypatch.setenv("AWS_ROLE_ARN", role)
                monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
                ids.add(credential_id(URL, StoreOptions(), Credentials(), KEY))
        assert len(ids) == 2
