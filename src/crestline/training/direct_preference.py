"""Rankings as batches for a policy, and the loss of direct preference optimisation.

The implicit reward of a completion is β · log(policy / reference), summed over its tokens, the end token included. It
goes into the same likelihood of a ranking that reward models are trained on: two completions give DPO, more give its
Plackett–Luce form. The reference is asked beside the policy, part by part, so there is nothing to keep for a resume.

Owns how a ranking becomes tokens, and the loss. Knows nothing of files, splits and saving.

When it is the wrong choice: docs/dpo.md.

Letters: R rankings, K completions of each, N = R · K, T tokens, S completion tokens (rows of a mask), P pairs.
Source: Rafailov et al. 2023, arXiv 2305.18290, equation 7; equation 20 for more than two completions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from crestline.formulas.ranking import ipo_loss, plackett_luce_loss, untied_pairs, with_margins
from crestline.models.policy import token_logprobs
from crestline.models.reference import Reference
from crestline.models.sampler import encode_prompts
from crestline.training.batches import Mean, padded, parts_of_groups
from crestline.training.configs import tokens_together
from crestline.training.dpo_configs import DpoLoss
from crestline.training.learner import Loss
from crestline.training.seeds import Shuffled
from crestline.types import BadInput, Ranking


@dataclass(frozen=True)
class EncodedRanking:
    """A ranking as token ids.

    prompt: what all completions follow, at least one token. completions: each with its end token, unless it was cut.
    ranks: as in `Ranking`. margin: raw units, 0 where nobody said. flip_rate: share of answers the wrong way round.
    """

    prompt: list[int]
    completions: list[list[int]]
    ranks: tuple[int | None, ...]
    margin: float
    flip_rate: float

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts, where the prompt counts once."""
        return len(self.prompt) + sum(map(len, self.completions))


@dataclass(frozen=True)
class Truncated:
    """How many prompts lost their front, and how many completions their end."""

    num_prompts: int
    num_completions: int


def encode_rankings(
    tokenizer: Any,
    rankings: Sequence[Ranking],
    max_length: int,
    flips_R: Sequence[float] | None = None,
) -> tuple[list[EncodedRanking], Truncated]:
    """Rankings as token ids, each completion behind its prompt as in fine-tuning and RL, and what was cut.

    max_length: tokens of a prompt with its longest completion; at least 2. The prompt's front goes first, the same for
    all completions of a ranking; a completion that leaves no room for one token of it loses its end.
    flips_R: share of wrong answers of each ranking; 0 by default.
    Raises BadInput where the tokenizer has no end token or cannot render a chat.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise BadInput("the model's tokenizer has no end token; set eos_token in its config")
    prompts = encode_prompts(tokenizer, [ranking.prompt for ranking in rankings])
    texts = [text for ranking in rankings for text in ranking.completions]
    ids = iter(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else [])
    found, cut_prompts, cut_completions = [], 0, 0
    for n, (ranking, prompt) in enumerate(zip(rankings, prompts, strict=True)):
        whole = [[*next(ids), end] for _ in ranking.completions]
        completions = [answer[: max_length - 1] for answer in whole]
        kept = prompt[-(max_length - max(map(len, completions))) :]
        cut_prompts += len(kept) < len(prompt)
        cut_completions += sum(len(answer) >= max_length for answer in whole)
        found.append(
            EncodedRanking(
                prompt=kept,
                completions=completions,
                ranks=ranking.ranks,
                margin=ranking.margin or 0.0,
                flip_rate=flips_R[n] if flips_R is not None else 0.0,
            )
        )
    return found, Truncated(cut_prompts, cut_completions)


def only_ranked(ranking: Ranking) -> Ranking:
    """The ranking without what nobody ranked: it teaches nothing."""
    chosen = [k for k, rank in enumerate(ranking.ranks) if rank is not None]
    return replace(
        ranking,
        completions=tuple(ranking.completions[k] for k in chosen),
        ranks=tuple(ranking.ranks[k] for k in chosen),
    )


@dataclass(frozen=True)
class DirectBatch:
    """Rankings to learn from. num_rankings: of the whole update."""

    rankings: Sequence[EncodedRanking]
    num_rankings: int
    device: str

    def parts(self, size: int) -> Iterator[DirectBatch]:
        """Parts of whole rankings with the same number of completions."""
        for numbers in self.places(size):
            yield self.of(numbers)

    def places(self, size: int) -> Iterator[list[int]]:
        """Numbers of the rankings in each part: at most `size` completions and `tokens_together`."""
        kind = self.device.partition(":")[0]
        most = tokens_together(kind)
        for count in sorted({len(ranking.ranks) for ranking in self.rankings}):
            same = [n for n, ranking in enumerate(self.rankings) if len(ranking.ranks) == count]
            tokens = [self.rankings[n].num_tokens for n in same]
            for part in parts_of_groups([count] * len(same), tokens, rows=size, tokens=most):
                yield [same[place] for place in part]

    def of(self, numbers: Sequence[int]) -> DirectBatch:
        """Some of the rankings; the denominator stays that of the whole."""
        return replace(self, rankings=[self.rankings[n] for n in numbers])

    @property
    def group_size(self) -> int:
        """K, of a part."""
        return len(self.rankings[0].ranks)

    def laid(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [N, T], their lengths [N], and where the completions are, bool [N, T]."""
        pairs = [(r.prompt, answer) for r in self.rankings for answer in r.completions]
        tokens_NT, lengths_N = padded([[*prompt, *answer] for prompt, answer in pairs])
        first_N = torch.tensor([len(prompt) for prompt, _ in pairs])
        place_NT = torch.arange(tokens_NT.shape[1])[None]
        completion_NT = (place_NT >= first_N[:, None]) & (place_NT < lengths_N[:, None])
        return tokens_NT.to(self.device), lengths_N.to(self.device), completion_NT.to(self.device)

    def said(self) -> tuple[Tensor, Tensor]:
        """Ranks [R, K], 0 where there is none, and whether a completion was ranked, bool [R, K]."""
        ranks_RK = torch.tensor([[rank or 0 for rank in r.ranks] for r in self.rankings])
        ranked_RK = torch.tensor([[rank is not None for rank in r.ranks] for r in self.rankings])
        return ranks_RK.to(self.device), ranked_RK.to(self.device)


