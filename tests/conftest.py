"""Shared by all tests: one thread each where several run at once, no hub, and where the real data lies."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def tiny_llama() -> Callable[..., Any]:
    """(tokenizer, max_position): a Llama of one layer that reads the tokenizer's ids; the same weights every time."""

    def build(tokenizer: Any, max_position: int = 48) -> Any:
        from crestline.models.load import new_llama

        return new_llama(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_layers=1,
            num_heads=2,
            intermediate_size=24,
            max_position=max_position,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            seed=0,
        )

    return build
