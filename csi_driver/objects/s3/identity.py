"""Keys that requests to S3 are signed with: from a secret, or the node's ambient identity."""

from __future__ import annotations

import math
import os
import threading
import time
from copy import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from csi_driver.model.dataset import Credentials, StoreOptions
from csi_driver.model.errors import HayloftError, MissingParameter
from csi_driver.objects.retrying import RetryPolicy

if TYPE_CHECKING:  # botocore takes 10 MB, which an identity from a secret does not need
    from csi_driver.objects.s3.ambient_identity import AmbientIdentity

FILE_KEYS_S = 300.0
"""Keys of a file or the environment are read again after this: they may have been replaced."""
SERVICE_TIMEOUT_S = 10.0
"""Longest wait for a service that gives out keys. botocore's own, 60 s five times, exceeds a volume's deadline."""
RENEW_AHEAD_S = 900.0
"""Keys are renewed so long before they expire (after half of their life, if that is shorter), as by botocore."""
AGAIN_AFTER_S = 2.0
"""A service that has failed is not asked again for so long: its callers, one after the other, would wait for each."""


@dataclass(frozen=True, slots=True)
class S3Keys:
    """Keys that sign a request to S3."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(repr=False)
    rotates: bool
    """Whether they expire and have to be requested again."""
    until_s: float = math.inf
    """When they expire, by the monotonic clock."""
    renew_s: float = math.inf
    """When to request them again, which is before."""


class S3Identity:
    """Keys from a secret, or from boto3's chain: environment, profile, web identity, container, instance role.

    Keys are used as long as they live and no longer: they are renewed ahead, and while that fails the old ones serve.
    """

    def __init__(self, credentials: Credentials, timeout_s: float = SERVICE_TIMEOUT_S) -> None:
        """``timeout_s`` bounds each wait for a service, as ``SERVICE_TIMEOUT_S`` does."""
        self._static = _static_keys(credentials)
        self._timeout_s = min(timeout_s, SERVICE_TIMEOUT_S)
        # Guards: _ambient, _failure. While held: a service is asked for keys, for some ten seconds at the most. A
        # thread with living keys does not wait for it; the others wait for the same answer.
        self._lock = threading.Lock()
        self._ambient: AmbientIdentity | None = None
        self._failure: tuple[HayloftError, float] | None = None
        """And until when it stands."""
        self._last: S3Keys | None = None
        """Of a service. Replaced as one value."""

    def keys(self) -> S3Keys:
        """May block on the service that gives them out, see ``SERVICE_TIMEOUT_S``.

        Raises CredentialsRejected if there are none, or the service refuses them, and TransientStoreError, which
        becomes CredentialsRejected at the deadline, if it fails.
        """
        if self._static is not None:
            return self._static
        last, now = self._last, time.monotonic()
        if last is not None and now < last.renew_s:
            return last
        living = last if last is not None and now < last.until_s else None
        if not self._lock.acquire(blocking=living is None) and living is not None:
            return _for_now(living)  # another thread renews them
        try:
            return self._renewed()
        finally:
            self._lock.release()

    def _renewed(self) -> S3Keys:
        """The caller holds the lock."""
        last, now = self._last, time.monotonic()
        if last is not None and now < last.renew_s:
            return last  # by the thread that held the lock
        if self._failure is None or now >= self._failure[1]:
            try:
                return self._requested()
            except HayloftError as error:
                self._failure = error, time.monotonic() + AGAIN_AFTER_S
        if last is None or time.monotonic() >= last.until_s:
            raise copy(self._failure[0])  # of this thread, with a traceback of its own
        self._last = _for_now(last)
        return self._last

    def _requested(self) -> S3Keys:
        """The caller holds the lock."""
        if (of_environment := _environment_keys()) is not None:
            return of_environment
        found = self._node().keys()
        until_s = time.monotonic() + found.life_s
        renew_s = until_s - min(RENEW_AHEAD_S, found.life_s / 2)
        keys = S3Keys(found.access_key_id, found.secret_access_key, found.session_token, True, until_s, renew_s)
        if found.of_service:
            self._last = keys
        return keys

    def name(self) -> str:
        """A name of the identity that stays the same when keys rotate and that holds no secret. Blocks and raises as
        ``keys``."""
        if self._static is not None:
            return f"key:{self._static.access_key_id}"
        if (of_environment := _environment_keys()) is not None:
            return f"key:{of_environment.access_key_id}"
        with self._lock:
            return self._node().name()

    def _node(self) -> AmbientIdentity:
        """The caller holds the lock."""
        if self._ambient is None:
            from csi_driver.objects.s3.ambient_identity import AmbientIdentity

            self._ambient = AmbientIdentity(self._timeout_s)
        return self._ambient


def _for_now(keys: S3Keys) -> S3Keys:
    """Keys that could not be renewed, or are being renewed."""
    return replace(keys, renew_s=min(keys.until_s, time.monotonic() + AGAIN_AFTER_S))


def _environment_keys() -> S3Keys | None:
    """The first of boto3's chain, by its rules. None: there are none, or they are incomplete or expire, which is
    botocore's to judge."""
    access_key_id, secret_access_key = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    if not access_key_id or not secret_access_key or os.environ.get("AWS_CREDENTIAL_EXPIRATION"):
        return None
    token = os.environ.get("AWS_SECURITY_TOKEN") or os.environ.get("AWS_SESSION_TOKEN") or None
    until_s = time.monotonic() + FILE_KEYS_S
    return S3Keys(access_key_id, secret_access_key, token, True, until_s, until_s - FILE_KEYS_S / 2)


def _static_keys(credentials: Credentials) -> S3Keys | None:
    values = credentials.values
    if not values:
        return None
    if "access_key_id" not in values:
        raise MissingParameter("secret key access_key_id", "the secret of an S3 dataset needs it")
    return S3Keys(values["access_key_id"], values["secret_access_key"], values.get("session_token"), rotates=False)


def open_identity(options: StoreOptions, credentials: Credentials) -> S3Identity | None:
    """None: requests are anonymous. Blocks as ``S3Identity.keys`` does, up to the options' deadline while the service
    fails. Raises CredentialsRejected."""
    if options.anonymous:
        return None
    identity = S3Identity(credentials, options.request_timeout_s)
    # Fails here rather than at the first request if there are none.
    RetryPolicy(options.deadline_s).call(identity.keys)
    return identity
