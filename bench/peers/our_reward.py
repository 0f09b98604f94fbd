"""A worker of bench/reward_throughput.py: the verb `crestline reward`, held after every update."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any

from pipe import Line, memory_mb, turns

from crestline.training.configs import Optimization
from crestline.training.reward import reward
from crestline.training.reward_configs import RewardConfig, Splits


class Stopped(Exception):
    """Enough updates were timed."""


def train(line: Line, question: dict[str, Any]) -> None:
    turn = turns(line, question["clock"])
    tokens = [0.0, 0.0]

    def progress(update: int, num_updates: int, metrics: Mapping[str, float]) -> None:
        if update == 1:
            line.answer(memory_mb=memory_mb(), num_updates=num_updates)
        tokens[0] += metrics["num_tokens"]
        tokens[1] += metrics.get("num_encoded_tokens", metrics["num_tokens"])
        if not turn():
            raise Stopped

    with tempfile.TemporaryDirectory() as work:
        config = RewardConfig(
            model_name_or_path=question["model"],
            dataset_name=question["rankings"],
            output_dir=f"{work}/run",
            num_train_epochs=1.0,
            batch_size=question["batch_size"],
            max_length=question["max_length"],
            splits=Splits(eval_dataset_name=question["held_out"]),
            optimization=Optimization(
                learning_rate=question["learning_rate"],
                lr_scheduler_type="constant",
                warmup_ratio=0.0,
                save_updates=10**9,
                dtype=question["dtype"],
            ),
        )
        try:
            reward(config, progress=progress)
        except Stopped:
            line.answer(stopped=True, num_tokens=tokens[0], num_encoded_tokens=tokens[1])


def main() -> None:
    line = Line()
    while (question := line.read()) is not None:
        train(line, question)


if __name__ == "__main__":
    main()
