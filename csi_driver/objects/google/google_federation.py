"""Google: the token of a pod is exchanged for a federated access token, and that for one of a service account if the
volume names one (https://cloud.google.com/iam/docs/workload-identity-federation)."""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import quote

import google.auth.exceptions
import google.auth.transport.urllib3
from google.auth import identity_pool

from csi_driver.model.errors import HayloftError
from csi_driver.model.pod_role import PodKeys, PodRole
from csi_driver.objects.error_mapping import is_transient
from csi_driver.objects.google.google_identity import SCOPE, token_life_s
from csi_driver.objects.http.connection_pool import IdentityServices
from csi_driver.objects.pod_identity import TIMEOUT_S, Claims, refused

_TOKEN_TYPE = "urn:ietf:params:oauth:token-type:jwt"  # noqa: S105
_CODE = re.compile(r"Error code ([a-z_]{1,40})\b")
_REMEDY = "check the provider of the workload identity pool, its audience, and who may use the service account"


class _Supplier(identity_pool.SubjectTokenSupplier):
    def __init__(self, token: str) -> None:
        self._token = token

    def get_subject_token(self, context: Any, request: Any) -> str:
        return self._token


class _Transport:
    """Remembers the status of the last answer, which the library does not tell."""

    def __init__(self) -> None:
        self.status = 0
        self._request: Any = google.auth.transport.urllib3.Request(IdentityServices())  # type: ignore[no-untyped-call]

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        more["timeout"] = TIMEOUT_S
        self.status = 0
        answer = self._request(*arguments, **more)
        self.status = int(answer.status)
        return answer


def exchange_for_google(role: PodRole, token: str, claims: Claims) -> PodKeys:
    """As ``keys_of_pod``."""
    transport = _Transport()
    account = quote(role.google_service_account, safe="@")
    impersonation = f"{_service('iamcredentials')}v1/projects/-/serviceAccounts/{account}:generateAccessToken"
    try:
        found = identity_pool.Credentials(  # type: ignore[no-untyped-call]
            audience=role.google_workload_provider,
            subject_token_type=_TOKEN_TYPE,
            token_url=f"{_service('sts')}v1/token",
            subject_token_supplier=_Supplier(token),
            service_account_impersonation_url=impersonation if account else None,
            scopes=[SCOPE],
        )
        found.refresh(transport)  # type: ignore[no-untyped-call]
        life_s = token_life_s(found)
        values = {"access_token": str(found.token)}
    except HayloftError:  # of the proxy
        raise
    except (google.auth.exceptions.GoogleAuthError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        answered = f"Google answered HTTP {transport.status} {_code_of(error)}".rstrip()
        what = answered if transport.status else "Google's identity service cannot be reached"
        passes = not transport.status or is_transient(transport.status, None)
        raise refused(role, claims, what, _REMEDY, passes=passes) from None
    identity = (role.google_workload_provider, role.google_service_account, claims.issuer, claims.subject)
    return PodKeys(values, identity, life_s)


def _code_of(error: Exception) -> str:
    """The code of an OAuth error; empty: none. No other text of the answer."""
    found = _CODE.search(str(error))
    return found[1] if found else ""


def _service(name: str) -> str:
    """Base URL of a service, with a slash at the end: Google's own, or where gcloud is told to find it, as for a
    private endpoint."""
    variable = f"CLOUDSDK_API_ENDPOINT_OVERRIDES_{name.upper()}"  # part of the ambient identity, not a setting
    return (os.environ.get(variable) or f"https://{name}.googleapis.com").rstrip("/") + "/"
