"""REINFORCE++ as a page: its advantages and its loss.

Reward-to-go of each token, the KL of the tokens to come included, standardised over all tokens of the batch; clipped
ratios for each token. It needs one completion for each prompt. Wrong choice when prompts differ much in how well they
can be answered: the batch's mean is no baseline for any of them (baseline "group" takes the group's mean off first).
Source: Hu 2025, "REINFORCE++".
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from crestline.formulas.advantages import group_standardised, rewards_to_go, standardised
from crestline.training.batches import Experience, Mean
from crestline.training.experience import Rollout, token_rewards
from crestline.training.learner import Loss
from crestline.training.rl_configs import Reinforce
from crestline.training.surrogate import Surrogate


def advantages(config: Reinforce, rollout: Rollout) -> Tensor:
    """Reward-to-go of each token, standardised over the batch unless told not to."""
    if config.baseline == "group":
        rollout = _above_group_mean(rollout)
    advantages_NT = rewards_to_go(rollout.rewards_NT, rollout.sampled_NT)
    if config.normalize_advantages:
        advantages_NT = standardised(advantages_NT, rollout.sampled_NT)
    return advantages_NT


def _above_group_mean(rollout: Rollout) -> Rollout:
    """The same with the group's mean taken off each completion's last token."""
    rewards_N = rollout.rewards_N
    mean_N = rewards_N - group_standardised(rewards_N, rollout.group_size, scale="none")
    taken_NT = token_rewards(-mean_N, rollout.sampled_NT, rollout.rewards_NT.new_zeros(()))
    return replace(rollout, rewards_NT=rollout.rewards_NT + taken_NT)


def loss(config: Reinforce, surrogate: Surrogate) -> Loss:
    """Clipped surrogate plus KL of each token, mean over all tokens."""

    def of_part(model: Any, part: Experience) -> tuple[Tensor, dict[str, Mean]]:
        loss_S, metrics = surrogate.token_losses(model, part, config)
        return loss_S.sum() / max(1.0, part.mean_trained_tokens), metrics

    return of_part
