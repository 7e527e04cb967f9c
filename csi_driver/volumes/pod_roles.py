"""The parameters of ``identity: pod``: which of them a provider needs, and where they make sense."""

from __future__ import annotations

from collections.abc import Mapping

from csi_driver.model.errors import InvalidParameter, MissingParameter
from csi_driver.model.pod_role import PodRole
from csi_driver.model.tenant import Tenant

_NAMES = {
    "aws_role_arn": "awsRoleArn",
    "google_workload_provider": "googleWorkloadProvider",
    "google_service_account": "googleServiceAccount",
    "azure_tenant_id": "azureTenantId",
    "azure_client_id": "azureClientId",
    "azure_storage_account": "azureStorageAccount",
}
ROLE_FIELDS = tuple(_NAMES)
"""Fields of ``VolumeParameters`` and of ``PodRole``."""

_GOOGLE = (("google_workload_provider",), ("google_service_account",))
_BY_SCHEME: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "s3": (("aws_role_arn",), ()),
    "gs": _GOOGLE,
    "gcs": _GOOGLE,
    "az": (("azure_tenant_id", "azure_client_id", "azure_storage_account"), ()),
}
"""The fields that a provider needs, and those that it may have."""

_IAM = "//iam.googleapis.com/"


def pod_role(identity: str, scheme: str, given: Mapping[str, str], region: str | None) -> PodRole | None:
    """None: the volume has no identity of its pod. ``given``: by field. Raises InvalidParameter, MissingParameter."""
    if identity != "pod":
        for field, value in given.items():
            raise InvalidParameter(_NAMES[field], value, "set with identity: pod only")
        return None
    if scheme not in _BY_SCHEME:
        raise InvalidParameter("identity", "pod", f"auto for {scheme}://; pod is for s3://, gs:// and az://")
    required, optional = _BY_SCHEME[scheme]
    for field, value in given.items():
        if field not in required and field not in optional:
            raise InvalidParameter(_NAMES[field], value, f"not set for {scheme}://")
    for field in required:
        if field not in given:
            raise MissingParameter(_NAMES[field], f"identity: pod needs it for {scheme}://")
    return PodRole(**given, region=region or "")


def audiences(role: PodRole) -> tuple[str, ...]:
    """Of the tokens that the provider accepts unless it was told otherwise."""
    provider = role.google_workload_provider
    if role.aws_role_arn:
        return ("sts.amazonaws.com",)
    if provider.startswith(_IAM):
        return (f"https:{provider}", provider)  # the allowed audiences of a provider that names none
    if provider:
        return (provider.split(":")[1],)
    return ("api://AzureADTokenExchange",)


def check_unit(role: PodRole | None, tenant: Tenant) -> None:
    """Raises InvalidParameter for a volume that several pods share: it is one mount on a node, made before the first of
    them has a token, and all of them would read with the rights of whichever came first."""
    if role is not None and not tenant.inline:
        remedy = (
            "The volume of a claim is one mount for all pods of a node, which would all read with the identity of one. "
            "Write an inline volume (csi: {driver: csi.hayloft.dev, volumeAttributes: ...}) into the pod: it has a "
            "mount of its own, and shares the cache; or give the claim's class a Secret"
        )
        raise InvalidParameter("identity", "pod", "auto for the volume of a claim", remedy)
