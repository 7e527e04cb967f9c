"""Hard links to object files, and the one rule about them: what is linked is not evicted.

Whether a file is linked is asked of the file system (``st_nlink``) at the moment of eviction, and remembered nowhere,
so no crash can make it wrong. A lock of the object's directory keeps the question and the unlink together, and a link
out of between: without it an object could be counted as freed while a view still holds its bytes.
"""

from __future__ import annotations

import os
import threading


class LinkGuard:
    """One lock for each of the 256 directories of object files. Taking one costs a sixtieth of a link; none is held
    across more than one link, one creation, or one stat and unlink or rename."""

    def __init__(self) -> None:
        self._locks = {f"{number:02x}": threading.Lock() for number in range(256)}

    def of(self, digest: str) -> threading.Lock:
        """Held while the object file is linked or made, or while it is looked at and dropped or published."""
        return self._locks[digest[:2]]


def is_linked(path: str) -> bool:
    """Whether a view holds the object file. One that is not there is held by nobody. Raises OSError."""
    try:
        return os.stat(path, follow_symlinks=False).st_nlink > 1
    except FileNotFoundError:
        return False
