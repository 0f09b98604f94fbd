"""Rankings as batches: which texts go through the model, what people said of them, and the loss of both.

Owns the denominators of a ranking update and who of an ensemble learns from what. Knows nothing of files, splits and
saving. Letters: R rankings, K completions of the widest one, N texts, M members on one trunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crestline.formulas.ranking import (
    centring_penalty,
    pairwise_loss,
    plackett_luce_loss,
    untied_pairs,
    with_margins,
)
from crestline.models.packing import RankedTexts
from crestline.models.reward import RewardModel
from crestline.models.reward_forward import WAYS, Forward, choose_forward
from crestline.training.batches import Mean, parts_of_groups
from crestline.training.configs import tokens_together
from crestline.training.learner import Loss
from crestline.training.reward_configs import RankingLoss
from crestline.training.seeds import Shuffled
from crestline.types import Ranking

PROBES = 4
"""Rankings, the longest among them, on which the ways through a backbone are compared."""


@dataclass(frozen=True)
class RankingBatch:
    """R rankings of up to K completions, and the texts of those that were ranked, one after another.

    ranks_RK: lower is better; ranked_RK: False where there is no completion or nobody ranked it. margins_R: raw
    units, 0 where nobody said. flips_R: share of answers the wrong way round, in [0, 0.5). taught_RM: True where a
    member learns from the ranking. num_taught_M: rankings that teach each member in the whole update.
    """

    texts: RankedTexts
    ranks_RK: Tensor
    ranked_RK: Tensor
    margins_R: Tensor
    flips_R: Tensor
    taught_RM: Tensor
    num_taught_M: Tensor

    def parts(self, size: int) -> Iterator[RankingBatch]:
        """Parts of whole rankings, like lengths together: at most `size` texts and `tokens_together`."""
        most = tokens_together(self.ranks_RK.device.type, ranked=True)
        first, ids = self.texts.first, self.texts.ids
        tokens = [
            sum(map(len, ids[first[r] : first[r + 1]])) for r in range(len(self.texts.counts))
        ]
        for chosen in parts_of_groups(self.texts.counts, tokens, rows=size, tokens=most):
            yield self._of(chosen)

    def _of(self, chosen: Sequence[int]) -> RankingBatch:
        rows = torch.tensor(chosen, device=self.ranks_RK.device)
        fields = ("ranks_RK", "ranked_RK", "margins_R", "flips_R", "taught_RM")
        cut = {name: getattr(self, name).index_select(0, rows) for name in fields}
        return replace(self, texts=self.texts.chosen(chosen), **cut)


def halves(num_rankings: int, num_members: int, seed: int) -> NDArray[np.bool_]:
    """For each member a random half of the rankings, bool [R, M]; every second member has the other half of the one
    before it, so that two members leave nothing out."""
    taught_RM = np.zeros((num_rankings, num_members), dtype=bool)
    for first in range(0, num_members, 2):
        order = np.random.default_rng([seed, first]).permutation(num_rankings)
        middle = (num_rankings + 1) // 2
        taught_RM[order[:middle], first] = True
        if first + 1 < num_members:
            taught_RM[order[num_rankings - middle :], first + 1] = True
    return taught_RM


class RankingSource:
    """Batches of rankings in a fresh order every epoch. What was not ranked is not read.

    flips_R: known share of wrong answers of each ranking; 0 by default. taught_RM: which head learns from which
    ranking; all from all by default. `forward` is the way through the backbone: the fastest that gives its plain
    scores on some of the rankings.
    """

    def __init__(
        self,
        reward_model: RewardModel,
        rankings: Sequence[Ranking],
        *,
        batch_size: int,
        seed: int,
        device: str,
        flips_R: Sequence[float] | None = None,
        taught_RM: NDArray[np.bool_] | None = None,
        ways: Sequence[Forward] = WAYS,
    ) -> None:
        self.rankings, self.batch_size, self.device = rankings, batch_size, device
        self.flips_R = flips_R if flips_R is not None else [0.0] * len(rankings)
        shape = (len(rankings), reward_model.num_heads)
        self.taught_RM = taught_RM if taught_RM is not None else np.ones(shape, dtype=bool)
        said = [
            (ranking.prompt, text)
            for ranking in rankings
            for text, rank in zip(ranking.completions, ranking.ranks, strict=True)
            if rank is not None
        ]
        rows = iter(reward_model.rows([prompt for prompt, _ in said], [text for _, text in said]))
        self.num_truncated = 0
        self.ids: list[list[NDArray[np.int64]]] = []
        for ranking in rankings:
            own = [next(rows) for rank in ranking.ranks if rank is not None]
            self.num_truncated += sum(row.is_truncated for row in own)
            self.ids.append([np.array(row.ids, dtype=np.int64) for row in own])
        self.order = Shuffled(len(rankings), seed)
        self.forward = choose_forward(reward_model.model, self._probe(), ways)

    def _probe(self) -> RankedTexts:
        longest = max(range(len(self.ids)), key=lambda n: max(map(len, self.ids[n])))
        return RankedTexts.of([self.ids[n] for n in {*range(min(PROBES, len(self.ids))), longest}])

    def batch(self, update: int) -> tuple[RankingBatch, dict[str, float]]:
        numbers = self.order.rows((update - 1) * self.batch_size, self.batch_size)
        width = max(len(self.rankings[n].ranks) for n in numbers)
        ranks_RK = np.zeros((len(numbers), width), dtype=np.int64)
        ranked_RK = np.zeros((len(numbers), width), dtype=bool)
        for place, n in enumerate(numbers):
            for k, rank in enumerate(self.rankings[n].ranks):
                if rank is not None:
                    ranks_RK[place, k], ranked_RK[place, k] = rank, True
        texts = RankedTexts.of([self.ids[n] for n in numbers])
        taught_RM = torch.from_numpy(self.taught_RM[numbers])
        batch = RankingBatch(
            texts=texts,
            ranks_RK=torch.from_numpy(ranks_RK).to(self.device),
            ranked_RK=torch.from_numpy(ranked_RK).to(self.device),
            margins_R=torch.tensor(
                [self.rankings[n].margin or 0.0 for n in numbers], device=self.device
            ),
            flips_R=torch.tensor([self.flips_R[n] for n in numbers], device=self.device),
            taught_RM=taught_RM.to(self.device),
            num_taught_M=taught_RM.sum(0).to(self.device),
        )
        encoded = self.forward.num_encoded_tokens(texts)
        return batch, {
            "num_tokens": float(texts.num_tokens),
            "num_encoded_tokens": float(encoded),
        }


def ranking_loss(config: RankingLoss, forward: Forward) -> Loss:
    """Mean loss in nats, over the rankings that teach a member, then over members."""
    likelihood = pairwise_loss if config.loss_type == "pairwise" else plackett_luce_loss

    def of_part(model: Any, part: RankingBatch) -> tuple[Tensor, dict[str, Mean]]:
        scores_NM = forward.scores(model, part.texts).float()
        scores_RKM = scores_NM.new_zeros(*part.ranks_RK.shape, scores_NM.shape[1])
        scores_RKM = scores_RKM.index_put((part.ranked_RK,), scores_NM)
        loss = scores_NM.new_zeros(())
        for member, scores_RK in enumerate(scores_RKM.unbind(2)):
            taught_R = part.taught_RM[:, member]
            said_RK = with_margins(scores_RK, part.ranks_RK, part.ranked_RK, part.margins_R)
            loss_R = likelihood(
                said_RK,
                part.ranks_RK,
                part.ranked_RK,
                ties=config.ties,
                flip_rate_R=part.flips_R,
            )
            if config.center_rewards_coefficient:
                penalty_R = centring_penalty(scores_RK, part.ranked_RK)
                loss_R = loss_R + config.center_rewards_coefficient * penalty_R
            loss = loss + (loss_R * taught_R).sum() / part.num_taught_M[member].clamp_min(1)
        return loss / scores_NM.shape[1], _metrics(scores_RKM.detach().mean(2), part)

    return of_part


def _metrics(scores_RK: Tensor, part: RankingBatch) -> dict[str, Mean]:
    """Accuracy and margin over all pairs that people did not tie, and the range of scores."""
    better_RKK = untied_pairs(part.ranks_RK, part.ranked_RK)
    margins_P = (scores_RK[:, :, None] - scores_RK[:, None, :])[better_RKK]
    ranked_S = scores_RK[part.ranked_RK]
    right = float((margins_P > 0).sum()) + 0.5 * float((margins_P == 0).sum())
    return {
        "accuracy": Mean(right, len(margins_P)),
        "margin": Mean(float(margins_P.sum()), len(margins_P)),
        "mean_reward": Mean(float(ranked_S.sum()), len(ranked_S)),
    }
