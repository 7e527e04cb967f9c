"""The node's own identity at S3: boto3's chain of environment, profile, web identity, container and instance role.

The one module that resolves it with botocore. Imported when an identity is used that comes from no secret.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import NamedTuple

import botocore.credentials
import botocore.exceptions
import botocore.session
from botocore.config import Config
from botocore.utils import InstanceMetadataFetcher

from csi_driver.model.errors import CredentialsRejected, HayloftError, TransientStoreError
from csi_driver.objects.error_mapping import is_transient
from csi_driver.objects.s3.identity import FILE_KEYS_S
from csi_driver.objects.s3.region import node_region

METADATA_TIMEOUT_S = 1
METADATA_TRIES = 2
"""The instance metadata service answers in milliseconds where there is one; a node without it must not wait."""
_MOST_LIFE_S = 7 * 86_400


@dataclass(frozen=True, slots=True)
class AmbientKeys:
    """Keys that the chain has found."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(repr=False)
    life_s: float
    of_service: bool
    """Whether a service gave them, which is asked again; otherwise they are read again, which is cheap."""


class AmbientIdentity:
    """Used by one thread at a time."""

    def __init__(self, timeout_s: float) -> None:
        """``timeout_s`` bounds each wait for a service."""
        self._timeout_s = timeout_s
        self._found: botocore.credentials.Credentials | None = None

    def keys(self) -> AmbientKeys:
        """Blocks and raises as ``S3Identity.keys``."""
        found = self._resolved()
        try:
            frozen = found.get_frozen_credentials()
            life_s = _life_s(found)
        except Exception as error:  # noqa: BLE001 - providers raise what they meet: of botocore, of json, of the system
            raise _failure(error) from None
        if life_s <= 0:
            raise Refusal("the identity service gave keys that have expired", passes=True).error()
        of_service = isinstance(found, botocore.credentials.RefreshableCredentials)
        return AmbientKeys(str(frozen.access_key), str(frozen.secret_key), frozen.token or None, life_s, of_service)

    def name(self) -> str:
        """As ``S3Identity.name``."""
        found = self._resolved()
        role = os.environ.get("AWS_ROLE_ARN")  # part of the ambient identity, not a setting
        if found.method == "assume-role-with-web-identity" and role:
            return f"role:{role}"
        if found.method == "container-role":
            return "container:" + "".join(os.environ.get(variable, "") for variable in _CONTAINER_VARIABLES)
        if found.method == "iam-role":
            fetched = InstanceMetadataFetcher(METADATA_TIMEOUT_S, METADATA_TRIES).retrieve_iam_role_credentials()
            return f"instance-role:{fetched.get('role_name', '')}"
        if isinstance(found, botocore.credentials.RefreshableCredentials):
            return f"profile:{open_session(self._timeout_s).get_config_variable('profile') or 'default'}"
        return f"key:{found.access_key}"

    def _resolved(self) -> botocore.credentials.Credentials:
        if self._found is None or not isinstance(self._found, botocore.credentials.RefreshableCredentials):
            # A key in a file may have been replaced since it was read, and reading it again is cheap.
            self._found = _resolve(self._timeout_s)
        return self._found


def open_session(timeout_s: float) -> botocore.session.Session:
    """With the time-outs of this driver, and without retries."""
    session = botocore.session.Session()
    session.set_config_variable("metadata_service_timeout", METADATA_TIMEOUT_S)
    session.set_config_variable("metadata_service_num_attempts", METADATA_TRIES)
    region = node_region()
    if region is not None:  # botocore knows AWS_DEFAULT_REGION alone, and asks the STS of that region
        session.set_config_variable("region", region)
    session.set_default_client_config(
        Config(connect_timeout=timeout_s, read_timeout=timeout_s, retries={"total_max_attempts": 1})
    )
    return session


def _resolve(timeout_s: float) -> botocore.credentials.Credentials:
    try:
        found = open_session(timeout_s).get_credentials()
    except Exception as error:  # noqa: BLE001 - as in ``keys``
        raise _failure(error) from None
    if found is None:
        raise CredentialsRejected(
            "no secret was given and the node has no credentials of its own; give the volume a secret, give the node a "
            "role or a profile, or set anonymous for a public bucket"
        )
    return found


