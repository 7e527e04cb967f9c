"""Attacker and victim in one daemon, for every kind of credential and every kind of store: none of the victim's bytes
without a proof, none of the attacker's bytes to the victim, and nothing at all to an address that is refused."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from shutil import rmtree

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from hayloft_lab.emulated_kubelet import CallRefused, EmulatedKubelet, Volume
from hayloft_lab.node_driver import NodeDriver
from tests.support.any_store import BUCKET, KEY, AnyStore, any_store
from tests.support.tls import trusted_tls

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(600)]

VICTIM, FORGED = "victim", "attacker"
CALL_S = 60.0
CONTENT = {VICTIM: b"bytes of the victim " * 500, FORGED: b"bytes of attackers! " * 500}

NODE_KEY = "AKIAOFTHENODE0000000"
"""Of the node's own identity: what the driver has in its environment."""


def key_of(whose: str) -> str:
    """A secret of one party, with the grammar of every kind of key: base64 of letters and digits."""
    return base64.b64encode(f"secret of the {whose} 00".encode()).decode().replace("=", "A")


@cache
def _private_key(whose: str) -> str:
    """A key of the one party; another one for the other."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption()).decode()


def service_account(whose: str, **more: object) -> str:
    """The attacker knows the e-mail address of the victim, not the key."""
    return json.dumps(
        {
            "type": "service_account",
            "project_id": "project",
            "private_key_id": key_of(whose),
            "private_key": _private_key(whose),
            "client_email": "trainer@project.iam.gserviceaccount.com",
            "client_id": "1",
            **more,
        }
    )


def credentials(whose: str) -> dict[str, tuple[dict[str, str], dict[str, str]]]:
    """Secret and attributes by kind. Names, ids and addresses are those of the victim for both: they are no secrets."""
    key_id, secret = "AKIAVICTIM0000000000", key_of(whose)
    return {
        "S3 key": ({"access_key_id": key_id, "secret_access_key": secret}, {}),
        "session token": (
            {"access_key_id": key_id, "secret_access_key": key_of("both"), "session_token": secret},
            {},
        ),
        "Google JSON": ({"service_account_json": service_account(whose)}, {}),
        "Azure key": ({"account_name": "victimaccount", "account_key": secret}, {}),
        "SAS": ({"account_name": "victimaccount", "sas_token": f"sv=2024-11-04&sp=r&sig={secret}"}, {}),
        "basic auth": ({"username": "victim", "password": secret}, {}),
        "token": ({"token": secret}, {}),
        "anonymous": ({}, {"anonymous": "true"}),
        "none": ({}, {}),
    }


KINDS = tuple(credentials(VICTIM))
STORES = ("s3", "gs", "az", "http")
OWN_KINDS = {"s3": ("S3 key", "session token"), "gs": ("anonymous",), "az": ("Azure key", "SAS")}
"""Credentials with which a victim can read at a server on loopback. Google's tokens come from Google alone, so there
the victim is anonymous; a web server gets no credential, so there all readers are the same."""


def attributes(scheme: str, store: AnyStore, endpoint: str = "") -> dict[str, str]:
    endpoint = endpoint or store.url()
    quick = {"requestTimeout": "2s", "deadline": "2s", "view": "fuse", "region": "us-east-1"}
    if scheme == "http":
        return {"url": f"{endpoint}/{BUCKET}/", **quick}
    return {"url": f"{scheme}://{BUCKET}/", "endpoint": endpoint, "addressingStyle": "path", **quick}


class Tenants:
    """Mounts inline volumes for both, and reads their one file."""

    def __init__(self, kubelet: EmulatedKubelet) -> None:
        self._kubelet = kubelet

    def mounted(self, whose: str, kind: str, wanted: Mapping[str, str]) -> Volume:
        """Raises CallRefused."""
        secret, more = credentials(whose)[kind]
        return self._kubelet.inline(whose, {**wanted, **more}, secret, CALL_S)

    def mount_google(self, service_account_json: str) -> None:
        """Nothing of Google is reached from here, so the driver must refuse the Secret."""
        wanted = {"url": f"gs://{BUCKET}/", "requestTimeout": "2s", "deadline": "2s"}
        with pytest.raises(CallRefused) as refused:
            self._kubelet.inline(FORGED, wanted, {"service_account_json": service_account_json}, CALL_S)
        assert refused.value.code in ("PERMISSION_DENIED", "INVALID_ARGUMENT"), refused.value

    def read(self, whose: str, kind: str, wanted: Mapping[str, str]) -> bytes:
        """What a pod gets that mounts the volume and reads its file; empty if it is refused anywhere."""
        try:
            volume = self.mounted(whose, kind, wanted)
        except CallRefused:
            return b""
        try:
            return (volume.target_path / KEY).read_bytes()
        except OSError:
            return b""
        finally:
            self._kubelet.unpublish(volume)


@contextmanager
def node(*flags: str) -> Iterator[Tenants]:
    home = Path(tempfile.mkdtemp(prefix="ht-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", NODE_KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", key_of("node"))
        driver = NodeDriver(home, flags)
        driver.start()
    kubelet = EmulatedKubelet(driver.endpoint, driver.kubelet_directory)
    try:
        driver.wait_until_ready(kubelet)
        yield Tenants(kubelet)
    finally:
        kubelet.close()
        driver.stop()
        rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def tenants() -> Iterator[Tenants]:
    """Loopback is allowed here: these tests are about whose bytes they are."""
    with node("--allowed-address=127.0.0.0/8") as found:
        yield found


# -- whose bytes -------------------------------------------------------------------------------------------------------


@pytest.mark.promise("S181")
@pytest.mark.parametrize(("scheme", "kind"), [(scheme, kind) for scheme in OWN_KINDS for kind in OWN_KINDS[scheme]])
def test_no_credential_reads_cached_bytes_that_the_store_does_not_give_it(
    tenants: Tenants, scheme: str, kind: str
) -> None:
    """The attacker may list, and knows everything of the victim but the secret."""
    with any_store(CONTENT[VICTIM]) as store:
        wanted = attributes(scheme, store)
        assert tenants.read(VICTIM, kind, wanted) == CONTENT[VICTIM]
        store.denies = True
        others = [other for other in KINDS if (other, kind) != ("anonymous", "anonymous")]
        got = {other: len(tenants.read(FORGED, other, wanted)) for other in others}
    assert got == dict.fromkeys(others, 0)


@pytest.mark.promise("S182")
@pytest.mark.parametrize(
    ("scheme", "kind"), [*((scheme, kind) for scheme in OWN_KINDS for kind in OWN_KINDS[scheme]), ("http", "none")]
)
def test_bytes_of_a_store_that_the_victim_does_not_trust_are_not_given_to_it(
    tenants: Tenants, scheme: str, kind: str
) -> None:
    """The attacker answers at the address of the victim's store with a certificate of its own, which only its own
    volume trusts, under the same URL, key, size and ETag."""
    with (
        trusted_tls() as (forged_tls, forged_trust),
        trusted_tls() as (tls, trust),
        any_store(CONTENT[FORGED], tls=forged_tls) as store,
    ):
        wanted = attributes(scheme, store)
        assert tenants.read(FORGED, kind, {**wanted, "caBundle": forged_trust}) == CONTENT[FORGED]
        store.tls, store.content = tls, CONTENT[VICTIM]
        assert tenants.read(VICTIM, kind, {**wanted, "caBundle": trust}) == CONTENT[VICTIM]


# -- where requests go -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded() -> Iterator[Tenants]:
    """One address of loopback is allowed, for a store that is not where it redirects to."""
    with node("--allowed-address=127.0.0.2/32") as found:
        yield found


def _refused(tenants: Tenants, kind: str, wanted: Mapping[str, str]) -> None:
    with pytest.raises(CallRefused) as refused:
        tenants.mounted(FORGED, kind, wanted)
    assert refused.value.code in ("PERMISSION_DENIED", "INVALID_ARGUMENT"), refused.value


@pytest.mark.promise("S183")
@pytest.mark.parametrize("scheme", STORES)
def test_nothing_is_sent_to_an_address_that_the_policy_refuses(guarded: Tenants, scheme: str) -> None:
    with any_store(CONTENT[VICTIM]) as store:
        for kind in KINDS:
            for host in ("", "localhost", "127.1", "0x7f000001", "[::ffff:127.0.0.1]"):
                _refused(guarded, kind, attributes(scheme, store, store.url(host)))
        assert (store.connections, store.requests) == (0, [])


@pytest.mark.promise("S183")
@pytest.mark.parametrize("scheme", STORES)
def test_no_redirect_is_followed_to_an_address_that_the_policy_refuses(guarded: Tenants, scheme: str) -> None:
    with any_store(CONTENT[VICTIM]) as store, any_store(CONTENT[FORGED], "127.0.0.2") as allowed:
        allowed.redirect = store.url()
        got = {kind: guarded.read(FORGED, kind, attributes(scheme, allowed)) for kind in KINDS}
        assert allowed.requests, "the store that redirects was asked"
        assert (store.connections, store.requests) == (0, [])
    assert got == dict.fromkeys(KINDS, b"")


@pytest.mark.promise("S183")
@pytest.mark.parametrize("field", ["gcs_base_url", "token_uri", "auth_uri", "universe_domain"])
def test_no_field_of_a_service_account_names_a_server(guarded: Tenants, field: str) -> None:
    with any_store(CONTENT[VICTIM]) as store:
        fields = {"gcs_base_url": store.url(), "disable_oauth": True, field: store.url()}
        guarded.mount_google(service_account(FORGED, **fields))
        assert (store.connections, store.requests) == (0, [])


@pytest.mark.promise("S184")
@pytest.mark.parametrize("scheme", STORES)
def test_the_identity_of_the_node_is_in_no_request_of_a_tenant(guarded: Tenants, scheme: str) -> None:
    with any_store(CONTENT[FORGED], "127.0.0.2") as allowed:
        for kind in KINDS:
            guarded.read(FORGED, kind, attributes(scheme, allowed))
        sent = json.dumps(allowed.requests)
    assert NODE_KEY not in sent
    assert "oauth" not in sent
