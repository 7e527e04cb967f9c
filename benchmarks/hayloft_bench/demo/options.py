"""What ``hayloft demo`` is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """``scale`` 1 is about 700 MB. Everything is made in a new directory below ``directory`` (None: /var/tmp), which
    is removed at the end unless ``keep`` is set."""

    scale: float = 1.0
    directory: Path | None = None
    keep: bool = False
    json_path: Path = Path("demo-results.json")
    picture_path: Path = Path("demo-results.png")
