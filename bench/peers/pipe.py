"""Ask another process to work, one question at a time, so that two sides can be timed in turns.

Questions and answers are JSON lines. Standard library only: it runs in every peer's environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Answer = dict[str, Any]


class Worker:
    """A process that answers; it waits without computing until it is asked."""

    def __init__(self, python: Path, script: Path, *, threads: int) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONWARNINGS": "ignore",
        }
        self.log = Path(f"/tmp/{script.stem}-{os.getpid()}.log")
        self.process = subprocess.Popen(
            [str(python), str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
            env=environment,
        )

    def ask(self, do: str, **question: Any) -> Answer:
        """The answer to one question; raises RuntimeError with the end of its log if the process died."""
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps({"do": do, **question}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"the worker died at {do}:\n{self.log.read_text()[-2000:]}")
        answer: Answer = json.loads(line)
        return answer

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(60)
        self.log.unlink(missing_ok=True)


class Line:
    """The worker's end: read a question, answer it. What libraries print goes to the log."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def read(self) -> Answer | None:
        """The next question; None when nobody will ask again."""
        line = sys.stdin.readline()
        return json.loads(line) if line else None

    def answer(self, **values: Any) -> None:
        self.out.write(json.dumps(values) + "\n")
        self.out.flush()


def peak_mb() -> float:
    """The most memory that this process has held, resident, in MB."""
    return memory_mb("VmHWM")


def memory_mb(name: str = "VmRSS") -> float:
    """A line of /proc/self/status, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise KeyError(name)


Turn = Callable[[], bool]
"""Called after every update of a training loop; True goes on, False stops."""


CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
"""processor: seconds of all threads together, for comparisons on a machine that others use too."""


def turns(line: Line, clock: str) -> Turn:
    """Let a training loop go as many updates as asked for, and answer with the seconds they took.

    Blocks inside the loop between questions. Questions: steps (count), stop.
    """
    seconds, state = CLOCKS[clock], {"left": 0, "began": 0.0}

    def turn() -> bool:
        if state["left"] > 1:
            state["left"] -= 1
            return True
        if state["left"] == 1:
            line.answer(seconds=seconds() - state["began"], peak_mb=peak_mb())
        question = line.read()
        if question is None or question["do"] == "stop":
            return False
        state["left"], state["began"] = question["count"], seconds()
        return True

    return turn
