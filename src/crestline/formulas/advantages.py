"""Advantages of completions from their rewards. Letters: N completions, P prompts, G group size; N = P · G."""

from __future__ import annotations

from torch import Tensor


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

    rewards_N: any finite unit, groups are neighbours: rows [i·G, (i+1)·G) answer the same prompt.
    Returns advantages [N], same unit; they sum to zero within a group.
    Raises ValueError if group_size is below 2 or does not divide N.
    Source: Kool et al. 2019; Ahmadian et al. 2024 (RLOO).

    >>> import torch
    >>> leave_one_out(torch.tensor([1.0, 0.0, 0.0]), 3).tolist()
    [1.0, -0.5, -0.5]
    """
    rewards_PG = _grouped(rewards_N, group_size)
    return ((rewards_PG - rewards_PG.mean(1, keepdim=True)) * (group_size / (group_size - 1))).view(
        -1
    )


def group_standardised(
    rewards_N: Tensor, group_size: int, *, scale: bool = True, epsilon: float = 1e-4
) -> Tensor:
    """Reward minus the group's mean, divided by the group's standard deviation (with n - 1) where `scale`.

    rewards_N: as in `leave_one_out`. epsilon: added to the deviation, reward units. Returns [N], no unit if scaled.
    Raises ValueError as `leave_one_out`. Source: Shao et al. 2024 (GRPO); scale=False is Dr. GRPO (Liu et al. 2025).

    >>> import torch
    >>> group_standardised(torch.tensor([1.0, 0.0]), 2, scale=False).tolist()
    [0.5, -0.5]
    """
    rewards_PG = _grouped(rewards_N, group_size)
    centred_PG = rewards_PG - rewards_PG.mean(1, keepdim=True)
    if scale:
        centred_PG = centred_PG / (rewards_PG.std(1, keepdim=True) + epsilon)
    return centred_PG.reshape(-1)
