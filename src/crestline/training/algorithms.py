"""Which page belongs to which config: the only place where algorithms are told apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from crestline.training import grpo, ppo, reinforce, rloo
from crestline.training.batches import CriticExperience, Experience
from crestline.training.experience import Reuse, Rollout
from crestline.training.learner import Loss
from crestline.training.rl_configs import Algorithm, Grpo, Ppo, Reinforce, Rloo


@dataclass(frozen=True)
class Page:
    """An algorithm: its advantages [N, T] of a rollout, and its loss.

    returns: what a critic should have said, [N, T]; an algorithm that has it takes a critic as the last argument of
    its loss. None: it has no critic.
    """

    advantages: Callable[[Any, Rollout], Tensor]
    loss: Callable[..., Loss]
    returns: Callable[[Any, Rollout], Tensor] | None = None


PAGES: dict[type[Algorithm], Page] = {
    Rloo: Page(rloo.advantages, rloo.loss),
    Grpo: Page(grpo.advantages, grpo.loss),
    Ppo: Page(ppo.advantages, ppo.loss, ppo.returns),
    Reinforce: Page(reinforce.advantages, reinforce.loss),
}


def experience_of(
    algorithm: Algorithm,
    rollout: Rollout,
    *,
    beta: float,
    temperature: float,
    max_completion_length: int,
) -> Experience:
    """What an algorithm's page makes of a rollout. beta: weight of KL in the loss; the rest as in `Experience`."""
    page, trained_NT = PAGES[type(algorithm)], rollout.sampled_NT
    if isinstance(algorithm, Grpo) and algorithm.mask_truncated_completions:
        trained_NT = trained_NT & ~rollout.truncated_N[:, None]
    num_trained = int(trained_NT.sum())
    values: dict[str, Any] = {
        "tokens_NT": rollout.tokens_NT,
        "lengths_N": rollout.lengths_N,
        "trained_NT": trained_NT,
        "old_logprobs_NT": rollout.old_logprobs_NT,
        "reference_logprobs_NT": rollout.reference_logprobs_NT,
        "advantages_NT": page.advantages(algorithm, rollout),
        "num_trained_tokens": num_trained,
        "mean_trained_tokens": num_trained / reuse_of(algorithm).num_mini_batches,
        "num_completions": len(rollout.tokens_NT),
        "max_completion_length": max_completion_length,
        "beta": beta,
        "temperature": temperature,
        "group_size": rollout.group_size,
    }
    if page.returns is None:
        return Experience(**values)
    returns_NT = page.returns(algorithm, rollout)
    return CriticExperience(**values, values_NT=rollout.values_NT, returns_NT=returns_NT)


def reuse_of(algorithm: Algorithm) -> Reuse:
    """How often the algorithm trains on the same samples."""
    if isinstance(algorithm, Rloo):
        return Reuse(1, 1)
    return Reuse(algorithm.num_iterations, algorithm.num_mini_batches)
