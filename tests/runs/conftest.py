"""Killing a writer at every line that it runs."""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import crestline.runs.files

OURS = (str(Path(crestline.runs.files.__file__).parent), shutil.__file__)


def in_a_child_killed_at(line: int, act: Callable[[], object]) -> bool:
    """Runs `act` in a fork that kills itself -9 before its n-th line; True if it ended well."""
    child = os.fork()
    if child == 0:
        left = line

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal left
            if not frame.f_code.co_filename.startswith(OURS):
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        try:
            sys.settrace(trace)
            act()
            sys.settrace(None)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.WEXITSTATUS(status) == 0, f"the child failed before line {line}"
    return True


@pytest.fixture
def killed_at_every_line(tmp_path: Path) -> Callable[..., int]:
    """(prepare, act, check), each on a fresh folder; `check` also gets whether `act` ended well."""

    def run(
        prepare: Callable[[Path], object],
        act: Callable[[Path], object],
        check: Callable[[Path, bool], object],
    ) -> int:
        line, ended = 0, False
        while not ended:
            line += 1
            folder = tmp_path / f"line_{line}"
            folder.mkdir()
            prepare(folder)
            ended = in_a_child_killed_at(line, lambda folder=folder: act(folder))  # type: ignore[misc]
            check(folder, ended)
            shutil.rmtree(folder)
        return line

    return run
