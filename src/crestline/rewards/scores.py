"""What a completion is worth before RL shapes it: one protocol for reward models, functions and mixtures of them.

Owns the records and the mixture. Knows nothing of policies, shaping and training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from crestline.formulas.ensemble import spread
from crestline.models.reward import Calibration, RewardEnsemble, RewardModel
from crestline.types import Prompt


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What was said of N completions.

    raw: one number each, in raw units. parts: what each of several rewards said, by its name, None where it does not
    apply. spread: standard deviation among an ensemble's members, calibrated units; empty where there is one judge.
    """

    raw: list[float]
    parts: dict[str, list[float | None]] = field(default_factory=dict)
    spread: list[float] = field(default_factory=list)


class Reward(Protocol):
    """Whatever scores completions."""

    @property
    def name(self) -> str: ...

    @property
    def calibration(self) -> Calibration:
        """How raw scores become numbers in [0, 1]."""
        ...

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> Scores:
        """Scores of each completion to its prompt."""
        ...


class LearnedReward:
    """A reward model, or an ensemble of them, as a reward."""

    def __init__(
        self, reward_model: RewardModel | RewardEnsemble, name: str = "reward_model"
    ) -> None:
        self.reward_model, self.name = reward_model, name

    @property
    def calibration(self) -> Calibration:
        return self.reward_model.calibration

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> Scores:
        members_NM = self.reward_model.member_scores([p.text for p in prompts], completions)
        return Scores(
            raw=self.reward_model.aggregated(members_NM).tolist(),
            spread=spread(members_NM).tolist() if members_NM.shape[1] > 1 else [],
        )
