"""Two training loops in processes of their own, timed in turns: only one computes at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peers.conversations import PEERS
from peers.pipe import Worker

HERE = Path(__file__).resolve().parent
Settings = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How long to look. dropped: first updates that nobody counts; turns of so many steps for each side."""

    threads: int
    clock: str
    dropped: int
    turns: int
    steps: int
    search_steps: int


class Side:
    """One training loop. script: a worker of this folder that waits after every update; python: whose environment."""

    def __init__(self, name: str, python: Path, script: str, plan: Plan) -> None:
        self.name, self.plan = name, plan
        self.worker = Worker(python, HERE / script, threads=plan.threads)
        self.peak_mb = 0.0

    def open(self, question: Settings) -> None:
        """Begin to train."""
        self.worker.ask("open", clock=self.plan.clock, **question)

    def steps(self, count: int) -> float:
        """Seconds for each of so many updates."""
        answer = self.worker.ask("steps", count=count)
        self.peak_mb = answer["peak_mb"]
        return float(answer["seconds"]) / count

    def stop(self) -> dict[str, Any]:
        return self.worker.ask("stop")

    def close(self) -> None:
        self.worker.close()


def trl_side(script: str, plan: Plan) -> Side:
    return Side("trl", PEERS / "bin" / "python", script, plan)


def told_settings(told: str, *names: str) -> Settings:
    """Settings of these names out of a flag such as float32,sdpa,16; nothing where nothing is told."""
    if not told:
        return {}
    found = zip(names, told.split(","), strict=True)
    return {name: int(value) if value.isdigit() else value for name, value in found}


def fastest(
    script: str,
    plan: Plan,
    question: Settings,
    rounds: Sequence[Callable[[Settings], Sequence[Settings]]],
    *,
    tolerance: float = 0.0,
) -> Settings:
    """The settings under which TRL's updates take least, found one kind of setting after another.

    rounds: each gives the settings to try, from the best so far. tolerance: of those of the last round, the last that
    takes at most this share longer than the fastest.
    """
    side = trl_side(script, plan)
    found: list[tuple[float, Settings]] = []
    best: Settings = {}
    last: Sequence[Settings] = []
    for candidates in rounds:
        last = candidates(best)
        for settings in last:
            if any(tried == settings for _, tried in found):
                continue
            side.open({**question, **settings})
            side.steps(1)
            seconds = min(side.steps(1) for _ in range(plan.search_steps))
            side.stop()
            found.append((seconds, settings))
            told = ", ".join(f"{name} {value}" for name, value in settings.items())
            print(f"  TRL {seconds:7.2f} s  {told}", flush=True)
        best = min(found, key=lambda item: item[0])[1]
    side.close()
    limit = min(seconds for seconds, _ in found) * (1 + tolerance)
    near = [settings for seconds, settings in found if seconds <= limit and settings in last]
    return near[-1] if near else best


def in_turns(ours: Side, trl: Side, plan: Plan) -> dict[str, Any]:
    """Ratios TRL's seconds / ours of neighbouring turns; who begins changes. Both sides are stopped and closed."""
    for side in (ours, trl):
        side.steps(plan.dropped)
    turns = []
    for number in range(plan.turns):
        order = (ours, trl) if number % 2 == 0 else (trl, ours)
        turns.append({side.name: side.steps(plan.steps) for side in order})
    ended = {side.name: side.stop() for side in (ours, trl)}
    for side in (ours, trl):
        side.close()
    low, middle, high = np.quantile(
        [turn["trl"] / turn["ours"] for turn in turns], [0.25, 0.5, 0.75]
    )
    return {
        "ratio": round(float(middle), 3),
        "ratio_quartiles": [round(float(low), 3), round(float(high), 3)],
        "our_seconds": round(float(np.median([turn["ours"] for turn in turns])), 4),
        "trl_seconds": round(float(np.median([turn["trl"] for turn in turns])), 4),
        "our_peak_mb": round(ours.peak_mb),
        "trl_peak_mb": round(trl.peak_mb),
        "turns": [{name: round(value, 4) for name, value in turn.items()} for turn in turns],
        "ended": ended,
    }
