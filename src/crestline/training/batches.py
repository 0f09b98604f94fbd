"""Tensor batches, and how they split into micro-batches without changing the update.

A batch states its denominators for the whole update; every part carries the same ones, a loss divides by them,
and gradients only add. Letters: N completions, T tokens, R rankings, K ranked completions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from crestline.training.configs import rows_together


@dataclass(frozen=True)
class Mean:
    """A mean kept as (total, count), so that partial means add up exactly."""

    total: float
    count: float

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else float("nan")


class Batch(Protocol):
    """Rows of one update that can be cut into parts of at most `size` rows and, beyond one row, `tokens_together`."""

    def parts(self, size: int) -> Iterator[Self]: ...


@dataclass(frozen=True)
class TokenBatch:
    """Sequences to imitate. trained_NT: True where the token at this place is a target."""

    tokens_NT: Tensor
    lengths_N: Tensor
    trained_NT: Tensor
    num_trained_tokens: int

    def parts(self, size: int) -> Iterator[TokenBatch]:
        width = self.tokens_NT.shape[1]
        for rows in row_slices(
            len(self.tokens_NT), rows_together(size, width, self.tokens_NT.device.type)
        ):
            longest = int(self.lengths_N[rows].max())
            yield replace(
                self,
                tokens_NT=self.tokens_NT[rows, :longest],
                lengths_N=self.lengths_N[rows],
                trained_NT=self.trained_NT[rows, :longest],
            )


@dataclass(frozen=True)
class Experience:
    """Sampled completions with advantages: what RL trains on. Rows of a group are neighbours.

    trained_NT: True where a token counts: the policy chose it, the end token included, and its completion is not
    masked. old_logprobs_NT: log-probability of that token when it was sampled; 0 elsewhere.
    reference_logprobs_NT: the same under the reference. advantages_NT: of that token.
    num_trained_tokens, num_completions: of this update; mean_trained_tokens: mean over the updates that share a set of
    samples. max_completion_length: tokens that a completion could have had.
    beta: weight of KL in the loss. temperature: what the logits were divided by when sampling.
    group_size: so many neighbouring rows answer the same prompt, which is then read once.
    is_fresh: the weights are still those that sampled.
    """

    tokens_NT: Tensor
    lengths_N: Tensor
    trained_NT: Tensor
    old_logprobs_NT: Tensor
    reference_logprobs_NT: Tensor
    advantages_NT: Tensor
    num_trained_tokens: int
    mean_trained_tokens: float
    num_completions: int
    max_completion_length: int
    beta: float = 0.0
    temperature: float = 1.0
    group_size: int = 1
    is_fresh: bool = False

    def parts(self, size: int) -> Iterator[Self]:
        """Whole groups, or even shares of a group where a group is more than `size`; a group of many tokens stays
        together, for its prompt is read once."""
        width, kind = self.tokens_NT.shape[1], self.tokens_NT.device.type
        size = min(size, max(self.group_size, rows_together(size, width, kind)))
        shares = (n for n in range(1, self.group_size + 1) if self.group_size % n == 0)
        shared = max(n for n in shares if n <= size)
        for rows in row_slices(len(self.tokens_NT), size // shared * shared):
            yield replace(self.rows(rows), group_size=shared)

    def rows(self, rows: slice | Tensor) -> Self:
        """Some of the rows, cut to the longest of them; the denominators stay those of the whole."""
        longest = int(self.lengths_N[rows].max())
        tensors = {name: v[rows] for name, v in vars(self).items() if isinstance(v, Tensor)}
        cut: dict[str, Any] = {
            n: v[:, :longest] if n.endswith("_NT") else v for n, v in tensors.items()
        }
        return replace(self, **cut)


@dataclass(frozen=True, kw_only=True)
class CriticExperience(Experience):
    """Experience with what a critic needs, in reward units.

    values_NT: what it expected before each token when sampled. returns_NT: what it should have expected.
    """

    values_NT: Tensor
    returns_NT: Tensor


def row_slices(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` rows that cover `count` rows."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def parts_of_groups(
    counts: Sequence[int], num_tokens: Sequence[int], *, rows: int, tokens: int
) -> Iterator[list[int]]:
    """Numbers of groups in parts of whole groups, like lengths together: at most so many rows and tokens, unless one
    group alone has more.

    counts, num_tokens: rows and tokens of each group.

    >>> list(parts_of_groups([2, 2, 3], [9, 4, 5], rows=5, tokens=10))
    [[0], [2, 1]]
    """
    chosen: list[int] = []
    num_rows = sum_tokens = 0
    for n in sorted(range(len(counts)), key=lambda n: -num_tokens[n]):
        if chosen and (num_rows + counts[n] > rows or sum_tokens + num_tokens[n] > tokens):
            yield chosen
            chosen, num_rows, sum_tokens = [], 0, 0
        chosen.append(n)
        num_rows, sum_tokens = num_rows + counts[n], sum_tokens + num_tokens[n]
    if chosen:
        yield chosen


def padded(rows: Sequence[Sequence[int]], fill: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of ids padded on the right to one length: (ids [N, T], lengths [N])."""
    lengths_N = torch.tensor([len(row) for row in rows])
    ids_NT = torch.full((len(rows), int(lengths_N.max())), fill, dtype=torch.long)
    for number, row in enumerate(rows):
        ids_NT[number, : len(row)] = torch.tensor(row, dtype=torch.long)
    return ids_NT, lengths_N


def attention(lengths_N: Tensor, width: int) -> Tensor:
    """1 at real tokens, 0 at padding on the right: [N, width]."""
    return (torch.arange(width, device=lengths_N.device)[None] < lengths_N[:, None]).long()
