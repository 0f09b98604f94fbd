"""What the pipeline shows while it works: a protocol, so that terminals and tests bring their own."""

from __future__ import annotations

from typing import Protocol

from crestline.types import Progress, silent


class Screen(Protocol):
    """Where a run tells what it does."""

    def say(self, text: str) -> None:
        """One line for people."""
        ...

    def stage(self, name: str, text: str) -> Progress:
        """A stage begins; what comes back is called as it goes on. The stage before it is over."""
        ...


class Silent:
    """Shows nothing."""

    def say(self, text: str) -> None: ...

    def stage(self, name: str, text: str) -> Progress:
        return silent
