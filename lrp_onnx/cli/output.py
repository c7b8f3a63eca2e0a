"""What commands show: progress on a terminal, results as text or JSON, samples that could not be read."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

_MOST_FAILURES = 10  # shown one by one


class Progress:
    """Called by the library with (done, total); remembers both for whoever is interrupted."""

    def __init__(self, show: Any = None) -> None:
        self.done = self.total = 0
        self._show = show

    def __call__(self, done: int, total: int) -> None:
        self.done, self.total = done, total
        if self._show is not None:
            self._show(done, total)


@contextmanager
def progress(what: str) -> Iterator[Progress]:
    """A bar with rate and time left while the block runs; nothing when standard error is no terminal."""
    if not sys.stderr.isatty():
        yield Progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Task, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    class Rate(TextColumn):
        def render(self, task: Task) -> Text:
            return Text("" if not task.speed else f"{task.speed:.1f}/s", style="progress.data.speed")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(""), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task: Any = None

        def show(done: int, total: int) -> None:
            nonlocal task
            if task is None:  # what a resumed run finds done must not count into the rate
                task = bar.add_task(what, total=total, completed=done)
            bar.update(task, completed=done, total=total)

        yield Progress(show)


@contextmanager
def steps() -> Iterator[Callable[[str, int, int], None]]:
    """Called by the library with (step, done, total); shows a bar for one step after the other, as `progress` does."""
    with ExitStack() as shown:
        bars: dict[str, Progress] = {}

        def show(step: str, done: int, total: int) -> None:
            if step not in bars:
                shown.close()
                bars[step] = shown.enter_context(progress(step))
            bars[step](done, total)

        yield show


@contextmanager
def status(what: str) -> Iterator[None]:
    """A spinner while something of unknown length runs; nothing when standard error is no terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def show_json(values: Mapping[str, Any]) -> None:
    """Print a result for another program."""
    print(json.dumps(values, ensure_ascii=False, indent=2, default=str))


def show_notes(notes: Sequence[str]) -> None:
    """Print what was guessed or left out, on standard error."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def show_failures(failures: Mapping[str, str]) -> None:
    """Print the samples that could not be read, on standard error."""
    if not failures:
        return
    print(f"{len(failures)} could not be read:", file=sys.stderr)
    for path, reason in list(failures.items())[:_MOST_FAILURES]:
        print(f"  {path}: {reason}", file=sys.stderr)
    if len(failures) > _MOST_FAILURES:
        print(f"  and {len(failures) - _MOST_FAILURES} more", file=sys.stderr)


def count(number: int, what: str) -> str:
    """A number with its noun: 1 sample, 2 samples."""
    return f"{number} {what}{'' if number == 1 else 's'}"
