"""RLOO as a page: its advantages and its loss.

The ratio of the whole completion, clipped, with the rest of the group as baseline; on fresh samples that is REINFORCE.
Wrong choice when each prompt is answered once (there is no group), or when samples are used for several updates (the
ratio of a whole completion runs away sooner than that of its tokens).
Source: Ahmadian et al. 2024, "Back to Basics".
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from crestline.formulas.advantages import EPSILON, leave_one_out
from crestline.formulas.policy import clipped_ratio_loss
from crestline.training.batches import Experience, Mean
from crestline.training.experience import Rollout, spread_over_tokens
from crestline.training.learner import Loss
from crestline.training.rl_configs import Rloo
from crestline.training.surrogate import Surrogate, clip_metrics, from_sampling


def advantages(config: Rloo, rollout: Rollout) -> Tensor:
    """Leave-one-out advantages in reward units, or standardised over the batch; the same at each token."""
    advantages_N = leave_one_out(rollout.rewards_N, rollout.group_size)
    if config.normalize_advantages:
        advantages_N = (advantages_N - advantages_N.mean()) / (advantages_N.std() + EPSILON)
    return spread_over_tokens(advantages_N, rollout.sampled_NT)


def loss(config: Rloo, surrogate: Surrogate) -> Loss:
    """Clipped surrogate of each completion, mean over completions."""

    def of_part(model: Any, part: Experience) -> tuple[Tensor, dict[str, Mean]]:
        logprobs_S, kl_S = surrogate.said(model, part)
        row_S = part.trained_NT.nonzero()[:, 0]
        none_N = logprobs_S.new_zeros(len(part.tokens_NT))
        logprobs_N = none_N.index_add(0, row_S, logprobs_S)
        old_N = none_N.index_add(0, row_S, surrogate.old(logprobs_S, part))
        first_N = part.trained_NT.long().argmax(1, keepdim=True)
        advantages_N = part.advantages_NT.gather(1, first_N)[:, 0]
        loss_N = clipped_ratio_loss(
            logprobs_N,
            old_N,
            advantages_N,
            clip_low=config.epsilon,
            clip_high=config.epsilon_high,
        )
        metrics = clip_metrics(logprobs_N.detach(), old_N, advantages_N, config)
        metrics |= from_sampling(logprobs_S, part)
        total: Tensor = loss_N.sum() + kl_S.sum()
        return total / part.num_completions, metrics

    return of_part
