"""A reward that costs nothing to compute, in TRL's contract, for both sides of bench/rl_step.py."""

from __future__ import annotations

from typing import Any


def share_of_vowels(
    prompts: list[str], completions: list[str], **columns: Any
) -> list[float | None]:
    """How many of a completion's characters are vowels, in [0, 1]."""
    return [sum(text.count(v) for v in "aeiou") / max(1, len(text)) for text in completions]
