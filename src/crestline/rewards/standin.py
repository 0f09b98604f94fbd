"""A stand-in for people: a reward model of another backbone or size, trained on rankings that RL's never saw.

Owns answering by score. What it answers is an estimate, and everything that shows it says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from crestline.models.reward import RewardEnsemble, RewardModel
from crestline.types import AnsweredBy, PromptText


class StandIn:
    """Ranks by the raw score of a reward model or an ensemble that was kept apart from the one that RL maximises."""

    answered_by: AnsweredBy = "stand-in"

    def __init__(self, reward_model: RewardModel | RewardEnsemble, description: str) -> None:
        self.reward_model = reward_model
        self.description = description

    def rank(
        self, prompt: PromptText, completions: Sequence[str], **columns: Any
    ) -> list[float | None]:
        """Raw scores as values: higher is better."""
        return list(self.reward_model.score([prompt] * len(completions), completions))
