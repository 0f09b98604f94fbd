"""GRPO as a page: its advantages and its loss, with the corrections of Dr. GRPO and DAPO as settings.

Clipped ratios for each token, advantages standardised within the group, KL (k3) in the loss. Wrong choice when
groups often agree: a tiny standard deviation blows noise up (scale_rewards "none" or "batch" helps). What its mean
over tokens does: "grpo" lets a long bad completion off lightly, so that answers grow; "dapo" and "bnpo" count every
token the same; "dr_grpo" alone keeps the direction of the policy gradient where lengths differ.
Source: Shao et al. 2024 (DeepSeekMath), eq. 3; constant divisor and no scaling: Liu et al. 2025 (Dr. GRPO); mean over
all tokens, asymmetric clip and masking: Yu et al. 2025 (DAPO).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from crestline.formulas.advantages import group_standardised
from crestline.training.batches import Experience, Mean
from crestline.training.experience import Rollout, spread_over_tokens
from crestline.training.learner import Loss
from crestline.training.rl_configs import Grpo
from crestline.training.surrogate import Surrogate


def advantages(config: Grpo, rollout: Rollout) -> Tensor:
    """Advantages within the group, divided as scale_rewards says; the same at each token."""
    advantages_N = group_standardised(
        rollout.rewards_N, rollout.group_size, scale=config.scale_rewards
    )
    return spread_over_tokens(advantages_N, rollout.sampled_NT)


def loss(config: Grpo, surrogate: Surrogate) -> Loss:
    """Clipped surrogate plus KL of each token, averaged as loss_type says."""

    def of_part(model: Any, part: Experience) -> tuple[Tensor, dict[str, Mean]]:
        loss_S, metrics = surrogate.token_losses(model, part, config)
        return averaged(config, loss_S, part), metrics

    return of_part


def averaged(config: Grpo, loss_S: Tensor, part: Experience) -> Tensor:
    """The part's share of the update's mean."""
    if config.loss_type == "dapo":
        return loss_S.sum() / max(1.0, part.mean_trained_tokens)
    if config.loss_type == "bnpo":
        return loss_S.sum() / max(1, part.num_trained_tokens)
    if config.loss_type == "dr_grpo":
        return loss_S.sum() / (part.num_completions * part.max_completion_length)
    counts_N = part.trained_NT.sum(1, keepdim=True).expand_as(part.trained_NT)
    return (loss_S / counts_N[part.trained_NT]).sum() / part.num_completions
