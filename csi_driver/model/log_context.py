"""What every line of the log says besides its own facts: the node, and the call of Kubernetes that it is about."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

_ID = re.compile(r"[0-9a-f]{8}\Z")

_call: ContextVar[str | None] = ContextVar("hayloft_call_id", default=None)


def new_call_id() -> str:
    """Random: a call that is repeated has another one."""
    return secrets.token_hex(4)


def valid_call_id(text: object) -> str | None:
    """The id that another process of the driver sent; None: it sent none."""
    return text if isinstance(text, str) and _ID.match(text) else None


def current_call_id() -> str | None:
    """Of the call that this thread works on."""
    return _call.get()


@contextmanager
def logging_call(call_id: str) -> Iterator[None]:
    """Lines that this thread writes in the body have this id."""
    token = _call.set(call_id)
    try:
        yield
    finally:
        _call.reset(token)


def pod_of(context: Mapping[str, str]) -> str | None:
    """Namespace and name of the pod, which kubelet adds to the context of a volume (``podInfoOnMount``)."""
    name = context.get("csi.storage.k8s.io/pod.name")
    return f"{context.get('csi.storage.k8s.io/pod.namespace', '')}/{name}" if name else None
