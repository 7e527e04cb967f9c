"""No secret in a log or a status, whatever a library's exception, warning or record says, at every level."""

from __future__ import annotations

import base64
import io
import json
import logging
import subprocess
import sys
import threading
import urllib.parse
import warnings
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, ClassVar

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csi_driver import telemetry
from csi_driver.model.dataset import DatasetUrl
from csi_driver.model.errors import AccessDenied, HayloftError, InternalFailure, InvalidParameter
from csi_driver.model.tracebacks import outline, summary
from csi_driver.rpc.call_counts import CallCounts
from csi_driver.rpc.interceptor import _guarded
from csi_driver.rpc.long_calls import LongCalls
from csi_driver.rpc.pb import csi_pb2, hayloft_pb2
from csi_driver.volumes.parameters import PARAMETERS, VolumeParameters

SECRET = "wJalr XUtn\nFEMI/K7MD ENG+bPx\r\nRfi%CY 'EXAMPLE\"KEY\\ "

_MARK = "Zq7"
"""In every line of a secret, so that it is no part of any other text."""

_CHARACTERS = st.one_of(
    st.sampled_from("\n\r\t '\"\\%&<>/+=é\u2028\U0001f511"), st.characters(codec="utf-8", exclude_characters="*")
)
secrets = st.lists(st.text(_CHARACTERS, max_size=30), min_size=1, max_size=3).map(
    lambda parts: "\n".join(_MARK.join((part, part[:3])) for part in parts)
)


def pieces(secret: str) -> set[str]:
    """The lines of the secret that no other text contains."""
    lines = {part.strip() for part in (secret, *secret.splitlines())}
    return {line for line in lines if len(line) >= 4 and (_MARK in line or line in SECRET)}


def assert_hidden(secret: str, text: str) -> None:
    for piece in pieces(secret):
        for spelling in (piece, repr(piece)[1:-1], json.dumps(piece)[1:-1], urllib.parse.quote(piece, safe="")):
            assert spelling not in text


class LibraryError(Exception):
    """An exception of a library that shows what it was given."""


def fake_library(secret: str) -> None:
    """Shows the secret in every part of an exception."""
    try:
        try:
            raise UnicodeDecodeError("utf-8", secret.encode(), 0, 1, secret)
        except ValueError:
            raise OSError(13, f"denied for {secret}", f"https://host/?sig={urllib.parse.quote(secret)}")  # noqa: B904
    except OSError as error:
        noted = LibraryError(secret, {"token": secret})
        noted.add_note(f"used {secret}")
        raise ExceptionGroup(f"both failed with {secret}", [noted, KeyError(secret)]) from error


def raised_by(action: Callable[[str], object], secret: str) -> Exception:
    try:
        action(secret)
    except Exception as error:  # noqa: BLE001  # any kind is what the test is about
        return error
    raise AssertionError("nothing was raised")


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root, ours, shown = logging.getLogger(), logging.getLogger("csi_driver"), warnings.showwarning
    before = (root.handlers[:], root.level, ours.level)
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    yield
    root.handlers[:], root.level, ours.level = before
    warnings.showwarning = shown
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks


@pytest.fixture(params=["text", "json"])
def log(request: pytest.FixtureRequest) -> io.StringIO:
    out = io.StringIO()
    telemetry.set_up_logging("cache", "debug", request.param, out)
    return out


# -- exceptions --------------------------------------------------------------------------------------------------------


@pytest.mark.promise("S172")
@settings(deadline=None)
@given(secret=secrets)
def test_an_outline_holds_no_text_of_a_library(secret: str) -> None:
    text = outline(raised_by(fake_library, secret))
    assert_hidden(secret, text)
    assert "PermissionError: Permission denied (EACCES)" in text
    for said in ("LibraryError", "KeyError", "UnicodeDecodeError", __file__):
        assert said in text