class DirectSource:
    """Batches of rankings in a fresh order every epoch."""

    def __init__(
        self, rankings: Sequence[EncodedRanking], *, batch_size: int, seed: int, device: str
    ) -> None:
        self.rankings, self.batch_size, self.device = rankings, batch_size, device
        self.order = Shuffled(len(rankings), seed)

    def batch(self, update: int) -> tuple[DirectBatch, dict[str, float]]:
        numbers = self.order.rows((update - 1) * self.batch_size, self.batch_size)
        chosen = [self.rankings[n] for n in numbers]
        tokens = sum(r.num_tokens + (len(r.ranks) - 1) * len(r.prompt) for r in chosen)
        return DirectBatch(chosen, len(chosen), self.device), {"num_tokens": float(tokens)}


@dataclass(frozen=True)
class Compared:
    """Of each completion of a part, [R, K]: log(policy / reference) and log(policy), nats; and its tokens."""

    log_ratios_RK: Tensor
    logps_RK: Tensor
    num_tokens_RK: Tensor


def compared(policy: Any, reference: Reference, part: DirectBatch) -> Compared:
    """What policy and reference say of each completion; gradients reach the policy through the ratios alone."""
    tokens_NT, lengths_N, completion_NT = part.laid()
    asked, group = (tokens_NT, lengths_N, completion_NT), part.group_size
    logprobs_S = token_logprobs(policy, *asked, group_size=group)
    with torch.no_grad(), reference.asked() as model:
        reference_S = token_logprobs(model, *asked, group_size=group)
    row_S = completion_NT.nonzero()[:, 0]

    def summed(values_S: Tensor) -> Tensor:
        sums_N = values_S.new_zeros(len(tokens_NT)).index_add(0, row_S, values_S)
        return sums_N.view(-1, group)

    # Token by token the difference is small, and so is its rounding.
    ratios_RK = summed(logprobs_S - reference_S)
    return Compared(ratios_RK, summed(logprobs_S.detach()), completion_NT.sum(1).view(-1, group))


def dpo_loss(config: DpoLoss, reference: Reference) -> Loss:
    """Negative log-likelihood of rankings under the implicit rewards, nats, or IPO's squares; mean over rankings."""

    def of_part(model: Any, part: DirectBatch) -> tuple[Tensor, dict[str, Mean]]:
        found = compared(model, reference, part)
        ranks_RK, ranked_RK = part.said()
        rewards_RK = config.beta * found.log_ratios_RK
        if config.loss_type == "ipo":
            per_token_RK = found.log_ratios_RK / found.num_tokens_RK
            loss_R = ipo_loss(per_token_RK, ranks_RK, ranked_RK, beta=config.beta)
        else:
            margins_R = rewards_RK.new_tensor([ranking.margin for ranking in part.rankings])
            flips_R = rewards_RK.new_tensor([ranking.flip_rate for ranking in part.rankings])
            said_RK = with_margins(rewards_RK, ranks_RK, ranked_RK, margins_R)
            loss_R = plackett_luce_loss(
                said_RK, ranks_RK, ranked_RK, ties=config.ties, flip_rate_R=flips_R
            )
        better_RKK = untied_pairs(ranks_RK, ranked_RK)
        metrics = pair_metrics(rewards_RK.detach(), found.logps_RK, better_RKK)
        return loss_R.sum() / part.num_rankings, metrics

    return of_part


def pair_metrics(rewards_RK: Tensor, logps_RK: Tensor, better_RKK: Tensor) -> dict[str, Mean]:
    """TRL's metrics, over all pairs that people did not tie. Where two rewards are level, half of the pair is right."""
    ranking_P, better_P, worse_P = better_RKK.nonzero(as_tuple=True)
    chosen_P, rejected_P = rewards_RK[ranking_P, better_P], rewards_RK[ranking_P, worse_P]
    values = {
        "rewards/chosen": chosen_P,
        "rewards/rejected": rejected_P,
        "rewards/accuracies": 0.5 + 0.5 * (chosen_P - rejected_P).sign(),
        "rewards/margins": chosen_P - rejected_P,
        "logps/chosen": logps_RK[ranking_P, better_P],
        "logps/rejected": logps_RK[ranking_P, worse_P],
    }
    return {name: Mean(float(value_P.sum()), len(value_P)) for name, value_P in values.items()}


@torch.no_grad()
def implicit_rewards(
    policy: Any,
    reference: Reference,
    rankings: Sequence[EncodedRanking],
    *,
    beta: float,
    micro_batch_size: int,
    device: str,
) -> list[list[float]]:
    """Implicit reward of each completion, ranking by ranking, unranked ones too."""
    policy.eval()
    whole = DirectBatch(rankings, len(rankings), device)
    found: list[list[float]] = [[] for _ in rankings]
    for numbers in whole.places(micro_batch_size):
        rewards_RK = beta * compared(policy, reference, whole.of(numbers)).log_ratios_RK
        for n, row in zip(numbers, rewards_RK.tolist(), strict=True):
            found[n] = row
    return found
