"""A ``DatasetLister`` that lists in processes of their own: neither a glob nor a store can hold up the reads that this
process serves, use up its memory or stay after the last caller."""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from csi_driver import telemetry
from csi_driver.model.errors import BudgetExceeded, InternalFailure, Interrupted
from csi_driver.model.tenant import Tenant
from csi_driver.rpc import callers, progress
from csi_driver.rpc.statuses import error_from
from csi_driver.settings import LEAST_MEMORY_BYTES, ListingSettings, PolicySettings
from csi_driver.volumes.dataset_lister import ListingFacts, ListingRequest, PinFacts, PinRequest, SelectionRequest
from csi_driver.volumes.listing_admission import OF_ADMINISTRATORS, OF_STRANGERS, OF_WARMUPS, ListingAdmission
from csi_driver.wiring.available_memory import available_bytes
from csi_driver.wiring.listing_messages import (
    Message,
    Receiver,
    facts_from,
    pin_facts_from,
    pin_message,
    request_message,
    selection_message,
    send,
)
from csi_driver.wiring.listing_server import serve_listings
from csi_driver.wiring.listing_spans import listing_span, note_facts, note_page, with_pages
from csi_driver.wiring.single_thread import NO_LIBRARY_THREADS, has_one_thread

logger = logging.getLogger(__name__)

_SERVER = "csi_driver.wiring.listing_server"

_START_S = 60.0
"""The longest wait for a process that takes the request: it may have to import everything on a busy machine."""

_END_S = 10.0
"""The longest wait for the end of a process that was killed. One that waits for a disk takes as long as the disk."""

_TRUSTED_SHARE, _SHARE = 0.75, 0.25
"""Of the available memory, that a listing may use. Kubernetes has the kernel end all processes of a container together
when memory runs out, so a listing must not come to that. The second is for volumes of untrusted authors, of
which several may list at a time."""

_FOR_LACK_OF_MEMORY = (-signal.SIGKILL, -signal.SIGABRT)
"""Exit codes where the kernel, or an allocation in Rust, ended the process. That of the daemon's own kill is not
read."""


class ListingProcesses:
    """May be used from any thread; ``close`` when done."""

    def __init__(self, settings: ListingSettings, policy: PolicySettings) -> None:
        """Starts nothing yet."""
        self._settings, self._policy = settings, policy
        self._admission = ListingAdmission(settings)
        self._server = _Server()

    def start(self) -> None:
        """Starts the process that starts listings, before the first request waits for it. Best called while this
        process has one thread: then it is forked, which takes 10 ms and shares the memory of what was imported;
        afterwards it is a new Python, which imports for half a second."""
        self._server.start()

    def list_into(self, request: ListingRequest, target: Path) -> ListingFacts:
        """As ``DatasetLister.list_into``."""
        with listing_span(request), self._admitted(request):
            message = request_message(request, target, self._limits(request.tenant), self._policy)
            facts = facts_from(self._run(with_pages(message), request.tenant, str(request.parameters.url)))
            note_facts(facts)
        progress.observer().finished(facts.file_count, facts.total_bytes, facts.remarks)
        return facts

    def pin_into(self, request: PinRequest, target: Path) -> PinFacts:
        """As ``DatasetLister.pin_into``."""
        dataset = request.dataset
        with self._admitted(dataset):
            message = pin_message(request, target, self._limits(dataset.tenant), self._policy)
            return pin_facts_from(self._run(message, dataset.tenant, str(dataset.parameters.url)))

    def select_into(self, request: SelectionRequest, target: Path) -> None:
        """As ``DatasetLister.select_into``. Work on one file is no burden for any store, so only the share of the
        namespace counts."""
        with self._admission.admitted(request.tenant.namespace, str(request.manifest_path), OF_WARMUPS):
            message = selection_message(request, target, self._limits(request.tenant))
            self._run(message, request.tenant, "the globs of a warmup")

    def close(self) -> None:
        """Ends all listings."""
        self._server.close()

    def _admitted(self, request: ListingRequest) -> AbstractContextManager[None]:
        url = request.parameters.url
        store = f"{request.parameters.endpoint or url.scheme} {url.bucket}"
        patience = OF_ADMINISTRATORS if self._policy.trusts(request.tenant) else OF_STRANGERS
        return self._admission.admitted(request.tenant.namespace, store, patience)

    def _limits(self, tenant: Tenant) -> ListingSettings:
        share = _TRUSTED_SHARE if self._policy.trusts(tenant) else _SHARE
        memory_bytes = max(LEAST_MEMORY_BYTES, min(self._settings.memory_bytes, int(available_bytes() * share)))
        return self._settings.model_copy(update={"memory_bytes": memory_bytes})

    def _run(self, message: Message, tenant: Tenant, name: str) -> Message:
        """The answer of a new process. Raises the error that it reports, BudgetExceeded, Interrupted,
        InternalFailure."""
        with self._server.connect() as connection:
            connection.settimeout(_START_S)
            with _lost_process():
                send(connection, message)
            try:
                answer = self._answer(connection, tenant, name)
            except BaseException:
                _end(connection)
                raise
        _raise_reported(answer)
        return answer

    def _answer(self, connection: socket.socket, tenant: Tenant, name: str) -> Message:
        """After an error the process still runs."""
        ends_s = time.monotonic() + self._settings.deadline_s
        is_abandoned = self._abandoned(tenant)
        receiver = Receiver(connection)
        connection.settimeout(callers.POLL_S)
        while True:
            with suppress(TimeoutError), _lost_process():
                answer = receiver.receive() or _raise_lost()
                if "page" in answer:
                    note_page(int(answer["page"]))
                    continue
                if "listed" not in answer:
                    return answer
                progress.observer().listed(int(answer["listed"]))
            if is_abandoned():
                raise Interrupted("the caller does not wait any more; its listing was ended")
            if time.monotonic() >= ends_s:
                raise BudgetExceeded(
                    f"{name}: the listing took longer than a listing may take, {self._settings.deadline_s:g} s; "
                    "name a longer prefix, or have the operator raise --listing-deadline"
                )

    def _abandoned(self, tenant: Tenant) -> Callable[[], bool]:
        """A volume of an untrusted author is listed for as long as its caller waits. An administrator's may have
        more objects than can be listed in one call: its listing goes on when the call times out, for the retry."""
        caller, trusted = callers.current(), self._policy.trusts(tenant)
        return lambda: caller.gone and not (trusted and caller.timed_out)


