"""A Python program that dies at one of the things it does to the disk, like a machine whose power goes.

    python bench/resume_disk.py out --step 12 -- -m crestline sft …        dies at its twelfth step in the folder out
    python bench/resume_disk.py out --list steps.json -- -m crestline sft …     lives, and says which steps there are

A step is a file opened for writing, rows appended, bytes made sure of, a name given, a file or folder made or removed.
Rows that are being appended are torn in the middle, and so is a file that had not reached the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR
UNFINISHED = ".tmp-"
"""How names begin that nobody reads before they are given up or made sure of."""


class Disk:
    """Counts the steps of this process below a folder, and kills its process group at the fatal one; 0: at none."""

    def __init__(self, folder: Path, fatal: int) -> None:
        self.top = os.path.realpath(folder) + os.sep
        self.fatal = fatal
        self.steps: list[tuple[str, str]] = []
        self.write, self.fsync = os.write, os.fsync

    def watch(self) -> None:
        sys.addaudithook(self.heard)
        os.write, os.fsync = self.torn_write, self.torn_fsync  # nobody is told of these two

    def step(self, kind: str, path: str, tear: Callable[[], object] = lambda: None) -> None:
        path = os.path.abspath(path)
        if not path.startswith(self.top):
            return
        self.steps.append((kind, path[len(self.top) :]))
        if len(self.steps) == self.fatal:
            tear()
            os.killpg(os.getpgrp(), signal.SIGKILL)

    def heard(self, event: str, found: tuple[Any, ...]) -> None:
        """The interpreter tells of every one of these before it is done."""
        if event == "open":
            path, _, flags = found
            if isinstance(path, str | bytes | os.PathLike) and flags & WRITING:
                self.step("open", os.fsdecode(path))
        elif event == "os.rename":
            self.step("rename", os.fsdecode(found[1]))
        elif event == "os.truncate":
            path = open_path(found[0]) if isinstance(found[0], int) else os.fsdecode(found[0])
            self.step("truncate", path)
        elif event in ("os.remove", "os.rmdir", "os.mkdir"):
            above = open_path(found[-1]) if found[-1] >= 0 else ""
            self.step(event.removeprefix("os."), os.path.join(above, os.fsdecode(found[0])))

    def torn_write(self, descriptor: int, data: Any) -> int:
        half = bytes(data[: len(data) // 2])
        self.step("write", open_path(descriptor), lambda: self.write(descriptor, half))
        return self.write(descriptor, data)

    def torn_fsync(self, descriptor: int) -> None:
        path = open_path(descriptor)

        def tear() -> None:
            if UNFINISHED in path and os.path.isfile(path):
                os.truncate(path, os.path.getsize(path) // 2)

        self.step("fsync", path, tear)
        self.fsync(descriptor)


def open_path(descriptor: int) -> str:
    """Where an open file or folder stands."""
    return os.readlink(f"/proc/self/fd/{descriptor}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--step", type=int, default=0)
    parser.add_argument("--list", type=Path)
    parser.add_argument("program", nargs="+", help="after --: what would follow `python`")
    given = parser.parse_args()
    disk = Disk(given.folder, given.step)
    disk.watch()
    is_module = given.program[0] == "-m"
    name, *words = given.program[is_module:]
    sys.argv = [name, *words]
    sys.path[0] = "" if is_module else str(Path(name).parent)
    try:
        if is_module:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(name, run_name="__main__")
    finally:
        if given.list:
            given.list.write_text(json.dumps(disk.steps))


if __name__ == "__main__":
    main()
