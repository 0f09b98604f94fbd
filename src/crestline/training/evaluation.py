"""What every kept checkpoint is asked: the same held-out prompts, with the same random streams.

Owns distance: sqrt of the exact KL(policy‖reference), from full next-token distributions along sampled
completions, summed over tokens, mean over prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crestline.formulas.kl import entropy, kl_exact
from crestline.models.policy import logits_in_parts
from crestline.models.reference import Reference
from crestline.rewards.sources import Reward
from crestline.training.batches import padded, row_slices
from crestline.training.configs import rows_together
from crestline.types import Completion, NotFinite, Prompt, Sampler


@dataclass(frozen=True)
class Evaluation:
    """What a checkpoint answered, row by row, and the summary that the watch reads."""

    rows: dict[str, list[Any]]
    summary: dict[str, float]


@torch.no_grad()
def evaluate(
    policy: Any,
    reference: Reference,
    sampler: Sampler,
    reward: Reward,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    *,
    micro_batch_size: int,
) -> Evaluation:
    """Answer the held-out prompts and measure distance and score. KL in nats, scores calibrated to [0, 1].

    Raises NotFinite where the policy's logits are not finite.
    """
    texts = [prompt.text for prompt in prompts]
    completions = sampler.sample(texts, seeds)
    encoded = sampler.encode(texts)
    kl_N, entropy_N = exact_kl(
        policy,
        reference,
        encoded,
        completions,
        micro_batch_size,
        temperature=sampler.temperature,
    )
    if not np.isfinite([*kl_N, *entropy_N]).all():
        raise NotFinite("the policy's logits are not finite numbers at held-out prompts")
    raw = reward.judge(prompts, [completion.text for completion in completions]).raw
    calibrated = reward.in_unit(raw)
    lengths = [len(completion.tokens) for completion in completions]
    rows: dict[str, list[Any]] = {
        "prompt_index": list(range(len(prompts))),
        "completion": [completion.text for completion in completions],
        "score": raw,
        "calibrated": calibrated,
        "kl": kl_N,
        "num_tokens": lengths,
        "stop": [completion.stop for completion in completions],
    }
    kl = max(0.0, float(np.mean(kl_N)))
    summary = {
        "distance": kl**0.5,
        "kl": kl,
        "proxy": float(np.mean(calibrated)),
        "proxy_standard_error": float(np.std(calibrated, ddof=1) / len(calibrated) ** 0.5),
        "raw_score": float(np.mean(raw)),
        "entropy": float(np.sum(entropy_N) / np.sum(lengths)),
        "mean_length": float(np.mean(lengths)),
        "distinct_2": distinct_2([completion.text for completion in completions]),
        "end_fraction": float(np.mean([completion.stop == "end" for completion in completions])),
        "num_prompts": len(prompts),
    }
    return Evaluation(rows, summary)


@torch.no_grad()
def exact_kl(
    policy: Any,
    reference: Reference,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Completion],
    micro_batch_size: int,
    *,
    temperature: float = 1.0,
) -> tuple[list[float], list[float]]:
    """KL(policy‖reference) and entropy of each completion, nats summed over its tokens, from full distributions.

    temperature: what both models' logits are divided by, as when the completions were sampled.
    """
    policy.eval()
    device = next(policy.parameters()).device
    kl_N: list[float] = []
    entropy_N: list[float] = []
    widths = [len(p) + len(c.tokens) for p, c in zip(prompts, completions, strict=True)]
    together = rows_together(micro_batch_size, max(widths, default=1), device.type)
    for part in row_slices(len(prompts), together):
        rows = [
            [*prompt, *completion.tokens]
            for prompt, completion in zip(prompts[part], completions[part], strict=True)
        ]
        tokens_NT, lengths_N = padded(rows)
        first_N = torch.tensor([len(prompt) for prompt in prompts[part]])
        place_NT = torch.arange(tokens_NT.shape[1])[None]
        sampled_NT = (place_NT >= first_N[:, None]) & (place_NT < lengths_N[:, None])
        asked = (tokens_NT.to(device), lengths_N.to(device), sampled_NT.to(device))
        kl_NT, entropy_NT = exact_token_kl(policy, reference, *asked, temperature=temperature)
        kl_N += kl_NT.sum(1).tolist()
        entropy_N += entropy_NT.sum(1).tolist()
    return kl_N, entropy_N


@torch.no_grad()
def exact_token_kl(
    policy: Any,
    reference: Reference,
    tokens_NT: Tensor,
    lengths_N: Tensor,
    sampled_NT: Tensor,
    *,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """KL(policy‖reference) and entropy of the distributions that each sampled token came from, nats, [N, T] each.

    tokens_NT: padded on the right; lengths_N: real tokens; sampled_NT: True at the tokens asked about.
    """
    kl_S, entropy_S = [], []
    asked = tokens_NT, lengths_N, sampled_NT
    policy_parts = begun(logits_in_parts(policy, *asked))
    with reference.asked() as model:
        reference_parts = begun(logits_in_parts(model, *asked))
    for policy_SV, reference_SV in zip(policy_parts, reference_parts, strict=True):
        kl_S.append(kl_exact(policy_SV / temperature, reference_SV / temperature))
        entropy_S.append(entropy(policy_SV / temperature))
    blank_NT = torch.zeros(sampled_NT.shape, device=tokens_NT.device)
    return (
        blank_NT.masked_scatter(sampled_NT, torch.cat(kl_S)),
        blank_NT.masked_scatter(sampled_NT, torch.cat(entropy_S)),
    )


def begun(parts: Iterator[Tensor]) -> Iterator[Tensor]:
    """The same parts, the first of them computed now, and with it everything that passes through the layers."""
    return chain([next(parts)], parts)


def distinct_2(texts: Sequence[str]) -> float:
    """Share of different word pairs among all word pairs of the texts, pooled; 0 if there are none.

    >>> distinct_2(["the the the"])
    0.5
    """
    pairs = [pair for text in texts for pair in zip(text.split(), text.split()[1:], strict=False)]
    return len(set(pairs)) / len(pairs) if pairs else 0.0