def test_an_outline_shows_what_hayloft_composed_and_where_it_was_raised() -> None:
    error = raised_by(lambda _: (_ for _ in ()).throw(AccessDenied("s3://b: access is denied")), "")
    assert outline(error).endswith("AccessDenied: s3://b: access is denied")
    assert "test_secrets_in_texts.py:" in outline(error)


def test_an_outline_of_an_endless_recursion_is_short() -> None:
    def recurse(secret: str) -> None:
        recurse(secret)

    text = outline(raised_by(recurse, SECRET))
    assert "more frames" in text
    assert len(text.splitlines()) < 100


def test_a_summary_takes_the_text_of_an_error_number_from_the_system() -> None:
    assert summary(OSError(28, SECRET, SECRET)) == "OSError: No space left on device (ENOSPC)"
    assert summary(ConnectionError(SECRET)) == "ConnectionError"
    assert summary(OSError(987654, SECRET)) == "OSError"


# -- the log -----------------------------------------------------------------------------------------------------------


def test_records_of_this_package_show_no_text_of_an_exception(log: io.StringIO) -> None:
    error, logger = raised_by(fake_library, SECRET), logging.getLogger("csi_driver.x")
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        logger.log(level, "failed: %s", error, exc_info=error, extra=telemetry.fields(error=error, all=[1]))
        logger.log(level, "failed: %(error)s", {"error": error})
        logger.log(level, error)
    logger.warning("refused: %s", AccessDenied("s3://b: composed by Hayloft"))
    assert_hidden(SECRET, log.getvalue())
    assert log.getvalue().count("PermissionError: Permission denied (EACCES)") == 5
    assert "composed by Hayloft" in log.getvalue()


def test_records_of_other_libraries_show_constants_alone(log: io.StringIO) -> None:
    logger = logging.getLogger("urllib3.connectionpool")
    logger.warning("Retrying (%r) after connection broken by '%r': %s", 1, KeyError(SECRET), f"/?sig={SECRET}")
    logger.error(f"no answer for {SECRET}")
    logger.error("unexpected", exc_info=raised_by(fake_library, SECRET))
    logger.info("%s", SECRET)
    assert_hidden(SECRET, log.getvalue())
    assert "Retrying (%r) after connection broken by '%r': %s" in log.getvalue()
    assert log.getvalue().count("a message of a library, which is not shown; from") == 1
    assert "test_secrets_in_texts.py:" in log.getvalue()


def test_warnings_show_their_class_and_place(log: io.StringIO) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = telemetry._log_warning
        warnings.warn(f"deprecated: {SECRET}", DeprecationWarning, stacklevel=1)
    assert_hidden(SECRET, log.getvalue())
    assert "DeprecationWarning" in log.getvalue()
    assert __file__ in log.getvalue()


def test_a_record_that_cannot_be_formatted_shows_no_argument(
    log: io.StringIO, capfd: pytest.CaptureFixture[str]
) -> None:
    (handler,) = (one for one in logging.getLogger().handlers if isinstance(one, telemetry._Handler))
    record = logging.LogRecord("csi_driver.x", logging.WARNING, __file__, 1, "%d files", (SECRET,), None)
    handler.handle(record)
    printed = "".join(capfd.readouterr())
    assert_hidden(SECRET, log.getvalue() + printed)
    assert "cannot be written: TypeError" in printed
    log.close()
    handler.handle(record)


def test_uncaught_errors_of_threads_and_finalizers_are_logged_without_their_text(log: io.StringIO) -> None:
    telemetry.log_uncaught_errors()
    thread = threading.Thread(target=fake_library, args=(SECRET,), name="a-thread")
    thread.start()
    thread.join()

    class Finalized:
        def __del__(self) -> None:
            raise LibraryError(SECRET)

    Finalized()
    assert_hidden(SECRET, log.getvalue())
    assert "a-thread" in log.getvalue()
    assert log.getvalue().count("unexpected error") == 2


