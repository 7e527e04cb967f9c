"""Volumes that read with the identity of their pod: the token that kubelet brings becomes keys of the provider, as if
they had come in a Secret that is renewed.

The token itself is not kept: it ends with the call that brought it. What is kept are the keys, in memory, where those
of a Secret are.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

from csi_driver import telemetry
from csi_driver.model.errors import IdentityNotAllowed, InvalidParameter, StoreError, VolumeConflict
from csi_driver.model.pod_role import SERVICE_ACCOUNT_TOKENS, PodKeys, PodRole
from csi_driver.objects.pod_identity import keys_of_pod
from csi_driver.objects.retrying import RetryPolicy
from csi_driver.volumes.data_plane import MountRequest
from csi_driver.volumes.parameters import VolumeParameters

logger = logging.getLogger(__name__)

_SESSION = "csi.storage.k8s.io/hayloft.session"
"""Beside the keys, for the daemon's own use. No Secret of Kubernetes can have a key of this name: it has a slash."""

_DEADLINE_S = 20.0
"""Of all tries of a new mount: kubelet's call has to end before its two minutes with what was the matter."""

_MOST_SHOWN = 5


@dataclass(frozen=True, slots=True)
class PodSession:
    """What is known of the keys; holds no secret."""

    identity: tuple[str, ...]
    """As of ``PodKeys``: verified by the provider."""
    token_digest: str
    """Of the token that they were given for. Tokens are long and random: it reveals nothing."""
    renew_at_s: float
    """From then on they are renewed, also for the same token. By the clock of ``time.time``, as the next daemon has
    another monotonic clock."""
    until_s: float

    @classmethod
    def of(cls, secrets: Mapping[str, str]) -> PodSession | None:
        """Of a mount's secrets; None for those that are of a Secret."""
        text = secrets.get(_SESSION)
        if text is None:
            return None
        fields = json.loads(text)
        return cls(**{**fields, "identity": tuple(fields["identity"])})


class PodSessions:
    """Asks the providers. Safe for any number of threads."""

    def __init__(self, ask: Callable[[PodRole, str], PodKeys] = keys_of_pod) -> None:
        self._ask = ask

    def begin(self, request: MountRequest, parameters: VolumeParameters) -> MountRequest:
        """For a new mount: the request with keys in place of the tokens; as it is for a volume that reads with a
        Secret or the node's identity. Blocks for ``_DEADLINE_S`` at the most.

        Raises IdentityNotAllowed without a token for the provider, CredentialsRejected, InvalidParameter.
        """
        role = parameters.pod_role
        if role is None or (PodSession.of(request.secrets) and SERVICE_ACCOUNT_TOKENS not in request.secrets):
            return request  # keys of the mount that was lost
        token = _token(request, parameters)
        deadline_s = min(parameters.deadline_s, _DEADLINE_S)
        keys = RetryPolicy(deadline_s).call(lambda: self._ask(role, token))
        return _with_keys(request, token, keys)

    def renew(
        self, request: MountRequest, parameters: VolumeParameters, present: PodSession | None
    ) -> MountRequest | None:
        """For a call that kubelet repeats, about once a minute: the request with new keys; None if the present ones are
        to be used on. One try: while it fails, the present ones serve as long as they live.

        Raises as ``begin`` once they have expired, and VolumeConflict for a token of another service account.
        """
        role = parameters.pod_role
        if role is None:
            return request
        token = _token(request, parameters)
        if present is not None and present.token_digest == _digest(token) and time.time() < present.renew_at_s:
            return None
        try:
            keys = self._ask(role, token)
        except StoreError as error:
            if present is None or time.time() >= present.until_s:
                raise
            facts = telemetry.fields(volume_id=request.volume_id, error=str(error))
            logger.warning("the keys of a pod's identity were not renewed; the present ones are used on", extra=facts)
            return None
        if present is not None and present.identity != keys.identity:
            raise VolumeConflict(
                f"volume {request.volume_id}: is mounted for a pod of another service account; a volume with identity: "
                "pod is of one pod alone"
            )
        return _with_keys(request, token, keys)


def _with_keys(request: MountRequest, token: str, keys: PodKeys) -> MountRequest:
    now = time.time()
    session = PodSession(keys.identity, _digest(token), now + keys.life_s / 2, now + keys.life_s)
    return replace(request, secrets={**keys.values, _SESSION: json.dumps(asdict(session))})


def _digest(token: str) -> str:
    return hashlib.blake2b(token.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _token(request: MountRequest, parameters: VolumeParameters) -> str:
    """The token of the audience that the provider expects. Raises IdentityNotAllowed, InvalidParameter."""
    tokens = _tokens(request.secrets.get(SERVICE_ACCOUNT_TOKENS, "{}"))
    wanted = parameters.token_audiences
    found = next((tokens[audience] for audience in wanted if audience in tokens), None)
    if found is None:
        present = ", ".join(sorted(map(repr, tokens))[:_MOST_SHOWN]) or "none"
        raise IdentityNotAllowed(
            f"identity: kubelet brought no token of the pod's service account for the audience {wanted[0]!r} (it "
            f"brought: {present}). Ask the operator of the driver to add it to tokenRequests of the CSIDriver "
            "(podIdentity.audiences of the chart), or name another one with the parameter audience"
        )
    return found


def _tokens(text: str) -> dict[str, str]:
    """By audience. Raises InvalidParameter, which does not show the text."""
    try:
        parsed = json.loads(text)
        return {str(audience): str(entry["token"]) for audience, entry in parsed.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InvalidParameter(
            SERVICE_ACCOUNT_TOKENS, "(hidden)", "tokens by their audiences, as kubelet writes them"
        ) from None