def _life_s(found: botocore.credentials.Credentials) -> float:
    """For how many seconds the keys live, by what botocore tells of it: whether it is less than a number."""
    if not isinstance(found, botocore.credentials.RefreshableCredentials):
        return FILE_KEYS_S
    low, high = 0, _MOST_LIFE_S
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (low, middle - 1) if found.refresh_needed(middle) else (middle, high)
    return float(low)


# -- failures of a service that gives out keys ------------------------------------------------------------------------

_CONTAINER_VARIABLES = ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI")
_METADATA_STATUS = re.compile(r"non 200 response (\d{3})")
_PLAIN_CODE = re.compile(r"[A-Za-z0-9.]{1,64}")
_PASSING_CODES = frozenset({"IDPCommunicationError"})
"""Beside those of stores."""
_PERMANENT = (
    botocore.exceptions.ConfigNotFound,
    botocore.exceptions.ConfigParseError,
    botocore.exceptions.InfiniteLoopConfigError,
    botocore.exceptions.InvalidConfigError,
    botocore.exceptions.NoCredentialsError,
    botocore.exceptions.PartialCredentialsError,
    botocore.exceptions.ProfileNotFound,
    botocore.exceptions.SSOError,
    botocore.exceptions.TokenRetrievalError,
    botocore.exceptions.UnknownCredentialError,
)
"""What the node's own files and settings are the cause of."""


class Refusal(NamedTuple):
    """Why a service gave no keys, without any text of its answer; whether a later request may get some."""

    what: str
    passes: bool

    def error(self) -> HayloftError:
        """Names the role, and what the service answered; nothing of its text, nor of the exception's."""
        text = (
            f"the node's own credentials ({_whose()}) cannot be had: {self.what}; check the role, who may assume it, "
            "and the service"
        )
        return (
            TransientStoreError(text, when_exhausted=CredentialsRejected) if self.passes else CredentialsRejected(text)
        )


def _failure(error: Exception) -> HayloftError:
    """For what a provider of botocore raises."""
    return error if isinstance(error, HayloftError) else refusal_of(error).error()


def refusal_of(error: Exception) -> Refusal:
    """For what botocore raises."""
    if isinstance(error, botocore.exceptions.ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
        code = code if _PLAIN_CODE.fullmatch(code) and not code.isdigit() else ""
        answer = f"HTTP {status} {code}".rstrip()
        passes = code in _PASSING_CODES or is_transient(status, code)
        return Refusal(f"the identity service answered {answer}", passes)
    status_found = _METADATA_STATUS.search(str(error))
    if status_found is not None:
        status = int(status_found[1])
        return Refusal(f"the identity service answered HTTP {status}", is_transient(status, None))
    if isinstance(error, _PERMANENT):
        return Refusal(f"the node's settings do not give them ({type(error).__name__})", passes=False)
    if isinstance(error, OSError) and error.strerror:
        return Refusal(f"a file of the identity cannot be read ({error.strerror})", passes=False)
    if isinstance(error, botocore.exceptions.HTTPClientError | botocore.exceptions.ConnectionError):
        timed_out = isinstance(error, botocore.exceptions.ReadTimeoutError | botocore.exceptions.ConnectTimeoutError)
        why = "gave no answer in time" if timed_out else "cannot be reached"
        return Refusal(f"the identity service {why}", passes=True)
    return Refusal(f"the answer of the identity service cannot be used ({type(error).__name__})", passes=True)


def _whose() -> str:
    """The role or profile that the environment names; the URI of a container's role may hold a secret."""
    role = os.environ.get("AWS_ROLE_ARN")
    if role:
        return f"role {role}"
    if any(os.environ.get(variable) for variable in _CONTAINER_VARIABLES):
        return "the container's role"
    try:
        session = botocore.session.Session()
        role = session.get_scoped_config().get("role_arn")
        return f"role {role}" if role else f"profile {session.get_config_variable('profile') or 'default'}"
    except botocore.exceptions.BotoCoreError:
        return "profile of the environment"