@pytest.mark.promise("S172")
def test_a_command_that_fails_unexpectedly_prints_no_text_of_the_error() -> None:
    program = (
        "import sys\n"
        "from csi_driver import cli\n"
        "from csi_driver.cli import application\n"
        "def fail(arguments):\n"
        "    raise RuntimeError(sys.stdin.read())\n"
        "application.run_command = fail\n"
        "cli.main(['version'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=SECRET, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert_hidden(SECRET, done.stdout + done.stderr)
    assert "RuntimeError" in done.stderr
    assert "in fail" in done.stderr


# -- statuses ----------------------------------------------------------------------------------------------------------


class Aborted(Exception):
    """What ``abort`` raises."""


class Context:
    """The part of a servicer's context that the interceptor uses."""

    def __init__(self) -> None:
        self.details = ""

    def time_remaining(self) -> None:
        return None

    def add_callback(self, _: object) -> bool:
        return True

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def set_trailing_metadata(self, _: object) -> None:
        """Holds the class of the error."""

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.details = details
        raise Aborted(code)


def status_and_log(request: Any, error: Exception) -> str:
    """All texts of a call that fails."""

    def behaviour(*_: object) -> None:
        raise error

    out, context = io.StringIO(), Context()
    telemetry.set_up_logging("node", "debug", "text", out)
    with pytest.raises(Aborted):
        _guarded("NodeStageVolume", behaviour, LongCalls(), CallCounts())(request, context)
    assert "NodeStageVolume failed" in out.getvalue()
    return context.details + out.getvalue()


def quotations(secret: str) -> Iterator[str]:
    """Messages that quote a secret in the ways of stores and libraries."""
    for text in (secret, secret.strip(), *secret.splitlines()):
        yield from (text, repr(text), ascii(text), json.dumps(text), json.dumps({"a": text}, ensure_ascii=False))
        yield from (urllib.parse.quote(text), urllib.parse.quote_plus(text), urllib.parse.quote(text, safe=""))
        yield from (base64.b64encode(text.encode()).decode(), repr(text.encode()), text.encode().hex())


@pytest.mark.promise("S172")
@settings(deadline=None)
@given(secret=secrets)
def test_an_error_that_quotes_the_secret_of_its_call_is_masked(secret: str) -> None:
    request = csi_pb2.NodeStageVolumeRequest(volume_id="v", secrets={"access_key": secret})
    for quotation in quotations(secret):
        assert_hidden(secret, telemetry.Mask([secret])(f"x{quotation}x"))
    assert_hidden(secret, status_and_log(request, InternalFailure(f"cannot use {secret}, {secret!r}")))


@pytest.mark.promise("S172")
@settings(deadline=None)
@given(secret=secrets)
def test_an_unexpected_error_shows_nothing_of_the_secret(secret: str) -> None:
    error = raised_by(fake_library, secret)
    for request in (
        csi_pb2.NodeStageVolumeRequest(volume_id="v", secrets={"access_key": secret}),
        hayloft_pb2.MountRequest(volume_id="v", secrets={"access_key": secret}),
        hayloft_pb2.StartWarmupRequest(volume_id="v"),
        csi_pb2.CreateVolumeRequest(name="v", secrets={"token": secret}, parameters={"innocent": secret}),
    ):
        assert_hidden(secret, status_and_log(request, error))


class Counting(str):
    """A secret that counts how often it is divided into its lines."""

    made: ClassVar[list[str]] = []

    def splitlines(self, keepends: bool = False) -> list[str]:
        self.made.append(self)
        return super().splitlines(keepends)


@pytest.mark.promise("S701")
def test_a_mask_makes_the_spellings_of_a_secret_once_and_not_before_there_is_a_text() -> None:
    Counting.made.clear()
    mask = telemetry.Mask([Counting("first line\nsecond line")])
    assert Counting.made == []
    assert [mask(f"a text with the {part} line") for part in ("first", "second", "third")] == [
        "a text with the ***",
        "a text with the ***",
        "a text with the third line",
    ]
    assert len(Counting.made) == 1


@pytest.mark.promise("S701")
@pytest.mark.parametrize("secret", ["\n".join(f"line {number:04d}" for number in range(2000)), "x" * 100_000])
def test_a_text_is_not_shown_where_a_secret_has_too_many_lines_or_characters_to_look_for(secret: str) -> None:
    request = csi_pb2.NodeStageVolumeRequest(volume_id="v", secrets={"access_key": secret})
    shown = status_and_log(request, InternalFailure(f"cannot use {secret[:30]!r} here"))
    assert telemetry.TOO_LONG_TO_MASK in shown
    assert "cannot use" not in shown
    assert telemetry.Mask([secret])("") == ""


@pytest.mark.promise("S701")
def test_a_failed_call_makes_the_spellings_of_its_secrets_once() -> None:
    request = csi_pb2.NodeStageVolumeRequest(
        volume_id="v", secrets={"access_key": "not to be shown"}, volume_context={"url": "s3://bucket"}
    )
    code, calls = telemetry._base64.__code__, 0

    def profile(frame: FrameType, event: str, _: object) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code is code

    telemetry.set_up_logging("node", "debug", "text", io.StringIO())
    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        status_and_log(request, InvalidParameter("url", "s3://bucket", "another one"))
    finally:
        sys.setprofile(before)
    assert calls == 2  # the two spellings in base64


def test_the_inner_secrets_of_a_service_account_are_masked() -> None:
    key = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBg\nkqhkiG9w0BAQEF\n-----END PRIVATE KEY-----\n"
    secrets_of_call = {"json": json.dumps({"type": "service_account", "private_key": key, "private_key_id": "0a1b2c"})}
    request = csi_pb2.NodeStageVolumeRequest(volume_id="v", secrets=secrets_of_call)
    shown = status_and_log(request, InternalFailure(f"cannot parse {key} of 0a1b2c of a service_account"))
    assert "kqhkiG9w0BAQEF" not in shown
    assert "0a1b2c" not in shown
    assert "service_account" in shown


def test_a_secret_at_the_cut_of_a_long_message_is_masked_as_a_whole() -> None:
    request = csi_pb2.NodeStageVolumeRequest(volume_id="v", secrets={"key": "abcdefghijklmnop"})
    for length in range(1980, 2001):
        assert "abcd" not in status_and_log(request, AccessDenied("." * length + "abcdefghijklmnop"))


def test_basic_authentication_is_masked() -> None:
    request = csi_pb2.NodeStageVolumeRequest(volume_id="v", secrets={"username": "user1", "password": "a pass word"})
    header = base64.b64encode(b"user1:a pass word").decode()
    assert header.rstrip("=") not in status_and_log(request, AccessDenied(f"Authorization: Basic {header}"))


@pytest.mark.promise("S208")
@pytest.mark.parametrize(
    "name", ["account_name", "accountName", "AZURE_STORAGE_ACCOUNT", "storage-account", "username"]
)
def test_the_name_of_an_account_is_no_secret(name: str) -> None:
    """Many endpoints have it in their path, and the message would not say where the store is."""
    endpoint = "http://127.0.0.1:10000/devstoreaccount1"
    request = csi_pb2.NodeStageVolumeRequest(
        volume_id="v", secrets={name: "devstoreaccount1", "account_key": "c2VjcmV0LWtleQ=="}
    )
    shown = status_and_log(request, AccessDenied(f"bucket 'data' at {endpoint}, with c2VjcmV0LWtleQ=="))
    assert endpoint in shown
    assert "c2VjcmV0LWtleQ" not in shown


@pytest.mark.promise("S208")
def test_the_name_of_an_account_that_is_a_secret_too_is_masked() -> None:
    request = csi_pb2.NodeStageVolumeRequest(volume_id="v", secrets={"username": "same-text", "password": "same-text"})
    assert "same-text" not in status_and_log(request, AccessDenied("of same-text"))


def test_an_attribute_of_an_unknown_name_is_not_logged() -> None:
    request = csi_pb2.NodeStageVolumeRequest(volume_id="v", volume_context={"url": "s3://b/p", "innocent": "hidden!"})
    shown = status_and_log(request, AccessDenied("no"))
    assert "s3://b/p" in shown
    assert "hidden!" not in shown


def test_all_parameters_of_volumes_are_logged_at_debug() -> None:
    request = csi_pb2.NodeStageVolumeRequest(volume_id="v", volume_context=dict.fromkeys(PARAMETERS, "some-value"))
    shown = status_and_log(request, AccessDenied("no")).count("some-value")
    assert shown == len(PARAMETERS) + 1, "the URL is in the line of the call as well"


@pytest.mark.promise("S110")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("url", f"s3://bucket?X-Amz-Signature={SECRET}"),
        ("mirrors", f"s3://copies?secret_access_key={SECRET}"),
        ("mirrors", f"s3://copies/a,s3://copies/b?token={SECRET}\ngs://c?x={SECRET}"),
    ],
)
def test_a_query_of_a_url_or_a_mirror_is_not_logged(name: str, value: str) -> None:
    request = csi_pb2.NodeStageVolumeRequest(volume_id="v", volume_context={name: value})
    assert SECRET not in status_and_log(request, AccessDenied("no"))
    with pytest.raises(InvalidParameter) as refused:
        VolumeParameters.parse({"url": "s3://data/train", name: value})
    assert SECRET not in str(refused.value)


