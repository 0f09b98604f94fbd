"""What a person sees while a verb works: live bars in a terminal, a line now and then elsewhere.

Owns the layout of progress. Knows nothing of what the stages do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column
from rich.text import Text

SHOWN = {
    "loss": "loss",
    "accuracy": "accuracy",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "reward": "reward",
    "objective/scores": "score",
    "kl": "kl",
}
"""Metrics that are shown beside the bar, and what they are called there."""

SECONDS_PER_LINE = 5.0
"""Where there is no terminal, at most one line in this time."""

Report = Callable[[int, int, Mapping[str, float]], None]


class ClosableScreen(Protocol):
    """A screen that is left when the verb ends, well or not."""

    def say(self, text: str) -> None: ...

    def stage(self, name: str, text: str) -> Report: ...

    def finish(self) -> None: ...

    def __enter__(self) -> ClosableScreen: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class PipedConsole(Console):
    """A console whose reader may go away: that is an error like others, not an exit of its own."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        raise BrokenPipeError


def open_screen() -> ClosableScreen:
    """Live bars where stdout is a terminal, else plain lines."""
    console = PipedConsole(highlight=False, soft_wrap=True)
    return LiveScreen(console) if console.is_terminal else PlainScreen(console)


def shown(metrics: Mapping[str, float]) -> str:
    """The metrics worth a look, in few characters.

    >>> shown({"loss": 1.23456, "num_tokens": 900.0, "objective/scores": 0.5})
    'loss 1.235  score 0.5'
    """
    told = [f"{name} {metrics[key]:.4g}" for key, name in SHOWN.items() if key in metrics]
    return "  ".join(told)


class PlainScreen:
    """Occasional lines, for files and pipes; the last state of every stage is always told."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._name = ""
        self._began = self._told = 0.0
        self._state = ""

    def say(self, text: str) -> None:
        """One line for people."""
        self._console.print(Text(text))

    def stage(self, name: str, text: str) -> Report:
        """A stage begins, the one before it is over; what comes back is called as it goes on."""
        self.finish()
        self._name, self._state = name, ""
        self._began = self._told = self._clock()
        latest: dict[str, float] = {}

        def report(done: int, total: int, metrics: Mapping[str, float]) -> None:
            latest.update(metrics)
            self._state = f"{done}/{total}  {shown(latest)}".rstrip()
            if self._clock() - self._told >= SECONDS_PER_LINE:
                self._told = self._clock()
                self._line(self._state)

        return report

    def _line(self, state: str) -> None:
        self.say(f"{self._name:9} {state}  ({self._clock() - self._began:.0f} s)")

    def finish(self) -> None:
        """The running stage is over."""
        if self._name:
            self._line(f"{self._state}  done".lstrip())
        self._name = ""

    def __enter__(self) -> PlainScreen:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.finish()


class LiveScreen:
    """A bar for every stage, the running one alive at the bottom."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.description}", table_column=Column(min_width=9)),
            BarColumn(bar_width=None, table_column=Column(min_width=8, max_width=30, ratio=1)),
            MofNCompleteColumn(table_column=Column(min_width=7)),
            TextColumn(
                "{task.fields[metrics]}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis", ratio=3),
            ),
            TimeElapsedColumn(table_column=Column(min_width=7)),
            console=console,
            expand=True,
        )
        self._running: TaskID | None = None

    def say(self, text: str) -> None:
        """One line for people, above the bars."""
        self._bars.console.print(Text(text))

    def stage(self, name: str, text: str) -> Report:
        """A stage begins, the one before it is over; what comes back is called as it goes on."""
        self.finish()
        task = self._bars.add_task(name, total=None, metrics=text[:60])
        latest: dict[str, float] = {}

        def report(done: int, total: int, metrics: Mapping[str, float]) -> None:
            latest.update(metrics)
            self._bars.update(task, completed=done, total=total, metrics=shown(latest))

        self._running = task
        return report

    def finish(self) -> None:
        """The running stage is over."""
        if self._running is not None:
            total = self._bars.tasks[self._running].total or 1
            self._bars.update(self._running, completed=total, total=total)
            self._bars.stop_task(self._running)
        self._running = None

    def __enter__(self) -> LiveScreen:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.finish()
        self._bars.stop()
