"""Settings of the watch; without numpy, so that flags are parsed at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WatchConfig:
    """How many labels the watch may spend, and how sure it must be."""

    num_labels: int = 1000
    """duels that may be asked in all; a duel that was not ranked counts too"""

    first_share: float = 0.25
    """part of the labels spread evenly over all checkpoints before the rest goes to the peak"""

    last_share: float = 0.2
    """part of each later batch given to the last checkpoint while a decline is in doubt"""

    confirm_share: float = 0.2
    """part of the labels kept for the checkpoint that is about to ship"""

    num_duels_per_batch: int = 40
    """duels asked at once; fewer follow the answers more closely"""

    confidence: float = 0.95
    """probability needed to say that the run peaked, and that it beats the reference"""

    min_duels: int = 30
    """ranked duels near the supposed peak, below which the verdict is not_measured"""

    watch_seed: int = 0
    """seed of which duels are asked"""

    def __post_init__(self) -> None:
        """Raises: ValueError naming the field that is out of range."""
        for name in ("num_labels", "num_duels_per_batch", "min_duels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("first_share", "last_share", "confirm_share"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must lie in [0, 1), not {getattr(self, name)}")
        if self.first_share + self.confirm_share > 1.0:
            raise ValueError("first_share and confirm_share must leave labels to find the peak")
        if self.watch_seed < 0:
            raise ValueError(f"watch_seed must be at least 0, not {self.watch_seed}")
        if not 0.5 < self.confidence < 1.0:
            raise ValueError(f"confidence must lie between 0.5 and 1, not {self.confidence}")
