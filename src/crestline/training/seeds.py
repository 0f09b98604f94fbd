"""Every random choice is a function of the run's seed and of what it is for: resume needs no generator state."""

from __future__ import annotations

import hashlib

import numpy as np


def stream(seed: int, *names: object) -> int:
    """A seed in [0, 2**63) for one purpose; the same arguments give the same number on every machine.

    >>> stream(0, "rl", 1) == stream(0, "rl", 1) != stream(0, "rl", 2)
    True
    """
    text = "/".join(str(name) for name in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class Shuffled:
    """Row numbers 0 … count - 1 in a new order every epoch, readable from any position."""

    def __init__(self, count: int, seed: int) -> None:
        if count < 1:
            raise ValueError("nothing to shuffle")
        self.count, self.seed = count, seed
        self._epoch, self._order = -1, np.arange(0)

    def rows(self, start: int, number: int) -> list[int]:
        """The rows at positions start … start + number - 1 of the endless sequence."""
        return [self._row(position) for position in range(start, start + number)]

    def _row(self, position: int) -> int:
        epoch, place = divmod(position, self.count)
        if epoch != self._epoch:
            generator = np.random.default_rng(stream(self.seed, "epoch", epoch))
            self._epoch, self._order = epoch, generator.permutation(self.count)
        return int(self._order[place])
