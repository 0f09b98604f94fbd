"""What completions are worth before RL shapes it: one protocol for reward models, functions, servers and mixtures.

Owns the protocol, reward models as rewards, and the weighted sum. Knows nothing of policies, shaping and training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from crestline.formulas.ensemble import spread
from crestline.models.calibration import Calibration
from crestline.models.reward import RewardEnsemble, RewardModel
from crestline.types import BadInput, Prompt


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What was said of N completions.

    raw: a score each, raw units. parts: what each of several rewards said, by its name; None where it does not apply.
    spread: standard deviation over an ensemble's members, log-odds; empty where there is one judge.
    """

    raw: list[float]
    parts: dict[str, list[float | None]] = field(default_factory=dict)
    spread: list[float] = field(default_factory=list)


class Source(Protocol):
    """Whatever scores completions."""

    @property
    def name(self) -> str: ...

    def judge(
        self, prompts: Sequence[Prompt], completions: Sequence[str]
    ) -> list[float | None] | Judgement:
        """A score of each completion to its prompt; None where this source does not apply."""
        ...


class LearnedReward:
    """A reward model, or an ensemble of them."""

    name = "reward_model"

    def __init__(self, model: RewardModel | RewardEnsemble) -> None:
        self.model = model

    def judge(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> Judgement:
        """Raw scores; an ensemble's are aggregated, and its spread is told."""
        rows = self.model.rows([prompt.text for prompt in prompts], completions)
        members_NM = self.model.members_of_rows(rows)  # type: ignore[arg-type]
        raw = self.model.aggregated(members_NM).tolist()
        apart = spread(members_NM).tolist() if self.model.num_members > 1 else []
        return Judgement(raw=raw, spread=apart)


@dataclass(frozen=True)
class Reward:
    """What RL is trained against: the weighted sum of its sources.

    weights: one for each source. calibration: how the sum becomes a number in [0, 1].
    """

    sources: Sequence[Source]
    weights: Sequence[float]
    calibration: Calibration

    def judge(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> Judgement:
        """Sum over the sources that apply. Raises BadInput for a completion of which none says anything."""
        total = np.zeros(len(completions))
        said = np.zeros(len(completions), dtype=bool)
        parts: dict[str, list[float | None]] = {}
        apart: list[float] = []
        for source, weight in zip(self.sources, self.weights, strict=True):
            found = source.judge(prompts, completions)
            if isinstance(found, Judgement):
                apart, found = found.spread, list(found.raw)
            applies = np.array([value is not None for value in found])
            values = np.array([0.0 if value is None else value for value in found])
            total, said = total + weight * values, said | applies
            parts[source.name] = found
        if not said.all():
            silent = prompts[int(np.argmin(said))].text
            raise BadInput(
                f"no reward says anything of a completion to the prompt {str(silent)[:60]!r}: every reward function "
                "returned None; let one of them return a number"
            )
        return Judgement(raw=total.tolist(), parts=parts if len(parts) > 1 else {}, spread=apart)

    def in_unit(self, raw: Sequence[float]) -> list[float]:
        """Raw scores, calibrated to [0, 1]."""
        return [self.calibration.score(value) for value in raw]


def calibration_of(raw: Sequence[float]) -> Calibration:
    """The calibration that the reference's own completions imply, for scores that nobody fitted on rankings.

    0.5 is their mean; the temperature is that of the logistic distribution with their standard deviation.
    """
    values = np.asarray(raw, dtype=np.float64)
    deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return Calibration(float(values.mean()), deviation * 3**0.5 / np.pi if deviation > 0 else 1.0)
