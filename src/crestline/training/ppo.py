"""PPO as a page: its advantages, what its critic should say, and the losses of both.

A critic, a second model, expects the reward still to come at every token; generalised advantage estimation turns its
surprises into advantages; several passes over the same samples with clipped ratios. Wrong choice when the reward
comes once, at the end, and several completions of a prompt are cheap: a group's mean is a baseline that needs no
second model and is right from the first update. Strong where rewards come at many tokens.
Source: Schulman et al. 2017; for language models Ouyang et al. 2022.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from crestline.formulas.advantages import gae, standardised
from crestline.formulas.policy import clipped_value_loss
from crestline.models.critic import Critic
from crestline.training.batches import CriticExperience, Mean
from crestline.training.experience import Rollout
from crestline.training.learner import Loss
from crestline.training.rl_configs import Ppo
from crestline.training.surrogate import Surrogate


def surprises(config: Ppo, rollout: Rollout) -> Tensor:
    """Generalised advantage estimates in reward units, [N, T]."""
    return gae(
        rollout.rewards_NT,
        rollout.values_NT,
        rollout.sampled_NT,
        gamma=config.gamma,
        lam=config.lam,
    )


def advantages(config: Ppo, rollout: Rollout) -> Tensor:
    """Generalised advantage estimates, standardised over the batch unless told not to."""
    advantages_NT = surprises(config, rollout)
    if config.normalize_advantages:
        advantages_NT = standardised(advantages_NT, rollout.sampled_NT)
    return advantages_NT


def returns(config: Ppo, rollout: Rollout) -> Tensor:
    """What the critic should have expected before each token, in reward units: its value plus its surprise."""
    return surprises(config, rollout) + rollout.values_NT * rollout.sampled_NT


def loss(config: Ppo, surrogate: Surrogate, critic: Critic) -> Loss:
    """Clipped surrogate plus KL of each token, and vf_coef times the critic's clipped error; mean over all tokens."""
    clip = config.cliprange_value or math.inf

    def of_part(model: Any, part: CriticExperience) -> tuple[Tensor, dict[str, Mean]]:
        loss_S, metrics = surrogate.token_losses(model, part, config)
        values_S = critic.values_before(
            part.tokens_NT, part.lengths_N, part.trained_NT, group_size=part.group_size
        )
        old_S, returns_S = part.values_NT[part.trained_NT], part.returns_NT[part.trained_NT]
        errors_S = clipped_value_loss(values_S, old_S, returns_S, clip=clip)
        count = len(values_S)
        moved_S = (values_S.detach() - old_S).abs()
        metrics |= {
            "loss/policy_avg": Mean(float(loss_S.detach().sum()), count),
            "loss/value_avg": Mean(float(errors_S.detach().sum()), count),
            "val/clipfrac_avg": Mean(float((moved_S > clip).sum()), count),
            "val/mean": Mean(float(values_S.detach().sum()), count),
        }
        total = loss_S.sum() + config.vf_coef * errors_S.sum()
        return total / max(1.0, part.mean_trained_tokens), metrics

    return of_part
