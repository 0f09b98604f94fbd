"""A reward model as the queue needs it: texts become rows of tokens, rows become scores.

Owns the two steps between a request and the model. Knows nothing of HTTP and of waiting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from crestline.models.calibration import Calibration
from crestline.models.load import first_line
from crestline.models.reward import RewardEnsemble, RewardModel
from crestline.serve.requests import Refused, Texts
from crestline.types import BadInput, PromptText


class Row(Protocol):
    """A text as the model reads it; only the model that made it looks inside."""

    @property
    def num_tokens(self) -> int: ...

    @property
    def is_truncated(self) -> bool: ...


class Scoring(Protocol):
    """What a reward model and an ensemble have in common."""

    calibration: Calibration

    @property
    def num_members(self) -> int: ...

    def rows(self, prompts: Sequence[PromptText], completions: Sequence[str]) -> Sequence[Row]: ...

    def members_of_rows(self, rows: Sequence[Any]) -> NDArray[np.float64]: ...

    def aggregated(self, members_NM: NDArray[np.float64]) -> NDArray[np.float64]: ...


@dataclass(frozen=True, slots=True)
class Scored:
    """score: raw. calibrated: in [0, 1]. spread: standard deviation over the members of an ensemble, else 0."""

    score: float
    calibrated: float
    spread: float


class TextScorer:
    """The two steps: `rows` in any one thread, `score` in another."""

    def __init__(self, reward_model: RewardModel | RewardEnsemble) -> None:
        self._reward_model: Scoring = reward_model
        self.num_members, self.max_length = reward_model.num_members, reward_model.max_length
        self.query_start = start_of(reward_model)
        several = f", {self.num_members} members, {reward_model.aggregate} of their scores"
        several = several if self.num_members > 1 else ""
        self.description = f"at most {self.max_length} tokens a text{several}"

    def rows(self, texts: Texts) -> Sequence[Row]:
        """The texts as the model reads them. Raises Refused (422) for a chat that its template does not take."""
        try:
            return self._reward_model.rows(texts.prompts, texts.completions)
        except Exception:  # a chat template may raise anything; which text was it?
            for n, (prompt, completion) in enumerate(
                zip(texts.prompts, texts.completions, strict=True)
            ):
                try:
                    self._reward_model.rows([prompt], [completion])
                except BadInput as error:
                    raise Refused(422, f"prompts[{n}]: {error}") from None
                except Exception as error:
                    line = (
                        f"prompts[{n}] does not fit the model's chat template: {first_line(error)}"
                    )
                    raise Refused(422, line) from None
            raise

    def score(self, rows: Sequence[Row]) -> list[Scored]:
        """The scores of rows, as one batch. Raises ArithmeticError if one is no finite number."""
        members_NM = self._reward_model.members_of_rows(rows)
        scores = self._reward_model.aggregated(members_NM).tolist()
        if not np.isfinite(scores).all():
            raise ArithmeticError(f"the model's score is {next(s for s in scores if s - s != 0)}")
        calibration = self._reward_model.calibration
        return [
            Scored(score, calibration.score(score), spread)
            for score, spread in zip(scores, members_NM.std(1).tolist(), strict=True)
        ]

    def warm_up(self) -> None:
        """Score something, so that the first request does not wait for what is set up once."""
        self.score(self.rows(Texts(["a"], [" b"])))


def start_of(reward_model: RewardModel | RewardEnsemble) -> str:
    """The text of the token that the tokenizer puts before every text; where a text begins with it, it is cut.

    Empty where it puts none.
    """
    if isinstance(reward_model, RewardEnsemble):
        found = [start_of(m) for m in reward_model.members if isinstance(m, RewardModel)]
        return next(filter(None, found), "")
    tokenizer = reward_model.tokenizer
    ids = tokenizer("")["input_ids"]
    return str(tokenizer.bos_token) if ids and ids[0] == tokenizer.bos_token_id else ""
