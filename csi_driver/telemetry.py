"""Logging, and redaction of secrets. Standard library only: `hayloft keeper` loads this module.

No record shows the text of an exception that Hayloft did not compose (see ``tracebacks``), nor what another library
composed for its own records: urllib3 logs URLs with their signatures, asyncio the repr of exceptions. Of those, a
constant of the library's source is shown, with its place.
"""

from __future__ import annotations

import base64
import html
import json
import logging
import re
import signal
import sys
import threading
import time
import urllib.parse
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from itertools import islice, permutations
from types import TracebackType
from typing import Literal, TextIO

from csi_driver.model.errors import HayloftError
from csi_driver.model.log_context import current_call_id
from csi_driver.model.log_repeats import RepeatFilter
from csi_driver.model.spans import current_trace_id
from csi_driver.model.tracebacks import outline, summary

LogFormat = Literal["text", "json"]

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]

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
_NAMES = ("accountname", "storageaccount", "azurestorageaccount", "azurestorageaccountname", "username", "user")
"""Of values of a Secret that say whose credentials it holds. They are in URLs and endpoints, and no secret."""

_LONGEST_VALUE = 256
"""Longer values, such as a CA bundle, are cut in the log."""

_SHORTEST_SECRET = 4
"""Shorter values are no secrets, and masking them would make texts unreadable."""

_MOST_PAIRED = 16
"""Values of a secret that may be a name and a password of HTTP's basic authentication."""

_MOST_PARTS, _MOST_CHARACTERS = 256, 1 << 16
"""Of the values of a Secret, the first with their lines: four service accounts of Google. Each part takes some 0.1 ms
of the interpreter. A Secret of Kubernetes may have a megabyte; a text is not shown then."""

TOO_LONG_TO_MASK = (
    f"{REDACTED} (not shown: the values of the Secret have too many lines or characters to be looked for)"
)

_URL_SAFE = str.maketrans("+/", "-_")

_OWN_LOGGERS = ("csi_driver", "hayloft_bench", "hayloft_lab")


def is_secret_name(name: str) -> bool:
    """Whether the name of a field or key indicates a secret. Errs on the safe side: a volume context may hold the
    service account tokens of a pod."""
    return any(word in _plain(name) for word in _SECRET_WORDS)


def is_account_name(name: str) -> bool:
    """Whether the value of a Secret under this name says which account it is for, rather than being a secret."""
    return _plain(name) in _NAMES


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


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
        value = scheme + separator + authority.rpartition("@")[2].partition("?")[0] + slash + path.partition("?")[0]
    return value if len(value) <= _LONGEST_VALUE else f"{value[:_LONGEST_VALUE]}… ({len(value)} characters)"


def shown_url(url: str, secrets: Mapping[str, str]) -> str:
    """The URL of a volume as logs and traces show it: without user, query and any value of its Secret, but for names
    of accounts."""
    hidden = (value for name, value in secrets.items() if not is_account_name(name))
    return redact_text(Mask(hidden)(url))


class Mask:
    """Replaces the values of secrets, and the lines of those that have several, in all spellings in which messages
    quote them. The second line of defence, behind messages that quote no secret.

    The author of a Secret may be hostile, and this runs in the process that serves reads: spellings are made once, at
    the first text, for as many lines as ``_MOST_PARTS``, and a regular expression of those alone that the text has.
    """

    def __init__(self, secrets: Iterable[str], names: Iterable[str] = ()) -> None:
        """``names``: of the accounts that the secrets are for. They are shown, but not with a secret behind them in
        base64."""
        self._values, self._names = tuple(secrets), tuple(names)

    def __call__(self, text: str) -> str:
        if self._longest_first is None:
            return text and TOO_LONG_TO_MASK
        found = [spelling for spelling in self._longest_first if spelling in text]
        return re.sub("|".join(map(re.escape, found)), REDACTED, text) if found else text

    @cached_property
    def _longest_first(self) -> list[str] | None:
        """All spellings; None: too many."""
        if sum(map(len, self._values)) > _MOST_CHARACTERS:
            return None
        parts = list(islice((part for value in self._values for part in _parts(value)), _MOST_PARTS + 1))
        if len(parts) > _MOST_PARTS:
            return None
        spellings = {spelling for part in set(parts) for spelling in _spellings(part)}
        paired = (*self._names, *self._values)[:_MOST_PAIRED]
        spellings |= {_base64(f"{name}:{password}") for name, password in permutations(paired, 2)}
        return sorted(filter(_is_long, spellings), key=len, reverse=True)


