"""What the values of a Secret may look like. A value is a name or a key: none may name a server, and none may hold a
character that ends a header, a command or a query."""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable

from csi_driver.model.errors import InvalidParameter
from csi_driver.objects.google_service_account import rebuild_service_account

# The id stands in a header between "Credential=" and "/", and ends at a comma.
_KEY_ID = re.compile(r"[!-+\-.0-~]{1,1024}\Z")
_HEADER_TEXT = re.compile(r"[!-~]+\Z")  # printable ASCII without a space
_ASCII_LINE = re.compile(r"[ -~]+\Z")  # it signs, and is sent nowhere
_ACCOUNT = re.compile(r"[a-z0-9]{3,24}\Z")
_ONE_LINE = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+\Z")
_SAS_PAIR = r"(?:s[a-z]{1,6}|rsc[a-z])=(?:[A-Za-z0-9._~:/+,!*'()@$=-]|%[0-9A-Fa-f]{2})*"
_SAS = re.compile(rf"\??{_SAS_PAIR}(?:&{_SAS_PAIR})*\Z")

_Check = Callable[[str], object]


def _is_base64(text: str) -> bool:
    try:
        return text.isascii() and bool(binascii.a2b_base64(text, strict_mode=True))
    except binascii.Error:
        return False


def _is_sas(text: str) -> bool:
    """A shared access signature, as Azure shows it: parameters of a query, ``sig`` among them, and nothing else. Other
    parameters would change what a request asks for."""
    return _SAS.match(text) is not None and re.search(r"(?:^\??|&)sig=[^&]", text) is not None


_GRAMMARS: dict[str, tuple[_Check, str]] = {
    "access_key_id": (_KEY_ID.match, "printable ASCII without spaces, commas and slashes"),
    "secret_access_key": (_ASCII_LINE.match, "printable ASCII"),
    "session_token": (_HEADER_TEXT.match, "printable ASCII without spaces"),
    "account_name": (_ACCOUNT.match, "3 to 24 lower-case letters and digits"),
    "account_key": (_is_base64, "base64, as Azure shows it"),
    "sas_token": (_is_sas, "the query of a shared access signature, such as sv=...&sig=..., and no URL"),
    "access_token": (_HEADER_TEXT.match, "printable ASCII without spaces"),
    "username": (_ONE_LINE.match, "one line without control characters"),
    "password": (_ONE_LINE.match, "one line without control characters"),
    "token": (_HEADER_TEXT.match, "printable ASCII without spaces"),
}


def checked_value(meaning: str, name: str, value: str) -> str:
    """The value that clients get. ``name`` is the Secret's key of this ``meaning``. Raises InvalidParameter, which
    never shows the value."""
    if meaning == "service_account_json":
        return rebuild_service_account(value)
    check, allowed = _GRAMMARS[meaning]
    if not check(value):
        raise InvalidParameter(f"secret key {name}", "(hidden)", allowed)
    return value
