"""The node plugin registers itself with kubelet, and answers the probes of kubelet."""

from __future__ import annotations

import logging
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from csi_driver.csi.registration_service import RegistrationService
from csi_driver.model.errors import DaemonUnavailable, SocketTaken
from csi_driver.rpc.pb import health_pb2
from csi_driver.rpc.pb import plugin_registration_pb2 as messages
from csi_driver.rpc.socket_server import SocketServer
from csi_driver.wiring.health_pages import serving_health
from csi_driver.wiring.node_registration import SOCKET_NAME, NodeRegistration
from hayloft_lab.plugin_watcher import PluginWatcher
from tests.support.daemons import stop, wait_until

NAME = "csi.hayloft.dev"
ZONE = "topology.kubernetes.io/zone"


@pytest.fixture
def kubelet() -> Iterator[Path]:
    """Kubelet's directory, with a path that is short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="hl-"))
    for name in ("plugins", "plugins_registry"):
        (path / name).mkdir()
    yield path
    shutil.rmtree(path)


@pytest.fixture
def watcher(kubelet: Path) -> PluginWatcher:
    return PluginWatcher(kubelet / "plugins_registry")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def start(kubelet: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts ``hayloft node`` with the flags of the chart; there is no daemon."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(*flags: str, register: bool = True) -> subprocess.Popen[bytes]:
        endpoint = kubelet / "plugins" / NAME / "csi.sock"
        arguments = [
            *("node", f"--endpoint=unix://{endpoint}", "--node-id=n1", f"--daemon-socket={kubelet / 'cache.sock'}"),
            f"--kubelet-dir={kubelet}",
            *((f"--registration-dir={kubelet / 'plugins_registry'}",) if register else ()),
            *flags,
        ]
        with (kubelet / "log").open("ab") as log:
            command = [sys.executable, "-m", "csi_driver.cli", *arguments]
            processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log))
        return processes[-1]

    yield start
    for process in processes:
        stop(process, signal.SIGKILL)


@pytest.mark.promise("S357")
def test_kubelet_finds_the_driver_as_often_as_it_looks_and_after_a_kill(
    start: Callable[..., subprocess.Popen[bytes]], watcher: PluginWatcher, kubelet: Path
) -> None:
    process = start(f"--topology={ZONE}=eu-1a", "--topology=topology.kubernetes.io/region=", "--max-volumes=7")
    wait_until(lambda: watcher.sockets() or process.poll() is not None)
    for _ in range(2):  # a kubelet that was restarted
        info, node = watcher.register(SOCKET_NAME)
    assert (info.type, info.name, list(info.supported_versions)) == ("CSIPlugin", NAME, ["1.0.0"])
    assert info.endpoint == str(kubelet / "plugins" / NAME / "csi.sock")
    assert (node.node_id, node.max_volumes_per_node) == ("n1", 7)
    assert dict(node.accessible_topology.segments) == {ZONE: "eu-1a"}, "a node without the label has no segment"
    mode = stat.S_IMODE((kubelet / "plugins_registry" / SOCKET_NAME).stat().st_mode)
    assert mode == 0o600
    before = watcher.sockets()
    stop(process, signal.SIGKILL)
    assert watcher.sockets() == before, "killed, it leaves the file"
    successor = start()
    # For a moment there is neither the old file nor the new one.
    wait_until(lambda: watcher.sockets() not in ({}, before) or successor.poll() is not None)
    watcher.register(SOCKET_NAME)
    stop(successor)
    assert list((kubelet / "plugins_registry").iterdir()) == [], "ended, it leaves nothing: kubelet unregisters it"
    assert list((kubelet / "plugins" / NAME).glob("*.sock")) == []


@pytest.mark.promise("S357")
def test_services_have_the_names_that_clients_call() -> None:
    """Kubelet 1.37 called a package with a version in its name ``Unimplemented``."""
    (registration,), (health,) = (
        file.services_by_name.values() for file in (messages.DESCRIPTOR, health_pb2.DESCRIPTOR)
    )
    assert registration.full_name == "pluginregistration.Registration"
    assert health.full_name == "grpc.health.v1.Health"


def test_without_the_flag_the_driver_leaves_registration_to_others(
    start: Callable[..., subprocess.Popen[bytes]], watcher: PluginWatcher, kubelet: Path
) -> None:
    start(register=False)
    wait_until((kubelet / "plugins" / NAME / "csi.sock").is_socket)
    assert watcher.sockets() == {}


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--topology=zone",), "--topology"),
        (("--topology=Zone!=a",), "--topology"),
        ((f"--topology={ZONE}=eu 1a",), "--topology"),
        ((f"--topology={ZONE}=a", f"--topology={ZONE}=b"), "--topology"),
        (("--max-volumes=-1",), "--max-volumes"),
        (("--health-port=70000",), "--health-port"),
        (("--registration-endpoint=csi.sock",), "--registration-endpoint"),
        (("--registration-dir=/no/such/directory",), "--registration-dir"),
        (("--node-id=" + "n" * 257,), "--node-id"),
    ],
)
def test_a_flag_that_cannot_be_meant_is_refused_by_name(
    start: Callable[..., subprocess.Popen[bytes]], kubelet: Path, flags: tuple[str, ...], named: str
) -> None:
    assert start(*flags, register=False).wait(60) == 2
    (line,) = (kubelet / "log").read_text().splitlines()
    assert named in line


# -- in this process ---------------------------------------------------------------------------------------------------


@pytest.mark.promise("S357")
def test_a_driver_that_kubelet_refuses_is_announced_again_until_it_is_registered(
    kubelet: Path, watcher: PluginWatcher, caplog: pytest.LogCaptureFixture
) -> None:
    registration = NodeRegistration(kubelet / "plugins_registry", "/csi.sock", retry_s=0.05)
    registration.bind()
    collision = f"detected topology value collision: driver reported {ZONE!r}"
    with registration.serving():
        for _ in range(3):
            before = watcher.sockets()
            watcher.notify(SOCKET_NAME, collision)
            assert not registration.service.is_registered
            wait_until(lambda before=before: watcher.sockets() not in (before, {}))
        watcher.notify(SOCKET_NAME)
        assert registration.service.is_registered
        after = watcher.sockets()
    assert len(after) == 1
    assert watcher.sockets() == {}
    refusals = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(refusals) == 3
    assert all(record.fields["error"] == collision for record in refusals)  # type: ignore[attr-defined]


@pytest.mark.promise("S357")
def test_beside_a_registrar_kubelet_sees_one_plugin(
    kubelet: Path, watcher: PluginWatcher, caplog: pytest.LogCaptureFixture
) -> None:
    path = kubelet / "plugins_registry" / SOCKET_NAME  # that of node-driver-registrar
    registrar = socket.socket(socket.AF_UNIX)
    registrar.bind(str(path))
    registrar.listen()
    of_registrar = path.stat().st_ino
    registration = NodeRegistration(kubelet / "plugins_registry", "/csi.sock")
    registration.bind()
    with registration.serving():
        assert path.stat().st_ino == of_registrar
        assert list(watcher.sockets()) == [SOCKET_NAME]
        assert "another process serves" in caplog.text
        registrar.close()
        path.unlink()
        wait_until(lambda: watcher.sockets())
        assert watcher.info(SOCKET_NAME).name == NAME
    assert watcher.sockets() == {}


@pytest.mark.promise("S250")
def test_a_registration_socket_that_was_removed_is_there_again(kubelet: Path, watcher: PluginWatcher) -> None:
    registration = NodeRegistration(kubelet / "plugins_registry", "/csi.sock")
    registration.bind()
    with registration.serving():
        (kubelet / "plugins_registry" / SOCKET_NAME).unlink()
        wait_until(lambda: watcher.sockets())
        watcher.notify(SOCKET_NAME)


def test_an_old_registrar_does_not_lose_its_socket_to_an_announcement(kubelet: Path, watcher: PluginWatcher) -> None:
    server = SocketServer(kubelet / "plugins_registry" / SOCKET_NAME, (), patient=True)
    server.bind()
    server.start()
    path = kubelet / "plugins_registry" / SOCKET_NAME
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        inode = path.stat().st_ino
        server.announce()
        server.stop(0.0)
        assert path.stat().st_ino == inode


def test_the_first_success_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    service = RegistrationService("/csi.sock")
    with caplog.at_level("INFO"):
        for _ in range(3):
            service.NotifyRegistrationStatus(messages.RegistrationStatus(plugin_registered=True), None)
    assert len(caplog.records) == 1


# -- probes ------------------------------------------------------------------------------------------------------------


def page(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.promise("S358")
def test_liveness_and_readiness_over_http() -> None:
    failures: dict[str, Exception | None] = {"healthy": None, "ready": None}

    def check(name: str) -> Callable[[], None]:
        def run() -> None:
            failure = failures[name]
            if failure is not None:
                raise failure

        return run

    port = free_port()
    with serving_health(port, check("healthy"), check("ready")):
        assert page(port, "/healthz") == page(port, "/readyz") == (200, "ok\n")
        failures["ready"] = DaemonUnavailable("no cache daemon answers")
        assert page(port, "/healthz") == (200, "ok\n"), "a restart would not bring the daemon back"
        assert page(port, "/readyz") == (503, "no cache daemon answers\n")
        failures["healthy"] = SocketTaken("calls do not reach this process")
        assert page(port, "/healthz")[0] == 503
        assert page(port, "/metrics")[0] == page(port, "/")[0] == 404
    with pytest.raises(urllib.error.URLError):
        page(port, "/healthz")


@pytest.mark.promise("S358")
def test_a_node_plugin_is_alive_and_not_ready_without_its_daemon(
    start: Callable[..., subprocess.Popen[bytes]], kubelet: Path
) -> None:
    port = free_port()
    start(f"--health-port={port}")
    wait_until((kubelet / "plugins" / NAME / "csi.sock").is_socket)
    wait_until(lambda: page(port, "/healthz") == (200, "ok\n"))
    assert page(port, "/readyz")[0] == 503