def _parts(secret: str) -> Iterator[str]:
    """The value, its lines, and the secrets in a value that is JSON: a service account holds a private key."""
    yield from (part for part in (secret, secret.strip(), *map(str.strip, secret.splitlines())) if _is_long(part))
    try:
        parsed = json.loads(secret)
    except (ValueError, RecursionError):
        return
    for key, value in _named_texts(parsed):
        if is_secret_name(key) and value != secret:
            yield from _parts(value)


def _named_texts(parsed: object) -> Iterator[tuple[str, str]]:
    """Of an object, and of the objects in it: the tokens of service accounts are by audience."""
    for key, value in parsed.items() if isinstance(parsed, dict) else ():
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, dict):
            yield from ((name, text) for name, text in value.items() if isinstance(text, str))


def _is_long(part: str) -> bool:
    return len(part) >= _SHORTEST_SECRET


def _spellings(part: str) -> Iterator[str]:
    data = part.encode("utf-8", "surrogatepass")
    yield part
    yield from (repr(part)[1:-1], ascii(part)[1:-1], repr(data)[2:-1])
    yield from (json.dumps(part)[1:-1], json.dumps(part, ensure_ascii=False)[1:-1])
    yield part.encode("utf-8", "backslashreplace").decode()
    for quoted in (urllib.parse.quote(data), urllib.parse.quote(data, safe=""), urllib.parse.quote_plus(data)):
        yield from (quoted, re.sub("%..", lambda match: match[0].lower(), quoted), quoted.replace("%", "%25"))
    yield html.escape(part)
    yield html.escape(part, quote=False)
    yield from (_one_line(part), data.hex())
    yield from (_base64(part), _base64(part).translate(_URL_SAFE))


def _base64(text: str) -> str:
    return base64.b64encode(text.encode("utf-8", "surrogatepass")).decode().rstrip("=")


def fields(**values: object) -> dict[str, dict[str, object]]:
    """For the argument ``extra`` of a log call: values that both formats show after the message. None is left out."""
    return {"fields": {key: value for key, value in values.items() if value is not None}}


class _Formatter(logging.Formatter):
    """One line for each record, in UTC. A traceback follows indented (text) or is a field (JSON)."""

    converter = staticmethod(time.gmtime)

    def __init__(self, process_name: str, node: str = "") -> None:
        super().__init__(datefmt="%Y-%m-%dT%H:%M:%S")
        self.process_name, self.node = process_name, node

    def facts_of(self, record: logging.LogRecord) -> dict[str, object]:
        """The fields of the record, with those that every line has."""
        facts = _fields_of(record)
        if (call := current_call_id()) is not None:
            facts.setdefault("call", call)
        if (trace := current_trace_id()) is not None:
            facts.setdefault("trace", trace)
        if self.node:
            facts.setdefault("node", self.node)
        return facts

    def timestamp(self, record: logging.LogRecord) -> str:
        return f"{self.formatTime(record, self.datefmt)}.{int(record.msecs):03d}Z"

    def formatException(self, ei: _ExcInfo) -> str:
        return "" if ei[1] is None else outline(ei[1])


class TextFormatter(_Formatter):
    """``2026-01-31T12:00:00.000Z INFO node csi_driver.csi.node_service message key=value``."""

    def format(self, record: logging.LogRecord) -> str:
        values = self.facts_of(record)
        traceback = values.pop("traceback", None)
        shown = "".join(f" {key}={_quoted(value)}" for key, value in values.items())
        head = f"{self.timestamp(record)} {record.levelname} {self.process_name} {record.name}"
        line = f"{head} {_one_line(_message(record))}{shown}"
        if record.exc_info:
            traceback = self.formatException(record.exc_info)
        return line if traceback is None else f"{line}\n    " + str(traceback).rstrip().replace("\n", "\n    ")


class JsonFormatter(_Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": self.timestamp(record),
            "level": record.levelname,
            "process": self.process_name,
            "logger": record.name,
            "message": _message(record),
        }
        entry.update({key: value for key, value in self.facts_of(record).items() if key not in entry})
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=True, default=lambda value: str(_without_texts(value)))


class _Handler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:
        """The standard one prints the arguments of the record. Never raises, as that one."""
        error = sys.exc_info()[1]
        if error is not None and sys.stderr is not None:
            where = f"{record.name} ({record.pathname}:{record.lineno})"
            with suppress(OSError, ValueError):  # ValueError: closed
                sys.stderr.write(f"a log record of {where} cannot be written: {summary(error)}\n")


