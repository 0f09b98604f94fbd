"""A reward model as the queue needs it: texts become rows of tokens, rows become scores.

Owns the two steps that stand between a request and the model. Knows nothing of HTTP and of waiting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from crestline.models.reward import RewardModel
from crestline.serve.requests import Texts


@dataclass(frozen=True, slots=True)
class Row:
    """One text as token ids; what was too long lost its front."""

    ids: list[int]
    is_truncated: bool

    @property
    def num_tokens(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Scored:
    """score: raw; calibrated: in [0, 1]; spread: standard deviation over the members of an ensemble."""

    score: float
    calibrated: float
    spread: float


class TextScorer:
    def __init__(self, reward_model: RewardModel) -> None:
        self._reward_model = reward_model
        self.num_members = 1
        self.max_length = reward_model.max_length
        self.description = "a reward model"

    def rows(self, texts: Texts) -> list[Row]:
        rows = []
        for prompt, completion in zip(texts.prompts, texts.completions, strict=True):
            ids = self._reward_model._whole(prompt, completion)
            cut = (
                ids[:1] + ids[len(ids) - self.max_length + 1 :]
                if len(ids) > self.max_length
                else ids
            )
            rows.append(Row(cut, len(ids) > self.max_length))
        return rows

    def score(self, rows: Sequence[Row]) -> list[Scored]:
        width = max(len(row.ids) for row in rows)
        tokens = torch.full((len(rows), width), self._reward_model.tokenizer.pad_token_id)
        seen = torch.zeros(len(rows), width, dtype=torch.long)
        for n, row in enumerate(rows):
            tokens[n, : len(row.ids)] = torch.tensor(row.ids)
            seen[n, : len(row.ids)] = 1
        with torch.inference_mode():
            found = self._reward_model.raw(tokens, seen).float().tolist()
        return [Scored(v, self._reward_model.calibration.score(v), 0.0) for v in found]

    def warm_up(self) -> None:
        self.score(self.rows(Texts([""], ["warm up"])))
