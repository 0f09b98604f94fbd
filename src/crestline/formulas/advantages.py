"""Advantages of completions and of tokens from their rewards.

Letters: N completions, P prompts, G group size, T tokens; N = P · G, and a group's rows are neighbours: rows
[i·G, (i+1)·G) answer the same prompt. A mask_NT is True at the tokens that the policy chose, which are neighbours.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

EPSILON = 1e-4
"""Added to a standard deviation before dividing by it, in units of what is standardised (TRL's number)."""


def _grouped(rewards_N: Tensor, group_size: int) -> Tensor:
    if group_size < 2:
        raise ValueError(f"group_size must be at least 2, got {group_size}")
    if rewards_N.ndim != 1 or len(rewards_N) % group_size:
        raise ValueError(
            f"rewards must be one row of whole groups of {group_size}, got shape {tuple(rewards_N.shape)}"
        )
    return rewards_N.view(-1, group_size)


def leave_one_out(rewards_N: Tensor, group_size: int) -> Tensor:
    """Reward of each completion minus the mean reward of the others in its group.

    rewards_N: any finite unit. Returns advantages [N], same unit; they sum to zero within a group.
    Raises ValueError if group_size is below 2 or does not divide N.
    Source: Kool et al. 2019; Ahmadian et al. 2024 (RLOO).

    >>> leave_one_out(torch.tensor([3.0, 0.0, 0.0]), 3).tolist()
    [3.0, -1.5, -1.5]
    """
    rewards_PG = _grouped(rewards_N, group_size)
    return ((rewards_PG - rewards_PG.mean(1, keepdim=True)) * (group_size / (group_size - 1))).view(
        -1
    )


def group_standardised(
    rewards_N: Tensor,
    group_size: int,
    *,
    scale: Literal["group", "batch", "none"] = "group",
    epsilon: float = EPSILON,
) -> Tensor:
    """Reward minus the group's mean, divided by a standard deviation (with n - 1) of the rewards.

    rewards_N: as in `leave_one_out`. scale: whose deviation, the group's or that of all N; none divides by nothing.
    epsilon: added to the deviation, reward units. Returns [N], no unit if scaled.
    Raises ValueError as `leave_one_out`. Source: Shao et al. 2024 (GRPO); none is Dr. GRPO (Liu et al. 2025).

    >>> group_standardised(torch.tensor([1.0, 0.0]), 2, scale="none").tolist()
    [0.5, -0.5]
    """
    rewards_PG = _grouped(rewards_N, group_size)
    centred_PG = rewards_PG - rewards_PG.mean(1, keepdim=True)
    if scale == "group":
        centred_PG = centred_PG / (rewards_PG.std(1, keepdim=True) + epsilon)
    elif scale == "batch":
        centred_PG = centred_PG / (rewards_N.std() + epsilon)
    return centred_PG.reshape(-1)


def gae(
    rewards_NT: Tensor, values_NT: Tensor, mask_NT: Tensor, *, gamma: float, lam: float
) -> Tensor:
    """Generalised advantage estimation: a decaying sum of the critic's surprises from each token on.

    rewards_NT, values_NT: reward of each token, and what the critic expected before it; reward units. After a
    completion's last token nothing more is expected, whether it ended or ran out of room. gamma: discount of a
    token, lam: how far surprises reach back, both in [0, 1]. Returns advantages [N, T], 0 outside the mask.
    lam 1 is reward-to-go minus value, lam 0 the one-step surprise. Source: Schulman et al. 2016, eq. 16.

    >>> mask = torch.ones(1, 2, dtype=torch.bool)
    >>> gae(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]]), mask, gamma=1.0, lam=0.5).tolist()
    [[0.25, 0.5]]
    """
    advantages_NT = torch.zeros_like(rewards_NT)
    later_N = torch.zeros_like(rewards_NT[:, 0])
    next_value_N = later_N
    for t in reversed(range(rewards_NT.shape[1])):
        surprise_N = rewards_NT[:, t] + gamma * next_value_N - values_NT[:, t]
        later_N = (surprise_N + gamma * lam * later_N) * mask_NT[:, t]
        next_value_N = values_NT[:, t] * mask_NT[:, t]
        advantages_NT[:, t] = later_N
    return advantages_NT


def rewards_to_go(rewards_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """Sum of the rewards from each token to the completion's end, [N, T]; 0 outside the mask.

    >>> rewards_to_go(torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[True, True, False]])).tolist()
    [[3.0, 2.0, 0.0]]
    """
    return (rewards_NT * mask_NT).flip(1).cumsum(1).flip(1) * mask_NT


def standardised(advantages_NT: Tensor, mask_NT: Tensor, *, epsilon: float = EPSILON) -> Tensor:
    """Advantages minus the mean of all tokens in the mask, divided by their standard deviation (with n - 1).

    Every token counts once, so long completions count more. Returns [N, T], 0 outside the mask; a single token
    gives 0. Source: Hu 2025 (REINFORCE++), its global normalisation; PPO's usual whitening.

    >>> standardised(torch.tensor([[1.0, 3.0]]), torch.tensor([[True, True]]), epsilon=0.0).tolist()
    [[-0.7071067690849304, 0.7071067690849304]]
    """
    inside_S = advantages_NT[mask_NT]
    if len(inside_S) < 2:
        return torch.zeros_like(advantages_NT)
    centred_NT = (advantages_NT - inside_S.mean()) * mask_NT
    return centred_NT / (inside_S.std() + epsilon)
