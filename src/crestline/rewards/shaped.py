"""Scores become rewards: the one place that applies the settings of `Shaping`, in their order.

Owns the running scale. Knows nothing of who scored and of who samples.

Letters: N completions, M completions of the reference to the same prompt.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from crestline.formulas.shaping import Running, above_reference, preference_as_reward
from crestline.rewards.configs import Shaping


class Shaper:
    """temperature: of the calibration, raw units for each unit of log-odds."""

    def __init__(self, shaping: Shaping, temperature: float) -> None:
        if shaping.reward_shaping == "auto":
            raise ValueError("the config is not resolved")
        self.shaping, self.temperature = shaping, temperature
        self.running = Running()

    @property
    def compares(self) -> bool:
        """Whether the reference's scores are needed."""
        return self.shaping.reward_shaping != "raw"

    def rewards(
        self, scores_N: Tensor, reference_NM: Tensor, lengths_N: Tensor, truncated_N: Tensor
    ) -> Tensor:
        """Reward of each completion, [N], before KL.

        scores_N: raw. reference_NM: raw scores of the reference's completions to the same prompt; M is 0 where they
        are not needed. lengths_N: tokens. truncated_N: True where it ran out of room.
        """
        shaping = self.shaping
        rewards_N = scores_N
        if shaping.reward_shaping == "centered":
            rewards_N = above_reference(scores_N, reference_NM)
        elif shaping.reward_shaping == "par":
            rewards_N = preference_as_reward(scores_N, reference_NM, self.temperature)
        if shaping.normalize_rewards:
            self.running = self.running.joined(rewards_N)
            rewards_N = self.running.standardised(rewards_N)
        if shaping.reward_clip_range:
            rewards_N = rewards_N.clamp(-shaping.reward_clip_range, shaping.reward_clip_range)
        penalty_N = shaping.length_penalty * lengths_N + shaping.missing_eos_penalty * truncated_N
        return rewards_N - penalty_N

    def state(self) -> dict[str, Any]:
        return dict(vars(self.running))

    def load(self, state: dict[str, Any]) -> None:
        self.running = Running(**state)
