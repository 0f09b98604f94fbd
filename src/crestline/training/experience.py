"""From sampled completions to what RL trains on: rewards by token, then an algorithm's advantages.

Owns the frozen records between sampling and training. Knows nothing of models, files and sampling.

Letters: N completions, T tokens; rows of a group are neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crestline.training.batches import CriticExperience, Experience
from crestline.training.seeds import stream


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Sampled completions with their rewards, before an algorithm makes experience of them.

    sampled_NT: True where the policy chose the token at this place, the end token included.
    old_logprobs_NT, reference_logprobs_NT: log-probability of that token when sampled and under the reference.
    rewards_NT: reward of each token, see `token_rewards`. values_NT: what a critic expected before it, reward units;
    0 without a critic. truncated_N: True where a completion ran out of room. group_size: completions of a prompt.
    """

    tokens_NT: Tensor
    lengths_N: Tensor
    sampled_NT: Tensor
    old_logprobs_NT: Tensor
    reference_logprobs_NT: Tensor
    rewards_NT: Tensor
    values_NT: Tensor
    truncated_N: Tensor
    group_size: int

    @property
    def rewards_N(self) -> Tensor:
        """Reward of each completion: the sum of its tokens' rewards."""
        return self.rewards_NT.sum(1)


def token_rewards(scores_N: Tensor, sampled_NT: Tensor, charge_NT: Tensor) -> Tensor:
    """Reward of each token: the completion's score at its last token, minus what every token is charged for KL.

    scores_N: in reward units; charge_NT: the same, 0 outside the mask. Every row has a token.

    >>> mask = torch.tensor([[False, True, True]])
    >>> token_rewards(torch.tensor([2.0]), mask, torch.tensor([[0.0, 0.5, 0.25]])).tolist()
    [[0.0, -0.5, 1.75]]
    """
    last_NT = sampled_NT & (sampled_NT.flip(1).cumsum(1).flip(1) == 1)
    return torch.where(last_NT, scores_N[:, None], 0.0) - charge_NT


def spread_over_tokens(advantages_N: Tensor, sampled_NT: Tensor) -> Tensor:
    """The same advantage at each token of a completion, [N, T]; 0 outside the mask."""
    return advantages_N[:, None] * sampled_NT


def mini_batches(experience: Experience, pieces: int, seed: int) -> list[Experience]:
    """The rows in so many parts of whole groups, drawn anew for each seed; one part keeps the order.

    Each part states its own denominators; pieces: divides the number of groups.
    """
    if pieces == 1:
        return [experience]
    rows_PG = torch.arange(len(experience.tokens_NT)).view(-1, experience.group_size)
    order_P = torch.from_numpy(np.random.default_rng(seed).permutation(len(rows_PG)))
    return [_counted(experience.rows(rows.reshape(-1))) for rows in rows_PG[order_P].chunk(pieces)]


def _counted(part: Experience) -> Experience:
    trained, rows = int(part.trained_NT.sum()), len(part.tokens_NT)
    return replace(part, num_trained_tokens=trained, num_completions=rows)


@dataclass(frozen=True)
class Reuse:
    """How a set of samples is trained on: so many passes, each cut in so many updates."""

    num_iterations: int
    num_mini_batches: int

    @property
    def num_updates(self) -> int:
        return self.num_iterations * self.num_mini_batches

    def place(self, update: int) -> tuple[int, int]:
        """(which set of samples, which of its updates), both from 0; updates count from 1."""
        return divmod(update - 1, self.num_updates)

    def batch(self, experience: Experience, number: int, seed: int) -> Experience:
        """What update `number` (from 0) of a set of samples trains on; seed: the set's own."""
        iteration, piece = divmod(number, self.num_mini_batches)
        parts = mini_batches(experience, self.num_mini_batches, stream(seed, "pass", iteration))
        return parts[piece] if number else replace(parts[piece], is_fresh=True)


def as_state(experience: Experience) -> dict[str, Any]:
    """The record as plain numbers and tensors, for a checkpoint."""
    return {field.name: getattr(experience, field.name) for field in fields(experience)}


def from_state(state: Mapping[str, Any], device: torch.device | str) -> Experience:
    """What `as_state` gave."""
    values: dict[str, Any] = {
        k: v.to(device) if isinstance(v, Tensor) else v for k, v in state.items()
    }
    return CriticExperience(**values) if "returns_NT" in values else Experience(**values)
