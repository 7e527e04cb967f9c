"""The JSON text of a Google service account key, rebuilt from the fields that are known.

The client library reads more from such a text than a key: ``gcs_base_url`` names the server that the account's tokens
are sent to, and ``disable_oauth`` switches authentication off. Any tenant may write a Secret, so the text itself
never reaches a client.
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Callable
from urllib.parse import quote

from csi_driver.model.errors import InvalidParameter

SERVICE_ACCOUNT_FIELD = "secret key service_account_json"
_HIDDEN = "(hidden)"

_EMAIL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._%+-]{0,127}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,125}[A-Za-z0-9])?\Z")
_KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,128}\Z")
_CLIENT_ID = re.compile(r"[0-9]{0,64}\Z")
PROJECT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:-]{0,127}\Z")
_PEM = re.compile(r"-----BEGIN ((?:RSA )?PRIVATE KEY)-----([A-Za-z0-9+/=\s]+)-----END \1-----\s*\Z")


def _is_pem(text: str) -> bool:
    found = _PEM.match(text)
    if found is None:
        return False
    try:
        return bool(binascii.a2b_base64("".join(found[2].split()), strict_mode=True))
    except binascii.Error:
        return False


_FIELDS: dict[str, tuple[Callable[[str], object], str]] = {
    "type": (lambda text: text == "service_account", "service_account; keys of other types name servers to ask"),
    "client_email": (_EMAIL.match, "the e-mail address of the account"),
    "private_key_id": (_KEY_ID.match, "letters, digits, _ and -"),
    "private_key": (_is_pem, "one private key in PEM form"),
    "project_id": (PROJECT_ID.match, "the id of a project"),
    "client_id": (_CLIENT_ID.match, "digits"),
}
_REQUIRED = ("type", "client_email", "private_key_id", "private_key")
_WELL_KNOWN: dict[str, tuple[str, ...]] = {
    "auth_uri": ("https://accounts.google.com/o/oauth2/auth", "https://accounts.google.com/o/oauth2/v2/auth"),
    "token_uri": (
        "https://oauth2.googleapis.com/token",
        "https://accounts.google.com/o/oauth2/token",
        "https://www.googleapis.com/oauth2/v4/token",
    ),
    "auth_provider_x509_cert_url": ("https://www.googleapis.com/oauth2/v1/certs",),
    "universe_domain": ("googleapis.com",),
}
"""Fields that Google writes into every key file. No client here uses them; with another value they name a place."""
_CERTIFICATES = "https://www.googleapis.com/robot/v1/metadata/x509/"


def rebuild_service_account(text: str) -> str:
    """The JSON text of a key with known fields only, each checked.

    Raises InvalidParameter, which names the field at fault and never a value.
    """
    fields = _parsed(text)
    for name in _REQUIRED:
        if name not in fields:
            raise _refused(name, "given: Google writes it into every key file")
    for name, value in fields.items():
        if not isinstance(value, str):
            raise _refused(name, "a text" if name in _FIELDS else _known())
        check, allowed = _FIELDS.get(name) or _well_known(name, fields["client_email"])
        if not check(value):
            raise _refused(name, allowed)
    return json.dumps({name: fields[name] for name in _FIELDS if name in fields})


def _parsed(text: str) -> dict[str, object]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise InvalidParameter(SERVICE_ACCOUNT_FIELD, _HIDDEN, "the JSON text of a service account key") from None
    return fields


def _well_known(name: str, email: object) -> tuple[Callable[[str], object], str]:
    """Raises InvalidParameter for a field that is not known."""
    values = _WELL_KNOWN.get(name, ())
    if name == "client_x509_cert_url":
        values = (_CERTIFICATES + quote(str(email), safe=""), _CERTIFICATES + str(email))
    if not values:
        raise _refused(name, _known())
    return values.__contains__, f"{values[0]}, or to leave it out"


def _known() -> str:
    names = ", ".join((*_FIELDS, *_WELL_KNOWN, "client_x509_cert_url"))
    return f"only these fields: {names}"


def _refused(field: str, allowed: str) -> InvalidParameter:
    return InvalidParameter(f"{SERVICE_ACCOUNT_FIELD}, field {field[:64]!r}", _HIDDEN, allowed)
