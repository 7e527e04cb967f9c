"""Parses the text of one parameter. Each function takes the parameter's name, for the error message, and the text.

All raise InvalidParameter (or ReadOnlyVolume). Text that may contain a secret is not repeated in the message.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from csi_driver.model.dataset import DatasetUrl, without_query
from csi_driver.model.errors import InvalidParameter, ReadOnlyVolume
from csi_driver.model.inventory_url import InventoryUrl
from csi_driver.objects.google_service_account import PROJECT_ID

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*\Z")
_REGION = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_BANDWIDTH_UNITS = {
    "B": 1.0,
    **{f"{letter}iB": 1024.0 ** (power + 1) for power, letter in enumerate("KMGT")},
    **{f"{letter}B": 1000.0 ** (power + 1) for power, letter in enumerate("kMGT")},
    **{f"{letter}bit": 125.0 * 1000**power for power, letter in enumerate("kMGT")},
}
_BANDWIDTH = re.compile(rf"(\d+(?:\.\d+)?) ?({'|'.join(_BANDWIDTH_UNITS)})/s\Z")
_SIZE_UNITS = {
    "B": 1,
    **{f"{letter}{ending}": 1024 ** (power + 1) for power, letter in enumerate("KMGTP") for ending in ("i", "iB")},
    **{f"{letter}{ending}": 1000 ** (power + 1) for power, letter in enumerate("kMGTP") for ending in ("", "B")},
}
_SIZE = re.compile(rf"(\d{{1,15}}(?:\.\d{{1,9}})?) ?({'|'.join(_SIZE_UNITS)})?\Z")
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----")

_ROLE_ARN = re.compile(r"arn:aws[a-z-]{0,20}:iam::[0-9]{12}:role/[A-Za-z0-9+=,.@_/-]{1,512}\Z")
_WORKLOAD_PROVIDER = re.compile(
    r"//iam\.googleapis\.com/projects/[0-9]{1,20}/locations/global/workloadIdentityPools/[a-z0-9-]{1,64}/providers/"
    r"[a-z0-9-]{1,64}\Z|identitynamespace:[a-z0-9.:-]{1,128}\.svc\.id\.goog:https://[A-Za-z0-9./_-]{1,512}\Z"
)
_GOOGLE_ACCOUNT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}@[a-z0-9][a-z0-9.-]{0,100}\.gserviceaccount\.com\Z")
_UUID = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\Z")
_STORAGE_ACCOUNT = re.compile(r"[a-z0-9]{3,24}\Z")
_AUDIENCE = re.compile(r"[!-~]{1,1024}\Z")

MAX_ID = (1 << 32) - 2
"""The largest uid or gid; to the kernel the next number means "none"."""

READ_AHEAD_KIB = range(128, 65_536 + 1)
"""128 KiB is the kernel's own default; more than 64 MiB per open file only fills the page cache."""

LEAST_BANDWIDTH_BYTES = 64 << 10
MOST_BANDWIDTH_BYTES = 10**12
"""Limits of a warmup's bandwidth, in bytes a second. Below the least, a fetch of a few chunks would take a minute."""

LEAST_READ_BANDWIDTH_BYTES = 1 << 20
"""Of a limit that readers have too: one chunk, the least that a read requests, in a second."""

BANDWIDTHS_ALLOWED = "a rate such as 200MiB/s or 2Gbit/s, from 64KiB/s to 1TB/s, or 0: no limit"

READ_BANDWIDTHS_ALLOWED = (
    "a rate such as 200MiB/s or 2Gbit/s, from 1MiB/s (one request in a second) to 1TB/s, or 0: no limit"
)

MOST_CONCURRENCY = 64
"""Fetches of one warmup in flight. The daemon has a further limit for all warmups together."""

MOST_READ_AHEAD_BYTES = 1 << 30
"""Of one open file. More would be in flight only with more fetch threads than there can be."""

MOST_PATH_CHARACTERS = 1024

_BARE_FLAGS = frozenset({"ro", "nosuid", "nodev", "noexec", "noatime", "nodiratime", "relatime"})
_WRITING_FLAGS = frozenset({"rw", "sync", "dirsync"})


