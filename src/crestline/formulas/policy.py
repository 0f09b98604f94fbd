"""Policy losses. Letters: N completions, T tokens. Every loss is minimised."""

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
