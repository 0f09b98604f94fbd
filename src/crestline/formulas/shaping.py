"""From scores to rewards: comparison with the reference, bounds, and a running scale.

Letters: N completions, M completions of the reference to the same prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def above_reference(scores_N: Tensor, reference_NM: Tensor) -> Tensor:
    """Score minus the mean score of the reference's completions to the same prompt, [N], raw units.

    >>> above_reference(torch.tensor([2.0]), torch.tensor([[1.0, 2.0]])).tolist()
    [0.5]
    """
    return scores_N - reference_NM.mean(1)


def preference_as_reward(scores_N: Tensor, reference_NM: Tensor, temperature: float) -> Tensor:
    """Probability of being preferred to one of the reference's completions, [N], in [0, 1].

    scores_N, reference_NM: raw units. temperature: raw units for each unit of log-odds, above 0; 1 where scores are
    log-odds. Rises fast near the reference, then saturates. Source: Fu et al. 2025, "Reward Shaping to Mitigate
    Reward Hacking in RLHF" (PAR), the mean over M references of sigmoid(r - r_ref).

    >>> preference_as_reward(torch.tensor([1.0]), torch.tensor([[1.0, 1.0]]), 2.0).tolist()
    [0.5]
    """
    return torch.sigmoid((scores_N[:, None] - reference_NM) / temperature).mean(1)


@dataclass(frozen=True)
class Running:
    """Mean and deviation of everything seen so far. squares: summed squared differences from the mean.

    Source: Chan, Golub and LeVeque 1983, the pairwise update.

    >>> Running().joined(torch.tensor([1.0, 3.0])).joined(torch.tensor([5.0])).mean
    3.0
    """

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def joined(self, values_N: Tensor) -> Running:
        """With N more values."""
        values = values_N.double()
        number, mean = float(len(values)), float(values.mean())
        count, gap = self.count + number, mean - self.mean
        squares = float(((values - mean) ** 2).sum())
        return Running(
            count=count,
            mean=self.mean + gap * number / count,
            squares=self.squares + squares + gap**2 * self.count * number / count,
        )

    def standardised(self, values_N: Tensor, *, epsilon: float = 1e-4) -> Tensor:
        """Values minus the mean, divided by the deviation (with n - 1), no unit."""
        deviation: float = (self.squares / max(1.0, self.count - 1)) ** 0.5
        return (values_N - self.mean) / (deviation + epsilon)
