"""How many tokens rows have, told from some of them, before any model is loaded. Torch-free.

Owns the counting. Knows nothing of what is done with them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from crestline.types import PromptText

ROWS_LOOKED_AT = 400
"""Rows of a data set whose tokens are counted."""
CHARACTERS_PER_TOKEN = 3.0
"""Where no tokenizer is at hand."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of rows: mean, standard deviation, and the longest row."""

    mean: float
    deviation: float
    longest: int

    def together(self, rows: int) -> int:
        """Tokens of so many rows that are drawn at random, in nearly every draw.

        >>> Lengths(10.0, 2.0, 15).together(100), Lengths(10.0, 2.0, 15).together(1)
        (1060, 15)
        """
        usual = rows * self.mean + 3 * self.deviation * math.sqrt(rows)
        return round(min(float(rows * self.longest), usual))

    def cut(self, most: int) -> Lengths:
        """At most so many tokens."""
        return Lengths(min(self.mean, most), self.deviation, min(self.longest, most))


def lengths_of(texts: Sequence[str], model: str = "") -> Lengths:
    """Of texts, by the tokenizer in a model's folder; by their characters where it has none that is read at once."""
    step = max(1, len(texts) // ROWS_LOOKED_AT)
    some = texts[::step]
    try:
        tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
        counts = [len(row.ids) for row in tokenizer.encode_batch(some, add_special_tokens=False)]
    except Exception:  # the package raises its own kind for a missing and for a broken file
        counts = [round(len(text) / CHARACTERS_PER_TOKEN) for text in some]
    found = np.array(counts or [0], dtype=np.float64) + 2  # begin and end
    return Lengths(float(found.mean()), float(found.std()), int(found.max()))


def plain_text(prompt: PromptText) -> str:
    """A prompt as one text; a chat with room for its template."""
    if isinstance(prompt, str):
        return prompt
    return "".join(f"<|{message['role']}|>\n{message['content']}\n" for message in prompt)
