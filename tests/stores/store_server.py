"""A server that other people wrote, as the conformance run sees it. One class for each, in the file of its tests."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import ClassVar, Self

from csi_driver.model.errors import BucketNotFound, HayloftError
from hayloft_lab.child_servers import dying_with_parent, free_ports
from tests.architecture.source_tree import REPOSITORY

HOST = "127.0.0.1"
BUCKET = "conformance"
INSTALLED = REPOSITORY / ".stores"
"""Where `.ci/stores` installs the servers that do not come with `make set-up-dev`."""
START_S = 120.0
"""A Java server on two busy cores."""
STOP_S = 5.0


class StoreCannot(Exception):
    """The store itself, asked by another client than Hayloft, does not do what a check needs."""


@dataclass(frozen=True)
class Volume:
    """What a PersistentVolume and its Secret would hold."""

    attributes: Mapping[str, str]
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)

    def changed(self, *, secrets: Mapping[str, str] | None = None, **attributes: str) -> Volume:
        return Volume({**self.attributes, **attributes}, self.secrets if secrets is None else secrets)


@dataclass(frozen=True)
class CertificateFiles:
    """A certificate for 127.0.0.1, its key, and its authority, all PEM."""

    certificate: Path
    key: Path
    authority: Path


class StoreServer(ABC):
    """Started by the fixture ``server``. It listens on one port for its whole life, and keeps its data in ``directory``
    over a restart, if it can."""

    name: ClassVar[str]
    """As in `make stores STORES=name`."""
    title: ClassVar[str]
    protocol: ClassVar[str]
    comes_with_set_up: ClassVar[bool] = False
    """Installed by `make set-up-dev` and started within seconds: part of `make test`."""
    cannot: ClassVar[Mapping[str, str]] = {}
    """The checks that the store itself makes impossible, with the reason. Each must still end in StoreCannot."""
    cannot_hold: ClassVar[Mapping[str, str]] = {}
    """Keys that the store itself refuses or changes, with the reason. Asserted as well."""
    listing_page: ClassVar[int] = 1000
    """Objects; 0: a directory is listed as a whole."""
    terminates_tls: ClassVar[bool] = False
    """It can be started with a certificate; else a proxy terminates TLS before it."""
    missing_bucket: ClassVar[tuple[type[HayloftError], ...]] = (BucketNotFound,)
    mounts_one_object: ClassVar[bool] = False
    own_answers: ClassVar[Mapping[str, tuple[type[HayloftError], str]]] = {}
    """What the checks of wrong credentials raise where the store does not call them wrong, and its own code, which the
    error must show."""

    def __init__(self, directory: Path, certificate: CertificateFiles | None = None) -> None:
        self.directory = directory
        self.certificate = certificate
        (self.port,) = free_ports(1, HOST)
        self._process: subprocess.Popen[bytes] | None = None

    # -- the process ---------------------------------------------------------------------------------------------------

    @classmethod
    def version(cls) -> str:
        return installed_version(cls.name)

    @classmethod
    def program(cls) -> Path | None:
        """A file that exists where the store is installed."""
        return None

    @abstractmethod
    def command(self) -> list[str]:
        """Begins with the path of a program."""

    def environment(self) -> dict[str, str]:
        """HOME: no configuration of a user applies to the server."""
        return {"PATH": os.environ.get("PATH", os.defpath), "HOME": os.fspath(self.directory)}

    def start(self) -> None:
        """Blocks until the server answers. To be called in the main thread: the server ends with its thread."""
        command = dying_with_parent(self.command())
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.directory, env=self.environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_S
        while not self.answers():
            going = self._process.poll() is None and time.monotonic() < deadline
            assert going, f"{self.name} did not start:\n{self._log_end()}"
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends the server; harmless if it is not running."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def must_outlive_restarts(self) -> None:  # noqa: B027 - most do
        """Raises StoreCannot if its data ends with the process."""

    @contextmanager
    def beside(self, directory: Path, certificate: CertificateFiles) -> Iterator[Self]:
        """Another server of the kind, with TLS."""
        directory.mkdir()
        other = type(self)(directory, certificate)
        try:
            other.start()
            other.prepare()
            yield other
        finally:
            other.stop()

    @property
    def log_path(self) -> Path:
        return self.directory / "server.log"

    @property
    def endpoint(self) -> str:
        return f"{'https' if self.certificate else 'http'}://{HOST}:{self.port}"

    def answers(self) -> bool:
        """Whether it answers HTTP, with any status."""
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self.port}/", timeout=5):
                return True
        except urllib.error.HTTPError:
            return True
        except (OSError, ValueError, urllib.error.URLError) as error:
            # TLS is expected: what it says to plain HTTP differs.
            return self.certificate is not None and "refused" not in str(error)

    def _log_end(self) -> str:
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-15:])

    # -- its own API ---------------------------------------------------------------------------------------------------

    def prepare(self) -> None:  # noqa: B027 - some need nothing
        """Makes the bucket. Called once, after the first start."""

    @abstractmethod
    def put(self, key: str, data: bytes, *, encoding: str = "") -> None:
        """Stores or replaces an object, with a Content-Encoding if one is given. Raises StoreCannot."""

    @abstractmethod
    def delete(self, key: str) -> None: ...

    @abstractmethod
    def keys(self, prefix: str) -> set[str]:
        """All keys below a prefix, as the store's own API lists them."""

    def put_parts(self, key: str, parts: list[bytes]) -> None:
        """A multipart upload. Raises StoreCannot."""
        raise StoreCannot("has no multipart uploads")

    def fill(self, objects: Mapping[str, bytes]) -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda item: self.put(*item), objects.items()))

    def next_second(self) -> None:
        """What is put from now on has another Last-Modified, which counts seconds."""
        time.sleep(1.01 - time.time() % 1)

    # -- volumes -------------------------------------------------------------------------------------------------------

    @abstractmethod
    def volume(self, prefix: str, bucket: str = BUCKET, endpoint: str = "") -> Volume:
        """``endpoint`` is used in place of the server's own."""

    def with_wrong_secret(self, volume: Volume) -> Volume:
        """Raises StoreCannot where the store accepts any."""
        raise StoreCannot("takes no credentials")

    def with_wrong_identity(self, volume: Volume) -> Volume:
        """The same with the name or key id in place of the secret."""
        raise StoreCannot("takes no credentials")

    def without_credentials(self, volume: Volume) -> Volume:
        """Before ``anonymous`` was called. Raises StoreCannot where reads need no credentials."""
        raise StoreCannot("takes no credentials")

    def with_wrong_region(self, volume: Volume) -> Volume:
        """Raises StoreCannot where there are none."""
        raise StoreCannot("has no regions")

    def anonymous(self, volume: Volume) -> Volume:
        """Permits reads without credentials. Raises StoreCannot."""
        raise StoreCannot("reads nothing for anybody without credentials")


def python_package_version(name: str) -> str:
    return metadata.version(name)


def installed_version(name: str) -> str:
    """Of a store that `.ci/stores` has installed; the marker that it leaves names the version."""
    found = [path.name.removeprefix(f".{name}-") for path in INSTALLED.glob(f".{name}-[0-9]*")]
    return found[0] if found else "not installed"


def java() -> str:
    """The program; where it is too old, the server's own error says so."""
    found = shutil.which("java")
    assert found is not None, "java is not installed"
    return found


def version_printed_by(program: Path, flag: str, libraries: str = "") -> str:
    if not program.exists():
        return "not installed"
    environment = {"LD_LIBRARY_PATH": libraries}
    result = subprocess.run([program, flag], capture_output=True, text=True, env=environment, check=True)
    found = re.search(r"\d+(\.\d+)+", result.stdout + result.stderr)
    assert found is not None, result
    return found[0]


def libraries_of(unpacked: Path) -> str:
    """LD_LIBRARY_PATH for Debian packages that were unpacked there."""
    return ":".join(map(str, (unpacked / "usr" / "lib").glob("*-linux-gnu")))
