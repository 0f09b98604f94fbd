"""The scale of a reward model: raw scores as probabilities. Knows nothing of models and of how it was fitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Calibration:
    """score = sigmoid((raw - mean) / temperature): the probability that a person prefers this to a typical answer
    of the reference. mean and temperature in raw units.

    >>> Calibration(mean=1.0, temperature=2.0).score(1.0)
    0.5
    """

    mean: float = 0.0
    temperature: float = 1.0

    def score(self, raw: float) -> float:
        """A raw score as a number in [0, 1]."""
        return float(1 / (1 + np.exp(-np.clip(self.log_odds(raw), -60, 60))))

    def log_odds(self, raw: Any) -> Any:
        """(raw - mean) / temperature of a number or an array: 0 for a typical answer."""
        return (raw - self.mean) / self.temperature

    @classmethod
    def stored(cls, found: Mapping[str, Any]) -> Calibration:
        """From what a folder says; a folder that says nothing is uncalibrated."""
        return cls(float(found.get("mean", 0.0)), float(found.get("temperature", 1.0)))
