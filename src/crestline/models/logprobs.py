"""Log-probabilities of chosen tokens from hidden states, without vocabulary × tokens in memory at once.

Owns the output layer's arithmetic in training. Knows no architecture.

Letters: S places, C hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS_TOGETHER = 512
"""Places that pass through the output layer together: enough for a fast multiplication, small enough for the cache."""
EVEN_ROWS = 64
"""Products in low precision get a multiple of so many rows: the library keeps a kernel and its memory for every number
that it meets, and every update brings others."""
KEPT_ELEMENTS = 32 * 1024 * 1024
"""Up to so many log-probabilities (128 MiB) are kept for the backward pass; beyond, they are computed again."""


def slices(count: int) -> Iterator[slice]:
    """Slices of at most `ROWS_TOGETHER` that cover `count`."""
    for start in range(0, count, ROWS_TOGETHER):
        yield slice(start, min(start + ROWS_TOGETHER, count))


def logprobs_of(
    hidden_SC: Tensor, weight_VC: Tensor, chosen_S: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """Log-probability [S], float32, nats, of each chosen id under softmax(hidden · weightᵀ / temperature).

    Gradients reach hidden and weight; equal to log_softmax and gather within rounding, in less memory: the logits
    of a few hundred places at a time.

    >>> logprobs_of(torch.zeros(1, 2), torch.zeros(4, 2), torch.tensor([3])).exp().tolist()
    [0.25]
    """
    return _both(hidden_SC, weight_VC, chosen_S, temperature, False)[0]


def logprobs_and_best_of(
    hidden_SC: Tensor, weight_VC: Tensor, chosen_S: Tensor
) -> tuple[Tensor, Tensor]:
    """`logprobs_of` at temperature 1, and whether each chosen id is the most likely one, bool [S]."""
    return _both(hidden_SC, weight_VC, chosen_S, 1.0, True)


def _both(*arguments: Any) -> tuple[Tensor, Tensor]:
    function: Any = _Logprobs
    found: tuple[Tensor, Tensor] = function.apply(*arguments)
    return found


class _Logprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_SC: Tensor,
        weight_VC: Tensor,
        chosen_S: Tensor,
        temperature: float,
        asks_best: bool,
    ) -> tuple[Tensor, Tensor]:
        weight = weight_VC.to(hidden_SC.dtype)
        found_S = torch.empty(len(hidden_SC), device=hidden_SC.device)
        best_S = torch.zeros(len(hidden_SC), dtype=torch.bool, device=hidden_SC.device)
        keeps = any(ctx.needs_input_grad[:2]) and len(hidden_SC) * len(weight) <= KEPT_ELEMENTS
        kept = []
        for rows in slices(len(hidden_SC)):
            logprobs = _all_logprobs(hidden_SC[rows], weight, temperature)
            found_S[rows] = logprobs.gather(1, chosen_S[rows, None])[:, 0]
            if asks_best:
                best_S[rows] = logprobs.amax(1) == found_S[rows]
            if keeps:
                kept.append(logprobs)
        ctx.save_for_backward(hidden_SC, weight_VC, chosen_S, *kept)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(best_S)
        return found_S, best_S

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_S: Tensor, _: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden_SC, weight_VC, chosen_S, *kept = ctx.saved_tensors
        weight = weight_VC.to(hidden_SC.dtype)
        grad_hidden = torch.empty_like(hidden_SC) if ctx.needs_input_grad[0] else None
        grad_weight = (
            torch.zeros_like(weight_VC, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        )
        for number, rows in enumerate(slices(len(hidden_SC))):
            hidden = hidden_SC[rows]
            logprobs = kept[number] if kept else _all_logprobs(hidden, weight, ctx.temperature)
            share = grad_S[rows, None] / ctx.temperature
            toward = logprobs.exp().mul_(-share).scatter_add_(1, chosen_S[rows, None], share)
            toward, hidden = _even(toward.to(hidden.dtype)), _even(hidden)
            if grad_hidden is not None:
                grad_hidden[rows] = torch.mm(toward, weight)[: len(share)]
            if grad_weight is not None and hidden.dtype == torch.float32:
                grad_weight.addmm_(toward.t(), hidden)
            elif grad_weight is not None:
                grad_weight += toward.t() @ hidden
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight_VC.dtype)
        return grad_hidden, grad_weight, None, None, None


def _all_logprobs(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    logits = F.linear(_even(hidden), weight)[: len(hidden)].float()
    return (logits if temperature == 1 else logits.div_(temperature)).log_softmax(-1)


def _even(x: Tensor) -> Tensor:
    """With rows of zeros at the end, in low precision."""
    missing = -len(x) % EVEN_ROWS
    return x if x.dtype == torch.float32 or not missing else F.pad(x, (0, 0, 0, missing))
