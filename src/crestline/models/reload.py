"""A save counts only when a fresh process with plain transformers gives the same scores.

Owns asking that process and comparing. Knows nothing of how folders are written.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crestline.types import BadInput

SCRIPT = Path(__file__).with_name("reload_script.py")
NUM_ROWS = 16
"""Rows that are scored again; they cost little beside starting the process."""
TOLERANCE = 1e-3
"""Largest difference of a score, times 1 + its size: processors round differently, a lost head differs by far more."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """A folder, rows as plain transformers gets them, and the scores that they must have.

    rows: {"text", "add_special_tokens"}, or {"ids"}. base: the base model where the folder is an adapter's.
    """

    folder: Path
    rows: Sequence[dict[str, Any]]
    scores: Sequence[float]
    base: str = ""
    num_hidden_layers: int = 0


def check_reloaded(checks: Sequence[Check]) -> None:
    """Score the rows of all folders in one fresh process. Takes a few seconds.

    Raises BadInput, one line, at the first folder that cannot be loaded or scores differently.
    """
    asked = {
        "threads": torch.get_num_threads(),
        "checks": [
            {
                "folder": str(check.folder),
                "is_adapter": bool(check.base),
                "base": check.base,
                "num_hidden_layers": check.num_hidden_layers,
                "rows": list(check.rows),
            }
            for check in checks
        ],
    }
    hidden = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(
        [sys.executable, "-P", str(SCRIPT)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env={**os.environ, **hidden, "TOKENIZERS_PARALLELISM": "false"},
    )
    try:
        answer = json.loads(ended.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        last = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
        answer = {"error": last}
    if "error" in answer:
        raise BadInput(
            f"plain transformers cannot read the reward model just saved ({answer['error']}); nothing was kept"
        )
    for check, found in zip(checks, answer["scores"], strict=True):
        compare(check, found)


def compare(check: Check, found: Sequence[float]) -> None:
    """Raise BadInput if a score is not what it must be."""
    wanted_N, found_N = np.asarray(check.scores), np.asarray(found)
    off_N = np.abs(found_N - wanted_N) / (1 + np.abs(wanted_N))
    worst = int(np.argmax(np.where(np.isfinite(off_N), off_N, np.inf)))
    if not off_N[worst] <= TOLERANCE:
        raise BadInput(
            "the reward model just saved scores differently in a fresh process "
            f"({found_N[worst]:.4f} in place of {wanted_N[worst]:.4f}); nothing was kept"
        )


def spread_out(num: int) -> list[int]:
    """At most NUM_ROWS places, evenly over `num`."""
    return sorted({int(n) for n in np.linspace(0, num - 1, min(num, NUM_ROWS))}) if num else []
