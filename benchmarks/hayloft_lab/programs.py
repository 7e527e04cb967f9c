"""Programs that are installed beside this Python or on PATH."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path


def program(name: str) -> Path | None:
    """The executable beside this Python (pip puts it there), else the one on PATH."""
    beside = Path(sys.executable).with_name(name)
    if beside.exists():
        return beside
    found = shutil.which(name)
    return Path(found) if found else None
