"""Logging, and redaction of secrets. Standard library only: `hayloft keeper` loads this module."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from typing import Literal, TextIO

LogFormat = Literal["text", "json"]

REDACTED = "***"

_SECRET_WORDS = (
    "secret",
    "password",
    "passwd",
    "token",
    "credential",
    "accesskey",
    "accountkey",
    "keyid",
    "saskey",
    "signature",
    "privatekey",
)
_LONGEST_VALUE = 256
"""Longer values, such as a CA bundle, are cut in the log."""


def is_secret_name(name: str) -> bool:
    """Whether the name of a field or key indicates a secret. Errs on the safe side: a volume context may hold the
    service account tokens of a pod."""
    plain = "".join(character for character in name.lower() if character.isalnum())
    return any(word in plain for word in _SECRET_WORDS)


def redact(values: Mapping[str, str]) -> dict[str, str]:
    """A copy for the log: secret values replaced, URLs without user and query, long values cut."""
    return {key: REDACTED if is_secret_name(key) else redact_text(value) for key, value in values.items()}


def redact_text(value: str) -> str:
    """One value, if its name does not indicate a secret."""
    if "PRIVATE KEY" in value:
        return REDACTED
    scheme, separator, rest = value.partition("://")
    if separator:
        authority, slash, path = rest.partition("/")
        value = scheme + separator + authority.rpartition("@")[2] + slash + path.partition("?")[0]
    return value if len(value) <= _LONGEST_VALUE else f"{value[:_LONGEST_VALUE]}… ({len(value)} characters)"


def fields(**values: object) -> dict[str, dict[str, object]]:
    """For the argument ``extra`` of a log call: values that both formats show after the message. None is left out."""
    return {"fields": {key: value for key, value in values.items() if value is not None}}


class _Formatter(logging.Formatter):
    """One line for each record, in UTC. A traceback follows indented (text) or is a field (JSON)."""

    converter = staticmethod(time.gmtime)

    def __init__(self, process_name: str) -> None:
        super().__init__(datefmt="%Y-%m-%dT%H:%M:%S")
        self._process_name = process_name

    def timestamp(self, record: logging.LogRecord) -> str:
        return f"{self.formatTime(record, self.datefmt)}.{int(record.msecs):03d}Z"


class TextFormatter(_Formatter):
    """``2026-01-31T12:00:00.000Z INFO node csi_driver.csi.node_service message key=value``."""

    def format(self, record: logging.LogRecord) -> str:
        values = dict(_fields_of(record))
        traceback = values.pop("traceback", None)
        shown = "".join(f" {key}={_quoted(value)}" for key, value in values.items())
        head = f"{self.timestamp(record)} {record.levelname} {self._process_name} {record.name}"
        line = f"{head} {_one_line(record.getMessage())}{shown}"
        if record.exc_info:
            traceback = self.formatException(record.exc_info)
        return line if traceback is None else f"{line}\n    " + str(traceback).rstrip().replace("\n", "\n    ")


class JsonFormatter(_Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": self.timestamp(record),
            "level": record.levelname,
            "process": self._process_name,
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry.update({key: value for key, value in _fields_of(record).items() if key not in entry})
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=True, default=str)


def set_up_logging(
    process_name: str, level: str = "info", log_format: LogFormat = "text", out: TextIO | None = None
) -> None:
    """Writes log records to ``out`` (default: standard error): those of this package from ``level`` on, those of other
    libraries from WARNING on. Replaces an earlier set-up."""
    handler = logging.StreamHandler(sys.stderr if out is None else out)
    handler.setFormatter(JsonFormatter(process_name) if log_format == "json" else TextFormatter(process_name))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("csi_driver").setLevel(level.upper())
    logging.captureWarnings(True)


def _fields_of(record: logging.LogRecord) -> dict[str, object]:
    values = getattr(record, "fields", None)
    return values if isinstance(values, dict) else {}


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text) if not text or any(c in text for c in ' "=\n\r\t') else text


def _one_line(text: str) -> str:
    """Escapes newlines, so that a name from outside cannot forge a second line."""
    return text.replace("\n", "\\n").replace("\r", "\\r")
