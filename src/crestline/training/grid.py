"""When a checkpoint of RL is kept: on a grid of distance from the reference, and what it then answers.

Owns the running estimate of distance, the marks of the grid and the distance budget. Knows nothing of samples,
rewards and losses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crestline.runs.files import append_jsonl
from crestline.runs.folder import RunFolder
from crestline.runs.tables import write_table
from crestline.training.evaluation import evaluate
from crestline.training.rl_configs import RlConfig
from crestline.training.rollouts import Cast, prompt_column
from crestline.training.seeds import stream
from crestline.types import Prompt


class DistanceGrid:
    """Keeps a checkpoint whenever the policy has moved on by a step, and lets it answer the held-out prompts.

    Training is done when the running estimate, or the distance measured at a checkpoint, reaches max_distance.
    """

    def __init__(
        self, config: RlConfig, folder: RunFolder, cast: Cast, prompts: Sequence[Prompt]
    ) -> None:
        self.config, self.folder, self.cast, self.prompts = config, folder, cast, prompts
        self.budget = config.kl.max_distance or float("inf")
        self.step, self.last, self.kept = config.checkpoints.distance_step, 0.0, 0
        self.recent: list[float] = []
        self.is_done = False

    def after_update(self, update: int, metrics: Mapping[str, float]) -> bool:
        """Measure and keep when the distance passed the next mark, and at the last update."""
        looked = "kl" in metrics
        if looked:
            self.recent = [*self.recent[-2:], metrics["kl"]]
        distance = max(0.0, float(np.median(self.recent))) ** 0.5 if self.recent else 0.0
        step = max(self.step, self.config.checkpoints.distance_growth * self.last)
        spent = looked and distance >= self.budget
        due = looked and abs(distance - self.last) >= step
        if not due and not spent and update != self.config.num_updates:
            return False
        self.last, self.kept = distance, self.kept + 1
        if self.kept % self.config.checkpoints.max_checkpoints == 0:
            self.step *= 2
        measured = self.measure(update)
        self.is_done = spent or measured >= self.budget
        return True

    def measure(self, update: int) -> float:
        """Let the policy as it is now answer the held-out prompts; write answers and summary, return the distance."""
        seeds = [stream(self.config.seed, "evaluate", n) for n in range(len(self.prompts))]
        found = evaluate(
            self.cast.policy,
            self.cast.reference,
            self.cast.sampler,
            self.cast.reward,
            self.prompts,
            seeds,
            micro_batch_size=self.config.optimization.micro_batch_size,
        )
        rows = {**found.rows, "prompt": [prompt_column(prompt.text) for prompt in self.prompts]}
        write_table(self.folder.evaluation_path(update), rows)
        append_jsonl(self.folder.checkpoints_path, [{"update": update, **found.summary}])
        return found.summary["distance"]

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "last": self.last,
            "kept": self.kept,
            "recent": self.recent,
            "is_done": self.is_done,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.step, self.last, self.kept = state["step"], state["last"], state["kept"]
        self.recent, self.is_done = list(state["recent"]), state["is_done"]
