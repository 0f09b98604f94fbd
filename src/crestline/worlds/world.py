"""What an embedded world must offer. A new world is one file that satisfies `World`.

Owns the protocol. A world knows its gold; only `pipeline`, `cli` and `bench` may import worlds.
"""

from __future__ import annotations

from typing import Protocol

from crestline.people.simulated import SimulatedPeople
from crestline.types import Demonstration, PromptText


class World(Protocol):
    """Text to pretrain on, demonstrations, prompts, and people built from a hidden gold."""

    name: str

    def texts(self, count: int, seed: int) -> list[str]:
        """Documents to pretrain on."""
        ...

    def demonstrations(self, count: int, seed: int) -> list[Demonstration]:
        """Prompts with completions of varied quality, as people would write them."""
        ...

    def prompts(self, split: str, count: int, seed: int) -> list[PromptText]:
        """Prompts of a split, "train" or "heldout"; no prompt stands in both."""
        ...

    def gold(self, prompt: PromptText, completion: str) -> float:
        """What people would truly say of the completion, in [0, 1]. Raises KeyError off-world."""
        ...

    def people(self, seed: int, *, flip_probability: float) -> SimulatedPeople:
        """A crowd: gold, personas and noise."""
        ...
