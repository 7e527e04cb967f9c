"""AWS: AssumeRoleWithWebIdentity with the token of a pod. A request without a signature, to the service of the region
or the one that AWS_ENDPOINT_URL_STS names."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from botocore import UNSIGNED
from botocore.config import Config

from csi_driver.model.pod_role import PodKeys, PodRole
from csi_driver.objects.pod_identity import TIMEOUT_S, Claims, refused
from csi_driver.objects.s3.ambient_identity import open_session, refusal_of
from csi_driver.objects.s3.region import DEFAULT_REGION

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_=,.@-]+")
_LONGEST_NAME = 64
_REMEDY = "check the role, and whether its trust policy names the cluster's issuer, this service account and audience"


def assume_role(role: PodRole, token: str, claims: Claims) -> PodKeys:
    """As ``keys_of_pod``."""
    try:
        session = open_session(TIMEOUT_S)
        region = role.region or session.get_config_variable("region") or DEFAULT_REGION
        client: Any = session.create_client("sts", region_name=region, config=Config(signature_version=UNSIGNED))
        try:
            answer = client.assume_role_with_web_identity(
                RoleArn=role.aws_role_arn, RoleSessionName=_session_name(claims), WebIdentityToken=token
            )
        finally:
            client.close()
        return _keys(role, answer, claims)
    except Exception as error:  # noqa: BLE001 - botocore raises what it meets; its texts may hold the token
        refusal = refusal_of(error)
        raise refused(role, claims, refusal.what, _REMEDY, passes=refusal.passes) from None


def _session_name(claims: Claims) -> str:
    """What CloudTrail shows: the namespace and the name of the service account."""
    plain = _NOT_IN_NAMES.sub("-", claims.subject.removeprefix("system:serviceaccount:"))
    return f"hayloft-{plain}"[:_LONGEST_NAME]


def _keys(role: PodRole, answer: dict[str, Any], claims: Claims) -> PodKeys:
    given = answer["Credentials"]
    expires: datetime = given["Expiration"]
    return PodKeys(
        {
            "access_key_id": str(given["AccessKeyId"]),
            "secret_access_key": str(given["SecretAccessKey"]),
            "session_token": str(given["SessionToken"]),
        },
        # The subject as AWS has verified it; other services do not repeat it.
        (
            role.aws_role_arn,
            str(answer.get("Provider") or claims.issuer),
            str(answer.get("SubjectFromWebIdentityToken") or claims.subject),
        ),
        (expires - datetime.now(UTC)).total_seconds(),
    )
