"""Whether a store is read with the node's own identity: environment, files, metadata service."""

from __future__ import annotations

from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import MissingParameter
from csi_driver.objects.endpoints import storage_account

_NEVER = frozenset({"http", "https", "ftp", "memory", "file"})
"""Clients that have no identity but that of a Secret."""

_GOOGLE = ("service_account_json", "access_token")
_OWN: dict[str, tuple[str, ...]] = {
    "s3": ("access_key_id",),
    "gs": _GOOGLE,
    "gcs": _GOOGLE,
    "az": ("account_key", "sas_token", "access_token"),
    "hf": ("token",),
    "sftp": ("password",),
    "ssh": ("password",),
}
"""By scheme, the values of a Secret with which the client needs nothing of the node. Clients of other schemes look for
further credentials in places that cannot be switched off (``~/.netrc``, Kerberos tickets, files of a cloud's tools)."""

_ACCOUNT = {"az": "account_name", "sftp": "username", "ssh": "username"}
"""By scheme, the value of a Secret that says which account the node's own identity is used for."""


def needs_node_identity(url: DatasetUrl, options: StoreOptions, credentials: Credentials) -> bool:
    """True if requests for the dataset may carry an identity of the node.

    Raises MissingParameter for a Secret of another kind of store, which would otherwise be replaced by it.
    """
    if url.scheme in _NEVER:
        return False
    own = _OWN.get(url.scheme)
    if own is None:
        return True
    if options.anonymous or any(name in credentials.values for name in own):
        return False
    if credentials and _ACCOUNT.get(url.scheme) not in credentials.values:
        raise MissingParameter(f"secret key {own[0]}", f"the Secret of a {url.scheme}:// dataset needs it")
    return True


def names_azure_account(credentials: Credentials) -> bool:
    """Whether the Secret names another storage account than the node's environment does."""
    return storage_account(credentials) != storage_account(Credentials())