def dataset_url(name: str, text: str) -> DatasetUrl:
    """A URL without user name, password or query: those are credentials, and belong in a Secret."""
    scheme, separator, rest = text.strip().partition("://")
    authority = rest.partition("/")[0]
    web = scheme.lower() in ("http", "https")
    if "@" in authority or (web and ("?" in rest or "#" in rest)):
        allowed = "scheme://bucket/prefix without credentials, query or fragment"
        raise InvalidParameter(name, f"{scheme}://…", allowed, "Put credentials in a Secret")
    if any(ord(character) < 32 for character in text):
        raise InvalidParameter(name, text, "a URL without control characters")
    if separator and not _SCHEME.match(scheme.lower()):
        raise InvalidParameter(name, text, "scheme://bucket/prefix", "URLs chained with '::' are not supported")
    return DatasetUrl.parse(text)


def endpoint(name: str, text: str) -> str:
    """The base URL of a service, without a trailing slash."""
    allowed = "http://host[:port] or https://host[:port], such as https://s3.example.com:9000"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise InvalidParameter(name, "…", allowed) from None
    if "@" in text or "?" in text or "#" in text:
        # Also where no scheme was written: what stands before an @ may be a password.
        raise InvalidParameter(name, f"{parts.scheme}://…", allowed, "Put credentials in a Secret")
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname or port == 0 or re.search(r"\s", text):
        raise InvalidParameter(name, text, allowed)
    return text.rstrip("/")


def region(name: str, text: str) -> str:
    """A provider's name of a region."""
    if not _REGION.match(text):
        raise InvalidParameter(name, text, "a region's name, such as eu-central-1")
    return text


def globs(name: str, text: str) -> tuple[str, ...]:
    """One glob a line or, in a text of one line, separated by commas. A glob that contains a comma needs lines."""
    parts = text.splitlines() if "\n" in text else text.split(",")
    patterns = tuple(part.strip() for part in parts if part.strip())
    if "\0" in text:
        raise InvalidParameter(name, text, "globs such as train/**/*.jpg")
    return patterns


def globs_text(patterns: tuple[str, ...]) -> str:
    """The inverse of ``globs``."""
    if any("," in pattern for pattern in patterns):
        return "".join(f"{pattern}\n" for pattern in patterns)
    return ",".join(patterns)


def place_of_list(name: str, text: str) -> str:
    """The path or URL of a list of files."""
    if not text.isprintable() or without_query(text) != text:
        raise InvalidParameter(name, without_query(text), "a path or URL in one line, without a query or fragment")
    return text


def inventory(name: str, text: str) -> InventoryUrl:
    """The URL of an inventory, or of a list in one file: without credentials, as that of a dataset."""
    dataset_url(name, text)
    return InventoryUrl.parse(text)


def boolean(name: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise InvalidParameter(name, text, "true or false")
    return text.lower() == "true"


def choice(name: str, text: str, allowed: tuple[str, ...]) -> str:
    if text not in allowed:
        raise InvalidParameter(name, text, " or ".join(allowed), suggestion(text, allowed))
    return text


def project(name: str, text: str) -> str:
    """The id of a project of Google Cloud."""
    if not PROJECT_ID.match(text):
        raise InvalidParameter(name, text, "the id of a project of Google Cloud, such as team-a-1234")
    return text


def role_arn(name: str, text: str) -> str:
    """The name of a role of AWS."""
    if not _ROLE_ARN.match(text):
        raise InvalidParameter(name, text, "the ARN of a role, such as arn:aws:iam::123456789012:role/train")
    return text


def workload_provider(name: str, text: str) -> str:
    """The name of a provider of identities at Google Cloud."""
    if not _WORKLOAD_PROVIDER.match(text):
        allowed = (
            "//iam.googleapis.com/projects/NUMBER/locations/global/workloadIdentityPools/POOL/providers/PROVIDER, or "
            "identitynamespace:PROJECT.svc.id.goog:https://container.googleapis.com/v1/projects/... on GKE"
        )
        raise InvalidParameter(name, text, allowed)
    return text


def google_account(name: str, text: str) -> str:
    """The e-mail address of a service account."""
    if not _GOOGLE_ACCOUNT.match(text):
        raise InvalidParameter(name, text, "an address such as train@my-project.iam.gserviceaccount.com")
    return text


def uuid_text(name: str, text: str) -> str:
    """A UUID in lower case."""
    if not _UUID.match(text):
        raise InvalidParameter(name, text, "a UUID such as 72f988bf-86f1-41af-91ab-2d7cd011db47")
    return text.lower()


def storage_account(name: str, text: str) -> str:
    """The name of a storage account of Azure."""
    if not _STORAGE_ACCOUNT.match(text):
        raise InvalidParameter(name, text, "3 to 24 lower-case letters and digits")
    return text


def audience(name: str, text: str) -> str:
    """The audience of a token."""
    if not _AUDIENCE.match(text):
        raise InvalidParameter(name, text, "printable ASCII without spaces, at most 1024 characters")
    return text


def owner(name: str, text: str) -> int:
    """A numeric user or group id."""
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) > MAX_ID:
        raise InvalidParameter(name, text, f"a number from 0 to {MAX_ID}", "Names of users are not known on the node")
    return int(text)


