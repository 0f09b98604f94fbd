"""A worker of bench/rl_step.py: the verb `crestline rl`, held after every update; and the rate of matrix products."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from pipe import CLOCKS, Line, memory_mb, turns
from torch.utils.flop_counter import FlopCounterMode

from crestline.training.configs import Optimization
from crestline.training.health import Health
from crestline.training.rl import rl
from crestline.training.rl_configs import Checkpointing, Grpo, Kl, RewardSources, RlConfig
from crestline.types import Progress

REWARD = f"{Path(__file__).with_name('cheap_reward.py')}:share_of_vowels"


class Stopped(Exception):
    """Enough updates were timed."""


def settings(question: dict[str, Any], work: str) -> RlConfig:
    """The verb's settings for the step that the question describes."""
    return RlConfig(
        model_name_or_path=question["model"],
        dataset_name=question["prompts"],
        eval_dataset_name=question["prompts"],
        output_dir=f"{work}/run",
        num_updates=10**6,
        num_prompts=question["num_completions"] // question["num_generations"],
        num_generations=question["num_generations"],
        max_completion_length=question["max_completion_length"],
        seed=question["seed"],
        algorithm=Grpo(),
        kl=Kl(beta=question["beta"]),
        reward_sources=RewardSources(reward_funcs=REWARD),
        checkpoints=Checkpointing(distance_step=1e6, num_eval_prompts=8),
        health=Health(health_patience=0),
        optimization=Optimization(
            learning_rate=question["learning_rate"],
            lr_scheduler_type="constant",
            warmup_ratio=0.0,
            save_updates=10**9,
            dtype=question["dtype"],
            micro_batch_size=question.get("micro_batch_size", 128),
        ),
    )


def until_stopped(question: dict[str, Any], progress: Progress) -> None:
    """Train until progress raises Stopped."""
    with tempfile.TemporaryDirectory() as work, suppress(Stopped):
        rl(settings(question, work), progress=progress)


def train(line: Line, question: dict[str, Any]) -> None:
    """Answer after the first update; then make as many as asked for at a time."""
    turn = turns(line, question["clock"])
    tokens, updates = 0.0, 0

    def progress(update: int, num_updates: int, metrics: Mapping[str, float]) -> None:
        nonlocal tokens, updates
        if update == 1:
            line.answer(memory_mb=memory_mb(), num_updates=num_updates)
        tokens, updates = tokens + metrics["num_tokens"], update
        if not turn():
            raise Stopped

    until_stopped(question, progress)
    line.answer(stopped=True, num_completion_tokens=tokens / updates)


def executed(question: dict[str, Any]) -> dict[str, float]:
    """Floating-point operations of the matrix products, attention's included, that the second update really made."""
    counter, found = FlopCounterMode(display=False), {}

    def progress(update: int, num_updates: int, metrics: Mapping[str, float]) -> None:
        if update == 1:
            counter.__enter__()
        else:
            counter.__exit__(None, None, None)
            found.update(flop=counter.get_total_flops(), tokens=metrics["num_tokens"])
            raise Stopped

    until_stopped(question, progress)
    return found


def product_rate(shapes: list[list[int]], dtype: str, clock: str) -> float:
    """FLOP/s of matrix products [m, k] × [k, n] of the shapes, each as often as the others, the best of several."""
    kind, seconds = getattr(torch, dtype), CLOCKS[clock]
    pairs = [(torch.randn(m, k, dtype=kind), torch.randn(k, n, dtype=kind)) for m, k, n in shapes]
    flop = sum(2.0 * m * k * n for m, k, n in shapes)
    best = 0.0
    for _ in range(12):
        began = seconds()
        for left, right in pairs:
            left @ right
        best = max(best, flop / (seconds() - began))
    return best


def main() -> None:
    line = Line()
    while (question := line.read()) is not None:
        if question["do"] == "rate":
            rate = product_rate(question["shapes"], question["dtype"], question["clock"])
            line.answer(flop_per_second=rate)
        elif question["do"] == "executed":
            line.answer(**executed(question))
        else:
            train(line, question)


if __name__ == "__main__":
    main()