class _Server:
    """The process of ``listing_server.py``. It is started when it is needed first, and again when it has died."""

    def __init__(self) -> None:
        # Guards: all fields. While held: the process is started, which takes milliseconds, or it has closed its
        # connection and ends.
        self._lock = threading.Lock()
        self._closed = False
        self._process: subprocess.Popen[bytes] | _ForkedProcess | None = None
        self._control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        other.close()

    def start(self) -> None:
        """Starts it before it is needed."""
        with self._lock:
            if self._process is None:
                self._start()

    def connect(self) -> socket.socket:
        """The connection to a new process of a listing."""
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            if not self._send(theirs):
                if self._closed:
                    _raise_lost()
                if self._process is not None:
                    facts = telemetry.fields(exit_code=self._stop())
                    logger.warning("the process that starts listings has ended; it is started again", extra=facts)
                self._start()
                self._send(theirs)
        return ours

    def close(self) -> None:
        """Ends it, and all listings."""
        with self._lock:
            self._closed = True
            self._stop()

    def _send(self, connection: socket.socket) -> bool:
        """False: nothing receives it."""
        try:
            socket.send_fds(self._control, [b"listing"], [connection.fileno()])
        except OSError:
            return False
        return True

    def _start(self) -> None:
        self._control.close()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = _ForkedProcess(theirs) if has_one_thread() else _new_python(theirs)

    def _stop(self) -> int | None:
        """Closes the connection, upon which the process ends. Returns its exit code; None: it did not run."""
        self._control.close()
        if self._process is None:
            return None
        try:
            return self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


class _ForkedProcess:
    """A server in a copy of this process, which must have one thread. Methods as of ``subprocess.Popen``."""

    def __init__(self, control: socket.socket) -> None:
        gc.freeze()  # what was imported; or both collectors would copy its pages
        self._pid = os.fork()
        if not self._pid:
            serve_listings(control)
        self._pidfd = os.pidfd_open(self._pid)
        self._exit_code: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        if self._exit_code is None:
            ended, _, _ = select.select((self._pidfd,), (), (), timeout)
            if not ended:
                raise subprocess.TimeoutExpired(_SERVER, timeout or 0.0)
            _, status = os.waitpid(self._pid, 0)
            self._exit_code = os.waitstatus_to_exitcode(status)
            os.close(self._pidfd)
        return self._exit_code

    def kill(self) -> None:
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


def _new_python(control: socket.socket) -> subprocess.Popen[bytes]:
    # All other descriptors are closed: mounts, the lock of the cache, sockets.
    return subprocess.Popen(  # noqa: S603  # this program
        (sys.executable, "-m", _SERVER, str(control.fileno())),
        stdin=subprocess.DEVNULL,
        pass_fds=(control.fileno(),),
        env={**os.environ, **NO_LIBRARY_THREADS},
        process_group=0,  # as `serve_listings`
    )


def _end(connection: socket.socket) -> None:
    """Has the process killed, and waits for its end: it may write files until then."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(_END_S)
        while connection.recv(1 << 16):
            pass


def _raise_reported(answer: Message) -> None:
    """Raises the error that the process reports, if it does."""
    if "facts" in answer or "done" in answer:
        return
    if "errno" in answer:
        raise OSError(answer["errno"], answer["message"], answer["file"])
    if "exit_code" in answer:
        _raise_ended(answer["exit_code"])
    error = error_from(answer.get("error"), str(answer.get("message")))
    if error is not None:
        raise error
    facts = telemetry.fields(error=answer.get("unexpected"), frames="; ".join(answer.get("frames", ())))
    logger.error("unexpected error in the process of a listing", extra=facts)
    raise InternalFailure(
        f"unexpected error in the listing ({answer.get('unexpected')}); see the log of `{telemetry.process_name()}`"
    )


def _raise_ended(exit_code: int) -> NoReturn:
    if exit_code in _FOR_LACK_OF_MEMORY:
        raise BudgetExceeded(
            "the process of the listing was ended for lack of memory; name a longer prefix, or have the operator give "
            "listings more"
        )
    raise InternalFailure(f"the process of the listing ended unexpectedly (exit code {exit_code})")


def _raise_lost() -> NoReturn:
    raise InternalFailure("the process that starts listings has ended; retry")


@contextmanager
def _lost_process() -> Iterator[None]:
    """An error of the socket other than a time-out."""
    try:
        yield
    except TimeoutError:
        raise
    except (OSError, ValueError):
        _raise_lost()
