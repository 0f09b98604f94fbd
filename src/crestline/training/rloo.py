"""RLOO as a page: what it adds to the reward, its advantages and its loss.

REINFORCE on whole completions with the rest of the group as baseline. Wrong choice when each prompt is answered
once (there is no group), or when samples are used for several updates (nothing corrects for their age).
Source: Ahmadian et al. 2024, "Back to Basics".
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from crestline.formulas.advantages import leave_one_out
from crestline.models.policy import chosen_logprobs, logits_before
from crestline.training.batches import Experience, Mean, attention
from crestline.training.learner import Loss
from crestline.training.rl_configs import Rloo


def rewards(config: Rloo, scores_N: Tensor, kl_N: Tensor) -> Tensor:
    """Score minus beta times the completion's KL (k1, nats), in raw score units."""
    return scores_N - config.beta * kl_N


def advantages(config: Rloo, rewards_N: Tensor, group_size: int) -> Tensor:
    """Leave-one-out advantages in raw score units."""
    return leave_one_out(rewards_N, group_size)


def loss(config: Rloo) -> Loss:
    """Minus advantage times log-probability of the completion, mean over completions."""

    def of_part(model: Any, part: Experience) -> tuple[Tensor, dict[str, Mean]]:
        seen_NT = attention(part.lengths_N, part.tokens_NT.shape[1])
        logits_SV = logits_before(model, part.tokens_NT, seen_NT, part.sampled_NT)
        logits_SV = logits_SV / part.temperature
        logprobs_S = chosen_logprobs(logits_SV, part.tokens_NT[part.sampled_NT])
        advantages_S = part.advantages_N[:, None].expand_as(part.sampled_NT)[part.sampled_NT]
        gap_S = (logprobs_S.detach() - part.old_logprobs_NT[part.sampled_NT]).abs()
        metrics = {
            "entropy": Mean(float(-part.old_logprobs_NT.sum()), float(part.sampled_NT.sum())),
            "sampling/logprob_difference": Mean(float(gap_S.sum()), len(gap_S)),
        }
        return -(advantages_S * logprobs_S).sum() / part.num_completions, metrics

    return of_part
