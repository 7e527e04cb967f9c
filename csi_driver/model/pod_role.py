"""The identity at a provider that a volume's pod has, and what a provider gives for the pod's token."""

from __future__ import annotations

from dataclasses import dataclass, field

SERVICE_ACCOUNT_TOKENS = "csi.storage.k8s.io/serviceAccount.tokens"
"""Where kubelet puts the tokens of a pod: among the secrets of NodePublishVolume (``serviceAccountTokenInSecrets`` of
the CSIDriver, Kubernetes 1.35 and newer), or else in its volume context."""


@dataclass(frozen=True, slots=True)
class PodRole:
    """What the parameters of a volume with ``identity: pod`` say. Holds no secret. The fields of one provider are set,
    those of the others are empty."""

    aws_role_arn: str = ""
    google_workload_provider: str = ""
    google_service_account: str = ""
    """Empty: the pod's identity has rights of its own on the bucket."""
    azure_tenant_id: str = ""
    azure_client_id: str = ""
    azure_storage_account: str = ""
    region: str = ""
    """Of the security token service of AWS; empty: that of the node."""

    def __str__(self) -> str:
        return next(
            filter(
                None,
                (
                    self.aws_role_arn,
                    self.google_service_account,
                    self.google_workload_provider,
                    self.azure_client_id,
                ),
            ),
            "",
        )


@dataclass(frozen=True, slots=True)
class PodKeys:
    """What a provider gave for the token of a pod, which it has verified by that."""

    values: dict[str, str] = field(repr=False)
    """As those of a Secret."""
    identity: tuple[str, ...]
    """Names who the provider says the pod is. The same for every token of one service account; holds no secret."""
    life_s: float
    """How long the keys are valid from now on."""
