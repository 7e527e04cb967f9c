"""The tokens that kubelet makes for the service account of a pod, in a call that publishes a volume (KEP-2047, and
KEP-5538 for tokens among the secrets)."""

from __future__ import annotations

from collections.abc import Mapping

from csi_driver.model.errors import InvalidParameter
from csi_driver.model.pod_role import SERVICE_ACCOUNT_TOKENS

_KUBERNETES_PREFIX = "csi.storage.k8s.io/"


def secrets_for_daemon(
    secrets: Mapping[str, str], volume_context: Mapping[str, str], attributes: Mapping[str, str]
) -> dict[str, str]:
    """What the daemon gets of a call: the Secret, or the tokens for a volume with ``identity: pod``. Tokens that the
    volume does not use end here: kubelet sends them with every volume of the driver.

    kubelet sends tokens in one of two places, by the CSIDriver. The secrets come first: if it sends them there, the
    author of an inline volume may have written anything under that name into the context. A forged token is of no
    use: the provider verifies each before it counts.

    Raises InvalidParameter for a Secret beside the tokens: one of the two would be ignored.
    """
    own = {name: value for name, value in secrets.items() if not name.startswith(_KUBERNETES_PREFIX)}
    if attributes.get("identity", "").strip() != "pod":
        return own
    if own:
        remedy = "Leave nodePublishSecretRef out, or identity"
        raise InvalidParameter("identity", "pod", "auto for a volume with a Secret", remedy)
    tokens = secrets.get(SERVICE_ACCOUNT_TOKENS) or volume_context.get(SERVICE_ACCOUNT_TOKENS)
    return {SERVICE_ACCOUNT_TOKENS: tokens} if tokens else {}