def set_up_logging(
    process_name: str,
    level: str = "info",
    log_format: LogFormat = "text",
    out: TextIO | None = None,
    *,
    node: str = "",
) -> None:
    """Writes log records to ``out`` (default: standard error): those of this package from ``level`` on, those of other
    libraries from WARNING on. Each line names the ``node``, unless that is empty. Replaces an earlier set-up."""
    handler = _Handler(sys.stderr if out is None else out)
    formatter = JsonFormatter if log_format == "json" else TextFormatter
    handler.setFormatter(formatter(process_name, node))
    handler.addFilter(RepeatFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("csi_driver").setLevel(level.upper())
    for library in ("azure", "google", "msal"):  # their warnings quote the answers of identity services
        logging.getLogger(library).setLevel(logging.CRITICAL)
    warnings.showwarning = _log_warning


def change_level_on_signals() -> None:
    """From now on SIGUSR1 sets the level to DEBUG, and SIGUSR2 back to what it is now. Does nothing on another
    thread than the main one, which alone gets signals."""
    if threading.current_thread() is not threading.main_thread():
        return
    logger = logging.getLogger("csi_driver")
    level_at_start = logger.level

    def change(number: int, _frame: object) -> None:
        level = logging.DEBUG if number == signal.SIGUSR1 else level_at_start
        logger.setLevel(level)
        # A warning, so that it is shown at whatever level.
        name = logging.getLevelName(level)
        logging.getLogger(__name__).warning("the level of the log was changed", extra=fields(level=name))

    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, change)


def process_name() -> str:
    """Of the process whose log this is, such as ``hayloft cache``: what a message refers to that others read."""
    formatters = (handler.formatter for handler in logging.getLogger().handlers)
    name = next((each.process_name for each in formatters if isinstance(each, _Formatter)), "")
    return "hayloft" if name in ("", "hayloft") else f"hayloft {name}"


def node_name() -> str:
    """That the lines of this process name; empty if they name none."""
    formatters = (handler.formatter for handler in logging.getLogger().handlers)
    return next((each.node for each in formatters if isinstance(each, _Formatter)), "")


def log_uncaught_errors() -> None:
    """Logs what the interpreter would print with its text: errors that end the process or a thread, and those that
    cannot be raised, as in a finalizer. For the start of a process."""
    logger = logging.getLogger(__name__)

    def of_the_process(cls: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if isinstance(error, KeyboardInterrupt):
            return
        logger.critical("unexpected error; the process ends", exc_info=(cls, error, traceback))

    def of_a_thread(arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_value is not None and not isinstance(arguments.exc_value, SystemExit):
            name = arguments.thread.name if arguments.thread is not None else None
            logger.critical("unexpected error; a thread ends", extra=fields(thread=name), exc_info=arguments.exc_value)

    def of_a_finalizer(arguments: sys.UnraisableHookArgs) -> None:
        if arguments.exc_value is not None:
            logger.error("unexpected error that cannot be raised; it is ignored", exc_info=arguments.exc_value)

    sys.excepthook, threading.excepthook, sys.unraisablehook = of_the_process, of_a_thread, of_a_finalizer


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """In place of ``warnings.showwarning``, without the text."""
    facts = fields(category=category.__name__, source=f"{filename}:{lineno}")
    logging.getLogger("py.warnings").warning("a warning of the interpreter or a library", extra=facts)


def _message(record: logging.LogRecord) -> str:
    if not _is_own(record):
        return _constant_message(record)
    message, arguments = _without_texts(record.msg), record.args
    if isinstance(arguments, Mapping):
        return str(message) % {key: _without_texts(value) for key, value in arguments.items()}
    return str(message) % tuple(map(_without_texts, arguments)) if arguments else str(message)


def _is_own(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] in _OWN_LOGGERS


def _without_texts(value: object) -> object:
    return summary(value) if isinstance(value, BaseException) and not isinstance(value, HayloftError) else value


def _constant_message(record: logging.LogRecord) -> str:
    """The record's template, if it is a literal in the source of the function that logs; then it cannot hold a value.
    Works in the thread that logs, while that function is on the stack."""
    frame = sys._getframe()
    while frame is not None:
        code = frame.f_code
        if (code.co_filename, frame.f_lineno, code.co_name) == (record.pathname, record.lineno, record.funcName):
            if isinstance(record.msg, str) and record.msg in code.co_consts:
                return record.msg
            break
        frame = frame.f_back  # type: ignore[assignment]
    return f"a message of a library, which is not shown; from {record.pathname}:{record.lineno}"


def _fields_of(record: logging.LogRecord) -> dict[str, object]:
    values = getattr(record, "fields", None)
    if not isinstance(values, dict):
        return {}
    return {key: _without_texts(value) for key, value in values.items()}


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text) if not text or any(c in text for c in ' "=\n\r\t') else text


def _one_line(text: str) -> str:
    """Escapes newlines, so that a name from outside cannot forge a second line."""
    return text.replace("\n", "\\n").replace("\r", "\\r")
