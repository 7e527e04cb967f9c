"""What becomes of an option of another driver: a table of rules for each of them, as values.

``docs/migration.md`` shows the tables (``tools/migration_table.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase

BUCKET = "(bucket)"
PREFIX = "(prefix)"
MOUNT_OPTION = "(mount option)"
"""Results of a conversion that are no parameters by themselves: the parts of ``url``, and one flag of
``mountOptions``."""

LONGEST_AGE = "365d"


class Outcome(StrEnum):
    """What happened to an option."""

    PARAMETER = "becomes"
    DROPPED = "dropped"
    IMPOSSIBLE = "not possible"
    UNKNOWN = "unknown"


class NotTranslatable(Exception):
    """A value that a parameter cannot have. The reason does not repeat it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


Conversion = Callable[[str], Mapping[str, str]]
"""From the text of a value to our parameters. Raises NotTranslatable."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Options of one meaning. A name may be a glob; a name without wildcards comes before it."""

    names: tuple[str, ...]
    outcome: Outcome
    text: str
    """Markdown: of an option that becomes a parameter, which one; of any other one the reason, and what to do."""
    convert: Conversion | None = None


def becomes(names: str, text: str, convert: Conversion) -> Rule:
    """Names are separated by spaces, here and below."""
    return Rule(tuple(names.split()), Outcome.PARAMETER, text, convert)


def dropped(names: str, reason: str) -> Rule:
    return Rule(tuple(names.split()), Outcome.DROPPED, reason)


def impossible(names: str, reason: str) -> Rule:
    return Rule(tuple(names.split()), Outcome.IMPOSSIBLE, reason)


def find_rule(rules: Sequence[Rule], name: str) -> Rule | None:
    """None: the option is not known."""
    exact = next((rule for rule in rules if name in rule.names), None)
    if exact is not None:
        return exact
    return next((rule for rule in rules if any(fnmatchcase(name, glob) for glob in rule.names if "*" in glob)), None)


def same(parameter: str) -> Conversion:
    """The value as it is."""
    return lambda value: {parameter: _given(value)}


def switch(parameter: str, value: str = "true") -> Conversion:
    """Of an option that is on or off; off is the default of ours."""
    return lambda text: {parameter: value} if is_on(text) else {}


def is_on(text: str) -> bool:
    """An option without a value is on. Raises NotTranslatable for what is no truth value."""
    if text.lower() in ("", "true", "1", "t", "yes", "y", "on"):
        return True
    if text.lower() in ("false", "0", "f", "no", "n", "off"):
        return False
    raise NotTranslatable("true or false is expected")


def mode(parameter: str) -> Conversion:
    """Permission bits in octal; those for writing are taken away."""
    return lambda text: {parameter: f"{_octal(text) & 0o555:04o}"}


def mask(*parameters: str) -> Conversion:
    """What is left of 0555 by an umask."""
    return lambda text: {parameter: f"{0o555 & ~_octal(text):04o}" for parameter in parameters}


def _octal(text: str) -> int:
    digits = text.removeprefix("0o")
    if not digits or len(digits) > 5 or set(digits) - set("01234567"):
        raise NotTranslatable("octal permission bits are expected")
    return int(digits, 8)


def age(parameter: str) -> Conversion:
    """Seconds, or a duration such as ``1m0s``; -1 and ``indefinite`` are the longest that there is."""

    def convert(text: str) -> Mapping[str, str]:
        if text in ("-1", "indefinite"):
            return {parameter: LONGEST_AGE}
        if text in ("0", "minimal"):
            return {parameter: "0"}
        if text.isascii() and text.isdigit():
            return {parameter: f"{int(text)}s" if int(text) <= 365 * 86_400 else LONGEST_AGE}
        if text[:1].isdigit() and text[-1:].isalpha():
            return {parameter: text}
        raise NotTranslatable("a time in seconds is expected")

    return convert


def bytes_per_second(parameter: str) -> Conversion:
    """-1: no limit."""

    def convert(text: str) -> Mapping[str, str]:
        try:
            rate = float(text)
        except ValueError:
            raise NotTranslatable("a number of bytes per second is expected") from None
        if not rate < 1e15:
            raise NotTranslatable("a number of bytes per second is expected")
        return {parameter: f"{int(rate)}B/s"} if rate > 0 else {}

    return convert


def kernel_read_ahead(text: str) -> Mapping[str, str]:
    """KiB; the limits are those of ours."""
    if not (text.isascii() and text.isdigit()):
        raise NotTranslatable("a number of KiB is expected")
    return {MOUNT_OPTION: f"read_ahead_kb={min(max(int(text[:9]), 128), 65_536)}"}


def _given(value: str) -> str:
    if not value:
        raise NotTranslatable("it has no value")
    return value


READ_ONLY = "Hayloft volumes are read-only: what writes, writes elsewhere"
NODE_CACHE = "the node has one cache for all volumes: `cache.limit` and `cache.volume` of the chart"
DAEMON_LOG = "the log is that of the cache daemon: `log.level` of the chart"
OWN_CLIENT = "tunes a client that Hayloft does not have"
ALWAYS = "it holds for every volume of Hayloft"
CREDENTIALS = "keys belong in a Secret: `access_key_id` and `secret_access_key`"

COMMON_RULES = (
    becomes("noexec", "the mount option `noexec`", lambda text: {MOUNT_OPTION: "noexec"}),
    becomes("read_ahead_kb", "the mount option `read_ahead_kb`, from 128 to 65536", kernel_read_ahead),
    dropped("ro read-only nosuid nodev noatime nodiratime relatime default_permissions", ALWAYS),
    impossible("rw sync dirsync", READ_ONLY),
    dropped(
        "allow-other allow_other allow-root allow_root",
        "owner and modes of files say what others may read",
    ),
    dropped("_netdev auto_unmount auto-unmount nonempty", "kubelet mounts and unmounts"),
)
"""Flags that mount(8) and FUSE have."""
