"""A worker of bench/rl_step.py: the verb `crestline rl`, held after every update; and the rate of matrix products."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pipe import CLOCKS, Line, memory_mb, turns

from crestline.training.configs import Optimization
from crestline.training.health import Health
from crestline.training.rl import rl
from crestline.training.rl_configs import Checkpointing, Grpo, Kl, RewardSources, RlConfig

REWARD = f"{Path(__file__).with_name('cheap_reward.py')}:share_of_vowels"


class Stopped(Exception):
    """Enough updates were timed."""


def train(line: Line, question: dict[str, Any]) -> None:
    turn = turns(line, question["clock"])
    tokens, updates = 0.0, 0

    def progress(update: int, num_updates: int, metrics: Mapping[str, float]) -> None:
        nonlocal tokens, updates
        if update == 1:
            line.answer(memory_mb=memory_mb(), num_updates=num_updates)
        tokens, updates = tokens + metrics["num_tokens"], update
        if not turn():
            raise Stopped

    with tempfile.TemporaryDirectory() as work:
        config = RlConfig(
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
        try:
            rl(config, progress=progress)
        except Stopped:
            line.answer(stopped=True, num_completion_tokens=tokens / updates)


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
        else:
            train(line, question)


if __name__ == "__main__":
    main()
