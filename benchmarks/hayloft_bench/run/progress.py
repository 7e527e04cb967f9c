"""Progress bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Step:
    """One progress bar. All methods may be called from any thread."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, count: float) -> None:
        """``count`` more is done."""
        self._progress.advance(self._task, count)

    def reach(self, count: float) -> None:
        """``count`` is done in total."""
        self._progress.update(self._task, completed=count)


class Steps:
    """The steps of a run, each with its time."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not self._live,
        )

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """While the block runs, the bar of the current step is at the bottom of the terminal."""
        with self._progress:
            yield

    @contextlib.contextmanager
    def step(self, title: str, total: float | None = None, *, silent: bool = False) -> Iterator[Step]:
        """A bar while the block runs; unless ``silent``, a line with its time when it has succeeded."""
        task = self._progress.add_task(escape(title), total=total)
        begun = time.monotonic()
        try:
            yield Step(self._progress, task)
        finally:
            self._progress.remove_task(task)
        if silent:
            return
        self._console.print(f"[green]✓[/] {escape(title)} [dim]{time.monotonic() - begun:.1f} s[/]", highlight=False)

    def note(self, text: str) -> None:
        """A line below the step that has just ended."""
        self._console.print(f"  [dim]{escape(text)}[/]", highlight=False)