def mode(name: str, text: str) -> int:
    """Permission bits in octal, without write permission."""
    allowed = "octal permission bits without write bits, such as 0444 or 0550"
    if not re.fullmatch(r"(0o)?[0-7]{1,5}", text) or int(text, 8) > 0o777:
        raise InvalidParameter(name, text, allowed)
    bits = int(text, 8)
    if bits & 0o222:
        raise InvalidParameter(name, text, allowed, f"The volume is read-only: use {bits & ~0o222:04o}")
    return bits


def duration(name: str, text: str, least_s: float, most_s: float) -> float:
    """``90s``, ``10m``, ``1h30m``, ``1d``, ``500ms`` or ``0``, in seconds."""
    parts = _DURATION_PART.findall(text)
    seconds = sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)
    readable = text == "0" or (parts and "".join(number + unit for number, unit in parts) == text)
    if not readable or not least_s <= seconds <= most_s:
        allowed = f"a duration such as 90s, 10m or 1h30m, from {duration_text(least_s)} to {duration_text(most_s)}"
        raise InvalidParameter(name, text, allowed)
    return seconds


def duration_text(seconds: float) -> str:
    """The inverse of ``duration``, in one unit."""
    if seconds == 0:
        return "0"
    for unit in ("d", "h", "m", "s"):
        if seconds % _UNIT_SECONDS[unit] == 0:
            return f"{int(seconds / _UNIT_SECONDS[unit])}{unit}"
    return f"{round(seconds * 1000)}ms"


def bandwidth(name: str, text: str) -> int:
    """``200MiB/s``, ``2Gbit/s`` or ``0`` (no limit), in bytes a second."""
    bytes_per_second = _bytes_per_second(text)
    if text != "0" and (not bytes_per_second or not is_bandwidth(bytes_per_second)):
        raise InvalidParameter(name, text, BANDWIDTHS_ALLOWED)
    return max(0, bytes_per_second)


def read_bandwidth(name: str, text: str) -> int:
    """As ``bandwidth``, of a limit that readers have too."""
    bytes_per_second = _bytes_per_second(text)
    if text != "0" and not LEAST_READ_BANDWIDTH_BYTES <= bytes_per_second <= MOST_BANDWIDTH_BYTES:
        raise InvalidParameter(name, text, READ_BANDWIDTHS_ALLOWED)
    return max(0, bytes_per_second)


def _bytes_per_second(text: str) -> int:
    """-1 for what is no rate."""
    found = _BANDWIDTH.match(text)
    return int(float(found[1]) * _BANDWIDTH_UNITS[found[2]]) if found else -1


def is_bandwidth(bytes_per_second: int) -> bool:
    """Whether the value is a valid bandwidth of a warmup; 0: no limit."""
    return bytes_per_second == 0 or LEAST_BANDWIDTH_BYTES <= bytes_per_second <= MOST_BANDWIDTH_BYTES


def bandwidth_text(bytes_per_second: int) -> str:
    """The inverse of ``bandwidth``."""
    for unit in ("GiB", "MiB", "KiB"):
        if bytes_per_second and bytes_per_second % _BANDWIDTH_UNITS[unit] == 0:
            return f"{bytes_per_second // _BANDWIDTH_UNITS[unit]}{unit}/s"
    return f"{bytes_per_second}B/s" if bytes_per_second else "0"


def size(name: str, text: str) -> int:
    """``200GiB``, ``1.5TB``, ``200Gi`` as Kubernetes writes it, or a number of bytes."""
    found = _SIZE.match(text)
    if found is None or (found[2] in (None, "B") and "." in found[1]):
        raise InvalidParameter(name, text, "a size such as 200GiB, 1.5TB or 0")
    unit = _SIZE_UNITS[found[2] or "B"]
    return int(float(found[1]) * unit) if "." in found[1] else int(found[1]) * unit


