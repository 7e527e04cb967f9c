"""The parameters of a pod's identity, the tokens of a call, and when they are exchanged."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.csi.service_account_tokens import secrets_for_daemon
from csi_driver.daemon.pod_sessions import PodSession, PodSessions
from csi_driver.model.errors import (
    CredentialsRejected,
    HayloftError,
    IdentityNotAllowed,
    InvalidParameter,
    MissingParameter,
    TransientStoreError,
    VolumeConflict,
)
from csi_driver.model.pod_role import SERVICE_ACCOUNT_TOKENS, PodKeys, PodRole
from csi_driver.model.tenant import Tenant
from csi_driver.objects.credentials import parse_secret
from csi_driver.settings import PolicySettings
from csi_driver.volumes.admission import admit
from csi_driver.volumes.data_plane import MountRequest
from csi_driver.volumes.parameters import VolumeParameters
from tests.support.token_services import ACCOUNT, CLIENT, PROVIDER, ROLE, TENANT, kubelet_tokens, make_token

POD = Tenant("team", inline=True)
AWS = {"url": "s3://b/x", "identity": "pod", "awsRoleArn": ROLE}
GOOGLE = {"url": "gs://b/x", "identity": "pod", "googleWorkloadProvider": PROVIDER}
AZURE = {
    "url": "az://b/x",
    "identity": "pod",
    "azureTenantId": TENANT,
    "azureClientId": CLIENT,
    "azureStorageAccount": "traindata",
}


def parsed(attributes: Mapping[str, str], tenant: Tenant = POD) -> VolumeParameters:
    return VolumeParameters.parse(attributes, PolicySettings(), tenant)


# -- parameters --------------------------------------------------------------------------------------------------------


@pytest.mark.promise("S402")
@pytest.mark.parametrize(
    ("attributes", "field"),
    [
        ({"url": "s3://b/x", "identity": "pod"}, "awsRoleArn"),
        ({"url": "gs://b/x", "identity": "pod"}, "googleWorkloadProvider"),
        ({"url": "gs://b/x", "identity": "pod", "googleServiceAccount": ACCOUNT}, "googleWorkloadProvider"),
        ({"url": "az://b/x", "identity": "pod", "azureClientId": CLIENT}, "azureTenantId"),
    ],
)
def test_a_missing_parameter_is_named(attributes: dict[str, str], field: str) -> None:
    with pytest.raises(MissingParameter, match=field):
        parsed(attributes)


@pytest.mark.promise("S402")
@pytest.mark.parametrize(
    ("attributes", "field"),
    [
        ({"url": "s3://b/x", "awsRoleArn": ROLE}, "awsRoleArn"),
        ({"url": "s3://b/x", "audience": "x"}, "audience"),
        ({**AWS, "azureClientId": CLIENT}, "azureClientId"),
        ({**GOOGLE, "awsRoleArn": ROLE}, "awsRoleArn"),
        ({**AWS, "anonymous": "true"}, "identity"),
        ({"url": "https://h/x", "identity": "pod"}, "identity"),
        ({"url": "hf://datasets/o/r", "identity": "pod"}, "identity"),
        ({**AWS, "identity": "Pod"}, "identity"),
        ({**AWS, "awsRoleArn": "arn:aws:iam::12:role/x"}, "awsRoleArn"),
        ({**AWS, "awsRoleArn": f"{ROLE}\n"}, ""),
        ({**AWS, "audience": "a b"}, "audience"),
        ({**GOOGLE, "googleWorkloadProvider": "https://evil.example/x"}, "googleWorkloadProvider"),
        ({**GOOGLE, "googleServiceAccount": "a@evil.example"}, "googleServiceAccount"),
        ({**AZURE, "azureTenantId": "../common"}, "azureTenantId"),
        ({**AZURE, "azureStorageAccount": "evil.example"}, "azureStorageAccount"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_named(attributes: dict[str, str], field: str) -> None:
    if not field:  # the text of a parameter is stripped
        assert parsed(attributes).aws_role_arn == ROLE
        return
    with pytest.raises(InvalidParameter, match=f"^{field}: "):
        parsed(attributes)


@pytest.mark.parametrize(
    ("attributes", "audiences"),
    [
        (AWS, ("sts.amazonaws.com",)),
        ({**AWS, "audience": "sts.example.com"}, ("sts.example.com",)),
        (GOOGLE, (f"https:{PROVIDER}", PROVIDER)),
        (
            {
                **GOOGLE,
                "googleWorkloadProvider": "identitynamespace:p.svc.id.goog:https://container.googleapis.com/v1/x",
            },
            ("p.svc.id.goog",),
        ),
        (AZURE, ("api://AzureADTokenExchange",)),
    ],
)
def test_each_provider_has_its_audience(attributes: dict[str, str], audiences: tuple[str, ...]) -> None:
    assert parsed(attributes).token_audiences == audiences


@pytest.mark.parametrize("attributes", [AWS, GOOGLE, AZURE])
def test_the_parameters_survive_the_record_of_a_mount(attributes: dict[str, str]) -> None:
    found = parsed(attributes)
    assert VolumeParameters.parse(found.to_context()).pod_role == found.pod_role


@pytest.mark.parametrize("attributes", [AWS, GOOGLE, AZURE])
def test_a_pod_with_an_identity_needs_none_of_the_node(attributes: dict[str, str]) -> None:
    admit(parsed(attributes), kubelet_tokens(make_token("trainer")), PolicySettings(), POD)


@pytest.mark.promise("S407")
@pytest.mark.parametrize("tenant", [Tenant("team"), Tenant()])
def test_a_volume_that_pods_share_is_refused(tenant: Tenant) -> None:
    with pytest.raises(InvalidParameter, match=r"identity: .*one mount for all pods"):
        parsed(AWS, tenant)


# -- the tokens of a call ----------------------------------------------------------------------------------------------

TOKENS = kubelet_tokens(make_token("trainer"))
FORGED = kubelet_tokens(make_token("trainer", key=b"forged"))


@pytest.mark.promise("S404")
def test_tokens_among_the_secrets_come_before_those_of_the_context() -> None:
    assert secrets_for_daemon(TOKENS, FORGED, AWS) == TOKENS
    assert secrets_for_daemon({}, TOKENS, AWS) == TOKENS
    assert secrets_for_daemon({}, {}, AWS) == {}


@pytest.mark.promise("S408")
def test_tokens_that_the_volume_does_not_use_go_no_further() -> None:
    secret = {"access_key_id": "a", "secret_access_key": "b"}
    assert secrets_for_daemon({**secret, **TOKENS}, TOKENS, {"url": "s3://b/x"}) == secret


def test_a_session_is_not_taken_from_a_call() -> None:
    session = {"csi.storage.k8s.io/hayloft.session": json.dumps({"identity": ["x"]})}
    assert secrets_for_daemon(session, {}, {"url": "s3://b/x"}) == {}
    assert secrets_for_daemon({**session, **TOKENS}, {}, AWS) == TOKENS


# -- when they are exchanged -------------------------------------------------------------------------------------------


class Provider:
    """Gives keys that live ``life_s``, for the service account of the token, or raises ``failure``."""

    def __init__(self, life_s: float = 3600.0) -> None:
        self.life_s = life_s
        self.failure: HayloftError | None = None
        self.account = "trainer"
        self.asked: list[str] = []

    def __call__(self, role: PodRole, token: str) -> PodKeys:
        self.asked.append(token)
        if self.failure is not None:
            raise self.failure
        keys = {"access_key_id": f"key-{len(self.asked)}", "secret_access_key": "secret", "session_token": "t"}
        return PodKeys(keys, (role.aws_role_arn, self.account), self.life_s)


def mount_request(secrets: Mapping[str, str]) -> MountRequest:
    return MountRequest("csi-1", "/m", AWS, secrets, POD)


def session_of(request: MountRequest | None) -> PodSession:
    assert request is not None
    found = PodSession.of(request.secrets)
    assert found is not None
    return found


@pytest.mark.promise("S405")
def test_keys_are_renewed_for_a_new_token_and_after_half_of_their_life() -> None:
    provider = Provider()
    sessions, parameters = PodSessions(provider), parsed(AWS)
    begun = sessions.begin(mount_request(TOKENS), parameters)
    present = session_of(begun)
    assert sessions.renew(mount_request(TOKENS), parameters, present) is None
    newer = kubelet_tokens(make_token("trainer", serial=2))
    assert session_of(sessions.renew(mount_request(newer), parameters, present)).identity == present.identity
    provider.life_s = 0.0
    worn = session_of(sessions.begin(mount_request(TOKENS), parameters))
    assert sessions.renew(mount_request(TOKENS), parameters, worn) is not None
    assert len(provider.asked) == 4


@pytest.mark.promise("S405")
def test_a_failure_counts_when_the_present_keys_have_expired() -> None:
    provider = Provider()
    sessions, parameters = PodSessions(provider), parsed(AWS)
    present = session_of(sessions.begin(mount_request(TOKENS), parameters))
    newer = mount_request(kubelet_tokens(make_token("trainer", serial=2)))
    for failure in (TransientStoreError("away"), CredentialsRejected("no")):
        provider.failure = failure
        assert sessions.renew(newer, parameters, present) is None
        expired = PodSession(present.identity, present.token_digest, 0.0, time.time() - 1)
        with pytest.raises(type(failure)):
            sessions.renew(newer, parameters, expired)


@pytest.mark.promise("S404")
def test_keys_of_another_service_account_do_not_replace_the_present_ones() -> None:
    provider = Provider()
    sessions, parameters = PodSessions(provider), parsed(AWS)
    present = session_of(sessions.begin(mount_request(TOKENS), parameters))
    provider.account = "another"
    with pytest.raises(VolumeConflict, match="another service account"):
        sessions.renew(mount_request(kubelet_tokens(make_token("another"))), parameters, present)


@pytest.mark.promise("S408")
def test_the_token_is_not_kept_and_the_keys_are_those_of_a_secret() -> None:
    begun = PodSessions(Provider()).begin(mount_request(TOKENS), parsed(AWS))
    assert make_token("trainer") not in json.dumps(dict(begun.secrets))
    assert SERVICE_ACCOUNT_TOKENS not in begun.secrets
    assert parse_secret(begun.secrets).values["access_key_id"] == "key-1"


_NOT_TOKENS = ("", "{", "[]", "{}", '{"a": 1}', '{"a": {}}', '{"sts.amazonaws.com": {"token": null}}')
_ONE_TOKEN = r'\{"(a|sts\.amazonaws\.com)": \{"token": "[A-Z0-9._-]{8,60}"\}\}'


@pytest.mark.promise("S406")
@pytest.mark.parametrize("text", _NOT_TOKENS)
def test_what_is_no_map_of_tokens_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises((InvalidParameter, IdentityNotAllowed, CredentialsRejected)) as caught:
        PodSessions().begin(mount_request({SERVICE_ACCOUNT_TOKENS: text}), parsed(AWS))
    assert len(text) < 3 or text not in str(caught.value)


@pytest.mark.promise("S408")
@given(text=st.text(max_size=200) | st.from_regex(_ONE_TOKEN, fullmatch=True))
def test_whatever_kubelet_sends_ends_with_an_error_that_does_not_show_it(text: str) -> None:
    with pytest.raises(HayloftError) as caught:
        PodSessions().begin(mount_request({SERVICE_ACCOUNT_TOKENS: text}), parsed(AWS))
    token = text.rpartition('"token": "')[2].removesuffix('"}}')
    shown_otherwise = text.count(token) > 1  # as the audience, which is shown
    assert len(token) < 8 or shown_otherwise or token not in str(caught.value)


def test_a_volume_without_a_pods_identity_is_passed_on_as_it_is() -> None:
    request = mount_request({"access_key_id": "a", "secret_access_key": "b"})
    parameters = parsed({"url": "s3://b/x"})
    assert PodSessions().begin(request, parameters) is request
    assert PodSessions().renew(request, parameters, None) is request
