"""Losses of a policy and of its critic, by token or by completion. Every loss is minimised."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_ratio_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float
) -> Tensor:
    """PPO's clipped surrogate: -min(ratio · A, clip(ratio, 1 - low, 1 + high) · A).

    logprobs, old_logprobs: log-probabilities of the same actions (tokens or whole completions) now and when
    sampled; advantages: same shape, any unit. Returns the same shape. With logprobs equal to old_logprobs its
    gradient is REINFORCE's. Source: Schulman et al. 2017, eq. 7; asymmetric clip: Yu et al. 2025 (DAPO).

    >>> one = torch.ones(1)
    >>> clipped_ratio_loss(torch.log(one * 2), 0 * one, one, clip_low=0.2, clip_high=0.2).tolist()
    [-1.2000000476837158]
    """
    ratio = torch.exp(logprobs - old_logprobs)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float
) -> Tensor:
    """Half the squared error of a critic, the larger of plain and clipped: it moves at most `clip` from before.

    values, old_values: what the critic expects now and expected when sampled; returns: what came. All one shape, in
    reward units. clip: reward units, above 0; infinity never clips. Returns the same shape.
    Source: the value clipping of OpenAI's PPO code (Baselines, 2017); Huang et al. 2022, detail 9.

    >>> one = torch.ones(1)
    >>> clipped_value_loss(2 * one, 0 * one, 2 * one, clip=0.5).tolist()
    [1.125]
    """
    kept = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (kept - returns) ** 2)
