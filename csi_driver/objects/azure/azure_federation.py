"""Azure: the token of a pod is the assertion of an application, or of a managed identity, that trusts the cluster's
issuer. The service is that of AZURE_AUTHORITY_HOST."""

from __future__ import annotations

import re
import time

import azure.core.exceptions
import azure.identity

from csi_driver.model.pod_role import PodKeys, PodRole
from csi_driver.objects.azure.azure_identity import SCOPE
from csi_driver.objects.error_mapping import is_transient
from csi_driver.objects.pod_identity import TIMEOUT_S, Claims, refused

_CODE = re.compile(r"\bAADSTS[0-9]{1,9}\b")
_REMEDY = "check the client id, and whether it has a federated credential for the cluster's issuer and this subject"


def exchange_for_azure(role: PodRole, token: str, claims: Claims) -> PodKeys:
    """As ``keys_of_pod``."""
    try:
        with azure.identity.ClientAssertionCredential(
            role.azure_tenant_id,
            role.azure_client_id,
            func=lambda: token,
            connection_timeout=TIMEOUT_S,
            read_timeout=TIMEOUT_S,
            retry_total=0,
        ) as credential:
            found = credential.get_token(SCOPE)
    except (azure.core.exceptions.AzureError, ValueError, OSError) as error:
        status = int(getattr(getattr(error, "response", None), "status_code", 0) or 0)
        code = _code_of(error)
        reached = bool(code or status) or isinstance(error, azure.core.exceptions.ClientAuthenticationError)
        answered = " ".join(filter(None, ("Azure answered", f"HTTP {status}" if status else "", code if code else "")))
        what = answered if reached else f"Azure's identity service cannot be used ({type(error).__name__})"
        passes = is_transient(status, None) if reached else isinstance(error, azure.core.exceptions.AzureError)
        raise refused(role, claims, what, _REMEDY, passes=passes) from None
    values = {"account_name": role.azure_storage_account, "access_token": found.token}
    identity = (role.azure_tenant_id, role.azure_client_id, claims.issuer, claims.subject)
    return PodKeys(values, identity, float(found.expires_on) - time.time())


def _code_of(error: Exception) -> str:
    """Azure's code for what is wrong, of which its documentation has a list; empty: none. No other text of the answer,
    which repeats the token."""
    found = _CODE.search(str(error))
    return found[0] if found else ""