def test_no_value_that_holds_a_secret_shows_it_in_its_repr() -> None:
    from csi_driver.model.dataset import Credentials
    from csi_driver.objects.s3.identity import S3Keys
    from csi_driver.volumes.data_plane import MountRequest

    for value in (
        Credentials({"token": SECRET}),
        S3Keys("id", SECRET, SECRET, rotates=False),
        MountRequest("v", "/m", {}, {"token": SECRET}),
    ):
        assert_hidden(SECRET, repr(value))


def test_a_refused_url_shows_no_user_and_password() -> None:
    error = InvalidParameter("endpoint", "https://user:pass@word@store.example/x", "a URL without a user")
    assert "word" not in str(error)
    assert "https://***@store.example/x" in str(error)


def test_every_error_of_hayloft_keeps_its_message() -> None:
    assert summary(HayloftError("says this")) == "HayloftError: says this"


@pytest.mark.promise("S110")
@pytest.mark.parametrize(
    "url",
    [
        *("file://*/?token=SECRET", "ftp://u:SECRET@h/x?y=SECRET#SECRET", "foo?SECRET", "s3:///?SECRET", "?SECRET"),
        *("s3://bucket?X-Amz-Signature=SECRET", "https://host/data?X-Amz-Signature=SECRET", "https://host/..?SECRET"),
        *("https://host/data#SECRET", "az://container?sig=SECRET"),
    ],
)
def test_a_query_in_a_url_is_not_shown(url: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        DatasetUrl.parse(url)
    assert "SECRET" not in str(refused.value)


@pytest.mark.promise("S110")
@pytest.mark.parametrize("url", ["s3://bucket/data", "https://host/data"])
@pytest.mark.parametrize(
    "place", ["https://host/data/list?sig=SECRET", "list\x01?sig=SECRET", "list?SECRET", "list#SECRET"]
)
def test_a_query_in_the_name_of_a_list_of_files_is_not_shown(url: str, place: str) -> None:
    with pytest.raises(InvalidParameter, match="manifest") as refused:
        VolumeParameters.parse({"url": url, "manifest": place})
    assert "SECRET" not in str(refused.value)


@pytest.mark.parametrize("url", ["s3://a b/x?sig={}", "s3::x://h/?token={}", "https://h/x#{}", "gs://?{}"])
def test_a_url_that_is_refused_is_shown_without_its_query(url: str) -> None:
    error = InvalidParameter("url", url.format("hunter2"), "s3://bucket/prefix")
    assert "hunter2" not in str(error)
    assert url.split("?")[0].split("#")[0] in str(error)
    assert "a?b" in str(InvalidParameter("include", "a?b", "globs"))
