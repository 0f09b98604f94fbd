"""Changes of settings that may lower the memory that a stage needs. Torch-free.

Owns which flags are worth naming. What each would save is estimated by `memory`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from crestline.training.configs import Optimization, PretrainConfig
from crestline.training.rl_configs import Ppo, RlConfig, Rloo


def changes_of(config: Any) -> Iterator[tuple[str, Any]]:
    """Changes of a config that may lower what it needs, in words, and the changed config."""
    optimization: Optimization = config.optimization
    if optimization.micro_batch_size > 1:
        less = replace(optimization, micro_batch_size=max(1, _rows(config) // 4))
        yield "lower --micro_batch_size", replace(config, optimization=less)
    if not optimization.gradient_checkpointing:
        again = replace(optimization, gradient_checkpointing=True)
        yield "give --gradient_checkpointing", replace(config, optimization=again)
    if hasattr(config, "lora") and not config.lora.use_peft:
        yield "give --use_peft", replace(config, lora=replace(config.lora, use_peft=True))
    for name in ("max_length", "max_completion_length"):
        if getattr(config, name, 0) > 3:
            changed = {name: getattr(config, name) // 2 + 1}
            yield f"lower --{name}", replace(config, **changed)
    if isinstance(config, PretrainConfig) and config.hidden_size % (2 * config.num_heads) == 0:
        yield "lower --hidden_size", replace(config, hidden_size=config.hidden_size // 2)
    if isinstance(config, RlConfig) and isinstance(config.algorithm, Ppo):
        several = max(2, config.num_generations)
        yield "take --algorithm rloo", replace(config, algorithm=Rloo(), num_generations=several)


def _rows(config: Any) -> int:
    """Rows that go through the model together."""
    batch = getattr(config, "batch_size", None) or config.num_prompts * config.num_generations
    return int(min(batch, config.optimization.micro_batch_size))
