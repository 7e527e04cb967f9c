"""Liveness and readiness over HTTP, for the probes of kubelet: what livenessprobe answers beside other drivers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus

from csi_driver.model.errors import HayloftError
from csi_driver.rpc.call_counts import CallCounts
from csi_driver.wiring.page_server import HttpPage, PageRequest, PageServer, listen

_ALL_ADDRESSES = "::"
"""Of IPv4 too: kubelet probes the address of the pod."""


@contextmanager
def serving_health(
    port: int, healthy: Callable[[], object], ready: Callable[[], object], calls: CallCounts | None = None
) -> Iterator[None]:
    """During the body ``/healthz`` is 200 as long as ``healthy`` raises nothing, and else 503: a restart helps.
    ``/readyz`` is that of ``ready``: the process waits for another one. With ``calls`` there is ``/metrics`` of them,
    too. Port 0: nothing is served. Raises InvalidParameter."""
    if not port:
        yield
        return
    listener = listen(_ALL_ADDRESSES, port, port_flag="--health-port", address_flag="--health-port")
    pages = {"/healthz": partial(_page, healthy), "/readyz": partial(_page, ready)}
    if calls is not None:
        pages["/metrics"] = partial(_metrics, calls)
    server = PageServer(listener, pages, "health")
    server.start()
    try:
        yield
    finally:
        server.close()


def _page(check: Callable[[], object], _: PageRequest) -> HttpPage:
    try:
        check()
    except HayloftError as error:
        return HttpPage(f"{error}\n".encode("utf-8", "backslashreplace"), HTTPStatus.SERVICE_UNAVAILABLE)
    return HttpPage(b"ok\n")


def _metrics(calls: CallCounts, _: PageRequest) -> HttpPage:
    from csi_driver.wiring.metrics import csi_metrics_page  # a process that is not scraped does without the library

    return csi_metrics_page(calls)
