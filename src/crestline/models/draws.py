"""Drawing tokens: each completion's own random numbers, and the token that a number picks.

Owns the randomness of sampling. Knows no model, text or schedule.

Letters: N completions, B rows, V vocabulary, K blocks of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 64
"""Probabilities are summed in blocks of so many; only the block that is hit is looked at closely."""


def uniforms(seeds: Sequence[int], length: int) -> NDArray[np.float64]:
    """Random numbers in [0, 1), float64 [N, length]: row i is a function of seeds[i] alone.

    Source: SplitMix64 (Steele, Lea and Flood 2014), its i-th output for each seed.

    >>> bool((uniforms([7], 3)[0] == uniforms([1, 7], 5)[1, :3]).all())
    True
    """
    seeds_N = np.array([seed & 0xFFFFFFFFFFFFFFFF for seed in seeds], dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = _mixed(seeds_N)[:, None] + np.arange(1, length + 1, dtype=np.uint64) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = _mixed(z)
    return (z >> np.uint64(11)).astype(np.float64) * np.float64(2.0**-53)


def _mixed(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def draw(logits_BV: Tensor, random_B: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The token [B] at which the summed probability passes a random number in [0, 1), and its log-probability [B].

    Probabilities are softmax(logits / temperature); random_B is float64. Weights are float32, sums over blocks of the
    vocabulary float64: the chance of a token is right to about 1e-6 of itself. A token of weight 0 is never drawn.
    Where logits are no finite numbers (but -inf here and there) the log-probability is not finite and the token means
    nothing.
    """
    logits_BV = logits_BV.float()
    if temperature != 1:
        logits_BV = logits_BV / temperature
    rows, vocabulary = logits_BV.shape
    blocks = -(-vocabulary // BLOCK)
    most_B1 = logits_BV.amax(1, keepdim=True)
    weights_BV = logits_BV.new_empty(rows, blocks * BLOCK)
    torch.sub(logits_BV, most_B1, out=weights_BV[:, :vocabulary]).exp_()
    weights_BV[:, vocabulary:] = 0
    weights_BKL = weights_BV.view(rows, blocks, BLOCK)
    summed_BK = weights_BKL.sum(2).double().cumsum(1)
    total_B1 = summed_BK[:, -1:]
    wanted_B1 = _below(random_B[:, None] * total_B1, total_B1)
    block_B1 = torch.searchsorted(summed_BK, wanted_B1, right=True).clamp_max_(blocks - 1)
    before_B1 = summed_BK.gather(1, (block_B1 - 1).clamp_min_(0)) * (block_B1 > 0)
    row_B1 = torch.arange(rows, device=logits_BV.device)[:, None]
    inside_BL = weights_BKL[row_B1, block_B1][:, 0].double().cumsum(1)
    place_B1 = torch.searchsorted(
        inside_BL, _below(wanted_B1 - before_B1, inside_BL[:, -1:]), right=True
    )
    token_B1 = (block_B1 * BLOCK + place_B1).clamp_max_(vocabulary - 1)
    logprob_B1 = logits_BV.gather(1, token_B1) - most_B1 - total_B1.log()
    return token_B1[:, 0], logprob_B1[:, 0]


def _below(number: Tensor, limit: Tensor) -> Tensor:
    """At most the largest number below the limit: rounding must not carry a draw past the last weight."""
    return torch.minimum(number, torch.nextafter(limit, torch.zeros_like(limit)))
