"""What the losses of all policy algorithms share: what the model says of the trained tokens now, KL in the loss, and
the metrics of clipping.

Owns no advantage and no averaging: those are the algorithms' pages.

Letters: N completions, T tokens, S trained tokens of a part (rows of its mask, in order).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from crestline.formulas.kl import ESTIMATORS, kl_exact
from crestline.formulas.policy import clipped_ratio_loss
from crestline.models.policy import logits_before, token_logprobs
from crestline.models.reference import Reference
from crestline.training.batches import Experience, Mean
from crestline.training.rl_configs import Kl, in_loss

Metrics = dict[str, Mean]


class Clip(Protocol):
    """Settings with a clip range for ratios."""

    @property
    def epsilon(self) -> float: ...

    @property
    def epsilon_high(self) -> float: ...


@dataclass(frozen=True)
class Surrogate:
    """Everything of a loss but the advantages' page.

    kl: settled, see `rl_configs.settled`. reference: whom exact KL in the loss asks.
    """

    kl: Kl
    reference: Reference | None = None

    def said(self, model: Any, part: Experience) -> tuple[Tensor, Tensor]:
        """Log-probability [S] of each trained token now, and what its KL costs in the loss [S]."""
        place = part.tokens_NT, part.lengths_N, part.trained_NT
        group, temperature = part.group_size, part.temperature
        charged = in_loss(self.kl) and part.beta != 0
        if charged and self.kl.kl_estimator == "exact":
            logits_SV = logits_before(model, *place, group_size=group).float() / temperature
            chosen_S1 = part.tokens_NT[part.trained_NT][:, None]
            logprobs_S = logits_SV.log_softmax(-1).gather(1, chosen_S1)[:, 0]
            reference_SV = self._reference_logits(part) / temperature
            return logprobs_S, part.beta * kl_exact(logits_SV, reference_SV)
        logprobs_S = token_logprobs(model, *place, temperature=temperature, group_size=group)
        if not charged:
            return logprobs_S, torch.zeros_like(logprobs_S)
        estimator = ESTIMATORS[self.kl.kl_estimator]
        return logprobs_S, part.beta * estimator(
            logprobs_S, part.reference_logprobs_NT[part.trained_NT]
        )

    @torch.no_grad()
    def _reference_logits(self, part: Experience) -> Tensor:
        if self.reference is None:
            raise ValueError("exact KL in the loss needs the reference")
        place = part.tokens_NT, part.lengths_N, part.trained_NT
        with self.reference.asked() as model:
            return logits_before(model, *place, group_size=part.group_size).float()

    def old(self, logprobs_S: Tensor, part: Experience) -> Tensor:
        """Log-probability [S] of each trained token that ratios are taken to: the sampler's. While the weights are
        still those that sampled, the learner's own, so that rounding between the two clips and weighs nothing."""
        return logprobs_S.detach() if part.is_fresh else part.old_logprobs_NT[part.trained_NT]

    def token_losses(self, model: Any, part: Experience, clip: Clip) -> tuple[Tensor, Metrics]:
        """Clipped surrogate plus KL of each trained token, [S], and the metrics of clipping."""
        logprobs_S, kl_S = self.said(model, part)
        old_S = self.old(logprobs_S, part)
        advantages_S = part.advantages_NT[part.trained_NT]
        loss_S = clipped_ratio_loss(
            logprobs_S,
            old_S,
            advantages_S,
            clip_low=clip.epsilon,
            clip_high=clip.epsilon_high,
        )
        metrics = clip_metrics(logprobs_S.detach(), old_S, advantages_S, clip)
        return loss_S + kl_S, metrics | from_sampling(logprobs_S, part)


@torch.no_grad()
def clip_metrics(logprobs: Tensor, old: Tensor, advantages: Tensor, clip: Clip) -> Metrics:
    """Shares of tokens, or of completions, whose clip holds. All one shape [S] or [N]."""
    ratio = torch.exp(logprobs - old)
    low = (ratio < 1 - clip.epsilon) & (advantages < 0)
    high = (ratio > 1 + clip.epsilon_high) & (advantages > 0)
    count = len(logprobs)
    return {
        "clip_ratio/low_mean": Mean(float(low.sum()), count),
        "clip_ratio/high_mean": Mean(float(high.sum()), count),
        "clip_ratio/region_mean": Mean(float((low | high).sum()), count),
    }


@torch.no_grad()
def from_sampling(logprobs_S: Tensor, part: Experience) -> Metrics:
    """How far log-probabilities are from those when sampled: by the sampler's arithmetic in the first update of a set
    of samples, by the policy's movement too in later ones."""
    gap_S = (logprobs_S - part.old_logprobs_NT[part.trained_NT]).abs()
    return {"sampling/logprob_difference": Mean(float(gap_S.sum()), len(gap_S))}
