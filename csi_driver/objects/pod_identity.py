"""Keys for the token of a pod's service account: the provider verifies the token, and gives keys that live an hour.

The services that tokens are sent to are the provider's, or those that the environment of the node names. None is a
parameter of a volume: a service of a tenant's choice could say that it has verified any token.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import NamedTuple

from csi_driver.model.errors import CredentialsRejected, HayloftError, InvalidParameter, TransientStoreError
from csi_driver.model.pod_role import PodKeys, PodRole

TIMEOUT_S = 10.0
"""Of one request to the provider's service, which answers within a second."""

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,8192}\.([A-Za-z0-9_-]{1,16384})\.[A-Za-z0-9_-]{0,8192}\Z")
_PLAIN_SUBJECT = re.compile(r"[A-Za-z0-9:._/-]{1,320}\Z")


class Claims(NamedTuple):
    """What a token says of itself. True if the provider has accepted the token, and not before."""

    issuer: str
    subject: str

    @property
    def shown(self) -> str:
        """The subject, for messages."""
        return self.subject if _PLAIN_SUBJECT.match(self.subject) else "a service account"


def claims_of(token: str) -> Claims:
    """Verifies nothing. Raises InvalidParameter, which does not show the token, for a text that is no token."""
    found = _TOKEN.match(token)
    try:
        if found is None:
            raise ValueError("not a token")
        claims = json.loads(base64.urlsafe_b64decode(found[1] + "=" * (-len(found[1]) % 4)))
        issuer, subject = claims["iss"], claims["sub"]
        if not isinstance(issuer, str) or not isinstance(subject, str) or not subject:
            raise ValueError("not the claims of a token")
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        raise InvalidParameter(
            "service account token", "(hidden)", "a token of Kubernetes, of three parts, with issuer and subject"
        ) from None
    return Claims(issuer, subject)


def keys_of_pod(role: PodRole, token: str) -> PodKeys:
    """One request to the provider, or two. Blocks for ``TIMEOUT_S`` each at the most.

    Raises InvalidParameter for a text that is no token, CredentialsRejected if the provider refuses it, and
    TransientStoreError, which becomes CredentialsRejected at the deadline.
    """
    claims = claims_of(token)
    if role.aws_role_arn:
        from csi_driver.objects.s3.web_identity import assume_role

        return assume_role(role, token, claims)
    if role.google_workload_provider:
        from csi_driver.objects.google.google_federation import exchange_for_google

        return exchange_for_google(role, token, claims)
    from csi_driver.objects.azure.azure_federation import exchange_for_azure

    return exchange_for_azure(role, token, claims)


def refused(role: PodRole, claims: Claims, what: str, remedy: str, *, passes: bool) -> HayloftError:
    """The error of a provider that gave no keys. ``what`` it answered holds no text of the answer but codes."""
    text = f"the pod's identity ({claims.shown}) cannot be used as {role}: {what}; {remedy}"
    return TransientStoreError(text, when_exhausted=CredentialsRejected) if passes else CredentialsRejected(text)
