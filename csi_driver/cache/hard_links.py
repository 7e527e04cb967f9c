"""Hard links to object files, and the rule about them: a file that is linked by a view is not evicted.

Whether a file is linked is read from the file system (``st_nlink``) at the moment of eviction, and remembered nowhere,
so no crash can make it wrong. A lock for the object's directory makes the look and the unlink one step, so that no link
is made in between: the object would count as freed while a view still holds its bytes.
"""

from __future__ import annotations

import os
import threading


class LinkGuard:
    """One lock for each of the 256 directories of object files. Taking one costs a sixtieth of a link; none is held
    across more than one link, one creation, or one stat and unlink or rename."""

    def __init__(self) -> None:
        # Guards: the names and link counts of the object files of one directory.
        self._locks = {f"{number:02x}": threading.Lock() for number in range(256)}

    def of(self, digest: str) -> threading.Lock:
        """To be held while the object file is linked, or created in the place of another, or from a look at it to its
        drop or publication. A name that is free may be taken without it."""
        return self._locks[digest[:2]]


def is_linked(path: str) -> bool:
    """Whether a view links the object file; False if there is no such file. Raises OSError."""
    try:
        return os.stat(path, follow_symlinks=False).st_nlink > 1
    except FileNotFoundError:
        return False
