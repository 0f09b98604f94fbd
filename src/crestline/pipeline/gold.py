"""The hidden gold of an embedded world, measured after the verdict: nothing before it may know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from crestline.models.load import load_policy, load_tokenizer
from crestline.models.sampler import PolicySampler
from crestline.pipeline.crest import Checkpoints
from crestline.runs.checkpoints import checkpoint_path
from crestline.runs.files import write_jsonl_atomic
from crestline.training.seeds import stream
from crestline.types import BadInput, Progress, PromptText, silent

Gold = Callable[[PromptText, str], float]


def golds_of(
    checkpoints: Checkpoints,
    gold: Gold,
    *,
    num_completions: int,
    seed: int,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[int, np.ndarray[Any, np.dtype[np.float64]]]:
    """Gold of num_completions fresh completions for each checkpoint: {update: [num_completions]}, in [0, 1].

    The same prompts, in rotation, and the same random streams for every checkpoint.
    """
    settings = checkpoints.settings
    prompts = [checkpoints.prompts[n % len(checkpoints.prompts)] for n in range(num_completions)]
    seeds = [stream(seed, "gold", n) for n in range(num_completions)]
    found = {}
    for number, update in enumerate(checkpoints.updates, 1):
        folder = checkpoint_path(checkpoints.path, update)
        sampler = PolicySampler(
            load_policy(folder, device=device),
            load_tokenizer(folder),
            max_completion_length=settings["max_completion_length"],
            temperature=settings["temperature"],
        )
        completions = sampler.sample(prompts, seeds)
        values = [gold(p, c.text) for p, c in zip(prompts, completions, strict=True)]
        found[update] = np.array(values)
        progress(number, len(checkpoints.updates), {})
    return found


def write_gold(
    run_dir: Path,
    checkpoints: Checkpoints,
    gold: Gold,
    *,
    num_completions: int,
    seed: int,
    device: str,
    progress: Progress,
) -> Path:
    """Write gold.jsonl. Raises BadInput if there is no verdict yet: gold must not be known before it."""
    if not (run_dir / "verdict.json").is_file():
        raise BadInput(f"{run_dir} has no verdict yet; gold is measured after it, never before")
    found = golds_of(
        checkpoints,
        gold,
        num_completions=num_completions,
        seed=seed,
        device=device,
        progress=progress,
    )
    rows: list[dict[str, Any]] = [
        {"reference_standard_deviation": float(found[0].std(ddof=1))},
        *(
            {
                "update": update,
                "gold": float(values.mean()),
                "gold_standard_error": float(values.std(ddof=1) / len(values) ** 0.5),
                "num_completions": len(values),
            }
            for update, values in found.items()
        ),
    ]
    path = run_dir / "gold.jsonl"
    write_jsonl_atomic(path, rows)
    return path
