"""Keys that requests to S3 are signed with: from a secret, or the node's ambient identity."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field

import botocore.credentials
import botocore.exceptions
import botocore.session
from botocore.utils import InstanceMetadataFetcher

from csi_driver.model.dataset import Credentials, StoreOptions
from csi_driver.model.errors import CredentialsRejected, MissingParameter

METADATA_TIMEOUT_S = 1
METADATA_TRIES = 2
"""The instance metadata service answers in milliseconds where there is one; a node without it must not wait."""


@dataclass(frozen=True, slots=True)
class S3Keys:
    """Keys that sign a request to S3."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(repr=False)
    rotates: bool
    """Whether they expire and have to be requested again."""


class S3Identity:
    """Keys from a secret, or from boto3's chain: environment, profile, web identity, container, instance role."""

    def __init__(self, credentials: Credentials) -> None:
        self._static = _static_keys(credentials)
        # Guards: _ambient, the ambient credentials. While held: the chain is resolved, which may block for some seconds
        # on the metadata service; other threads wait for the same answer instead of requesting it too.
        self._lock = threading.Lock()
        self._ambient: botocore.credentials.Credentials | None = None

    def keys(self) -> S3Keys:
        """Keys that are valid for the next ten minutes. May block for some seconds on the instance metadata service.

        Raises CredentialsRejected if the chain has none.
        """
        if self._static is not None:
            return self._static
        try:
            frozen = self._resolved().get_frozen_credentials()
        except botocore.exceptions.BotoCoreError as error:
            raise CredentialsRejected(
                f"the node's own credentials cannot be renewed ({type(error).__name__}); check its role or profile"
            ) from error
        return S3Keys(str(frozen.access_key), str(frozen.secret_key), frozen.token or None, rotates=True)

    def name(self) -> str:
        """A name of the identity that stays the same when keys rotate and that holds no secret."""
        if self._static is not None:
            return f"key:{self._static.access_key_id}"
        found = self._resolved()
        role = os.environ.get("AWS_ROLE_ARN")  # part of the ambient identity, not a setting
        if found.method == "assume-role-with-web-identity" and role:
            return f"role:{role}"
        if found.method == "container-role":
            variables = ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI")
            return "container:" + "".join(os.environ.get(variable, "") for variable in variables)
        if found.method == "iam-role":
            fetched = InstanceMetadataFetcher(METADATA_TIMEOUT_S, METADATA_TRIES).retrieve_iam_role_credentials()
            return f"instance-role:{fetched.get('role_name', '')}"
        if isinstance(found, botocore.credentials.RefreshableCredentials):
            return f"profile:{_session().get_config_variable('profile') or 'default'}"
        return f"key:{found.access_key}"

    def _resolved(self) -> botocore.credentials.Credentials:
        with self._lock:
            known = self._ambient
            if known is None or not isinstance(known, botocore.credentials.RefreshableCredentials):
                # A key in a file may have been replaced since it was read, and reading it again is cheap.
                known = self._ambient = _resolve()
        return known


def _static_keys(credentials: Credentials) -> S3Keys | None:
    values = credentials.values
    if not values:
        return None
    if "access_key_id" not in values:
        raise MissingParameter("secret key access_key_id", "the secret of an S3 dataset needs it")
    return S3Keys(values["access_key_id"], values["secret_access_key"], values.get("session_token"), rotates=False)


def _session() -> botocore.session.Session:
    session = botocore.session.Session()
    session.set_config_variable("metadata_service_timeout", METADATA_TIMEOUT_S)
    session.set_config_variable("metadata_service_num_attempts", METADATA_TRIES)
    return session


def _resolve() -> botocore.credentials.Credentials:
    remedy = "give the volume a secret, give the node a role or a profile, or set anonymous for a public bucket"
    try:
        found = _session().get_credentials()
    except botocore.exceptions.BotoCoreError as error:
        raise CredentialsRejected(
            f"the node's own credentials cannot be loaded ({type(error).__name__}); {remedy}"
        ) from error
    if found is None:
        raise CredentialsRejected(f"no secret was given and the node has no credentials of its own; {remedy}")
    return found


def open_identity(options: StoreOptions, credentials: Credentials) -> S3Identity | None:
    """None: requests are anonymous. Blocks as ``S3Identity.keys`` does; raises CredentialsRejected."""
    if options.anonymous:
        return None
    identity = S3Identity(credentials)
    identity.keys()  # fails here rather than at the first request if there are none
    return identity