def size_text(count_bytes: int) -> str:
    """The inverse of ``size``."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if count_bytes and count_bytes % _SIZE_UNITS[unit] == 0:
            return f"{count_bytes // _SIZE_UNITS[unit]}{unit}"
    return str(count_bytes)


def read_ahead(name: str, text: str) -> int:
    """A size of complete MiB, or 0: none."""
    count_bytes = size(name, text)
    if count_bytes > MOST_READ_AHEAD_BYTES or count_bytes % (1 << 20):
        raise InvalidParameter(name, text, "a size from 1MiB to 1GiB in complete MiB, or 0: none")
    return count_bytes


def trace_path(name: str, text: str) -> str:
    """The path of an object below the dataset's URL."""
    parts = text.split("/")
    if not text.isprintable() or len(text) > MOST_PATH_CHARACTERS or {"", ".", ".."} & set(parts):
        allowed = "a path below the dataset's URL, such as traces/start.arrow"
        raise InvalidParameter(name, text, allowed, "`hayloft trace record` writes such a file; upload it there")
    return text


def concurrency(name: str, text: str) -> int:
    """The number of fetches in flight."""
    if not re.fullmatch(r"[0-9]{1,3}", text) or not 1 <= int(text) <= MOST_CONCURRENCY:
        raise InvalidParameter(name, text, f"a number from 1 to {MOST_CONCURRENCY}")
    return int(text)


def certificates(name: str, text: str) -> str:
    """Certificates in PEM form. The text is never repeated in a message: it may contain a private key by mistake."""
    allowed = "the text of one or more certificates in PEM form, not a path"
    shown = f"<{len(text)} characters>"
    if "PRIVATE KEY" in text:
        raise InvalidParameter(name, shown, allowed, "It contains a private key: leave that out, and replace the key")
    try:
        if not _CERTIFICATE.search(text):
            raise ValueError("no certificate")
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ValueError, ssl.SSLError):
        raise InvalidParameter(name, shown, allowed) from None
    return text.strip() + "\n"


@dataclass(frozen=True, slots=True)
class MountOptions:
    """Checked mount flags. ``ro``, ``nosuid`` and ``nodev`` apply to every volume, so they change nothing."""

    flags: tuple[str, ...] = ()

    @classmethod
    def parse(cls, flags: Iterable[str], name: str = "mountOptions") -> MountOptions:
        """From the flags of a CSI volume capability or the attribute ``mountOptions``; sorted, without duplicates."""
        plain = (flag.strip() for flag in flags)
        return cls(tuple(sorted({_mount_flag(name, flag) for flag in plain if flag})))

    @classmethod
    def from_text(cls, name: str, text: str) -> MountOptions:
        """From flags separated by commas."""
        return cls.parse(text.replace("\n", ",").split(","), name)

    @property
    def read_ahead_kib(self) -> int | None:
        """The largest ``read_ahead_kb=``."""
        values = [int(flag.partition("=")[2]) for flag in self.flags if flag.startswith("read_ahead_kb=")]
        return max(values, default=None)

    @property
    def no_exec(self) -> bool:
        """True if programs in the volume must not be executed."""
        return "noexec" in self.flags


def _mount_flag(name: str, flag: str) -> str:
    key, separator, value = flag.partition("=")
    if key in _WRITING_FLAGS:
        raise ReadOnlyVolume(f"{name}: {flag!r} is for writing, and Hayloft volumes are read-only; leave it out")
    if key == "read_ahead_kb":
        if not value.isascii() or not value.isdigit() or int(value) not in READ_AHEAD_KIB:
            allowed = f"read_ahead_kb=N with N from {READ_AHEAD_KIB.start} to {READ_AHEAD_KIB.stop - 1}"
            raise InvalidParameter(name, flag, allowed)
        return f"read_ahead_kb={int(value)}"
    if separator or key not in _BARE_FLAGS:
        known = ", ".join(sorted(_BARE_FLAGS))
        remedy = suggestion(key, (*_BARE_FLAGS, "read_ahead_kb"))
        if key in ("uid", "gid", "file_mode", "dir_mode", "umask"):
            remedy = "Owner and modes are the parameters uid, gid, fileMode and dirMode"
        raise InvalidParameter(name, flag, f"read_ahead_kb=N, {known}", remedy)
    return flag


def suggestion(wrong: str, known: Iterable[str]) -> str:
    """``Did you mean ...?``, or an empty text without a similar word."""
    similar = nearest(wrong, known)
    return f"Did you mean {similar}?" if similar else ""


def nearest(wrong: str, known: Iterable[str]) -> str | None:
    """The known word that is most similar, ignoring case and punctuation. None: none is."""
    from difflib import get_close_matches  # for errors alone

    by_letters = {_letters(word): word for word in known}
    similar = get_close_matches(_letters(wrong), by_letters, n=1, cutoff=0.7)
    return by_letters[similar[0]] if similar else None


def _letters(word: str) -> str:
    return re.sub(r"[^a-z0-9]", "", word.lower())
