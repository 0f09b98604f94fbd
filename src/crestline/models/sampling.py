"""Opens the sampler that is asked for. Owns the choice alone."""

from __future__ import annotations

from typing import Any

import torch

from crestline.models.sampler import PolicySampler
from crestline.models.vllm_engine import VllmSampler
from crestline.types import Sampler


def open_sampler(
    model: Any,
    tokenizer: Any,
    *,
    sampler: str = "auto",
    max_completion_length: int,
    temperature: float = 1.0,
    dtype: torch.dtype | None = None,
) -> Sampler:
    """A sampler of the policy: "auto", "ours", "transformers" or "vllm".

    dtype: of products; None leaves ours the choice, and is the weights' own for the others.
    auto: ours where it computes the model exactly, else transformers' forward pass. Raises BadInput where the one that
    is named cannot serve.
    """
    if sampler == "vllm":
        return VllmSampler(
            model,
            tokenizer,
            max_completion_length=max_completion_length,
            temperature=temperature,
            dtype=dtype,
        )
    return PolicySampler(
        model,
        tokenizer,
        max_completion_length=max_completion_length,
        temperature=temperature,
        engine=sampler,
        dtype=dtype,
    )
