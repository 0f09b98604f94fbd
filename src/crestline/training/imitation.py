"""Next-token training: pretraining on texts and fine-tuning on demonstrations share source and loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from crestline.models.policy import token_logprobs_and_best
from crestline.training.batches import Mean, TokenBatch, padded
from crestline.training.seeds import Shuffled


def imitation_loss(model: Any, part: TokenBatch) -> tuple[Tensor, dict[str, Mean]]:
    """Negative log-likelihood of the trained tokens, in nats, divided by their number in the whole update."""
    logprobs_S, best_S = token_logprobs_and_best(
        model, part.tokens_NT, part.lengths_N, part.trained_NT
    )
    metrics = {"mean_token_accuracy": Mean(float(best_S.sum()), len(best_S))}
    return -logprobs_S.sum() / part.num_trained_tokens, metrics


class ImitationSource:
    """Batches of sequences in a fresh order every epoch.

    rows: token ids. first_trained: for each row the place of the first token that is a target (at least 1).
    """

    def __init__(
        self,
        rows: Sequence[Sequence[int]],
        first_trained: Sequence[int],
        *,
        batch_size: int,
        seed: int,
        device: str = "cpu",
    ) -> None:
        self.rows, self.first_trained = rows, first_trained
        self.batch_size, self.device = batch_size, device
        self.order = Shuffled(len(rows), seed)

    def batch(self, update: int) -> tuple[TokenBatch, dict[str, float]]:
        numbers = self.order.rows((update - 1) * self.batch_size, self.batch_size)
        tokens_NT, lengths_N = padded([self.rows[n] for n in numbers])
        place_NT = torch.arange(tokens_NT.shape[1])[None]
        first_N = torch.tensor([self.first_trained[n] for n in numbers])
        trained_NT = (place_NT >= first_N[:, None]) & (place_NT < lengths_N[:, None])
        batch = TokenBatch(
            tokens_NT=tokens_NT.to(self.device),
            lengths_N=lengths_N.to(self.device),
            trained_NT=trained_NT.to(self.device),
            num_trained_tokens=int(trained_NT.sum()),
        )
        return batch, {"num_tokens": float(lengths_N.sum())}
