"""Marked secrets through every call that has a field for them, with every kind of failure; then everything that the
driver says, writes and shows is searched for the marks."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi_driver.rpc.pb import csi_pb2
from tests.support.all_in_one import AllInOne
from tests.support.csi_calls import mount_capability
from tests.support.guarded_s3 import GuardedS3
from tests.support.secrets_of_stores import service_account
from tests.support.span_receiver import SpanReceiver
from tests.support.token_services import ROLE, kubelet_tokens, make_token

MARK = "m4rk3d"
"""In every secret. The names of accounts and keys have another one, which messages may show."""
KEY = "AKIDMARKEDNAME"
GOOD = {"access_key_id": KEY, "secret_access_key": f"{MARK}-secret-of-the-key", "session_token": f"{MARK}/session="}
TOKEN = make_token("trainer")
PEM = f"-----BEGIN PRIVATE KEY-----\n{MARK}{'A' * 60}\n-----END PRIVATE KEY-----\n"

SECRETS: dict[str, dict[str, str]] = {
    "good": GOOD,
    "wrong key": {**GOOD, "secret_access_key": f"{MARK}-another-secret"},
    "half a pair": {"secret_access_key": f"{MARK}-alone"},
    "two spellings": {**GOOD, "AWS_SECRET_ACCESS_KEY": f"{MARK}-the-second"},
    "control characters": {**GOOD, "session_token": f"{MARK}\r\nx-evil: 1"},
    "unknown key": {**GOOD, "passphrase": f"{MARK}-phrase"},
    "of Google": {"service_account_json": json.dumps(service_account(private_key_id=MARK))},
    "of Google with a server": {"service_account_json": json.dumps(service_account(token_uri=f"https://{MARK}/"))},
    "of Google, damaged": {"service_account_json": json.dumps(service_account(private_key=PEM))},
    "of Azure": {"account_name": "traindata", "account_key": f"{MARK}ISNOTBASE64!"},
    "of Azure with a URL": {"account_name": "traindata", "sas_token": f"https://{MARK}.example/?sig={MARK}"},
    "of the web": {"username": "reader", "password": f"{MARK} pass word"},
    "a token": {"token": f"{MARK}-hf-token"},
    "of a pod": kubelet_tokens(TOKEN),
    "long": {**GOOD, "session_token": MARK + "x" * 70_000},
    "other letters": {**GOOD, "secret_access_key": f"{MARK}-\u00e9\u4e2d\u2028"},
}
"""What of the Secret is wrong, if anything."""


class Calls:
    """All calls of the services that have a field for secrets, with requests that are valid apart from the Secret."""

    def __init__(self, home: Path, channel: grpc.Channel, endpoint: str) -> None:
        self.home, self.channel, self.endpoint = home, channel, endpoint

    def with_secrets(self) -> Iterator[tuple[str, Any, str]]:
        """The path of a call, the class of its request, and the name of the field."""
        for service in ("Controller", "Node", "GroupController"):
            for method in csi_pb2.DESCRIPTOR.services_by_name[service].methods:
                for field in method.input_type.fields:
                    if field.GetOptions().Extensions[csi_pb2.csi_secret]:
                        request = getattr(csi_pb2, method.input_type.name)
                        yield f"/csi.v1.{service}/{method.name}", request, field.name

    def send(self, path: str, request: Any, *, timeout_s: float = 20.0) -> str:
        """What the caller sees: the response, or status, text and metadata."""
        call: Callable[..., Any] = self.channel.unary_unary(
            path, request_serializer=lambda one: one.SerializeToString(), response_deserializer=lambda data: data
        )
        try:
            return str(call(request, timeout=timeout_s).decode("latin-1"))
        except grpc.RpcError as error:
            details: Any = error
            return f"{details.code()} {details.details()} {details.trailing_metadata()} {error}"

    def request(self, kind: Any, field: str, secret: dict[str, str], url: str, number: int) -> Any:
        """Fills whatever fields the message has."""
        parameters = {"url": url, "deadline": "1s", "requestTimeout": "1s"}
        if url.startswith("s3"):
            parameters["endpoint"] = self.endpoint
        values: dict[str, Any] = {
            "name": f"volume-{number}",
            "volume_id": f"volume-{number}",
            "source_volume_id": f"volume-{number}",
            "source_volume_ids": [f"volume-{number}"],
            "snapshot_id": f"snapshot-{number}",
            "group_snapshot_id": f"group-{number}",
            "node_id": "node-1",
            "staging_target_path": str(self.home / "staging"),
            "target_path": str(self.home / "pods" / f"target-{number}"),
            "volume_path": str(self.home / "pods" / f"target-{number}"),
            "volume_capability": mount_capability(),
            "volume_capabilities": [mount_capability()],
            "capacity_range": csi_pb2.CapacityRange(required_bytes=1),
            "parameters": parameters,
            "mutable_parameters": {"warmup": "none"},
            "volume_context": parameters,
        }
        if kind is csi_pb2.CreateVolumeRequest:
            del values["mutable_parameters"]
        known = {name: value for name, value in values.items() if name in kind.DESCRIPTOR.fields_by_name}
        return kind(**known, **{field: secret})


@pytest.fixture(scope="module")
def receiver() -> Iterator[SpanReceiver]:
    with SpanReceiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def driver(receiver: SpanReceiver) -> Iterator[tuple[AllInOne, Calls]]:
    home = Path(tempfile.mkdtemp(prefix="hayloft-marks-"))
    started = AllInOne(home)
    (home / "staging").mkdir()
    (home / "pods").mkdir()
    with (
        GuardedS3({"train/a": b"0123456789"}, {KEY: GOOD["secret_access_key"]}) as store,
        pytest.MonkeyPatch.context() as m,
    ):
        m.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:1")
        for name, value in receiver.environment.items():
            m.setenv(name, value)
        try:
            client = started.start("--log-level=debug")
            yield started, Calls(home, client._channel, store.endpoint)
        finally:
            started.close()
            shutil.rmtree(home, ignore_errors=True)


URLS = ("s3://data/train", "gs://data/train", "az://data/train", f"https://127.0.0.1:1/{MARK[:3]}", "hf://datasets/o/r")


MISPLACED = (
    {"url": "s3://data/train", "secretAccessKey": f"{MARK}-parameter"},
    {"url": f"s3://data/train?X-Amz-Signature={MARK}"},
    {"url": f"https://reader:{MARK}@127.0.0.1:1/data"},
    {"url": "s3://data/train", "endpoint": f"http://key:{MARK}@127.0.0.1:1"},
    {"url": "s3://data/train", "caBundle": PEM},
    {"url": "s3://data/train", "pass": MARK},
)
"""As a parameter, in a URL, as the value of a name that no parameter has."""


def said(calls: Calls) -> dict[str, str]:
    """What callers see of all calls with all Secrets, by call and Secret."""
    seen: dict[str, str] = {}
    number = 0
    for path, kind, field in calls.with_secrets():
        for what, secret in SECRETS.items():
            number += 1
            url = URLS[1 if "Google" in what else 2 if "Azure" in what else 0]
            request = calls.request(kind, field, secret, url, number)
            seen[f"{path}, {what}"] = calls.send(path, request)
            if what == "good":  # once more, for what a second call is told, and for a URL of every other kind
                seen[f"{path}, again"] = calls.send(path, request)
                for other in URLS[1:]:
                    seen[f"{path}, {other}"] = calls.send(path, calls.request(kind, field, secret, other, number))
    for number, parameters in enumerate(MISPLACED):
        capabilities = [mount_capability()]
        request = csi_pb2.CreateVolumeRequest(name="misplaced", volume_capabilities=capabilities, parameters=parameters)
        seen[f"misplaced {number}"] = calls.send("/csi.v1.Controller/CreateVolume", request)
    return seen


def said_of_tokens(calls: Calls) -> dict[str, str]:
    """Of calls whose tokens are in the context, for a volume that uses them and for one that does not."""
    seen = {}
    for name, role in (("used", {"identity": "pod", "awsRoleArn": ROLE}), ("unused", {})):
        request = csi_pb2.NodePublishVolumeRequest(
            volume_id=f"csi-{name}",
            target_path=str(calls.home / "pods" / f"inline-{name}"),
            volume_capability=mount_capability(),
            volume_context={
                "url": "s3://data/train",
                "endpoint": calls.endpoint,
                "deadline": "1s",
                "requestTimeout": "1s",
                "csi.storage.k8s.io/ephemeral": "true",
                "csi.storage.k8s.io/pod.namespace": "team",
                **role,
                **kubelet_tokens(TOKEN),
            },
        )
        seen[f"tokens {name}"] = calls.send("/csi.v1.Node/NodePublishVolume", request)
    return seen


def written(driver: AllInOne) -> dict[str, str]:
    """All files of the driver, and what process lists show."""
    assert driver.process is not None
    seen = {}
    for process_id in (driver.process.pid, *driver.children().values()):
        for name in ("cmdline", "environ"):
            seen[f"{name} of {process_id}"] = Path(f"/proc/{process_id}/{name}").read_text("latin-1")
    for path in (*driver.home.rglob("*"), *driver.run_directory().rglob("*")):
        if "pods" not in path.parts and path.is_file():
            with suppress(OSError):
                seen[str(path)] = path.read_text("latin-1")
    return seen


@pytest.mark.fuse
@pytest.mark.promise("S410", "S674")
def test_no_secret_of_any_call_is_shown_or_written_anywhere(
    driver: tuple[AllInOne, Calls], receiver: SpanReceiver
) -> None:
    started, calls = driver
    names = {path.rpartition("/")[2] for path, *_ in calls.with_secrets()}
    assert names >= {"CreateVolume", "DeleteVolume", "NodeStageVolume", "NodePublishVolume", "CreateSnapshot"}
    seen = said(calls) | said_of_tokens(calls)
    assert "StatusCode" in seen["/csi.v1.Controller/CreateVolume, half a pair"]
    assert "StatusCode" not in seen["/csi.v1.Controller/CreateVolume, good"]
    for path in [*started.home.glob("pods/*/a"), started.home / "staging" / "a"]:
        with suppress(OSError):  # of the volumes that were mounted, some with keys that may not read
            path.read_bytes()
    seen |= written(started)
    publish = "csi.v1.Node/NodePublishVolume"
    receiver.wait(lambda span: span.name == publish and "csi-unused" in str(span.attributes), "the last call")
    for name in ("csi.v1.Controller/CreateVolume", "listing", "mount", "store read"):  # each process sends its own
        receiver.named(name)
    seen["spans"] = receiver.text()
    assert any(span.error for span in receiver.spans())
    assert "NodeStageVolume request" in seen[str(started.log)], "the log has no requests"
    hidden = (MARK, TOKEN, TOKEN.split(".")[2])
    for where, text in seen.items():
        shown = [text[max(0, at - 80) : at + 40] for at in map(text.find, hidden) if at >= 0]
        assert not shown, f"{where}: {shown}"


def test_the_search_finds_what_it_looks_for() -> None:
    assert all(any(MARK in value or "." in value for value in secret.values()) for secret in SECRETS.values())


@pytest.mark.promise("S415")
def test_no_process_of_the_driver_leaves_a_core_file(driver: tuple[AllInOne, Calls]) -> None:
    started, _ = driver
    assert started.process is not None
    for process_id in (started.process.pid, *started.children().values()):
        limits = Path(f"/proc/{process_id}/limits").read_text()
        assert re.search(r"Max core file size\s+0\s+0\s", limits), process_id


@pytest.mark.promise("S415")
def test_such_a_process_is_not_handed_to_a_program_either() -> None:
    """The kernel asks no program of core_pattern for a process that may not be dumped (PR_GET_DUMPABLE)."""
    program = (
        "import ctypes\n"
        "from csi_driver.wiring.core_files import keep_no_core_files\n"
        "keep_no_core_files()\n"
        "print(ctypes.CDLL(None).prctl(3))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "0\n"


@pytest.mark.fuse  # root, to become another user
@pytest.mark.promise("S415")
def test_a_process_without_core_files_can_do_what_a_listing_does_as_another_user() -> None:
    """Of such a process the files in /proc belong to root, and the image's own user is not root."""
    code = (
        "import os\n"
        "from pathlib import Path\n"
        "from csi_driver.wiring import listing_process, listing_server\n"
        "from csi_driver.wiring.core_files import keep_no_core_files\n"
        "os.setgid(65532)\n"
        "os.setuid(65532)\n"
        "keep_no_core_files()\n"
        "listing_process._become_a_listing(os.getppid())\n"
        "assert Path('/proc/self/comm').read_text() == 'listing\\n'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
