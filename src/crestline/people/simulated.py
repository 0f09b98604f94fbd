"""Simulated people: personas and noise around any scoring function.

Owns how a simulated person answers. Knows nothing of worlds: the gold comes in as a function.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from crestline.types import AnsweredBy, BadInput, PromptText

Aspects = Callable[[PromptText, str], Mapping[str, float]]


class SimulatedPeople:
    """A crowd whose members share a gold and differ by persona and noise.

    gold: (prompt, completion) -> [0, 1]; raises KeyError for a prompt that is not its world's.
    aspects: (prompt, completion) -> named qualities in about [0, 1]; a persona weighs them a little differently.
    flip_probability: chance in [0, 0.5] that a comparison comes out the wrong way round by carelessness.
        A careless person (probability 2 · flip) answers in a random order, which flips half of the pairs.
    noise: standard deviation of the momentary taste, in gold units.
    shared_bias: weight per aspect that everybody shares but gold does not know ({"length": 0.3}: they like it
        long). Ensembles can't see it.
    """

    answered_by: AnsweredBy = "simulated people"

    def __init__(
        self,
        gold: Callable[[PromptText, str], float],
        aspects: Aspects,
        *,
        seed: int,
        num_people: int = 50,
        flip_probability: float = 0.1,
        noise: float = 0.05,
        persona_spread: float = 0.1,
        shared_bias: Mapping[str, float] | None = None,
        description: str = "simulated people",
    ) -> None:
        if not 0 <= flip_probability <= 0.5:
            raise ValueError(f"flip_probability must be in [0, 0.5], got {flip_probability}")
        self.gold, self.aspects, self.seed = gold, aspects, seed
        self.num_people, self.flip_probability = num_people, flip_probability
        self.noise, self.persona_spread = noise, persona_spread
        self.shared_bias = dict(shared_bias or {})
        self.description = description

    def rank(
        self, prompt: PromptText, completions: Sequence[str], **columns: Any
    ) -> list[float | None]:
        """Values of the completions as one person of the crowd sees them.

        columns["question_id"] names the question: the same question gets the same person and the same answer.
        """
        question = str(columns.get("question_id", ""))
        asked = json.dumps([self.seed, question, prompt, list(completions)], ensure_ascii=False)
        stream = random.Random(int.from_bytes(hashlib.sha256(asked.encode()).digest()[:8], "big"))
        person = random.Random(stream.randrange(self.num_people) * 1_000_003 + self.seed)
        careless = stream.random() < 2 * self.flip_probability
        try:
            qualities = [
                (self.gold(prompt, text), self.aspects(prompt, text)) for text in completions
            ]
        except KeyError as error:
            raise BadInput(
                f"nobody knows what is good here: {error.args[0]!r} is not of the simulated people's world; "
                "give --people module.py:function"
            ) from None
        names = sorted(qualities[0][1]) if qualities else []
        persona = {name: person.gauss(0, self.persona_spread) for name in names}
        values: list[float | None] = []
        for gold, aspects in qualities:
            taste = sum((persona[n] + self.shared_bias.get(n, 0.0)) * aspects[n] for n in names)
            values.append(gold + taste + stream.gauss(0, self.noise))
        if careless:
            return [stream.random() for _ in completions]
        assert all(value is not None and math.isfinite(value) for value in values)
        return values
