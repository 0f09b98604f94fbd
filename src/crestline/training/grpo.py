"""GRPO as a page: its advantages and its loss.

Clipped ratios for each token, advantages standardised within the group, KL (k3) in the loss. Wrong choice when
groups often agree: a tiny standard deviation blows noise up (scale_rewards "none" helps).
Source: Shao et al. 2024 (DeepSeekMath), eq. 3; token mean and asymmetric clip: Yu et al. 2025 (DAPO).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crestline.formulas.advantages import group_standardised
from crestline.formulas.kl import kl_k3
from crestline.formulas.policy import clipped_ratio_loss
from crestline.models.policy import chosen_logprobs, logits_before
from crestline.training.batches import Experience, Mean, attention
from crestline.training.learner import Loss
from crestline.training.rl_configs import Grpo


def rewards(config: Grpo, scores_N: Tensor, kl_N: Tensor) -> Tensor:
    """The score as it is: GRPO keeps its KL in the loss."""
    return scores_N


def advantages(config: Grpo, rewards_N: Tensor, group_size: int) -> Tensor:
    """Advantages within the group, divided by its standard deviation unless scale_rewards is "none"."""
    return group_standardised(rewards_N, group_size, scale=config.scale_rewards == "group")


def loss(config: Grpo) -> Loss:
    """Clipped surrogate plus beta times k3 for each token, averaged as loss_type says."""

    def of_part(model: Any, part: Experience) -> tuple[Tensor, dict[str, Mean]]:
        seen_NT = attention(part.lengths_N, part.tokens_NT.shape[1])
        logits_SV = logits_before(model, part.tokens_NT, seen_NT, part.sampled_NT)
        logits_SV = logits_SV / part.temperature
        logprobs_S = chosen_logprobs(logits_SV, part.tokens_NT[part.sampled_NT])
        old_S = part.old_logprobs_NT[part.sampled_NT]
        advantages_S = part.advantages_N[:, None].expand_as(part.sampled_NT)[part.sampled_NT]
        loss_S = clipped_ratio_loss(
            logprobs_S,
            old_S,
            advantages_S,
            clip_low=config.epsilon,
            clip_high=config.epsilon_high,
        )
        if config.beta:
            loss_S = loss_S + config.beta * kl_k3(
                logprobs_S, part.reference_logprobs_NT[part.sampled_NT]
            )
        ratio_S = torch.exp(logprobs_S.detach() - old_S)
        clipped_S = (ratio_S < 1 - config.epsilon) | (ratio_S > 1 + config.epsilon_high)
        metrics = {
            "entropy": Mean(float(-part.old_logprobs_NT.sum()), float(part.sampled_NT.sum())),
            "clip_ratio/region_mean": Mean(float(clipped_S.sum()), len(clipped_S)),
            "sampling/logprob_difference": Mean(
                float((logprobs_S.detach() - old_S).abs().sum()), len(old_S)
            ),
        }
        if config.loss_type == "dapo":
            return loss_S.sum() / part.num_sampled_tokens, metrics
        counts_N = part.sampled_NT.sum(1, keepdim=True).expand_as(part.sampled_NT)
        return (loss_S / counts_N[part.sampled_NT]).sum() / part.num_completions, metrics

    return of_part
