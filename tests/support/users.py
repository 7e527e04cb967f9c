"""Commands that run as another user, as in a pod with runAsUser."""

from __future__ import annotations

from collections.abc import Sequence

USER = 4713
"""A user that owns nothing."""


def as_user(command: Sequence[str], uid: int, gid: int) -> list[str]:
    """The command with these ids and no other group. It may read every file, so that it can import Python modules from
    where only root may look; that permits no write."""
    if uid == 0:
        return list(command)
    readable = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", *readable, *command]
